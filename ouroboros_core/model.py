"""RecursiveLM: the kept layers of a pretrained model, with loops where the split says so."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ouroboros_core.anatomy import Anatomy, Calls, HFModel, with_layers
from ouroboros_core.contracts import SITES, Depth
from ouroboros_core.errors import UserError
from ouroboros_core.loop import Block, Parts, Tokens, Visit, loop
from ouroboros_core.ops import STATE, Branches, Site, Tap, Taps
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
        self.anatomy, self.split, self.turns, self.seed, self.recompute = anatomy, split, turns, seed, recompute
        self.base: HFModel = kept_layers(intact, anatomy, split)
        self.dtype: torch.dtype = self.head.weight.dtype  # to compute in; what learns is kept in float32
        self.loops = nn.ModuleList(parts)
        looped = [segment for segment in split.segments if segment.looped]
        self.sites = [sites(segment) for segment in looped]
        self.taps: list[Taps] = [
            {**self._tapped(segment), **at} for segment, at in zip(looped, self.sites, strict=True)
        ]

    def layer(self, index: int) -> nn.Module:
        """A kept layer by its number in the intact model."""
        layer: nn.Module = self.anatomy.inner(self.base).layers[str(index)]
        return layer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, depth: Depth | None = None, *,
        seed: int | None = None, keep_turns: bool = False,
    ) -> Trace:  # fmt: skip
        """Read the tokens through prelude, loops and coda.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), nonzero for real tokens; padding on either side.
            depth: turns to take, and how many carry gradient; by default `turns`, all of them.
            seed: of what parts draw by position; by default always the same.
            keep_turns: the trace carries every turn of the last loop, read as if the loop had ended there.
        """
        depth, seed = depth or Depth.full(self.turns), self.seed if seed is None else seed
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = Tokens((mask.long().cumsum(-1) - 1).clamp(min=0), mask.bool())
        with self.precision(input_ids.device.type):
            state = self.anatomy.embed(self.base, input_ids).to(self.dtype)
            calls = self.anatomy.calls(self.base, state, tokens.positions, attention_mask)
            visits: list[Visit] = []
            for place, segment in enumerate(self.split.segments):
                if not segment.looped:
                    state = self._once(segment, calls)(state)
                    continue
                reader = AsIfEnded(self, place, calls, len(visits))
                keep = keep_turns and reader.last
                visits.append(self._looped(len(visits), segment, state, depth, tokens, calls, reader, seed, keep))
                state = self._parts(len(visits) - 1).read(visits[-1].read)
            taken = torch.stack([visit.taken for visit in visits]).sum(0)
            remainder = torch.stack([visit.remainder for visit in visits]).sum(0)
            turns = [reader.hidden(each) for each in visits[-1].states]
            head = self.head.weight.to(self.dtype)
            return Trace(self._finish(state), head, taken, remainder, turns=turns, shares=visits[-1].shares)

    @property
    def head(self) -> nn.Linear:
        """The vocabulary projection."""
        return self.anatomy.head(self.base)

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

    def _parts(self, number: int) -> Any:
        return self.loops[number]

    def _finish(self, state: Tensor) -> Tensor:
        return self.anatomy.finish(self.base, state).to(self.dtype)

    def _once(self, segment: Segment, calls: Calls) -> Block:
        return in_order([calls(self.layer(i), i) for i in segment.layers])

    def _looped(
        self, number: int, segment: Segment, state: Tensor, depth: Depth, tokens: Tokens, calls: Calls,
        reader: AsIfEnded, seed: int, keep: bool,
    ) -> Visit:  # fmt: skip
        taps, at = self.taps[number], self.sites[number]
        layers = [calls(self.layer(i), i, Branches(at, place)) for place, i in enumerate(segment.layers)]
        block = in_order([at[STATE], *layers])
        recompute = self.recompute and torch.is_grad_enabled()
        return loop(
            state, depth, tokens, block, taps, self._parts(number), reader,
            seed=seed, recompute=recompute, keep_states=keep,
        )  # fmt: skip

    def _tapped(self, segment: Segment) -> dict[str, Tap]:
        return {
            f"{place}.{name}": Tap(linear)
            for place, index in enumerate(segment.layers)
            for name, linear in self.anatomy.linears(self.layer(index)).items()
        }


@dataclass(frozen=True)
class AsIfEnded:
    """A `Reader`: what the model would say if a loop ended with some state."""

    model: RecursiveLM
    place: int  # of the loop, among the segments
    calls: Calls
    number: int  # of the loop, among the loops

    @property
    def last(self) -> bool:
        """No other loop follows."""
        return not any(segment.looped for segment in self.model.split.segments[self.place + 1 :])

    def normed(self, state: Tensor) -> Tensor:
        """The base's final norm. (B, T, D) -> (B, T, D)."""
        return self.model._finish(state)

    def hidden(self, state: Tensor) -> Tensor:
        """What the head would get. (B, T, D) -> (B, T, D).

        Raises:
            UserError: another loop follows, so that no state of this one is ever read.
        """
        if not self.last:
            raise UserError(
                "a part reads the logits of a loop that another loop follows, and only the last loop has any: choose "
                "a splitter with one loop, or a halter that reads states"
            )
        state = self.model._parts(self.number).read(state)
        for segment in self.model.split.segments[self.place + 1 :]:
            state = self.model._once(segment, self.calls)(state)
        return self.model._finish(state)

    def logits(self, state: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return F.linear(self.hidden(state), self.model.head.weight)


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
    layers = started(intact, anatomy, split, split.kept)
    kept = nn.ModuleDict({str(index): layer for index, layer in zip(split.kept, layers, strict=True)})
    base = copy.deepcopy(with_layers(anatomy, intact, kept, intact.config))
    return base.requires_grad_(False).train(False)


def kept_once(intact: HFModel, anatomy: Anatomy, split: Split) -> nn.Module:
    """The library's own model with the kept layers in order, as they start, one turn each.

    It is what "the kept layers, untrained" means, and shares no code with our own loop.
    """
    layers = nn.ModuleList(started(intact, anatomy, split, split.order))
    return with_layers(anatomy, intact, layers, anatomy.config_for(intact.config, split.order))


@torch.no_grad()
def started(intact: HFModel, anatomy: Anatomy, split: Split, wanted: Sequence[int]) -> list[nn.Module]:
    """These layers as the split starts them: the intact model's own, or the mean of several (Bae 2024)."""
    layers = anatomy.inner(intact).layers
    return [_mean([layers[i] for i in split.averaged[n]]) if n in split.averaged else layers[n] for n in wanted]


def _mean(layers: Sequence[nn.Module]) -> nn.Module:
    mean = copy.deepcopy(layers[0])
    for name, parameter in mean.named_parameters():
        each = torch.stack([layer.get_parameter(name).float() for layer in layers])
        parameter.copy_(each.mean(0))
    return mean


def sites(segment: Segment) -> dict[str, Site]:
    """The places in the stream of states of a block: its input, and three in each residual branch."""
    inside = [f"{place}.{site}" for place in range(len(segment.layers)) for site in SITES]
    return {name: Site(name) for name in (STATE, *inside)}


def in_order(blocks: Sequence[Block]) -> Block:
    """One function that runs these, the first first."""
    return lambda h: reduce(lambda state, block: block(state), blocks, h)
