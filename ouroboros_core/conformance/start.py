"""What must hold before the first step: a part that promises to start as nothing starts as nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from ouroboros_core.conformance.subject import Subject, must_be_same, must_halt_alike
from ouroboros_core.contracts import TURN_SLOTS, Slot
from ouroboros_core.model import RecursiveLM
from ouroboros_core.settings import Choice

SLOTS = (*TURN_SLOTS, Slot.ADAPTER)


@torch.no_grad()
def start(subject: Subject) -> str:
    """A part that promises it gives, before it is trained, what the null part of its slot gives in its place."""
    promised = [(slot, choice) for slot in SLOTS for choice in subject.settings.parts[slot] if promises(choice)]
    if not promised:
        return "no part promises to start as nothing"
    whole = subject.built().model.trace(subject.ids)
    for slot, choice in promised:
        without, what = nulled(subject, slot, choice).trace(subject.ids), f"{slot} '{choice.name}' at its start"
        cause = "it promises to start as nothing (starts_null)"
        must_halt_alike(what, without.taken, whole.taken, cause)
        must_be_same(what, without.logits(), whole.logits(), cause)
    return f"{', '.join(f'{slot} {choice.name}' for slot, choice in promised)}: as if it were not there"


def promises(choice: Choice) -> bool:
    """Whether the part, so configured, says that it starts as nothing."""
    said = choice.part.starts_null
    return said if isinstance(said, bool) else said(choice.options)


def nulled(subject: Subject, slot: Slot, choice: Choice) -> RecursiveLM:
    """The model as built, but for one part, in whose place is the null part of its slot."""
    null, place = subject.host.null(slot), subject.settings.parts[slot].index(choice)
    if slot == Slot.ADAPTER:  # what is built before it draws the same without it
        others = [other for other in subject.settings.parts[slot] if other is not choice]
        kept = tuple(others) or (Choice(null.name, null, null.options()),)
        settings = replace(subject.settings, parts={**subject.settings.parts, slot: kept})
        return replace(subject, settings=settings).built().model
    made = subject.built()
    for parts, facts in zip(made.model.loops, made.facts, strict=True):
        nothing = null.build(null.options(), facts)
        if len(subject.settings.parts[slot]) > 1:
            getattr(parts, slot.value).modulators[place] = nothing
        else:
            setattr(parts, slot.value, nothing)
    return made.model
