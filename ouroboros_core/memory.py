"""What is remembered of earlier tokens beside their keys and values: running sums, in the library's cache too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ouroboros_core.errors import UserError
from ouroboros_core.few import Carried, Going

Name = tuple[int, int, str]  # of a sum: which loop, which turn, and what its part calls it


class SumsLayer(CacheLayerMixin):
    """The last entry of a cache: the running sums of its rows. It moves with them when beams are reordered."""

    is_sliding = False
    supports_early_init = False
    is_compileable = True  # else the library takes a cache of fixed size for one that grows, and makes no mask

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[Name, Tensor] = {}  # (B, ...)

    @classmethod
    def of(cls, cache: Cache) -> SumsLayer:
        """That of a cache, which gets one if it has none."""
        if not cache.layers or not isinstance(cache.layers[-1], cls):
            cache.layers.append(cls())
        layer = cache.layers[-1]
        assert isinstance(layer, cls)
        return layer

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes row beam_idx[i]."""
        self._change(lambda each: each.index_select(0, beam_idx.to(each.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._change(lambda each: each.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        self._change(lambda each: each[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """A sum does not tell what it was before.

        Raises:
            UserError: tokens are to be forgotten, as in assisted decoding.
        """
        if tokens_to_remove:
            raise UserError("a part keeps running sums, which cannot be taken back: decode without an assistant")

    def reset(self) -> None:
        """Forget every sum."""
        self.sums.clear()

    def _change(self, to: Any) -> None:
        self.sums = {name: to(each) for name, each in self.sums.items()}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to make."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """No keys or values belong here."""
        raise NotImplementedError("running sums are no keys and values")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No attention looks here."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """No tokens."""
        return 0

    def get_max_length(self) -> int:
        """No most."""
        return -1


class Sums:
    """The running sums of one loop in one forward pass.

    Args:
        loop: which of the model's.
        mask: (B, T) bool: real tokens.
        stops: a token may stop before the last turn, and is to count with its last value.
    """

    def __init__(self, cache: Cache | None, loop: int, mask: Tensor, stops: bool = True) -> None:
        self.cache, self.loop, self.mask, self.stops = cache, loop, mask, stops
        self.carried = Carried()

    def keep(self, name: str, turn: int, values: Tensor) -> Tensor:
        """Sum along the rows, from what was before them. (B, T, ...) -> (B, T, ...)."""
        real = self.mask.view(*self.mask.shape, *[1] * (values.ndim - 2))
        total = (values * real).cumsum(1)
        if self.cache is not None:
            sums, key = SumsLayer.of(self.cache).sums, (self.loop, turn, name)
            before = sums.get(key)
            total = total if before is None else total + before[:, None]
            if before is not None and self.cache.is_compileable:
                before.copy_(total[:, -1])  # a cache of fixed size is written in place, and may be compiled
            else:
                sums[key] = total[:, -1].clone()  # a view would keep the sums of all tokens
        return total

    def skip(self, turn: int) -> None:
        """Leave for later tokens the sums of a turn that nobody takes."""
        for name, values in list(self.carried.skipped(turn)):
            self.keep(str(name), turn, values)


@dataclass(frozen=True)
class SumsOfTurn:
    """A `Memory`: the sums at one turn."""

    sums: Sums
    turn: int
    going: Going
    asked: set[str] = field(default_factory=set)

    def summed(self, name: str, values: Tensor) -> Tensor:
        """The sum of the values of a row's real tokens up to each one. (B, T, ...) -> (B, T, ...) float32.

        Raises:
            UserError: the name is used twice in a turn. Where gradient flows, a turn may be computed again.
        """
        if name in self.asked and not torch.is_grad_enabled():
            raise UserError(f"two sums of one turn are called '{name}', and one would get the other's: rename one")
        self.asked.add(name)
        now = values.float()
        whole = self.sums.carried(name, self.turn, now, self.going) if self.sums.stops else now
        total = self.sums.keep(name, self.turn, whole)
        return self.going.few.take(total) if self.going.few else total
