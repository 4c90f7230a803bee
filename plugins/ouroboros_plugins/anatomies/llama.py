"""The Llama-shaped family: Llama, SmolLM, Qwen2, Qwen3, Mistral."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

from ouroboros_core.anatomy import Calls, HFModel
from ouroboros_core.ops import Branches

if TYPE_CHECKING:
    from transformers import Cache

    from ouroboros_core.few import Few
    from ouroboros_core.keys import View

FAMILY = frozenset({"llama", "qwen2", "qwen3", "mistral"})
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True)
class LlamaCalls:
    """How the layers of one batch are called."""

    config: Any
    masks: Any  # (B, 1, T, keys), or one by layer type; None where attention needs none
    positions: Tensor  # (B, T)
    rotary: tuple[Tensor, Tensor]  # (B, T, head width) each

    def __call__(
        self, layer: Any, index: int, branches: Branches | None = None, cache: View | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The layer as a function h -> h; with `branches`, its attention and feed-forward branch run through them."""
        mask = self.masks[self.config.layer_types[index]] if isinstance(self.masks, dict) else self.masks
        shared = {"attention_mask": mask, "position_ids": self.positions, "position_embeddings": self.rotary}
        if branches is None:
            return lambda h: layer(h, past_key_values=cache, use_cache=cache is not None, **shared)

        def attend(x: Tensor) -> Tensor:
            attended: Tensor = layer.self_attn(x, past_key_values=cache, **shared)[0]
            return attended

        def sited(h: Tensor) -> Tensor:
            h = branches("attention", h, layer.input_layernorm, attend)
            return branches("ffn", h, layer.post_attention_layernorm, layer.mlp)

        return sited

    def only(self, few: Few) -> LlamaCalls:
        """The queries of these tokens; keys are those of all tokens of their rows."""
        masks = self.masks if isinstance(self.masks, dict) else {"": self.masks}
        fewer = {kind: few.take(mask.transpose(1, 2)).transpose(1, 2) for kind, mask in masks.items()}
        cos, sin = (few.take(each.expand(len(self.positions), -1, -1)) for each in self.rotary)
        return LlamaCalls(
            self.config, fewer if isinstance(self.masks, dict) else fewer[""], few.take(self.positions), (cos, sin)
        )


class LlamaAnatomy:
    """`model.embed_tokens`, `model.layers`, `model.rotary_emb`, `model.norm`, `lm_head`."""

    name = "llama"

    def inner(self, base: HFModel) -> Any:
        """The decoder without its head."""
        return base.model

    def embed(self, base: HFModel, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        embeds: Tensor = self.inner(base).embed_tokens(ids)
        return embeds

    def calls(
        self, base: HFModel, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None, *,
        whole: bool = False,
    ) -> Calls:  # fmt: skip
        """Mask by layer type, and one rotary embedding for all layers."""
        # positions go with a mask or a cache: with neither, the library would look in them for packed documents
        told = positions if mask is not None or cache is not None else None
        extra = {"and_mask_function": lambda batch, head, query, key: query >= 0} if whole else {}  # nothing is skipped
        masks = create_masks_for_generate(base.config, embeds, mask, cache, told, **extra)
        return LlamaCalls(base.config, masks, positions, self.inner(base).rotary_emb(embeds, position_ids=positions))

    def finish(self, base: HFModel, h: Tensor) -> Tensor:
        """The final RMSNorm."""
        normed: Tensor = self.inner(base).norm(h)
        return normed

    def head(self, base: HFModel) -> nn.Linear:
        """The projection to the vocabulary, perhaps tied to the embeddings."""
        head: nn.Linear = base.lm_head
        return head

    def linears(self, layer: nn.Module) -> Mapping[str, nn.Linear]:
        """Attention's four and the feed-forward's three."""
        return {short: layer.get_submodule(path) for short, path in LINEARS.items()}  # type: ignore[misc]

    def config_for(self, config: Any, layers: Sequence[int]) -> Any:
        """Fewer layers, each with its own attention type."""
        short = copy.deepcopy(config)
        short.num_hidden_layers = len(layers)
        if getattr(config, "layer_types", None):
            short.layer_types = [config.layer_types[i] for i in layers]
        return short
