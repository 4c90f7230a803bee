"""Keys and values: which slot of the library's cache each turn of each layer uses, and what stopped tokens leave there.

A layer sees the cache through a small view. The rule for tokens that have stopped: later turns, and later tokens, see
them with the keys and values of the last turn that they took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from ouroboros_core.errors import UserError
from ouroboros_core.few import Carried, Going
from ouroboros_core.memory import SumsLayer
from ouroboros_core.split import Split


@dataclass(frozen=True)
class Slots:
    """Which slot holds what: one for each layer that runs once, and for each looped layer one a turn, or fewer.

    Where turns share slots, turn t uses slot t modulo `shared`, and finds there what the last such turn has left of
    earlier tokens. `probed`: a halter reads logits after each turn, which takes slots of the coda for each turn too.
    """

    split: Split
    turns: int
    shared: int | None = None
    probed: bool = False

    @property
    def by_turn(self) -> int:
        """Slots of one looped layer."""
        return min(self.turns, self.shared or self.turns)

    @property
    def by_probe(self) -> int:
        """Slots of one layer of the coda for the halter's questions; nothing is asked after the last turn."""
        return min(self.turns - 1, self.by_turn) if self.probed else 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer, by its number in the intact model, behind each slot."""
        found: list[int] = []
        for segment in self.split.segments:
            found += segment.layers * (self.by_turn if segment.looped else 1)
        return (*found, *self.split.coda * self.by_probe)

    def of_segment(self, place: int, turn: int = 0) -> range:
        """The slots of a segment's layers, in order, at a turn."""
        before = self.split.segments[:place]
        start = sum(len(each.layers) * (self.by_turn if each.looped else 1) for each in before)
        count = len(self.split.segments[place].layers)
        return self._at(start, count, turn % self.by_turn)

    def of_probe(self, turn: int) -> range:
        """The slots of the coda's layers, when they are asked what the loop's state would say after a turn.

        They are beyond the cache's where it keeps no room: after the last turn, or where nothing is probed.
        """
        count, roomy = len(self.split.coda), self.by_probe and turn < self.turns - 1
        start = len(self.layers) - count * self.by_probe
        return self._at(start, count, turn % self.by_probe if roomy else self.by_probe)

    def _at(self, start: int, count: int, which: int) -> range:
        return range(start + which * count, start + (which + 1) * count)


class Keys:
    """The keys and values of one forward pass.

    Raises:
        UserError: the cache was made for another number of turns.
    """

    def __init__(self, cache: Cache | None, slots: Slots, tokens: int) -> None:
        self.cache, self.slots, self.tokens = cache, slots, tokens
        self.written: set[int] = set()
        if cache is not None:
            _fit(cache, len(slots.layers))

    def put(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of the present tokens, in place of those of an earlier turn in a shared slot; returns all.

        (B, heads, T, head width) each -> the same with earlier tokens.
        """
        if self.cache is None:
            return keys, values
        if slot in self.written:
            _rewind(self.cache.layers[slot], self.tokens)
        self.written.add(slot)
        together: tuple[Tensor, Tensor] = self.cache.update(keys, values, slot)
        return together


@dataclass(frozen=True)
class Once:
    """What a layer that runs once takes for the cache."""

    keys: Keys
    slot: int

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What the library's attention calls with the present tokens' keys and values (B, heads, T, head width)."""
        return self.keys.put(self.slot, keys, values)


@dataclass(frozen=True)
class Again:
    """What a layer that runs once a turn takes for the cache, at one turn."""

    keys: Keys
    slot: int
    turn: int
    going: Going
    carried: Carried
    place: int  # among the layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As of `Once`; of the few that go on, (r, heads, w, head width). Returns all tokens' keys of these rows."""
        both = [self._whole(kind, each) for kind, each in (("keys", keys), ("values", values))]
        keys, values = self.keys.put(self.slot, *both)
        few = self.going.few
        return (keys[few.rows], values[few.rows]) if few else (keys, values)

    def _whole(self, kind: str, each: Tensor) -> Tensor:
        return self.carried((self.place, kind), self.turn, each.transpose(1, 2), self.going).transpose(1, 2)


View = Once | Again


class Stack:
    """Layers that run once a turn, and what they leave of the present tokens.

    Args:
        slots: of the layers, at a turn.
        stops: whether tokens may stop before the last turn.
    """

    def __init__(self, keys: Keys, slots: Callable[[int], range], stops: bool) -> None:
        self.keys, self.slots, self.stops = keys, slots, stops
        self.carried = Carried()

    def views(self, turn: int, going: Going) -> list[View | None]:
        """What the layers take for the cache at this turn; nothing, where none is needed."""
        slots = self.slots(turn)
        if self.stops:
            return [Again(self.keys, slot, turn, going, self.carried, place) for place, slot in enumerate(slots)]
        return [Once(self.keys, slot) if self.keys.cache is not None else None for slot in slots]

    def skip(self, turn: int) -> None:
        """Leave for later tokens what they would look for at a turn that nobody takes."""
        left = dict(self.carried.skipped(turn))
        for place, slot in enumerate(self.slots(turn)):
            if (place, "keys") in left and slot < len(self.keys.slots.layers):
                self.keys.put(slot, *(left[place, kind].transpose(1, 2) for kind in ("keys", "values")))


def _fit(cache: Cache, count: int) -> None:
    """Make the layers of a cache that makes them as it goes: what else is remembered comes behind them."""
    if not cache.layers and cache.layer_class_to_replicate is not None:
        make: Any = cache.layer_class_to_replicate
        cache.layers += [make() for _ in range(count)]
    found = sum(not isinstance(layer, SumsLayer) for layer in cache.layers)
    if found != count:
        raise UserError(f"a cache of {found} slots, where these turns take {count}: make one with DynamicCache(config)")


def _rewind(layer: Any, tokens: int) -> None:
    """Forget the latest tokens of one layer of the library's cache."""
    if layer.is_sliding:
        raise UserError("turns cannot share a slot of a sliding window: decode with a slot for each turn")
    if isinstance(layer, StaticLayer):
        layer.cumulative_length.sub_(tokens)
    else:
        layer.crop(-tokens)
