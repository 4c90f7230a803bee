"""A Llama-shaped model in plain torch: what the systems are written out in, with none of our parts, loop or sites.

Shapes: B batch, T tokens, D width, V vocabulary. Sequences are unpadded. A `linear` is a function of the short name of
a layer's linear and its input, so that a turn can have weights of its own.
"""

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def weight(layer, name):
    """The matrix (out, in) of a linear."""
    return layer.get_submodule(PATHS[name]).weight


def own_linears(layer):
    """A layer's linears as they are."""
    return lambda name, x: F.linear(x, weight(layer, name))


def recalling(running, seen):
    """Linears of layers in which a token that has stopped keeps the key and the value of the last turn that it took.

    running (B, T) bool: who takes this turn. seen: a `defaultdict(dict)`, empty before the first turn.
    """

    def linears(layer):
        own, before = own_linears(layer), seen[layer]

        def linear(name, x):
            y = own(name, x)
            if name in ("k", "v"):
                y = before[name] = torch.where(running[..., None], y, before.get(name, y))
            return y

        return linear

    return linears


def attention(base, linear, x):
    """Causal softmax attention with rotary positions and grouped keys. x (B, T, D) -> (B, T, D)."""
    q, k, v = (linear(name, x).unflatten(-1, (-1, base.config.head_dim)).transpose(1, 2) for name in "qkv")
    cos, sin = base.model.rotary_emb(x, position_ids=torch.arange(x.shape[1])[None])
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return linear("o", mixed.transpose(1, 2).flatten(-2))


def ffn(linear, x):
    """SwiGLU. x (B, T, D) -> (B, T, D)."""
    return linear("down", F.silu(linear("gate", x)) * linear("up", x))


def run_layer(base, layer, h, linear=None):
    """h + attention(norm(h)), then h + ffn(norm(h)). (B, T, D) -> (B, T, D)."""
    linear = linear or own_linears(layer)
    h = h + attention(base, linear, layer.input_layernorm(h))
    return h + ffn(linear, layer.post_attention_layernorm(h))


def run_layers(base, indices, h, linears=own_linears):
    """The kept layers with these numbers, in order. linears: layer -> its linears. (B, T, D) -> (B, T, D)."""
    for index in indices:
        layer = base.model.layers[str(index)]
        h = run_layer(base, layer, h, linears(layer))
    return h


def embedded(base, ids):
    """(B, T) -> (B, T, D)."""
    return F.embedding(ids, base.model.embed_tokens.weight)


def read_out(base, h):
    """Final norm and head. (B, T, D) -> (B, T, V)."""
    return F.linear(base.model.norm(h), base.lm_head.weight)


def assert_same_logits(ours, plain, within=1e-5):
    """Equal to a share of the largest logit."""
    assert (ours - plain).abs().max() <= within * plain.abs().max()


def padded(ids, side, by=3):
    """The ids with some other tokens on one side, the mask that hides them, and where the real ones are."""
    filler = torch.full((len(ids), by), 7)
    pieces = [(filler, 0), (ids, 1)] if side == "left" else [(ids, 1), (filler, 0)]
    mask = torch.cat([torch.full_like(tokens, real) for tokens, real in pieces], dim=1)
    return torch.cat([tokens for tokens, _ in pieces], dim=1), mask, slice(by, None) if side == "left" else slice(-by)
