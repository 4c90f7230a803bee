"""RecursiveLM: the kept layers of a pretrained model, with loops where the split says so."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import Anatomy, HFModel, with_layers
from ouroboros_core.contracts import Depth
from ouroboros_core.loop import Block, Parts, Tokens, Visit, loop
from ouroboros_core.ops import STATE, StateTap, Tap, Taps
from ouroboros_core.split import Segment, Split
from ouroboros_core.trace import Trace


class RecursiveLM(nn.Module):
    """A causal language model that runs its segments in order, some of them many times.

    It owns its weights: the intact model it was made from is left untouched.

    Args:
        intact: the pretrained causal language model.
        parts: one set of parts for each looped segment, in order.
        turns: turns taken where `forward` is not told otherwise.
        recompute: store nothing inside a turn; run it again in the backward pass.
    """

    def __init__(
        self, intact: HFModel, anatomy: Anatomy, split: Split, parts: Sequence[Parts], turns: int, *,
        seed: int = 0, recompute: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.anatomy, self.split, self.turns, self.seed, self.recompute = (
            anatomy,
            split,
            turns,
            seed,
            recompute,
        )
        self.base: HFModel = kept_layers(intact, anatomy, split)
        self.loops = nn.ModuleList(parts)
        self.taps = [self._tapped(segment) for segment in split.segments if segment.looped]

    def layer(self, index: int) -> nn.Module:
        """A kept layer by its number in the intact model."""
        layer: nn.Module = self.anatomy.inner(self.base).layers[str(index)]
        return layer

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, depth: Depth | None = None) -> Trace:
        """Read the tokens through prelude, loops and coda.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), nonzero for real tokens; padding on either side.
            depth: turns to take, and how many carry gradient; by default `turns`, all of them.
        """
        depth = depth or Depth.full(self.turns)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = Tokens((mask.long().cumsum(-1) - 1).clamp(min=0), mask.bool())
        with self.precision(input_ids.device.type):
            state = self.anatomy.embed(self.base, input_ids)
            calls = self.anatomy.calls(self.base, state, tokens.positions, attention_mask)
            taken = torch.zeros_like(tokens.mask, dtype=torch.float32)
            remainder, loops = taken, iter(zip(self.loops, self.taps, strict=True))
            for segment in self.split.segments:
                block = in_order([calls(self.layer(i), i) for i in segment.layers])
                if not segment.looped:
                    state = block(state)
                    continue
                visit = self._looped(*next(loops), state, depth, tokens, block)
                state, taken, remainder = visit.read, taken + visit.taken, remainder + visit.remainder
            return Trace(self.anatomy.finish(self.base, state), self.head.weight, taken, remainder)

    @property
    def head(self) -> nn.Linear:
        """The vocabulary projection."""
        return self.anatomy.head(self.base)

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.head.weight.dtype

    def precision(self, device: str) -> torch.autocast:
        """Compute in the base's dtype while trained parts stay float32 masters."""
        kind = "cpu" if device == "meta" else device
        return torch.autocast(kind, self.dtype, enabled=self.dtype in (torch.bfloat16, torch.float16))

    @contextmanager
    def with_parts(self, parts: Sequence[Parts]) -> Iterator[None]:
        """Within this scope the loops are filled by other parts."""
        mine, self.loops = self.loops, nn.ModuleList(parts)
        try:
            yield
        finally:
            self.loops = mine

    def _looped(self, parts: Any, taps: Taps, state: Tensor, depth: Depth, tokens: Tokens, block: Block) -> Visit:
        recompute = self.recompute and torch.is_grad_enabled()
        return loop(state, depth, tokens, block, taps, parts, seed=self.seed, recompute=recompute)

    def _tapped(self, segment: Segment) -> Taps:
        taps: dict[str, Tap | StateTap] = {STATE: StateTap(self.layer(segment.layers[0]))}
        for place, index in enumerate(segment.layers):
            for name, linear in self.anatomy.linears(self.layer(index)).items():
                taps[f"{place}.{name}"] = Tap(linear)
        return taps


class StockLM(nn.Module):
    """The library's own model, untouched or with fewer layers, seen through the same window as `RecursiveLM`."""

    def __init__(self, base: HFModel, anatomy: Anatomy) -> None:
        super().__init__()
        self.base, self.anatomy = base, anatomy

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Trace:
        """Run the library's forward. (B, T) -> Trace."""
        inner = self.anatomy.inner(self.base)
        hidden = inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        once = torch.ones_like(input_ids, dtype=torch.float32)
        return Trace(hidden, self.anatomy.head(self.base).weight, once, once)


def kept_layers(intact: HFModel, anatomy: Anatomy, split: Split) -> HFModel:
    """A frozen copy of the base without the removed layers; the others keep their names and numbers."""
    layers = anatomy.inner(intact).layers
    kept = nn.ModuleDict({str(index): layers[index] for index in split.kept})
    base = copy.deepcopy(with_layers(anatomy, intact, kept, intact.config))
    return base.requires_grad_(False).train(False)


def in_order(blocks: Sequence[Block]) -> Block:
    """One function that runs these, the first first."""
    return lambda h: reduce(lambda state, block: block(state), blocks, h)
