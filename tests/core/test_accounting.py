"""What a model costs, against counts made by hand."""

import copy

import pytest
import torch
from torch import nn

import ouroboros_plugins
from ouroboros_core.accounting import (
    MeanDepth,
    Parameters,
    by_component,
    flops_per_token,
    kv_bytes_per_token,
    mean_depth,
    mean_train_flops,
    parameters,
    train_flops_per_token,
)
from ouroboros_core.build import build
from ouroboros_core.contracts import Depth
from ouroboros_core.host import OURS, PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.resolve import assignment, resolve
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_model

D, I, V = 32, 48, 320  # noqa: E741 - width, inner width and vocabulary of the tiny model
QUERY, KEY = 4 * 8, 2 * 8  # heads times their width
LINEARS = {"q": (D, QUERY), "k": (D, KEY), "v": (D, KEY), "o": (QUERY, D), "gate": (D, I), "up": (D, I), "down": (I, D)}
MATRICES = sum(inputs * outputs for inputs, outputs in LINEARS.values())
LAYER = MATRICES + 2 * D  # and two norms
GATE = 2 * D * D + D  # of the sigmoid gate
ROWS = 64 * D  # of the norm's table
USUAL = ["splitter.prelude=1", "splitter.coda=2", "splitter.block=3", "modulator.use=none"]  # four layers of six
NULL = ["gate.use=none", "norm.use=none"]


@pytest.fixture(scope="module")
def host():
    host = PluginHost()
    host.add("builtin", lambda: ouroboros_plugins, distribution=OURS)
    return host


@pytest.fixture
def made(host):
    """A recursive model of six tiny layers, from assignments."""

    def make(*assignments, intact=None):
        settings = resolve(host, map(assignment, [*USUAL, *assignments]))
        return build(settings, host, intact or tiny_model()).model

    return make


def forward(turns, length):
    """Operations a token: two for each multiplication of a matrix, and attention over the whole length."""
    attention = 2 * 2 * length * QUERY  # scores, and their values
    return (3 + turns) * (2 * MATRICES + attention) + 2 * D * V


def test_parameters_are_those_counted_by_hand(made):
    counted = parameters(made("loop.turns=4"))
    kept = 4 * LAYER + 2 * V * D + D  # embeddings and head, final norm
    assert counted.trainable == GATE + ROWS
    assert counted.unique == kept + GATE + ROWS
    assert counted.effective == counted.unique + 3 * LAYER


def test_frozen_bases_are_stored_and_not_trained(made):
    rank, without = 4, parameters(made())
    counted = parameters(made("modulator.use=static", f"modulator.rank={rank}", "modulator.rows=8"))
    table = 8 * len(LINEARS) * rank
    bases = rank * sum(inputs + outputs for inputs, outputs in LINEARS.values())
    assert counted.trainable == without.trainable + table
    assert counted.unique == without.unique + table + bases


def test_a_shared_tensor_counts_once(made):
    tied = tiny_model()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert parameters(made(intact=tied)).unique == parameters(made()).unique - V * D


def test_a_plain_model_is_as_effective_as_it_is_large():
    layer = nn.Linear(3, 5)
    model = nn.Sequential(layer, nn.Linear(5, 3, bias=False).requires_grad_(False), layer)
    counted = parameters(model)
    assert (counted.trainable, counted.unique, counted.effective) == (20, 35, 35)


@pytest.mark.parametrize("turns", [1, 4])
def test_a_longer_block_and_more_turns_are_more_effective_parameters(made, turns):
    counted = parameters(made("splitter.size=2", "splitter.coda=1", f"loop.turns={turns}"))
    assert counted.effective - counted.unique == (turns - 1) * 2 * LAYER


@pytest.mark.parametrize("adapter", ["none", "coda-lora", "unfreeze", "full"])
def test_the_components_add_up_to_the_whole(made, adapter):
    model = made(f"adapter.use={adapter}", "modulator.use=static", "modulator.rank=4")
    rows, counted = by_component(model), parameters(model)
    assert sum(stored for _, stored, _ in rows) == counted.unique
    assert sum(trainable for _, _, trainable in rows) == counted.trainable


def test_where_everything_learns_all_but_the_frozen_bases_is_trained(made):
    counted = parameters(made("adapter.use=full", "loop.turns=4"))
    assert counted == Parameters(counted.unique, parameters(made("loop.turns=4")).unique, counted.effective)
    with_bases = parameters(made("adapter.use=full", "modulator.use=static", "modulator.rank=4"))
    assert with_bases.unique - with_bases.trainable == 4 * sum(inputs + outputs for inputs, outputs in LINEARS.values())


def two_loops(host, made, turns):
    """Two loops, of two layers and of one, and two layers that run once; null parts."""
    intact, null = tiny_model(), made(*NULL).loops[0]
    split = Split(6, (Segment((0, 1), True), Segment((2,)), Segment((3,), True), Segment((5,))), ())
    return RecursiveLM(intact, host.anatomy(intact.config), split, [null, copy.deepcopy(null)], turns)


def test_several_loops_are_counted_layer_by_layer_and_turn_by_turn(host, made):
    model, length, turns = two_loops(host, made, turns=3), 16, 3
    counted = parameters(model)
    assert counted.unique == 5 * LAYER + 2 * V * D + D
    assert counted.effective == counted.unique + (turns - 1) * 3 * LAYER
    assert sum(stored for _, stored, _ in by_component(model)) == counted.unique
    assert flops_per_token(model, length) == forward(2 + 3 * turns - 3, length)
    assert kv_bytes_per_token(model) == 2 * KEY * (2 + 3 * turns) * 4


@pytest.mark.parametrize(("turns", "length"), [(1, 16), (4, 16), (4, 32)])
def test_operations_are_those_counted_by_hand(made, turns, length):
    assert flops_per_token(made(*NULL), length, Depth.full(turns)) == forward(turns, length)


def test_a_gate_costs_its_matrix_at_every_turn(made):
    gated = made("norm.use=none")
    assert flops_per_token(gated, 16, Depth.full(4)) == forward(4, 16) + 4 * 2 * (2 * D * D)


def test_operations_on_the_meta_device_are_those_on_the_cpu(made):
    intact = tiny_model().to("meta")
    assert flops_per_token(made(*NULL, intact=intact), 16) == flops_per_token(made(*NULL), 16)


@pytest.mark.parametrize(
    ("turns", "dtype", "size"), [(1, torch.float32, 4), (4, torch.float32, 4), (4, torch.bfloat16, 2)]
)
def test_the_cache_holds_keys_and_values_of_every_turn(made, turns, dtype, size):
    model = made(f"loop.turns={turns}", intact=tiny_model().to(dtype))
    assert kv_bytes_per_token(model) == 2 * KEY * (3 + turns) * size


def test_training_operations_are_the_mean_over_the_depths_of_a_run(made):
    model, drawn = made(), [Depth(1, 1), Depth(2, 1), Depth(2, 2), Depth(5, 3)]
    mean = mean_depth(lambda step, progress, seed: drawn[step], len(drawn), 0)
    assert mean == MeanDepth(2.5, 1.75)
    backward = [train_flops_per_token(model, 16, Depth.full(depth.with_gradient)) for depth in drawn]
    turn = flops_per_token(model, 16, Depth.full(2)) - flops_per_token(model, 16, Depth.full(1))
    forward_only = [(depth.turns - depth.with_gradient) * turn for depth in drawn]
    plain = (sum(backward) + sum(forward_only)) / len(drawn)
    assert mean_train_flops(model, 16, mean) == pytest.approx(plain, rel=1e-3)


def test_the_cache_is_counted_in_the_dtype_that_is_computed_in_not_in_that_of_float32_masters(made):
    model = made("loop.turns=2", "adapter.use=full", intact=tiny_model().to(torch.bfloat16))
    assert kv_bytes_per_token(model) == 2 * KEY * (3 + 2) * 2
