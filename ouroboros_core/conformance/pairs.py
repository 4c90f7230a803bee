"""Combinations of parts: all of them, or so many that every two parts meet, each put to the checks.

That every pair occurs finds what two parts do to each other, in about as many rows as the two largest slots have
pairs; what only three parts together do, it may miss (Cohen 1997, the greedy way of AETG).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from ouroboros_core.conformance import conformance
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost, qualified
from ouroboros_core.reporting import CheckResult
from ouroboros_core.settings import Choice, Settings

Row = Mapping[Slot, Choice]


@dataclass(frozen=True)
class Outcome:
    """What became of one combination: refused, or checked."""

    parts: Mapping[str, str]  # the name of the part of each slot, companions too
    refused: str = ""  # why, in one line
    checks: Sequence[CheckResult] = ()

    @property
    def failed(self) -> list[CheckResult]:
        """The checks that it did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def verdict(self) -> str:
        """In a word."""
        return "refused" if self.refused else "failed" if self.failed else "ok"


def covering(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of one number below each size, such that any two numbers of any two places meet in some row.

    Each row starts from a pair that has not met, and takes in every other place the number that meets most. The same
    rows at every call.
    """
    apart = {
        frozenset([(a, one), (b, other)])
        for a, b in combinations(range(len(sizes)), 2)
        for one, other in product(range(sizes[a]), range(sizes[b]))
    }
    rows = []
    while apart:
        row = dict(min(map(sorted, apart)))
        for place in sorted(set(range(len(sizes))) - set(row)):
            meets = [sum(frozenset([(place, n), met]) in apart for met in row.items()) for n in range(sizes[place])]
            row[place] = meets.index(max(meets))
        apart -= set(map(frozenset, combinations(row.items(), 2)))
        rows.append(tuple(row[place] for place in range(len(sizes))))
    return rows


def rows(settings: Settings, host: PluginHost, slots: Sequence[str], *, every: bool) -> list[Row]:
    """All combinations of the parts of these slots, or only so many that every two parts meet.

    Parts are at their default options, but for those that the settings choose, which keep theirs.

    Raises:
        UserError: no slot is called so; or fewer than two are named, or one twice.
    """
    if unknown := [name for name in slots if name not in list(Slot)]:
        raise UserError(f"no slot is called '{unknown[0]}'. Slots: {', '.join(Slot)}")
    if len(slots) < 2 or len(set(slots)) < len(slots):
        raise UserError(f"combinations of {', '.join(slots)}: name two slots or more, each once, as modulator,gate")
    offers = [_offers(settings, host, Slot(slot)) for slot in slots]
    sizes = [len(offer) for offer in offers]
    numbers = product(*map(range, sizes)) if every else covering(sizes)
    return [{Slot(slot): offer[n] for slot, offer, n in zip(slots, offers, row, strict=True)} for row in numbers]


def tried(settings: Settings, host: PluginHost, row: Row, only: Sequence[str] = (), config: Any = None) -> Outcome:
    """Put one combination to the checks, with what its parts cannot do without.

    Args:
        only: the names of some checks; none: all of them.
        config: of the base, in transformers' form, where it is not to be looked for.
    """
    combined = accompanied(settings, host, row)
    told = [slot for slot in Slot if slot in row or combined.parts[slot] != settings.parts[slot]]
    names = {slot.value: ", ".join(choice.name for choice in combined.parts[slot]) for slot in told}
    try:
        return Outcome(names, checks=conformance(combined, host, only, config))
    except UserError as refusal:
        return Outcome(names, refused=str(refusal))


def accompanied(settings: Settings, host: PluginHost, row: Row) -> Settings:
    """The settings with this combination, and in other slots with what it cannot do without.

    A halter that only an objective teaches gets one that reads shares; an objective that reads shares stands beside
    the default one, which reads the text, and gets a halter that gives them.
    """
    parts = {**settings.parts, **{slot: (choice,) for slot, choice in row.items()}}
    (halter,) = parts[Slot.HALTER]
    if halter.part.read_by_objective and Slot.OBJECTIVE not in row and not _reading(parts[Slot.OBJECTIVE]):
        parts[Slot.OBJECTIVE] += (_first(host, Slot.OBJECTIVE, lambda part: part.needs_shares),)
    if (reading := _reading(parts[Slot.OBJECTIVE])) == parts[Slot.OBJECTIVE]:
        parts[Slot.OBJECTIVE] = (_first(host, Slot.OBJECTIVE, lambda part: part.default), *reading)
    if reading and not halter.part.gives_shares and Slot.HALTER not in row:
        parts[Slot.HALTER] = (_first(host, Slot.HALTER, lambda part: part.gives_shares),)
    return replace(settings, parts=parts)


def _reading(objectives: tuple[Choice, ...]) -> tuple[Choice, ...]:
    return tuple(choice for choice in objectives if choice.part.needs_shares)


def _first(host: PluginHost, slot: Slot, wanted: Callable[[Part], bool]) -> Choice:
    return next(Choice(part.name, part, part.options()) for _, part in host.parts(slot) if wanted(part))


def _offers(settings: Settings, host: PluginHost, slot: Slot) -> list[Choice]:
    chosen = {id(choice.part): choice for choice in settings.parts[slot]}
    named = [(part.name if record.builtin else qualified(record, part), part) for record, part in host.parts(slot)]
    return [chosen.get(id(part)) or Choice(name, part, part.options()) for name, part in named]
