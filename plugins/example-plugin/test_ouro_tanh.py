"""Tests of the gate `tanh`: its equation, its beginning, its gradient, and its place in a model."""

import ouro_tanh
import pytest
import torch
from ouro_tanh import TanhGate, TanhGateOptions
from pydantic import ValidationError

from ouroboros_core.build import build
from ouroboros_core.checks import causality
from ouroboros_core.contracts import Slot
from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import assignment, resolve
from ouroboros_core.testing import a_turn, assert_conforms, loop_facts, tiny_model


@pytest.fixture
def states():
    """An old and a new state, (B, T, D) each."""
    return torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.fixture
def host():
    """The built-in parts and this plugin, whether it is installed or not."""
    host = PluginHost.installed(third_party=False)
    host.add("example", lambda: ouro_tanh, distribution="ouroboros-example")
    return host


@pytest.fixture
def model(host):
    """A tiny recursive model with our gate."""
    chosen = ["gate.use=tanh", "modulator.rank=4", "splitter.prelude=1", "splitter.coda=1", "loop.turns=3"]
    return build(resolve(host, map(assignment, chosen)), host, tiny_model()).model


def test_it_computes_its_equation(states):
    old, new = states
    gate = TanhGate(16)
    torch.nn.init.normal_(gate.a)
    opening = (gate.a.exp() - (-gate.a).exp()) / (gate.a.exp() + (-gate.a).exp())
    torch.testing.assert_close(gate(old, new, a_turn()), (1 - opening) * old + opening * new)


@pytest.mark.parametrize("openness", [0.12, 0.9])
def test_it_starts_as_open_as_the_options_say(host, states, openness):
    old, new = states
    gate = host.find(Slot.GATE, "tanh").build(TanhGateOptions(openness=openness), loop_facts(width=16))
    torch.testing.assert_close(gate(old, new, a_turn()), old + openness * (new - old))


@pytest.mark.parametrize("openness", [0, 1, -0.5])
def test_an_opening_that_no_tanh_reaches_is_refused(openness):
    with pytest.raises(ValidationError, match="openness"):
        TanhGateOptions(openness=openness)


def test_every_dimension_learns(states):
    gate = TanhGate(16)
    gate(*states, a_turn()).square().sum().backward()
    assert (gate.a.grad != 0).all()


def test_the_preset_sets_the_gate_and_can_be_overridden(host):
    settings = resolve(host, [host.preset("gentle").settings, assignment("gate.openness=0.2")])
    assert settings.one(Slot.GATE).name == "tanh"
    assert settings.one(Slot.GATE).options.openness == 0.2
    assert settings.one(Slot.MODULATOR).options.rank == 8


def test_no_token_sees_a_later_one(model):
    ids = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    assert causality(model, ids).passed


def test_a_model_with_it_trains(model):
    ids = torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    model.trace(ids[:, :-1]).nll(ids[:, 1:]).mean().backward()
    assert model.loops[0].gate.a.grad.abs().sum() > 0


def test_it_passes_every_check(host):
    assert_conforms(host, host.preset("gentle").settings, {"loop": {"turns": 3}})
