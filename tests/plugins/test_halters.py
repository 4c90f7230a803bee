"""Halters: one turn's verdict. The whole recursion of adaptive time is in the tests of the loop."""

import pytest
import torch
from pydantic import ValidationError

from ouroboros_core.contracts import Slot
from ouroboros_core.testing import a_turn, loop_facts
from ouroboros_plugins.halters.act import ACTHalter, ACTOptions

D = 16


@pytest.fixture
def state():
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))


def test_the_fixed_halter_stops_nobody_and_reads_the_last_state(host, state):
    part = host.default(Slot.HALTER)
    fixed = part.build(part.options(), loop_facts(D))
    halt = fixed(state, state, a_turn())
    assert not halt.stop.any()
    assert halt.weight is None
    assert not fixed.adaptive


def test_at_the_start_every_token_halts_with_the_bias_alone(state):
    halt = ACTHalter(D)(state, state, a_turn())
    torch.testing.assert_close(halt.weight, torch.full((2, 5), 0.119203), atol=1e-6, rtol=0)
    assert not halt.stop.any()


def test_the_halting_unit_has_two_hidden_layers_and_ends_at_zero_with_a_bias_of_minus_two():
    unit = ACTHalter(D).unit
    shapes = [tuple(p.shape) for p in unit.parameters()]
    assert shapes == [(256, D), (256,), (256, 256), (256,), (1, 256), (1,)]
    assert not unit[-1].weight.any()
    assert unit[-1].bias.item() == -2


def test_a_token_stops_when_its_probabilities_reach_one_but_for_epsilon(state):
    spent = torch.tensor([[0.0, 0.8, 0.87, 0.89, 0.95]] * 2)
    halt = ACTHalter(D, epsilon=0.01)(state, state, a_turn(spent=spent))
    assert halt.stop[0].tolist() == [False, False, False, True, True]  # each adds 0.1192
    torch.testing.assert_close(halt.weight[0, 3:], torch.tensor([0.11, 0.05]))


def test_a_larger_epsilon_stops_sooner(state):
    spent = torch.full((2, 5), 0.7)
    assert not ACTHalter(D, epsilon=0.1)(state, state, a_turn(spent=spent)).stop.any()
    assert ACTHalter(D, epsilon=0.2)(state, state, a_turn(spent=spent)).stop.all()


def test_the_last_turn_takes_what_is_left(state):
    spent = torch.full((2, 5), 0.3)
    halt = ACTHalter(D)(state, state, a_turn(last=True, spent=spent))
    assert halt.stop.all()
    torch.testing.assert_close(halt.weight, torch.full((2, 5), 0.7))


def test_the_new_state_decides(randomise, state):
    halter = randomise(ACTHalter(D))
    weights = halter(torch.zeros_like(state), state, a_turn()).weight
    assert torch.equal(weights, halter(state + 1, state, a_turn()).weight)
    assert not torch.equal(weights, halter(state, state + 1, a_turn()).weight)


@pytest.mark.parametrize("epsilon", [0, 1, -0.1])
def test_an_epsilon_outside_zero_and_one_is_refused(epsilon):
    with pytest.raises(ValidationError, match="epsilon"):
        ACTOptions(epsilon=epsilon)
