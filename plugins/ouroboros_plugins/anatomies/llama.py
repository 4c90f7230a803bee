"""The Llama-shaped family: Llama, SmolLM, Qwen2, Qwen3, Mistral."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import create_masks_for_generate

from ouroboros_core.anatomy import Calls, HFModel
from ouroboros_core.ops import Branches

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

    def calls(self, base: HFModel, embeds: Tensor, positions: Tensor, mask: Tensor | None) -> Calls:
        """Mask by layer type, and one rotary embedding for all layers."""
        config = base.config
        # positions are passed with a mask only: without one the library would look in them for packed documents
        masks = create_masks_for_generate(config, embeds, mask, None, None if mask is None else positions)
        rotary = self.inner(base).rotary_emb(embeds, position_ids=positions)

        def call(layer: Any, index: int, branches: Branches | None = None) -> Callable[[Tensor], Tensor]:
            own = masks[config.layer_types[index]] if isinstance(masks, dict) else masks
            shared = {"attention_mask": own, "position_ids": positions, "position_embeddings": rotary}
            if branches is None:
                return lambda h: layer(h, use_cache=False, **shared)

            def attend(x: Tensor) -> Tensor:
                attended: Tensor = layer.self_attn(x, **shared)[0]
                return attended

            def sited(h: Tensor) -> Tensor:
                h = branches("attention", h, layer.input_layernorm, attend)
                return branches("ffn", h, layer.post_attention_layernorm, layer.mlp)

            return sited

        return call

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
