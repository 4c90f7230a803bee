"""Norms against their equation."""

import pytest
import torch

from ouroboros_core.contracts import Slot
from ouroboros_core.testing import a_turn, loop_facts
from ouroboros_plugins.norms.per_step_rms import PerStepRMS

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
