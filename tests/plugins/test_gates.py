"""Gates against their equation."""

import pytest
import torch

from ouroboros_core.contracts import Slot
from ouroboros_core.testing import a_turn, loop_facts
from ouroboros_plugins.gates.sigmoid import SigmoidGate

D = 16


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, D, generator=generator), torch.randn(2, 5, D, generator=generator)


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
