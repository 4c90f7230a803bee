"""Gates against their equations, and LayerScale against the looped layer written from the library's modules."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from ouroboros_core.contracts import Depth, Inside, Slot
from ouroboros_core.ops import Scale
from ouroboros_core.testing import a_turn, loop_facts, tiny_model
from ouroboros_core.training import parameter_groups
from ouroboros_plugins.gates.highway import HighwayGate
from ouroboros_plugins.gates.layer_scale import scaled
from ouroboros_plugins.gates.none import NoGate
from ouroboros_plugins.gates.sigmoid import SigmoidGate

D = 16


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, D, generator=generator), torch.randn(2, 5, D, generator=generator)


@pytest.fixture
def prelude():
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(2))


def test_the_gate_mixes_by_a_sigmoid_of_new_and_old(randomise, states):
    gate, (old, new) = randomise(SigmoidGate(D)), states
    weight, bias = gate.open.weight, gate.open.bias
    g = 1 / (1 + torch.exp(-(new @ weight[:, :D].T + old @ weight[:, D:].T + bias)))
    torch.testing.assert_close(gate(old, new, a_turn()), g * new + (1 - g) * old)


def test_at_the_start_88_percent_of_the_old_state_is_kept(states):
    old, new = states
    mixed = SigmoidGate(D)(old, new, a_turn())
    torch.testing.assert_close(mixed, 0.880797 * old + 0.119203 * new, atol=1e-5, rtol=0)


def test_the_bias_is_the_users(host, states):
    part, (old, new) = host.find(Slot.GATE, "sigmoid"), states
    half = part.build(part.options(bias=0), loop_facts(D))
    torch.testing.assert_close(half(old, new, a_turn()), (old + new) / 2)


def test_a_fresh_gate_can_learn(states):
    gate = SigmoidGate(D)
    gate(*states, a_turn()).square().sum().backward()
    assert gate.open.weight.grad.any()
    assert gate.open.bias.grad.any()


def test_the_papers_gate_has_its_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in SigmoidGate(2048).parameters()) == 8_390_656


def test_without_a_gate_the_new_state_is_the_state(host, states):
    old, new = states
    assert host.null(Slot.GATE).build(None, loop_facts(D))(old, new, a_turn()) is new


def gate(host, name, **options):
    part = host.find(Slot.GATE, name)
    return part.build(part.options(**options), loop_facts(D))


@pytest.mark.parametrize("reads", [["old"], ["prelude"], ["prelude", "new"], ["old", "new", "prelude"]])
def test_the_highway_mixes_by_a_sigmoid_of_what_it_reads(reads, host, randomise, states, prelude):
    highway, (old, new) = randomise(gate(host, "highway", reads=reads)), states
    before = highway.open.bias
    for place, name in enumerate(reads):
        read = {"old": old, "new": new, "prelude": prelude}[name]
        before = before + read @ highway.open.weight[:, place * D : (place + 1) * D].T
    t = 1 / (1 + torch.exp(-before))
    torch.testing.assert_close(highway(old, new, a_turn(prelude=prelude)), t * new + (1 - t) * old)


def test_the_highway_reads_all_three_unless_told_otherwise(host):
    assert gate(host, "highway").open.weight.shape == (D, 3 * D)
    with pytest.raises(ValidationError, match="at least 1 item"):
        gate(host, "highway", reads=[])
    with pytest.raises(ValidationError, match="'old', 'new' or 'prelude'"):
        gate(host, "highway", reads=["next"])


def test_the_highway_starts_glorot_uniform_with_its_bias():
    highway = HighwayGate(64, ["old", "new", "prelude"])
    bound = (6 / (3 * 64 + 64)) ** 0.5
    assert 0.99 * bound < highway.open.weight.abs().max() <= bound
    assert highway.open.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert torch.equal(highway.open.bias, torch.full((64,), -1.0))
    assert torch.equal(HighwayGate(64, ["old"], bias=0.5).open.bias, torch.full((64,), 0.5))


def test_a_highway_that_reads_nothing_but_zeros_takes_27_percent_of_the_new_state(states):
    old, new = states
    mixed = HighwayGate(D, ["prelude"])(old, new, a_turn())
    torch.testing.assert_close(mixed, 0.731059 * old + 0.268941 * new, atol=1e-5, rtol=0)


def test_the_highway_learns_from_everything_it_reads(host, states, prelude):
    highway = gate(host, "highway")
    highway(*states, a_turn(prelude=prelude)).square().sum().backward()
    assert highway.open.weight.grad.all()
    assert highway.open.bias.grad.all()


def test_the_residual_gate_adds(host, states):
    old, new = states
    assert torch.equal(gate(host, "residual")(old, new, a_turn()), old + new)


# LayerScale

SCALED = ["sigmoid", "highway", "residual"]


@pytest.mark.parametrize("name", SCALED)
def test_without_layer_scale_a_gate_is_alone(name, host):
    plain = gate(host, name)
    assert not isinstance(plain, Inside)
    assert len(list(plain.parameters())) == (0 if name == "residual" else 2)


@pytest.mark.parametrize("name", SCALED)
def test_layer_scale_leaves_the_gate_as_it_was(name, host, states, prelude):
    torch.manual_seed(0)
    plain = gate(host, name)
    torch.manual_seed(0)
    scaled = gate(host, name, layer_scale=1e-4)
    turn = a_turn(prelude=prelude)
    assert torch.equal(scaled(*states, turn), plain(*states, turn))


def test_layer_scale_scales_the_output_of_every_branch_of_every_layer(randomise):
    facts = replace(loop_facts(D), layers=2)
    part = randomise(scaled(NoGate(), 0.5, facts))
    ops = part.inside(a_turn())
    assert list(ops) == ["0.attention-out", "0.ffn-out", "1.attention-out", "1.ffn-out"]
    for (op,), scale in zip(ops.values(), part.scales, strict=True):
        assert isinstance(op, Scale)
        assert op.value is scale
        assert scale.shape == (D,)


def test_the_factors_of_layer_scale_are_not_decayed(make):
    model = built(make, use="sigmoid", layer_scale=1e-4)
    decays = {id(p): group["weight_decay"] for _, group in parameter_groups(model, 0.05, {}) for p in group["params"]}
    named = {name: decays[id(p)] for name, p in model.loops[0].gate.named_parameters()}
    assert named == {"gate.open.weight": 0.05, "gate.open.bias": 0.0, "scales.0": 0.0, "scales.1": 0.0}


def built(make, **gate):
    return make(modulator={"use": "none"}, norm={"use": "none"}, gate=gate).model


def around_the_loop(model, ids, turns):
    """What the loop of a model of six layers, of which 0, 3 and 5 are kept, is entered with, and what it leaves."""
    seen = {}
    hooks = [
        model.layer(0).register_forward_hook(lambda layer, args, out: seen.update(entered=out)),
        model.layer(5).register_forward_pre_hook(lambda layer, args: seen.update(left=args[0])),
    ]
    model.trace(ids, depth=Depth.full(turns))
    for hook in hooks:
        hook.remove()
    return seen["entered"], seen["left"]


def plain_block(model, h, attention, ffn):
    """The looped layer from the library's modules, each branch's output scaled."""
    layer, length = model.layer(3), h.shape[1]
    rotary = model.base.model.rotary_emb(h, position_ids=torch.arange(length)[None])
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    x = layer.input_layernorm(h)
    h = h + attention * layer.self_attn(x, position_embeddings=rotary, attention_mask=causal)[0]
    return h + ffn * layer.mlp(layer.post_attention_layernorm(h))


def test_a_model_with_layer_scale_is_the_plain_loop_with_scaled_branches(make, randomise, ids):
    model = built(make, use="residual", layer_scale=0.3)
    attention, ffn = randomise(model.loops[0].gate).scales
    state, left = around_the_loop(model, ids, turns=3)
    for _ in range(3):
        state = state + plain_block(model, state, attention, ffn)
    torch.testing.assert_close(left, state, atol=1e-4, rtol=1e-4)


def test_at_a_scale_of_one_layer_scale_changes_nothing(make, ids):
    scaled, plain = (built(make, use="sigmoid", layer_scale=start).trace(ids).logits() for start in (1.0, None))
    assert torch.equal(scaled, plain)


def test_a_tiny_layer_scale_all_but_silences_the_block_at_first(make, ids):
    entered, left = around_the_loop(built(make, use="sigmoid", layer_scale=1e-6), ids, turns=4)
    torch.testing.assert_close(left, entered, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "start"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("name", SCALED)
def test_every_parameter_of_a_fresh_scaled_gate_learns(name, dtype, start, make, ids):
    gate = {"use": name, "layer_scale": start}
    model = make(tiny_model().to(dtype), modulator={"use": "none"}, norm={"use": "none"}, gate=gate).model
    model.trace(ids, depth=Depth.full(2)).nll(ids).sum().backward()
    for parameter in model.loops[0].gate.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.ne(0).reshape(len(parameter), -1).any(-1).all()


def test_the_factors_learn_even_where_bfloat16_rounds_away_what_they_scale(make, ids):
    tables = {"modulator": {"use": "none"}, "norm": {"use": "none"}, "gate": {"use": "sigmoid", "layer_scale": 1e-6}}
    model = make(tiny_model().bfloat16(), **tables).model
    entered, left = around_the_loop(model, ids, turns=1)
    torch.testing.assert_close(left, entered, atol=0, rtol=2**-7)
    model.trace(ids, depth=Depth.full(1)).nll(ids).sum().backward()
    assert all(scale.grad.all() for scale in model.loops[0].gate.scales)
