"""Norms against their equations."""

from dataclasses import replace

import pytest
import torch

from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.testing import a_turn, loop_facts, tiny_model
from ouroboros_plugins.modulators.step_embedding import waves
from ouroboros_plugins.norms.per_level import PerLevel
from ouroboros_plugins.norms.per_step_rms import PerStepRMS
from ouroboros_plugins.norms.sandwich import Sandwich

D = 16


@pytest.fixture
def state():
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize(("index", "row"), [(0, 0), (2, 2), (3, 2), (40, 2)])
def test_each_turn_divides_by_the_root_mean_square_and_has_a_scale_of_its_own(index, row, eps, randomise, state):
    norm = randomise(PerStepRMS(D, rows=8, trained=3, eps=eps))
    found = norm(state, a_turn(index=index))
    for b in range(2):
        for t in range(5):
            h = state[b, t]
            size = (sum(float(x) ** 2 for x in h) / D + eps) ** 0.5
            torch.testing.assert_close(found[b, t], h / size * norm.scale.weight[row])


def test_at_the_start_the_scales_are_one(state):
    torch.testing.assert_close(
        PerStepRMS(D, 4, 4)(state, a_turn()).square().mean(-1), torch.ones(2, 5), atol=1e-4, rtol=0
    )


def test_a_bfloat16_state_is_normalised_in_float32(state):
    found = PerStepRMS(D, 4, 4)(state.bfloat16(), a_turn())
    wide = state.bfloat16().float()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(found, exact.bfloat16())


def test_the_papers_norm_has_its_number_of_parameters(host):
    part = host.default(Slot.NORM)
    with torch.device("meta"):
        norm = part.build(part.options(), loop_facts(2048, turns=4))
    assert sum(p.numel() for p in norm.parameters()) == 131_072


def test_without_a_norm_the_state_is_untouched(host, state):
    assert host.null(Slot.NORM).build(None, loop_facts(D))(state, a_turn()) is state


# Norms that act inside the block, against the looped layer written from the library's modules

PLAIN = {"modulator": {"use": "none"}, "gate": {"use": "none"}}


def built(make, intact=None, **norm):
    return make(intact, norm=norm, **PLAIN).model


def around_the_loop(model, ids, turns):
    """What the loop of a model of six layers, of which 0, 3 and 5 are kept, is entered with, and what the coda gets."""
    seen = {}
    hooks = [
        model.layer(0).register_forward_hook(lambda layer, args, out: seen.update(entered=out)),
        model.layer(5).register_forward_pre_hook(lambda layer, args: seen.update(left=args[0])),
    ]
    model.trace(ids, depth=Depth.full(turns))
    for hook in hooks:
        hook.remove()
    return seen["entered"], seen["left"]


def same(x):
    return x


def plain_block(model, h, factors=(1, 1), behind=(same, same)):
    """One looped layer: factors on the normed inputs of its branches, and functions of the sums behind them."""
    layer, length = model.layer(3), h.shape[1]
    rotary = model.base.model.rotary_emb(h, position_ids=torch.arange(length)[None])
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    x = layer.input_layernorm(h) * factors[0]
    h = behind[0](h + layer.self_attn(x, position_embeddings=rotary, attention_mask=causal)[0])
    return behind[1](h + layer.mlp(layer.post_attention_layernorm(h) * factors[1]))


def rms(scale, eps=1e-6):
    return lambda x: x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


def trained(model, ids, turns=2):
    """The norm's parameters after a backward pass."""
    model.trace(ids, depth=Depth.full(turns)).nll(ids).sum().backward()
    return dict(model.loops[0].norm.named_parameters())


def test_each_turn_has_factors_of_its_own_on_the_norms_inside(make, randomise, ids):
    model = make(norm={"use": "per-level", "rows": 5}, loop={"turns": 3}, **PLAIN).model
    factors = randomise(model.loops[0].norm, spread=0.3).factors
    state, left = around_the_loop(model, ids, turns=4)
    for row in (0, 1, 2, 2):
        state = plain_block(model, state, factors.weight[row])
    torch.testing.assert_close(left, state, atol=1e-4, rtol=1e-4)


def test_factors_of_the_norms_inside_are_by_layer_and_branch():
    norm = PerLevel(replace(loop_facts(D), layers=2).sites("in"), D, rows=4, trained=4)
    assert list(norm.inside(a_turn())) == ["0.attention-in", "0.ffn-in", "1.attention-in", "1.ffn-in"]
    assert norm.factors.weight.shape == (4, 4, D)


def test_a_fresh_per_level_norm_is_the_layers_own(make, ids, state):
    assert torch.equal(built(make, use="per-level").trace(ids).logits(), built(make, use="none").trace(ids).logits())
    assert PerLevel(["0.ffn-in"], D, 4, 4)(state, a_turn()) is state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factors_of_every_turn_taken_learn(dtype, make, ids):
    (gradient,) = (p.grad for p in trained(built(make, tiny_model().to(dtype), use="per-level"), ids).values())
    assert gradient[:2].ne(0).any(-1).all()
    assert not gradient[2:].any()


@pytest.mark.parametrize("options", [{}, {"after_loop": False}, {"eps": 0.5}])
def test_the_sandwich_norms_the_stream_behind_each_branch_and_behind_the_loop(options, make, randomise, ids):
    model = built(make, use="sandwich", **options)
    names = dict(randomise(model.loops[0].norm, spread=0.3).named_parameters())
    eps = options.get("eps", 1e-6)
    n2, n4 = (rms(names[f"norms.{place}.norm.weight"], eps) for place in (0, 1))
    after = rms(names["after.norm.weight"], eps) if options.get("after_loop", True) else same
    state, left = around_the_loop(model, ids, turns=3)
    for _ in range(3):
        state = plain_block(model, state, behind=(n2, n4))
    torch.testing.assert_close(left, after(state), atol=1e-4, rtol=1e-4)


def test_the_sandwich_has_a_norm_for_every_branch_of_every_layer_and_one_more(host):
    part, facts = host.find(Slot.NORM, "sandwich"), replace(loop_facts(D), layers=2)
    norm = part.build(part.options(), facts)
    assert list(norm.inside(a_turn())) == ["0.attention-sum", "0.ffn-sum", "1.attention-sum", "1.ffn-sum"]
    assert [p.shape for p in norm.parameters()] == [(D,)] * 5
    assert all(torch.equal(p, torch.ones(D)) for p in norm.parameters())
    assert len(list(part.build(part.options(after_loop=False), facts).parameters())) == 4


def test_the_sandwich_leaves_the_state_to_the_block(host, state):
    norm = Sandwich(["0.ffn-sum"], D)
    assert norm(state, a_turn()) is state
    torch.testing.assert_close(norm.read(state), rms(1)(state))
    assert Sandwich(["0.ffn-sum"], D, after_loop=False).read(state) is state


def test_the_sandwich_of_a_bfloat16_stream_is_taken_in_float32(randomise, state):
    (op,) = randomise(Sandwich(["0.ffn-sum"], D), spread=0.3).inside(a_turn())["0.ffn-sum"]
    with torch.autocast("cpu", torch.bfloat16):
        found = op.norm(state.bfloat16())
    exact = rms(op.norm.norm.weight)(state.bfloat16().float()).bfloat16()
    torch.testing.assert_close(found, exact, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scale_of_the_sandwich_learns(dtype, make, ids):
    parameters = trained(built(make, tiny_model().to(dtype), use="sandwich"), ids)
    assert len(parameters) == 3
    assert all(p.grad.ne(0).all() and p.dtype == torch.float32 for p in parameters.values())


def test_a_model_with_step_final_norms_between_turns_only(make, ids):
    intact = tiny_model()
    intact.model.norm.weight.data += torch.linspace(-0.5, 0.5, 32)
    model = built(make, intact, use="step-final")
    state, left = around_the_loop(model, ids, turns=3)
    scale, eps = intact.model.norm.weight, intact.config.rms_norm_eps
    for between in (same, rms(scale, eps), rms(scale, eps)):
        state = plain_block(model, between(state))
    torch.testing.assert_close(left, state, atol=1e-4, rtol=1e-4)


def test_every_turn_under_step_final_is_read_as_if_the_loop_had_ended_there(make, ids):
    model = built(make, tiny_model(), use="step-final")
    turns = model.trace(ids, depth=Depth.full(3), keep_turns=True).turns
    for number, hidden in enumerate(turns, start=1):
        torch.testing.assert_close(hidden, model.trace(ids, depth=Depth.full(number)).hidden)


def test_step_final_norms_the_whole_input_of_the_block_prelude_and_signal_of_the_turn_with_it(make, ids):
    signalled = {"use": "step-embedding", "kind": "sinusoid"}
    intact = tiny_model()
    intact.model.norm.weight.data += torch.linspace(-0.5, 0.5, 32)
    tables = {"entry": {"use": "add"}, "modulator": signalled, "gate": {"use": "none"}, "norm": {"use": "step-final"}}
    model = make(intact, **tables).model
    prelude, left = around_the_loop(model, ids, turns=3)
    norm = rms(intact.model.norm.weight, intact.config.rms_norm_eps)
    state = prelude
    for turn, between in enumerate((same, norm, norm)):
        state = plain_block(model, between(state + prelude + waves(torch.tensor(turn), 32)))
    torch.testing.assert_close(left, state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["step-final", "per-level"])
def test_one_turn_with_it_is_one_turn_without(name, make, ids):
    with_it, without = (built(make, use=use).trace(ids, depth=Depth.full(1)).logits() for use in (name, "none"))
    assert torch.equal(with_it, without)
