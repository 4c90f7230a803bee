"""RecursiveLM: the kept layers of a pretrained model, with loops where the split says so; a Hugging Face model."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, CompileConfig, DynamicCache, GenerationMixin, PreTrainedModel

from ouroboros_core.anatomy import Anatomy, HFModel
from ouroboros_core.config import RecursiveConfig, config_of
from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.kept import kept_layers
from ouroboros_core.loop import Parts
from ouroboros_core.ops import Tap, Taps, sites
from ouroboros_core.passing import ForwardPass, exactly, may_stop, tokens_of
from ouroboros_core.split import Segment, Split
from ouroboros_core.trace import RecursiveOutput, Trace


class RecursiveLM(PreTrainedModel, GenerationMixin):
    """A causal language model that runs its segments in order, some of them many times.

    It owns its weights: the intact model it was made from is left untouched. `trace` is for training and judging;
    calling it, and `generate`, are what the library expects of any model.

    Args:
        intact: the pretrained causal language model.
        parts: one set of parts for each looped segment, in order.
        turns: turns taken where `forward` is not told otherwise.
        recompute: store nothing inside a turn; run it again in the backward pass.
        probed: a halter reads logits after each turn.
        causal: no token sees a later one; else nothing can be cached.
    """

    config_class = RecursiveConfig
    base_model_prefix = "base"
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)
    gather = True  # compute no tokens that have stopped, where nothing is learnt

    def __init__(
        self, intact: HFModel, anatomy: Anatomy, split: Split, parts: Sequence[Parts], turns: int, *,
        seed: int = 0, recompute: bool = False, probed: bool = False, causal: bool = True,
    ) -> None:  # fmt: skip
        config = config_of(intact.config, split, turns, probed=probed, causal=causal)
        config._attn_implementation = intact.config._attn_implementation
        super().__init__(config)
        self.anatomy, self.split, self.seed, self.recompute = anatomy, split, seed, recompute
        self.base: HFModel = kept_layers(intact, anatomy, split)
        self._dtype, self.plain = self.head.weight.dtype, False
        self.loops = nn.ModuleList(parts)
        looped = [segment for segment in split.segments if segment.looped]
        self.sites = [sites(len(segment.layers)) for segment in looped]
        self.taps: list[Taps] = [
            {**self._tapped(segment), **at} for segment, at in zip(looped, self.sites, strict=True)
        ]
        self.generation_config, self.loss_type = copy.deepcopy(intact.generation_config), "ForCausalLM"

    @property
    def turns(self) -> int:
        """Turns at evaluation and decoding."""
        return int(self.config.turns)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; what learns is kept in float32."""
        return self._dtype

    def train(self, mode: bool = True) -> Self:
        """As in torch. Whoever is done with training asks for `eval`: what has been adapted by then is known."""
        self._notice_dtypes()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.device)).dtype  # the user's own cast
        moved = super()._apply(fn, recurse)
        self._notice_dtypes()
        return moved

    def _notice_dtypes(self) -> None:
        layers = all(weight.dtype == self.dtype for weight in self.base.parameters())
        masters = all(t.dtype == torch.float32 for t in self.loops.state_dict().values() if t.is_floating_point())
        self.plain = layers and masters  # nothing needs a cast that autocast would make

    def layer(self, index: int) -> nn.Module:
        """A kept layer by its number in the intact model."""
        layer: nn.Module = self.anatomy.inner(self.base).layers[str(index)]
        return layer

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Cache | None = None, inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None, use_cache: bool | None = None, logits_to_keep: int | Tensor = 0,
        turns: int | None = None, **kwargs: Any,
    ) -> RecursiveOutput:  # fmt: skip
        """What the library asks of a causal language model.

        Args:
            labels: (B, T), not shifted: the library shifts them. -100 is not scored.
            turns: how many to take; with a cache it must be the number that the cache was made for.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        trace = self.trace(
            input_ids, attention_mask, Depth.full(turns or self.turns), positions=position_ids, embeds=inputs_embeds,
            cache=past_key_values,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(trace.hidden[:, kept], trace.head)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return RecursiveOutput(loss=loss, logits=logits, past_key_values=past_key_values, turns=trace.taken)

    def generate(self, *args: Any, turns: int | None = None, shared_slots: int | None = None, **kwargs: Any) -> Any:
        """The library's `generate`.

        Args:
            turns: how many to take; None: those of the config.
            shared_slots: let turns share so many cache slots of a looped layer; None: each turn has its own.

        Raises:
            UserError: a token sees later ones, so that nothing can be decoded.
        """
        if not self.config.causal:
            raise UserError("a part lets tokens see later ones: such a model cannot write, there are no later ones yet")
        # one scope of precision around all tokens: what learns is cast once, not for each token
        with self.laid_out(turns or self.turns, shared_slots), self.precision(self.device):
            return super().generate(*args, **kwargs)

    def trace(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, depth: Depth | None = None, *,
        seed: int | None = None, keep_turns: bool = False, positions: Tensor | None = None,
        embeds: Tensor | None = None, cache: Cache | None = None,
    ) -> Trace:  # fmt: skip
        """Read the tokens through prelude, loops and coda.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T, with those in the cache), nonzero for real tokens; padding on either side.
            depth: turns to take, and how many carry gradient; by default `turns`, all of them.
            seed: of what parts draw by position; by default always the same.
            keep_turns: the trace carries every turn of the last loop, read as if the loop had ended there.
            positions: (B, T) what attention takes for positions. Parts count from the mask in any case.
            embeds: (B, T, D) in place of `input_ids`.
            cache: what earlier tokens left; these leave theirs.
        """
        depth, seed = depth or Depth.full(self.turns), self.seed if seed is None else seed
        if cache is not None and depth.turns != self.turns:
            raise UserError(f"{depth.turns} turns, and the cache was made for {self.turns}: use laid_out(turns)")
        if embeds is None:
            assert input_ids is not None, "neither tokens nor embeddings"
            embeds = self.anatomy.embed(self.base, input_ids)
        state = embeds.to(self.dtype)
        exact = exactly(self, state)
        with self.precision(state.device, exact):
            tokens = tokens_of(state[..., 0], attention_mask, cache)
            one = ForwardPass(self, tokens, attention_mask, state, depth, cache, seed, keep_turns, exact, positions)
            return one.through_all(state)

    @property
    def head(self) -> nn.Linear:
        """The vocabulary projection."""
        return self.anatomy.head(self.base)

    def finish(self, state: Tensor) -> Tensor:
        """The base's final norm. (B, T, D) -> (B, T, D)."""
        return self.anatomy.finish(self.base, state).to(self.dtype)

    def precision(self, device: torch.device, exact: bool = False) -> torch.autocast:
        """Compute in the base's dtype while trained parts stay float32 masters; `exact`: parts in float32."""
        kind = "cpu" if device.type == "meta" else device.type
        lower = self.dtype in (torch.bfloat16, torch.float16) and not exact
        return torch.autocast(kind, self.dtype, enabled=lower)

    @contextmanager
    def with_parts(self, parts: Sequence[Parts]) -> Iterator[None]:
        """Within this scope the loops are filled by other parts."""
        mine, self.loops = self.loops, nn.ModuleList(parts)
        try:
            yield
        finally:
            self.loops = mine

    @contextmanager
    def laid_out(self, turns: int, shared_slots: int | None = None) -> Iterator[None]:
        """Within this scope the model takes another number of turns, or its turns share cache slots."""
        before = self.config.turns, self.config.shared_slots
        try:
            self.config.lay_out(turns, shared_slots)
            yield
        finally:
            self.config.lay_out(*before)

    def get_input_embeddings(self) -> nn.Module:
        """Of the base."""
        embeddings: nn.Module = self.base.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def create_masks_for_generate(
        self, *, attention_mask: Tensor | None, past_key_values: Cache, **_: Any
    ) -> Tensor | None:  # fmt: skip
        """What `generate` asks where a cache has a fixed size: one mask of that size, so that nothing is recompiled."""
        if attention_mask is None:
            return None
        room = past_key_values.get_max_length() - attention_mask.shape[1]  # of sliding windows there may be none
        return F.pad(attention_mask, (0, max(0, room)))

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Callable[..., Any]:
        """What `generate` runs where a cache has a fixed size; it is not compiled where tokens stop early."""
        return self.__call__ if may_stop(self) else super().get_compiled_call(compile_config)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, merge_base: bool = False, push_to_hub: bool = False, **_: Any
    ) -> None:
        """Write what `from_pretrained` reads: what was trained, or with `merge_base` the whole model.

        Raises:
            UserError: `push_to_hub`.
        """
        from ouroboros_core.hub import save  # which builds models, and so imports this module

        if push_to_hub:
            raise UserError("push_to_hub: save into a folder, and give that to huggingface_hub.upload_folder")
        save(self, save_directory, merge_base=merge_base)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Self:
        """A model that was saved: see `hub.load`."""
        from ouroboros_core.hub import load

        model: Self = load(name, *args, **kwargs)
        return model

    def _tapped(self, segment: Segment) -> dict[str, Tap]:
        return {
            f"{place}.{name}": Tap(linear)
            for place, index in enumerate(segment.layers)
            for name, linear in self.anatomy.linears(self.layer(index)).items()
        }
