"""The checks of decoding: each is proved by planted defects that it must catch, and what is sound passes."""

import re

import pytest
import torch
from torch import nn

from ouroboros_core.conformance import conformance
from ouroboros_core.conformance.decoding import CANNOT
from ouroboros_core.contracts import Halt, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.ops import Add
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_config
from tests.core.planted import Defect, gate, halter, norm
from tests.core.test_conformance import offering

BOTH = ["cached", "gathered"]


def pooled_by_itself(state, turn):
    """A running mean over the tokens that are there."""
    mean = state.cumsum(1) / torch.arange(1, state.shape[1] + 1)[:, None]
    return {"state": [Add(0.1 * mean)]}


def pooled(state, turn):
    """A running mean over all tokens, as it should be."""
    mean = turn.memory.summed("mine", state) / (turn.positions + 1)[..., None]
    return {"state": [Add(0.1 * mean)]}


def pooled_at(turns):
    """A memory that is asked at these turns only."""
    return lambda state, turn: pooled(state, turn) if turn.index in turns else {}


def waves(places):
    """Something of a token's place. -> (..., 128)."""
    return 0.1 * torch.sin(places[..., None] * torch.linspace(0, 1, 128))


class Starts(nn.Module):
    """An entry that starts from noise of each token's place."""

    def __init__(self, places):
        super().__init__()
        self.places = places

    def start(self, prelude, turn):
        noise = torch.randn(64, prelude.shape[-1], generator=torch.Generator().manual_seed(turn.seed))
        return prelude + 0.1 * noise[self.places(turn)]

    def inject(self, state, prelude, turn):
        return state


class Remembers(nn.Module):
    """A gate that keeps the first turn's states by itself."""

    def forward(self, old, new, turn):
        if turn.index == 0:
            self.first = old
        return new + 0.1 * self.first


class Asks(nn.Module):
    """A halter that asks what would be read."""

    adaptive, weighted = True, False

    def __init__(self, unless_last):
        super().__init__()
        self.unless_last = unless_last

    def forward(self, old, new, turn):
        if not (self.unless_last and turn.last):
            turn.reader.logits(new)
        return Halt(by_position(old, new, turn))


def by_position(old, new, turn):
    """Stops at turns 1 to 4."""
    return turn.positions % 4 <= turn.index


def places(turn):
    """Of the tokens that are there, whatever came before them."""
    return torch.arange(turn.mask.shape[1]).expand(turn.mask.shape)


ALONG = "a part looks along the sequence without turn.memory, or counts tokens in place of turn.positions"
PIECES, GATHERED = r"decoding with a cache, tokens stopping .*, ", r"leaving out tokens that have stopped, .*, "
MOVES = rf"moves logits by .*: {ALONG}"
TURNS = "changes how many turns a token takes by .*: the halter, or a part before it, looks along the sequence"
DEFECTS = {
    "a pool over the tokens that are there": Defect(
        Slot.MODULATOR, norm(pooled_by_itself), {"cached": PIECES + MOVES, "gathered": GATHERED + MOVES}),
    "positions counted from the first token that is there": Defect(
        Slot.NORM, norm(lambda state, turn: state + waves(places(turn))),
        {"cached": PIECES + MOVES, "gathered": GATHERED + MOVES}),
    "a norm over all tokens that are there": Defect(
        Slot.NORM, norm(lambda state, turn: state / state.std()),
        {"cached": PIECES + MOVES, "gathered": GATHERED + MOVES}),
    "a halter that counts the tokens": Defect(
        Slot.HALTER, halter(lambda old, new, turn: turn.positions % 3 + (turn.mask.shape[1] > 6) <= turn.index),
        {"cached": PIECES + TURNS}),
    "a halter that counts the tokens that go on": Defect(
        Slot.HALTER, halter(lambda old, new, turn: turn.positions % 3 + (turn.mask.shape[1] > 20) <= turn.index),
        {"cached": PIECES + TURNS, "gathered": GATHERED + TURNS}),
    "shares that count the tokens": Defect(
        Slot.HALTER, halter(by_position, lambda new, turn: torch.full(turn.mask.shape, 1 / turn.mask.shape[1])),
        {"gathered": GATHERED + "moves shares by .*: the halter, or a part before it, looks along the sequence"},
        {"gives_shares": True}),
    "noise drawn by the place in the piece": Defect(
        Slot.ENTRY, lambda facts: Starts(places), {"cached": PIECES + MOVES}),
    "states kept by the part itself": Defect(
        Slot.GATE, lambda facts: Remembers(), dict.fromkeys(BOTH, "a part breaks off: RuntimeError")),
    "a gate that knows how many rows there are": Defect(
        Slot.GATE, gate(lambda old, new, turn: new * len(new)),
        {"cached": PIECES + MOVES, "gathered": GATHERED + MOVES}),
    "a halter that reads logits and does not say so": Defect(
        Slot.HALTER, lambda facts: Asks(unless_last=True), {"cached": "a halter reads logits, and its Part does not"}),
    "a halter that reads logits after the last turn": Defect(
        Slot.HALTER, lambda facts: Asks(unless_last=False),
        {"cached": "a halter reads logits after the last turn"}, {"reads_logits": True}),
}  # fmt: skip
SOUND = {
    "a pool over all tokens": Defect(Slot.MODULATOR, norm(pooled), {}),
    "a pool at the first turns": Defect(Slot.MODULATOR, norm(pooled_at([0, 1])), {}),
    "positions": Defect(Slot.NORM, norm(lambda state, turn: state + waves(turn.positions)), {}),
    "a norm over a token's own values": Defect(Slot.NORM, norm(lambda s, turn: s / s.std(-1, keepdim=True)), {}),
    "noise drawn by position": Defect(Slot.ENTRY, lambda facts: Starts(lambda turn: turn.positions), {}),
    "a halter that reads logits and says so": Defect(
        Slot.HALTER, lambda facts: Asks(unless_last=True), {}, {"reads_logits": True}),
}  # fmt: skip


@pytest.mark.parametrize("part", [*DEFECTS.values(), *SOUND.values()], ids=[*DEFECTS, *SOUND])
def test_a_part_is_caught_by_name_or_passes(part):
    host, settings = offering(part)
    for result in conformance(settings, host, BOTH, tiny_config()):
        words = part.caught.get(result.name)
        assert result.passed == (words is None), (result.name, result.detail)
        assert words is None or re.search(words, result.detail), result.detail


@pytest.mark.parametrize("name", BOTH)
def test_a_memory_that_is_first_asked_at_a_later_turn_is_refused(name):
    host, settings = offering(Defect(Slot.MODULATOR, norm(pooled_at([1, 3])), {}))
    with pytest.raises(UserError, match=r"a part asks for .* sums at a turn, and did not at the turn before"):
        conformance(settings, host, [name], tiny_config())


@pytest.mark.parametrize("name", BOTH)
def test_a_defect_proves_each_of_them(name):
    assert any(name in defect.caught for defect in DEFECTS.values())


def test_a_model_whose_tokens_see_later_ones_is_said_not_to_decode(host):
    paper = [host.preset("ouroboros-paper").settings, {"modulator": {"rank": 4}, "run": {"allow_leak": True}}]
    for result in conformance(resolve(host, paper), host, BOTH, tiny_config(9)):
        assert result.passed
        assert result.detail == CANNOT
        assert "\n" not in CANNOT


def test_what_passes_tells_what_was_tried(host):
    settings = resolve(host, [{"modulator": {"rank": 4}, "halter": {"use": "act", "unit": "linear", "bias": 0.0}}])
    pieces, few = conformance(settings, host, BOTH, tiny_config())
    assert pieces.detail == "7, 5, 4 tokens at once and 8 one by one are read as all at once"
    own, forced = map(float, re.findall(r"(\d\.\d\d) turns", few.detail))
    assert 1 < own < 4
    assert 2 < forced < 3  # from 1 to 4, by position
