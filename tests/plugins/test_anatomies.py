"""Taking decoders apart, family by family."""

import pytest
import torch
from transformers import GPT2Config

from ouroboros_core.contracts import BRANCHES
from ouroboros_core.errors import UserError
from ouroboros_core.kept import kept_once
from ouroboros_core.ops import Add, Branches, Normed, Scale, Site, applied
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_the_pieces_put_together_are_the_whole(family, padding, host, ids):
    model = tiny_model(family=family)
    anatomy, mask = host.anatomy(model.config), torch.ones_like(ids)
    if padding:
        mask[0, slice(0, 4) if padding == "left" else slice(-4, None)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    h = anatomy.embed(model, ids)
    calls = anatomy.calls(model, h, positions, mask if padding else None)
    for index, layer in enumerate(anatomy.inner(model).layers):
        h = calls(layer, index)(h)
    found = anatomy.head(model)(anatomy.finish(model, h))
    expected = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def sites(place=0):
    names = [f"{place}.{branch}-{where}" for branch in BRANCHES for where in ("in", "out", "sum")]
    return {name: Site(name) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [None, "left"])
def test_a_layer_with_idle_sites_is_the_library_s_own(family, padding, host, ids):
    model = tiny_model(family=family)
    anatomy, mask = host.anatomy(model.config), torch.ones_like(ids)
    if padding:
        mask[0, :4] = 0
    h = anatomy.embed(model, ids)
    calls = anatomy.calls(model, h, (mask.cumsum(-1) - 1).clamp(min=0), mask if padding else None)
    for index, layer in enumerate(model.model.layers):
        found, expected = calls(layer, index, Branches(sites(place=1), 1))(h), calls(layer, index)(h)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_sites_of_a_layer_are_where_their_names_say(branch, host, ids):
    model = tiny_model()
    anatomy, layer, taps = host.anatomy(model.config), model.model.layers[2], sites()
    h, positions = anatomy.embed(model, ids), torch.arange(12).expand(2, -1)
    rotary = model.model.rotary_emb(h, position_ids=positions)
    future = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    scale, shift, norm = torch.linspace(0.5, 2, 32), torch.linspace(-1, 1, 32), torch.nn.LayerNorm(32)

    def changed(h, name, before, body):
        if name != branch:
            return h + body(before(h))
        return norm(h + body(before(h) * scale) + shift)

    plain = changed(
        h, "attention", layer.input_layernorm,
        lambda x: layer.self_attn(x, attention_mask=future, position_embeddings=rotary)[0],
    )  # fmt: skip
    plain = changed(plain, "ffn", layer.post_attention_layernorm, layer.mlp)
    at = f"0.{branch}"
    ops = {f"{at}-in": [Scale(scale)], f"{at}-out": [Add(shift)], f"{at}-sum": [Normed(norm)]}
    with applied(taps, ops):
        found = anatomy.calls(model, h, positions, None)(layer, 2, Branches(taps, 0))(h)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linears_are_the_seven_that_a_layer_has(family, host):
    model = tiny_model(family=family)
    layer = model.model.layers[2]
    found = host.anatomy(model.config).linears(layer)
    assert list(found) == ["q", "k", "v", "o", "gate", "up", "down"]
    every = {module for module in layer.modules() if isinstance(module, torch.nn.Linear)}
    assert set(found.values()) == every


@pytest.mark.parametrize("layers", [[0, 5], [3], [5, 0, 0]])
def test_the_kept_layers_run_once_in_this_order(layers, host, ids):
    model = tiny_model()
    short = kept_once(model, host.anatomy(model.config), Split(6, (Segment(tuple(layers), looped=True),), ()))
    h = model.model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = model.model.rotary_emb(h, position_ids=positions)
    future = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    for index in layers:
        h = model.model.layers[index](h, attention_mask=future, position_embeddings=rotary)
    expected = model.lm_head(model.model.norm(h))
    torch.testing.assert_close(short(input_ids=ids, use_cache=False).logits, expected, atol=1e-5, rtol=1e-5)


def test_truncating_shares_weights_and_leaves_the_intact_model_alone(host, ids):
    model = tiny_model()
    before = model(input_ids=ids).logits
    short = kept_once(model, host.anatomy(model.config), Split(6, (Segment((0, 5), looped=True),), ()))
    assert short.model.layers[1].mlp.up_proj.weight is model.model.layers[5].mlp.up_proj.weight
    assert short.model.embed_tokens is model.model.embed_tokens
    assert (len(model.model.layers), model.config.num_hidden_layers) == (6, 6)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_config_for_fewer_layers_keeps_each_layers_kind(host):
    config = tiny_model(family="qwen2").config
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"] * 2
    short = host.anatomy(config).config_for(config, [1, 3])
    assert (short.num_hidden_layers, short.layer_types) == (2, ["sliding_attention", "full_attention"])
    assert config.num_hidden_layers == 6


def test_a_family_nobody_knows_is_named(host):
    with pytest.raises(UserError, match="no plugin knows the anatomy of a 'gpt2' model"):
        host.anatomy(GPT2Config())
