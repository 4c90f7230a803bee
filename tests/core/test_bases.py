"""Frozen bases against numpy's singular value decomposition."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ouroboros_core import bases
from ouroboros_core.bases import factors, residual, svd_bases, svd_residuals
from ouroboros_core.build import build
from ouroboros_core.errors import UserError
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_model

PATHS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "down": "mlp.down_proj"}


def decaying(rows, columns, ratio):
    """A matrix whose singular values fall by a ratio each."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    size = min(rows, columns)
    return u[:, :size] * ratio ** torch.arange(size) @ v[:size]


def best(matrix, rank):
    """The best rank-R approximation, by numpy in float64."""
    u, s, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return torch.tensor((u[:, :rank] * s[:rank]) @ vt[:rank]).float()


def test_the_residual_is_the_mean_difference_from_the_block():
    torch.manual_seed(0)
    one, two, block = (nn.Linear(3, 2) for _ in range(3))
    plain = ((one.weight - block.weight) + (two.weight - block.weight)) / 2
    torch.testing.assert_close(residual([one, two], block), plain.detach())


def test_the_factors_multiply_to_the_best_approximation_of_their_rank():
    matrix = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    down, up = factors(matrix, 3)
    assert (down.shape, up.shape) == ((3, 7), (9, 3))
    torch.testing.assert_close(up @ down, best(matrix, 3))
    torch.testing.assert_close(down @ down.T, torch.eye(3))


@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
def test_large_matrices_are_factored_almost_as_well_at_random(shape, monkeypatch):
    matrix = decaying(*shape, ratio=0.9)
    monkeypatch.setattr(bases, "LOW_RANK_PAYS", 16)
    down, up = factors(matrix, 8)
    torch.testing.assert_close(up @ down, best(matrix, 8), atol=1e-4, rtol=0)
    torch.testing.assert_close(down @ down.T, torch.eye(8), atol=1e-5, rtol=0)


def test_the_random_factors_are_always_the_same_and_draw_nothing_from_the_caller(monkeypatch):
    matrix = decaying(60, 40, ratio=0.9)
    monkeypatch.setattr(bases, "LOW_RANK_PAYS", 16)
    before = torch.random.get_rng_state()
    first = factors(matrix, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    for again, then in zip(factors(matrix, 4), first, strict=True):
        assert torch.equal(again, then)


def test_a_rank_that_the_matrix_does_not_have_is_refused():
    with pytest.raises(UserError, match=r"rank 5 is more than a \(9, 4\) matrix has: choose at most 4"):
        factors(torch.ones(9, 4), 5)


def test_every_linear_of_the_block_gets_the_bases_of_its_own_residual(host):
    intact = tiny_model()
    layers = intact.model.layers
    found = svd_bases(host.anatomy(intact.config), block=[layers[2], layers[3]], others=[layers[1], layers[4]], rank=5)
    assert len(found) == 2 * 7
    for place, index in enumerate([2, 3]):
        for short, path in PATHS.items():
            one, two, mine = (layers[i].get_submodule(path).weight for i in (1, 4, index))
            down, up = found[f"{place}.{short}"]
            torch.testing.assert_close(up @ down, best((one + two) / 2 - mine, 5), atol=1e-5, rtol=1e-5)


def test_bases_are_kept_in_float32_whatever_the_weights_are(host):
    intact = tiny_model().bfloat16()
    layers = intact.model.layers
    found = svd_bases(host.anatomy(intact.config), block=[layers[3]], others=[layers[1]], rank=2)
    assert {t.dtype for pair in found.values() for t in pair} == {torch.float32}


def test_without_removed_layers_there_are_no_bases(make):
    with pytest.raises(UserError, match="no layer is removed, so there are no residuals"):
        make(tiny_model(layers=3), splitter={"prelude": 1, "coda": 1})


def test_at_full_rank_a_residual_is_the_difference_from_the_layer_stood_for(host):
    intact = tiny_model()
    layers = intact.model.layers
    stood_for = [[layers[0], layers[1]], [layers[4], layers[5]], [layers[2], layers[3]]]
    found = svd_residuals(host.anatomy(intact.config), [layers[2], layers[3]], stood_for, rank=16)
    assert len(found) == 2 * 7
    for place, index in enumerate([2, 3]):
        for turn, other in enumerate([0, 4, 2]):
            one, mine = (layers[i].self_attn.k_proj.weight for i in (other + place, index))
            down, up = found[f"{place}.k"][turn]
            torch.testing.assert_close(up @ down, one - mine, atol=1e-6, rtol=1e-5)


def test_a_residual_of_lower_rank_is_the_best_one_and_in_float32(host):
    intact = tiny_model().bfloat16()
    layers = intact.model.layers
    ((down, up),) = svd_residuals(host.anatomy(intact.config), [layers[2]], [[layers[0]]], rank=5)["0.down"]
    assert {down.dtype, up.dtype} == {torch.float32}
    difference = layers[0].mlp.down_proj.weight.float() - layers[2].mlp.down_proj.weight.float()
    torch.testing.assert_close(up @ down, best(difference, 5), atol=1e-5, rtol=1e-5)


def test_residuals_are_taken_from_the_block_as_it_starts(make):
    intact = tiny_model()
    (facts,) = make(intact, splitter={"use": "cycle", "layers": 3, "start": "average"}).facts
    for turn, layer in enumerate([1, 4]):
        down, up = facts.residuals(16)["1.v"][turn]
        one, two, mine = (intact.model.layers[i].self_attn.v_proj.weight for i in (1, 4, layer))
        torch.testing.assert_close(up @ down, mine - (one + two) / 2, atol=1e-6, rtol=1e-5)


def test_where_turns_stand_for_no_layer_there_are_no_residuals(make):
    (facts,) = make().facts
    with pytest.raises(UserError, match="does not say which layers the turns stand for"):
        facts.residuals(4)


def test_reloaded_residuals_are_zeros_of_the_same_shapes(host):
    settings = resolve(host, [{"splitter": {"use": "cycle", "layers": 2}, "modulator": {"use": "none"}}])
    whole, empty = (
        build(settings, host, tiny_model(), fill_bases=fill).facts[0].residuals(4) for fill in (True, False)
    )
    assert whole.keys() == empty.keys()
    for name, turns in whole.items():
        assert [[f.shape for f in pair] for pair in turns] == [[f.shape for f in pair] for pair in empty[name]]
        assert not any(factor.any() for pair in empty[name] for factor in pair)


def test_reloading_does_not_look_at_the_removed_layers(host):
    intact = copy.deepcopy(tiny_model())
    for index in (1, 2, 4):
        intact.model.layers[index] = nn.Identity()
    built = build(resolve(host, [{"modulator": {"rank": 4}}]), host, intact, fill_bases=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in built.model.loops[0].modulator.bases.named_buffers()}
    assert (shapes["0_q_a"], shapes["0_k_b"], shapes["0_down_a"]) == ((4, 32), (16, 4), (4, 48))
    assert not any(tensor.any() for tensor in built.model.loops[0].modulator.bases.buffers())
