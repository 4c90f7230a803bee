"""Where a loop of a model plays: its block, its reader and its memory, turn by turn, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from ouroboros_core.anatomy import Calls
from ouroboros_core.errors import UserError
from ouroboros_core.few import Going
from ouroboros_core.keys import Keys, Stack, View
from ouroboros_core.loop import Scene, in_order
from ouroboros_core.memory import Sums, SumsOfTurn
from ouroboros_core.ops import STATE, Branches

if TYPE_CHECKING:
    from ouroboros_core.model import RecursiveLM


class LoopStage:
    """A `Stage`.

    Args:
        place: of the loop among the model's segments.
        number: of the loop among the model's loops.
        stops: whether tokens may stop before the last turn.
    """

    def __init__(
        self, model: RecursiveLM, place: int, number: int, calls: Calls, keys: Keys, mask: Tensor, stops: bool
    ) -> None:
        self.model, self.calls = model, calls
        self.segment, self.sites, self.taps = model.split.segments[place], model.sites[number], model.taps[number]
        self.stack = Stack(keys, partial(keys.slots.of_segment, place), stops)
        self.sums = Sums(keys.cache, number, mask, stops)
        self.probe = Probe(model, place, keys, stops)

    def scene(self, turn: int, going: Going) -> Scene:
        """The block, reader and memory of a turn, for the tokens that it computes."""
        calls, views = self.calls.only(going.few) if going.few else self.calls, self.stack.views(turn, going)
        layers = [
            calls(self.model.layer(i), i, Branches(self.sites, place), views[place])
            for place, i in enumerate(self.segment.layers)
        ]
        return Scene(
            in_order([self.sites[STATE], self._lowered, *layers]),
            AsIfEnded(self.probe, turn, going, calls, self.probe.said),
            SumsOfTurn(self.sums, turn, going),
        )

    def _lowered(self, x: Tensor) -> Tensor:
        return x.to(self.model.dtype)  # the state may be kept in float32

    def skip(self, turn: int) -> None:
        """Leave for later tokens what they will look for at a turn that no token took."""
        for kept in (self.stack, self.sums, self.probe.stack):
            kept.skip(turn)


class Probe:
    """Asks, after each turn, what the model would say if the loop ended; the coda keeps keys of its own for that."""

    def __init__(self, model: RecursiveLM, place: int, keys: Keys, stops: bool) -> None:
        self.model, self.keys = model, keys
        self.last = not any(segment.looped for segment in model.split.segments[place + 1 :])
        self.stack = Stack(keys, keys.slots.of_probe, stops)
        self.said: Tensor | None = None  # (B, T, V) at the latest turn

    def logits(self, state: Tensor, turn: int, going: Going, calls: Calls) -> Tensor:
        """(B, T, D) -> (B, T, V).

        Raises:
            UserError: another loop follows, so that no state of this one is ever read; or decoding keeps no room.
        """
        if not self.last:
            raise UserError(
                "a part reads the logits of a loop that another loop follows, and only the last loop has any: choose "
                "a splitter with one loop, or a halter that reads states"
            )
        if self.keys.cache is not None and not self.keys.slots.probed:
            raise UserError("a halter reads logits, and its Part does not say so: give it reads_logits=True")
        if self.keys.cache is not None and turn == self.keys.slots.turns - 1:
            raise UserError("a halter reads logits after the last turn, which nothing follows: ask unless turn.last")
        hidden = behind(self.model, state, calls, self.stack.views(turn, going))
        logits = F.linear(hidden, self.model.head.weight)
        self.said = going.kept(self.said, logits)
        return logits


@dataclass(frozen=True)
class AsIfEnded:
    """A `Reader` of one turn."""

    probe: Probe
    turn: int
    going: Going
    calls: Calls
    said: Tensor | None  # (B, T, V) before this turn

    @property
    def before(self) -> Tensor | None:
        """What `logits` answered at the turn before. (B, T, V)."""
        return self.said if self.said is None or not self.going.few else self.going.few.take(self.said)

    def normed(self, state: Tensor) -> Tensor:
        """The base's final norm. (B, T, D) -> (B, T, D)."""
        return self.probe.model.finish(state.to(self.probe.model.dtype)).to(state.dtype)

    def logits(self, state: Tensor) -> Tensor:
        """Coda, final norm and head. (B, T, D) -> (B, T, V)."""
        return self.probe.logits(state, self.turn, self.going, self.calls)


def through(
    model: RecursiveLM, layers: Sequence[int], state: Tensor, calls: Calls, views: Sequence[View | None]
) -> Tensor:  # fmt: skip
    """Layers that run once. `views` are of the cache; none where there is no cache. (B, T, D) -> (B, T, D)."""
    views = views or [None] * len(layers)
    called = [calls(model.layer(i), i, cache=view) for i, view in zip(layers, views, strict=True)]
    return in_order(called)(state)


def behind(model: RecursiveLM, state: Tensor, calls: Calls, views: Sequence[View | None]) -> Tensor:
    """What the head would get if the last loop ended with this state. (B, T, D) -> (B, T, D)."""
    read: Tensor = model.loops[-1].read(state).to(model.dtype)  # type: ignore[operator]
    return model.finish(through(model, model.split.coda, read, calls, views))
