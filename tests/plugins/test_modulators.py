"""Modulators against their equations: pools by a python loop, the controller from its raw weights."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from ouroboros_core.build import refuse_leaks
from ouroboros_core.contracts import LoopFacts, Slot, TapFacts, Turn
from ouroboros_core.errors import UserError
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import a_turn, loop_facts
from ouroboros_plugins.modulators.controller import ControllerOptions
from ouroboros_plugins.modulators.pooling import pooling

B, T, D = 3, 6, 16


@pytest.fixture
def state():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


def left_padded():
    """A turn whose rows have no, two and five padding tokens on the left."""
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, :2] = mask[2, :5] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return Turn(0, False, positions, mask, torch.zeros(B, T), seed=0)


def plain_pool(state, mask, seen_by):
    """Row t of a sequence is the mean of the real tokens that `seen_by(t, n)` admits; n counts real tokens."""
    pooled = {}
    for b in range(B):
        real = [t for t in range(T) if mask[b, t]]
        for t in real:
            pooled[b, t] = torch.stack([state[b, s] for n, s in enumerate(real) if seen_by(t, s, n)]).mean(0)
    return pooled


@pytest.mark.parametrize(
    ("name", "prompt", "seen_by"),
    [
        ("prefix-mean", None, lambda t, s, n: s <= t),
        ("token", None, lambda t, s, n: s == t),
        ("prompt", 3, lambda t, s, n: s <= t and n < 3),
        ("sequence-mean", None, lambda t, s, n: True),
    ],
)
def test_a_pool_is_the_mean_of_the_tokens_it_may_see(name, prompt, seen_by, state):
    turn = left_padded()
    found = pooling(name, prompt)(state, turn)
    for (b, t), expected in plain_pool(state, turn.mask, seen_by).items():
        torch.testing.assert_close(found[b, t], expected, atol=1e-6, rtol=1e-5)
    assert found.shape == state.shape
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "prompt", "causal"),
    [("prefix-mean", None, True), ("token", None, True), ("prompt", 2, True), ("sequence-mean", None, False)],
)
def test_a_pool_that_says_so_is_causal_and_the_papers_is_not(name, prompt, causal, state):
    changed, turn = state.clone(), left_padded()
    changed[:, 4:] += 1
    pool = pooling(name, prompt)
    assert torch.equal(pool(state, turn)[:2, :4], pool(changed, turn)[:2, :4]) is causal
    assert ControllerOptions(pool=name, prompt=prompt).causal is causal


def test_a_long_prefix_in_bfloat16_is_summed_in_float32():
    state = torch.full((1, 3000, 1), 1.0078125, dtype=torch.bfloat16)
    assert pooling("prefix-mean", None)(state, a_turn(1, 3000))[0, -1] == 1.0078125


@pytest.mark.parametrize("options", [{"pool": "prompt"}, {"prompt": 4}, {"pool": "token", "prompt": 4}])
def test_the_prompt_pool_and_its_length_go_together(options):
    with pytest.raises(ValidationError, match="go together"):
        ControllerOptions(**options)
    assert ControllerOptions(pool="prompt", prompt=4).prompt == 4


def test_the_papers_pool_is_refused_unless_leaks_are_allowed(host):
    leaky = {"modulator": {"pool": "sequence-mean"}}
    with pytest.raises(UserError, match="modulator 'controller', so configured, lets a token see later ones"):
        refuse_leaks(resolve(host, [leaky]))
    refuse_leaks(resolve(host, [leaky, {"run": {"allow_leak": True}}]))


def modulator(host, name="controller", facts=None, **options):
    part = host.find(Slot.MODULATOR, name)
    return part.build(part.options(**{"rank": 4, **options}), facts or loop_facts(D))


@pytest.mark.parametrize("index", [0, 2])
def test_the_controllers_diagonals_follow_its_equation(index, host, randomise, state):
    controller = randomise(modulator(host, pool="token", alpha=6.0))
    w = dict(controller.named_parameters())
    seen = F.silu(state @ w["see.0.weight"].T + w["see.0.bias"])
    joint = torch.cat([seen, w["step.weight"][index].expand(B, T, -1)], -1)
    style = F.silu(joint @ w["style.0.weight"].T + w["style.0.bias"])
    style = F.silu(style @ w["style.2.weight"].T + w["style.2.bias"])
    ops = controller(state, replace(left_padded(), index=index))
    for head, (name, (down, up)) in enumerate(loop_facts(D).bases(4).items()):
        (op,) = ops[name]
        torch.testing.assert_close(op.core, style @ w[f"heads.{head}.weight"].T * 6.0 / 4)
        assert torch.equal(op.down, down)
        assert torch.equal(op.up, up)


@pytest.mark.parametrize("index", [0, 1, 2, 9])
def test_a_static_diagonal_depends_on_the_turn_alone(index, host, randomise, state):
    static = randomise(modulator(host, "static", alpha=6.0))
    ops = static(state, replace(left_padded(), index=index))
    for place, name in enumerate(loop_facts(D).taps):
        torch.testing.assert_close(ops[name][0].core, static.diagonals.weight[min(index, 2), place] * 6.0 / 4)


def test_no_modulation_is_no_ops(host, state):
    part = host.null(Slot.MODULATOR)
    assert part.build(part.options(), loop_facts(D))(state, left_padded()) == {}


def test_the_papers_controller_has_its_number_of_parameters(host):
    taps = {f"0.{name}": TapFacts(2048, 2048) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    with torch.device("meta"):
        facts = LoopFacts(
            2048, 4, 4, taps, lambda rank: {n: (torch.empty(rank, 8), torch.empty(8, rank)) for n in taps}
        )
        controller = modulator(host, facts=facts, rank=32)
    assert sum(p.numel() for p in controller.parameters() if p.requires_grad) == 692_864


@pytest.mark.parametrize("name", ["controller", "static"])
def test_a_fresh_modulator_is_nothing_and_can_learn(name, host, state):
    fresh = modulator(host, name)
    ops = fresh(state, left_padded())
    assert not any(op.core.any() for (op,) in ops.values())
    moved = [op(torch.ones(B, T, op.down.shape[1])).sum() for (op,) in ops.values()]
    torch.stack(moved).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in fresh.parameters())


@pytest.mark.parametrize("table", [{}, {"use": "static", "rank": 4}])
def test_a_fresh_modulator_leaves_the_logits_of_a_model_alone(table, make, ids):
    without, fresh = make(modulator={"use": "none"}).model, make(modulator=table).model
    assert torch.equal(fresh(ids).logits(), without(ids).logits())
    fresh(ids).nll(ids).mean().backward()
    assert any(p.grad.any() for p in fresh.loops[0].modulator.parameters() if p.grad is not None)


def test_the_frozen_directions_are_saved_and_not_trained(host):
    controller = modulator(host)
    assert {name for name in controller.state_dict() if name.startswith("bases.")} == {
        "bases.0_q_a",
        "bases.0_q_b",
        "bases.0_down_a",
        "bases.0_down_b",
    }
    assert not any(name.startswith("bases.") for name, _ in controller.named_parameters())


def test_chained_modulators_add_their_deltas(make, randomise, ids):
    both = make(modulator={"use": ["controller", "static"], "controller": {"rank": 4}, "static": {"rank": 4}}).model
    names = [type(part).__name__ for part in both.loops[0].modulator.modulators]
    assert names == ["Controller", "StaticDiagonal"]
    randomise(both.loops)
    ops = both.loops[0].modulator(torch.ones(1, 2, 32), a_turn(1, 2))
    assert all(len(these) == 2 for these in ops.values())
    _, static = both.loops[0].modulator.modulators
    assert torch.equal(ops["0.q"][1].core, static(torch.ones(1, 2, 32), a_turn(1, 2))["0.q"][0].core)
