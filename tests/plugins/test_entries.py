"""Entries against their equations, and noise that only seed and position decide."""

from dataclasses import replace

import pytest
import torch

from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.testing import a_turn, loop_facts, tiny_model
from ouroboros_plugins.entries.noise_concat import NoiseConcat

B, T, D = 2, 5, 16
PLAIN = {"modulator": {"use": "none"}, "gate": {"use": "none"}, "norm": {"use": "none"}}


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, T, D, generator=generator), torch.randn(B, T, D, generator=generator)


@pytest.fixture
def entry(host):
    def entry(name, **options):
        part = host.find(Slot.ENTRY, name)
        return part.build(part.options(**options), loop_facts(D))

    return entry


def noise(positions, seed=0, width=D, std=None, dtype=torch.float32):
    """What the loop starts from at these positions (B, T)."""
    prelude = torch.zeros(*positions.shape, width, dtype=dtype)
    turn = replace(a_turn(*positions.shape, width=width, seed=seed), positions=positions)
    return NoiseConcat(width, std).start(prelude, turn)


def run(tokens, batch=1):
    return torch.arange(tokens).expand(batch, -1)


def test_adding_starts_from_the_prelude_and_adds_it_at_every_turn(entry, states):
    (prelude, state), add = states, entry("add")
    assert torch.equal(add.start(prelude, a_turn()), prelude)
    assert torch.equal(add.inject(state, prelude, a_turn(index=2)), state + prelude)


def test_zeros_starts_from_zeros_and_adds_the_prelude_at_every_turn(entry, states):
    (prelude, state), zeros = states, entry("zeros")
    assert torch.equal(zeros.start(prelude, a_turn()), torch.zeros(B, T, D))
    assert torch.equal(zeros.inject(state, prelude, a_turn(index=2)), state + prelude)


def test_carrying_leaves_both_alone(entry, states):
    (prelude, state), carry = states, entry("carry")
    assert carry.start(prelude, a_turn()) is prelude
    assert carry.inject(state, prelude, a_turn()) is state


def test_one_turn_from_zeros_is_one_turn_of_carrying(make, ids):
    once = Depth.full(1)
    both = (make(entry={"use": name}, **PLAIN).model for name in ("zeros", "carry"))
    from_zeros, carried = (model.trace(ids, depth=once) for model in both)
    assert torch.equal(from_zeros.logits(), carried.logits())


def test_a_seed_may_be_as_large_as_a_timestamp_times_a_million():
    large = 20260101123456 * 1_000_003 + 7
    assert torch.equal(noise(run(6), seed=large), noise(run(6), seed=large % 2**63))
    assert not torch.equal(noise(run(6), seed=large), noise(run(6), seed=large + 1))


def test_the_mix_is_linear_in_state_and_prelude(entry, states):
    (prelude, state), mixing = states, entry("noise-concat")
    weight = mixing.mix.weight
    expected = state @ weight[:, :D].T + prelude @ weight[:, D:].T
    torch.testing.assert_close(mixing.inject(state, prelude, a_turn()), expected)
    assert mixing.mix.bias is None


def test_the_random_mix_starts_as_torch_starts_a_linear():
    torch.manual_seed(3)
    found = NoiseConcat(D).mix.weight
    torch.manual_seed(3)
    assert torch.equal(found, torch.nn.Linear(2 * D, D, bias=False).weight)


def test_a_mix_that_starts_as_the_prelude_gives_the_block_the_prelude_and_learns_to_read_the_state(entry, states):
    (prelude, state), mixing = states, entry("noise-concat", adapter="prelude")
    mixed = mixing.inject(state, prelude, a_turn())
    assert torch.equal(mixed, prelude)
    mixed.square().sum().backward()
    assert mixing.mix.weight.grad.ne(0).any(-1).all()
    assert mixing.mix.weight.grad[:, :D].any()


@pytest.mark.parametrize("turns", [1, 3])
def test_a_model_that_starts_so_is_its_kept_layers_at_any_depth(turns, make, ids):
    intact = tiny_model()
    model = make(intact, entry={"use": "noise-concat", "adapter": "prelude"}, **PLAIN).model
    stock = StockLM(kept_once(intact, model.anatomy, model.split), model.anatomy)
    found = model.trace(ids, depth=Depth.full(turns)).logits()
    torch.testing.assert_close(found, stock.trace(ids).logits(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("std", "expected"), [(None, 0.4**0.5), (2.0, 2.0), (0.0, 0.0)])
def test_noise_is_normal_and_cut_at_three_standard_deviations(std, expected):
    found = noise(run(1000), width=256, std=std)
    assert found.abs().max() <= 3 * expected * (1 + 1e-5)
    assert found.mean().item() == pytest.approx(0, abs=0.005 * expected)
    kept = 1 - 2 * 3 * 0.0044318 / 0.9973002  # variance of a standard normal cut at 3: 1 - 2 * 3 * phi(3) / P(|x| < 3)
    assert found.var().item() == pytest.approx(kept * expected**2, rel=0.01)
    inner = (found.abs() < expected).float().mean().item()
    assert inner == pytest.approx(0.682689 / 0.997300 if expected else 0, abs=0.005)


def test_every_row_has_the_same_noise_at_the_same_position():
    found = noise(run(70, batch=3))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_positions_and_features_have_noise_of_their_own():
    found = noise(run(200))[0]
    similar = torch.corrcoef(found[:130]).fill_diagonal_(0)
    assert found.unique().numel() > 0.99 * found.numel()
    assert similar.abs().max() < 0.95


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_noise_does_not_depend_on_the_length_of_the_sequence(length):
    assert torch.equal(noise(run(length)), noise(run(200))[:, :length])


def test_padding_only_moves_noise():
    padded = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3]])
    found, plain = noise(padded), noise(run(4))[0]
    assert torch.equal(found[0, 2:], plain)
    assert torch.equal(found[1, :4], plain)


def test_a_late_token_alone_has_the_noise_it_has_in_its_sequence():
    assert torch.equal(noise(torch.tensor([[150], [3]])), noise(run(151))[0, [150, 3]][:, None])


def test_another_seed_is_other_noise_and_the_same_seed_the_same():
    assert torch.equal(noise(run(9), seed=5), noise(run(9), seed=5))
    assert not torch.isclose(noise(run(9), seed=5), noise(run(9), seed=6)).any()
    assert not torch.isclose(noise(run(128), seed=5)[:, 64:], noise(run(64), seed=6)).any()  # nor the same, moved
    assert noise(run(2), seed=2**62).isfinite().all()


def test_noise_has_the_dtype_of_the_prelude():
    assert torch.equal(noise(run(9), dtype=torch.bfloat16), noise(run(9)).bfloat16())


def test_a_models_answer_depends_on_the_seed_through_the_noise(make, ids):
    model = make(entry={"use": "noise-concat"}, **PLAIN).model
    first, again, other = (model.trace(ids, seed=seed).logits() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_tokens_do_not_see_later_ones_nor_padding_through_the_noise(make, ids):
    model = make(entry={"use": "noise-concat"}, **PLAIN).model
    whole = model.trace(ids).logits()
    torch.testing.assert_close(model.trace(ids[:, :7]).logits(), whole[:, :7], atol=1e-4, rtol=1e-4)
    padded, mask = torch.cat([ids[:, :3] * 0, ids], 1), torch.ones(2, 15, dtype=torch.long)
    mask[:, :3] = 0
    torch.testing.assert_close(model.trace(padded, mask).logits()[:, 3:], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter", ["random", "prelude"])
def test_a_bfloat16_model_learns_to_mix(adapter, make, ids):
    model = make(tiny_model().bfloat16(), entry={"use": "noise-concat", "adapter": adapter}, **PLAIN).model
    model.trace(ids, depth=Depth.full(2)).nll(ids).sum().backward()
    (weight,) = model.loops[0].entry.parameters()
    assert weight.dtype == torch.float32
    assert weight.grad.ne(0).any(-1).all()


def test_costs_are_counted_without_values():
    with torch.device("meta"):
        mixing, prelude = NoiseConcat(D), torch.zeros(B, T, D)
        assert mixing.start(prelude, replace(a_turn(), positions=run(T, B))).shape == prelude.shape
