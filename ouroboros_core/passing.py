"""One forward pass of a recursive model: its segments in order, each once or looped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.keys import Keys, Once, Slots
from ouroboros_core.loop import Tokens, Visit, loop
from ouroboros_core.stage import LoopStage, behind, through
from ouroboros_core.trace import Trace

if TYPE_CHECKING:
    from ouroboros_core.model import RecursiveLM

GATHERABLE = ("sdpa", "eager")  # attentions whose masks tell for each query which keys it may see
SMALL = 16  # tokens: on a CPU, a small product takes longer to prepare in bfloat16 than to compute in float32


class ForwardPass:
    """What the segments share.

    Args:
        mask: (B, T with those in the cache), nonzero for real tokens; None where nothing is padded.
        embeds: (B, T, D).
        places: (B, T) what attention takes for positions; None: those of the tokens, counted.
        exact: what lies between the layers is computed in float32.
    """

    def __init__(
        self, model: RecursiveLM, tokens: Tokens, mask: Tensor | None, embeds: Tensor, depth: Depth,
        cache: Cache | None, seed: int, keep_turns: bool, exact: bool = False, places: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokens, self.depth, self.seed, self.keep_turns = model, tokens, depth, seed, keep_turns
        self.gather, self.exact = gathers(model), exact
        anatomy, told = model.anatomy, tokens.positions if places is None else places.expand_as(tokens.positions)
        self.calls = anatomy.calls(model.base, embeds, told, mask, cache, whole=self.gather)
        slots = Slots(model.split, depth.turns, model.config.shared_slots, model.config.probed)
        self.keys = Keys(cache, slots, embeds.shape[1])
        self.visits: list[Visit] = []

    def through_all(self, state: Tensor) -> Trace:
        """Prelude, loops and coda. state: the embeddings (B, T, D)."""
        for place, segment in enumerate(self.model.split.segments):
            state = self.looped(place, state) if segment.looped else self.once(place, state)
        taken = torch.stack([visit.taken for visit in self.visits]).sum(0)
        remainder = torch.stack([visit.remainder for visit in self.visits]).sum(0)
        last = self.visits[-1]
        turns = [behind(self.model, each, self.calls, []) for each in last.states]
        head = self.model.head.weight.to(self.model.dtype)
        hidden = self.model.finish(state)
        return Trace(hidden, head, taken, remainder, turns=turns, shares=last.shares)

    def once(self, place: int, state: Tensor) -> Tensor:
        """A segment that runs once. (B, T, D) -> (B, T, D)."""
        slots = self.keys.slots.of_segment(place) if self.keys.cache is not None else []
        views = [Once(self.keys, slot) for slot in slots]
        return through(self.model, self.model.split.segments[place].layers, state, self.calls, views)

    def looped(self, place: int, state: Tensor) -> Tensor:
        """A segment that is looped. (B, T, D) -> (B, T, D)."""
        model: Any = self.model
        number = len(self.visits)
        parts = model.loops[number]
        stage = LoopStage(model, place, number, self.calls, self.keys, self.tokens.mask, parts.halter.adaptive)
        visit = loop(
            state.float() if self.exact else state,
            self.depth, self.tokens, stage, parts, seed=self.seed, gather=self.gather,
            recompute=model.recompute and torch.is_grad_enabled(), keep_states=self.keep_turns and stage.probe.last,
        )  # fmt: skip
        self.visits.append(visit)
        read: Tensor = parts.read(visit.read)
        return read.to(model.dtype)


def tokens_of(like: Tensor, mask: Tensor | None, cache: Cache | None) -> Tokens:
    """Where the present tokens stand in their own sequences, and which of them are real. like (B, T).

    A mask may be longer than the tokens so far, as one of fixed size is.

    Raises:
        UserError: it is shorter, so that it is not known which of the tokens so far are real.
    """
    past = 0 if cache is None else cache.get_seq_length()
    now = torch.arange(like.shape[1], device=like.device) + past
    if mask is None:
        return Tokens(now.expand(like.shape), torch.ones_like(like, dtype=torch.bool))
    if isinstance(past, int) and mask.shape[1] < past + like.shape[1]:
        told = f"{past} tokens in the cache and {like.shape[1]} new ones"
        raise UserError(f"an attention mask of {mask.shape[1]} tokens, where there are {told}: it must cover them all")
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return Tokens(positions[:, now], mask[:, now].bool())


def may_stop(model: RecursiveLM) -> bool:
    """Whether a token may stop before the last turn, in the mode that the model is in."""
    loops: Any = model.loops
    return any(parts.halter.adaptive for parts in loops)


def gathers(model: RecursiveLM) -> bool:
    """Whether only the tokens that have not stopped are computed."""
    if not model.gather or torch.is_grad_enabled():
        return False
    able = model.base.config._attn_implementation in GATHERABLE and model.config.causal
    return able and may_stop(model)


def exactly(model: RecursiveLM, embeds: Tensor) -> bool:
    """Whether parts compute in float32: a few tokens on a CPU, where that is faster, and layers that need no cast."""
    few = embeds.shape[0] * embeds.shape[1] <= SMALL and embeds.device.type == "cpu"
    return few and not model.training and model.plain
