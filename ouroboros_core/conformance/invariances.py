"""What must not change what a model says: later tokens, padding, neighbours; and what null parts leave of it."""

from __future__ import annotations

import torch

from ouroboros_core import checks
from ouroboros_core.build import null_parts
from ouroboros_core.conformance.subject import ROWS, TOKENS, Subject, must_be_same, must_halt_alike
from ouroboros_core.contracts import TURN_SLOTS, LoopFacts
from ouroboros_core.loop import Parts

PADDING = 5  # tokens


@torch.no_grad()
def identity(subject: Subject) -> str:
    """With neutral parts, one turn is the library's forward over the kept layers."""
    made = subject.built()
    null = [_neutral(subject, facts) for facts in made.facts]
    return checks.identity(made.model, null, subject.intact, subject.ids).detail


def _neutral(subject: Subject, facts: LoopFacts) -> Parts:
    """The built-in null parts, and in their place the chosen ones that say they change nothing."""
    parts = null_parts(subject.host, facts)
    for slot in TURN_SLOTS:
        chosen = subject.settings.parts[slot]
        if len(chosen) == 1 and chosen[0].part.null:
            setattr(parts, slot.value, chosen[0].part.build(chosen[0].options, facts))
    return parts


def causality(subject: Subject) -> str:
    """Later tokens move no logit and no number of turns."""
    allowed = subject.settings.run.allow_leak
    return checks.causality(subject.built().model, subject.ids, allowed=allowed).detail


@torch.no_grad()
def padding(subject: Subject) -> str:
    """Padding on either side moves no logit, and no number of turns, of a real token."""
    model, ids = subject.stirred(), subject.ids
    plain, empty = model.trace(ids), ids.new_zeros(ROWS, PADDING)
    real, none = torch.ones_like(ids), torch.zeros_like(empty)
    for side, both, mask, kept in (
        ("left", [empty, ids], [none, real], slice(PADDING, None)),
        ("right", [ids, empty], [real, none], slice(None, TOKENS)),
    ):
        padded, what = model.trace(torch.cat(both, 1), torch.cat(mask, 1)), f"padding on the {side}"
        must_halt_alike(what, plain.taken, padded.taken[:, kept], "the halter looks at padding")
        must_be_same(what, plain.logits(), padded.logits()[:, kept], "a part ignores the mask or the positions")
    return f"{PADDING} tokens of padding, left and right, change nothing"


@torch.no_grad()
def batch(subject: Subject) -> str:
    """A row does not depend on its neighbours, nor on their order."""
    model, ids = subject.stirred(), subject.ids
    together, turned = model.trace(ids), model.trace(ids.flip(0))
    each = [model.trace(row[None]) for row in ids]
    for what, taken, logits in (
        ("reading rows one by one", torch.cat([one.taken for one in each]), torch.cat([one.logits() for one in each])),
        ("turning the batch round", turned.taken.flip(0), turned.logits().flip(0)),
    ):
        must_halt_alike(what, together.taken, taken, "the halter looks at other rows")
        must_be_same(what, together.logits(), logits, "a part mixes the rows of a batch, or knows its row")
    return f"{ROWS} rows, alone, together and in another order, give the same"
