"""Where the layers go."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ouroboros_core import checks
from ouroboros_core.build import build, null_parts
from ouroboros_core.contracts import Depth, LayerStatistics, ModelFacts, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.kept import kept_once
from ouroboros_core.ops import LowRank
from ouroboros_core.resolve import resolve
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_model

SHARING = ["cycle", "sequence", "middle-cycle"]
STARTS = ["average", "stepwise", "first", "last"]
MEASURING = ["angular-distance", "block-influence"]


@pytest.fixture
def split(host):
    """Split a model of so many layers with a part and its options."""

    def split(layers, name="prelude-recurrent-coda", statistics=None, /, **options):
        part = host.find(Slot.SPLITTER, name)
        facts = ModelFacts(layers, 8, 4, statistics)
        return part.build(part.options(**options), facts)(facts)

    return split


def shape(split):
    return [(list(segment.layers), segment.looped) for segment in split.segments]


@pytest.mark.parametrize(("layers", "share", "block"), [(36, 8, 18), (30, 7, 15), (24, 5, 12), (6, 1, 3)])
def test_the_default_keeps_two_ninths_at_each_end_and_loops_the_middle(layers, share, block, split):
    first, last = list(range(share)), list(range(layers - share, layers))
    assert shape(split(layers)) == [(first, False), ([block], True), (last, False)]


def test_what_is_between_is_removed_and_stands_in_the_bases(split):
    cut = split(30)
    assert cut.removed == cut.residual_layers == (*range(7, 15), *range(16, 23))
    assert cut.drawn(4) == "0-6 | 15 x 4 | 23-29   (removed: 7-14, 16-22)"


@pytest.mark.parametrize(("size", "block"), [(2, [17, 18]), (3, [17, 18, 19]), (4, [16, 17, 18, 19])])
def test_a_block_of_several_layers_lies_in_the_middle(size, block, split):
    cut = split(36, size=size)
    assert cut.looped == tuple(block)
    assert abs((35 - block[-1]) - block[0]) <= 1


def test_every_place_can_be_chosen(split):
    cut = split(10, prelude=2, block=4, coda=3, size=2)
    assert shape(cut) == [([0, 1], False), ([4, 5], True), ([7, 8, 9], False)]
    assert cut.removed == (2, 3, 6)


def test_prelude_and_coda_may_be_empty(split):
    assert shape(split(3, prelude=0, block=1, coda=0)) == [([], False), ([1], True), ([], False)]


def test_neighbours_may_touch(split):
    assert split(5, prelude=2, block=2, coda=2).removed == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prelude": 4, "block": 3}, "prelude=4, block=3, size=1 and coda=2 do not fit into 10 layers"),
        ({"block": 7, "size": 2}, "prelude=2, block=7, size=2 and coda=2 do not fit into 10 layers"),
        ({"coda": 11}, "block=5, size=1 and coda=11 do not fit into 10 layers"),
        ({"prelude": 2, "block": 10, "coda": 0}, "block=10, size=1 and coda=0 do not fit into 10 layers"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(options, said, split):
    with pytest.raises(UserError, match=said):
        split(10, **options)


@pytest.mark.parametrize("size", [1, 2])
def test_refine_last_keeps_everything_and_loops_the_end(size, split):
    cut = split(6, "refine-last", size=size)
    assert shape(cut) == [(list(range(6 - size)), False), (list(range(6 - size, 6)), True)]
    assert cut.removed == ()
    assert cut.residual_layers == tuple(range(6 - size))


def test_refine_last_leaves_a_layer_that_runs_once(split):
    with pytest.raises(UserError, match=r"splitter\.size=6: the model has 6 layers; loop fewer"):
        split(6, "refine-last", size=6)


def test_a_base_of_22_layers_is_cut_as_it_was_for_retrofitted_recurrence(split):
    cut = split(22, prelude=4, block=10, size=8, coda=4)
    assert cut.drawn(4) == "0-3 | 10-17 x 4 | 18-21   (removed: 4-9)"


# Every layer stays


@pytest.mark.parametrize("layers", [1, 6])
def test_the_whole_model_is_one_block(layers, split):
    cut = split(layers, "whole")
    assert shape(cut) == [(list(range(layers)), True)]
    assert cut.removed == cut.residual_layers == cut.segments[0].stands_for == ()


def test_a_base_from_a_config_is_shared_out_whole(split):
    assert shape(split(8, "from-config")) == [([0, 1], False), ([2, 3, 4, 5], True), ([6, 7], False)]
    cut = split(4, "from-config", prelude=0, size=3, coda=1)
    assert shape(cut) == [([], False), ([0, 1, 2], True), ([3], False)]
    assert cut.removed == cut.residual_layers == ()


@pytest.mark.parametrize("layers", [7, 9])
def test_a_base_with_other_layers_than_the_split_is_refused_with_both_sums(layers, split):
    said = f"make 8 layers, and the base has {layers}: make one with --set base.config.num_hidden_layers=8"
    with pytest.raises(UserError, match=said):
        split(layers, "from-config")


# Layers are shared


@pytest.mark.parametrize(
    ("start", "kept"), [("average", (0, 1, 2)), ("stepwise", (0, 2, 5)), ("first", (0, 1, 2)), ("last", (3, 4, 5))]
)
def test_a_cycle_is_one_block_that_goes_through_the_depth_turn_by_turn(start, kept, split):
    cut = split(6, "cycle", layers=3, start=start)
    (block,) = cut.segments
    assert (block.layers, block.looped) == (kept, True)
    assert block.stands_for == ((0, 1, 2), (3, 4, 5))
    assert cut.averaged == ({0: (0, 3), 1: (1, 4), 2: (2, 5)} if start == "average" else {})
    assert set(cut.removed) == set(cut.residual_layers) == set(range(6)) - set(kept)


@pytest.mark.parametrize(
    ("start", "kept"), [("average", (0, 2, 4)), ("stepwise", (0, 2, 5)), ("first", (0, 1, 2)), ("last", (3, 4, 5))]
)
def test_in_sequence_each_shared_layer_is_a_loop_over_its_neighbours(start, kept, split):
    cut = split(6, "sequence", layers=3, start=start)
    assert shape(cut) == [([layer], True) for layer in kept]
    assert [segment.stands_for for segment in cut.segments] == [((0,), (1,)), ((2,), (3,)), ((4,), (5,))]
    assert cut.averaged == ({0: (0, 1), 2: (2, 3), 4: (4, 5)} if start == "average" else {})


@pytest.mark.parametrize(
    ("start", "kept"), [("average", [1, 2]), ("stepwise", [1, 6]), ("first", [1, 2]), ("last", [5, 6])]
)
def test_a_cycle_in_the_middle_leaves_the_first_and_the_last_layer_alone(start, kept, split):
    cut = split(8, "middle-cycle", layers=2, start=start)
    assert shape(cut) == [([0], False), (kept, True), ([7], False)]
    assert cut.segments[1].stands_for == ((1, 2), (3, 4), (5, 6))
    assert cut.averaged == ({1: (1, 3, 5), 2: (2, 4, 6)} if start == "average" else {})


def test_half_of_the_layers_are_shared_unless_told_otherwise(split):
    assert split(30, "cycle").drawn(2) == "0-14 x 2 (each the mean of 2)   (removed: 15-29)"
    assert split(30, "middle-cycle").drawn(2) == "0 | 1-14 x 2 (each the mean of 2) | 29   (removed: 15-28)"
    drawn = split(30, "sequence").drawn(2)
    assert drawn == "0, 2, ... 28 each x 2 (each the mean of 2)   (removed: 1, 3, ... 29)"


@pytest.mark.parametrize(
    ("name", "layers", "shared", "turns"),
    [
        ("cycle", 7, 3, ((0, 1, 2), (4, 5, 6))),
        ("cycle", 8, 3, ((0, 1, 3), (4, 6, 7))),
        ("cycle", 7, 1, ((0,), (1,), (2,), (3,), (4,), (5,), (6,))),
        ("middle-cycle", 9, 3, ((1, 2, 3), (5, 6, 7))),
    ],
)
def test_what_cannot_be_shared_out_evenly_is_dropped_at_equal_distances(name, layers, shared, turns, split):
    cut = split(layers, name, layers=shared)
    (block,) = (segment for segment in cut.segments if segment.looped)
    assert block.stands_for == turns
    dropped = set(range(layers)) - {i for turn in turns for i in turn} - set(cut.kept)
    assert dropped <= set(cut.removed)


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("layers", [4, 5, 11, 30])
def test_the_shared_layers_are_different_ones_of_the_depth_they_stand_for(name, start, layers, split):
    for shared in range(1, (layers - 2) // 2 + 1):
        cut = split(layers, name, layers=shared, start=start)
        loops = [segment for segment in cut.segments if segment.looped]
        depth = {i for segment in loops for turn in segment.stands_for for i in turn}
        assert len(cut.looped) == sum(len(segment.layers) for segment in loops) == shared
        assert set(cut.looped) <= depth
        assert len(depth) == sum(len(turn) for segment in loops for turn in segment.stands_for)
        assert len(depth) % shared == 0


@pytest.mark.parametrize(("name", "among"), [("cycle", 6), ("sequence", 6), ("middle-cycle", 4)])
def test_a_layer_that_would_be_shared_by_none_is_refused(name, among, split):
    said = f"must stand for two or more of the {among} layers that are shared: choose at most {among // 2}"
    with pytest.raises(UserError, match=said):
        split(6, name, layers=among // 2 + 1)


def test_a_model_too_small_to_share_anything_is_refused(split):
    with pytest.raises(UserError, match=r"splitter\.layers=0: .* or splitter whole"):
        split(3, "middle-cycle")


def restored(facts):
    """A modulator that makes each turn's block the layers it stands for: W + (W_l - W), at full rank."""

    class Restored(nn.Module):
        def __init__(self):
            super().__init__()
            self.residuals = facts.residuals(32)

        def forward(self, state, turn):
            return {name: [LowRank(*turns[turn.index])] for name, turns in self.residuals.items()}

    return Restored()


def with_square_heads(layers):
    """A tiny model whose linears all have rank 32, and whose layers all have the same norms."""
    config = tiny_model(layers).config
    config.num_key_value_heads = config.num_attention_heads
    model, generator = AutoModelForCausalLM.from_config(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.15, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("name", "layers", "shared", "depth"),
    [
        ("cycle", 6, 3, range(6)),
        ("sequence", 6, 3, range(6)),
        ("middle-cycle", 6, 2, range(6)),
        ("cycle", 7, 3, [0, 1, 2, 4, 5, 6]),
    ],
)
def test_with_the_residual_of_each_turn_the_shared_model_is_the_intact_one(
    name, layers, shared, depth, start, host, make, ids
):
    intact = with_square_heads(layers)
    built = make(intact, splitter={"use": name, "layers": shared, "start": start}, modulator={"use": "none"})
    parts = [null_parts(host, facts) for facts in built.facts]
    with built.model.with_parts(parts):
        neutral = built.model.trace(ids, depth=Depth.full(2)).logits()
        for each, facts in zip(parts, built.facts, strict=True):
            each.modulator = restored(facts)
        looped = built.model.trace(ids, depth=Depth.full(2)).logits()
    whole = Split(len(intact.model.layers), (Segment(tuple(depth), looped=True),), ())
    expected = kept_once(intact, host.anatomy(intact.config), whole)(input_ids=ids, use_cache=False).logits
    largest = expected.abs().max()
    assert (looped - expected).abs().max() < 1e-5 * largest
    assert (neutral - expected).abs().max() > 0.1 * largest


@pytest.mark.parametrize("name", SHARING)
def test_an_averaged_layer_starts_as_the_mean_of_those_it_stands_for(name, make):
    intact = tiny_model()
    model = make(intact, splitter={"use": name, "start": "average"}).model
    assert len(model.split.averaged) == len(model.split.looped) > 1
    for kept, group in model.split.averaged.items():
        for parameter, value in model.layer(kept).named_parameters():
            mean = sum(intact.model.layers[i].get_parameter(parameter) for i in group) / len(group)
            torch.testing.assert_close(value.data, mean)


# The block goes where little happens


def statistics(angles, influences):
    """Of L layers: an angle for each (before, behind), else half a turn, and the influence of each layer."""
    layers = len(influences)
    angle, cosine = torch.full((2, layers + 1, layers + 1), 0.5, dtype=torch.float64)
    for (before, behind), value in angles.items():
        angle[before, behind] = value
    for layer, value in enumerate(influences):
        cosine[layer, layer + 1] = 1 - value
    return LayerStatistics(cosine, angle, 256)


FLAT = [0.5] * 8


@pytest.mark.parametrize(
    ("first", "segments"),
    [
        (2, [([0, 1], False), ([4], True), ([6, 7], False)]),
        (0, [([], False), ([2], True), ([4, 5, 6, 7], False)]),
        (4, [([0, 1, 2, 3], False), ([6], True), ([], False)]),
    ],
)
def test_the_layers_over_which_the_state_turns_least_give_way_to_their_middle(first, segments, split):
    cut = split(8, "angular-distance", statistics({(first, first + 4): 0.1, (3, 6): 0.01}, FLAT), keep=5)
    assert shape(cut) == segments
    assert cut.removed == cut.residual_layers == tuple(i for i in range(first, first + 4) if i != first + 2)


def test_a_block_of_several_layers_is_the_middle_of_those_that_turn_least(split):
    cut = split(8, "angular-distance", statistics({(1, 6): 0.1}, FLAT), keep=5, size=2)
    assert shape(cut) == [([0], False), ([3, 4], True), ([6, 7], False)]
    assert cut.removed == (1, 2, 5)


def test_the_least_influential_run_gives_way_to_its_most_influential_layer(split):
    influences = [0.9, 0.0, 0.8, 0.1, 0.1, 0.3, 0.1, 0.7]  # layer 1 alone does least, layers 3 to 6 together
    cut = split(8, "block-influence", statistics({}, influences), keep=5)
    assert shape(cut) == [([0, 1, 2], False), ([5], True), ([7], False)]
    assert cut.removed == cut.residual_layers == (3, 4, 6)


def test_a_block_of_several_layers_is_the_most_influential_run_of_the_least_influential(split):
    influences = [0.9, 0.9, 0.0, 0.2, 0.2, 0.3, 0.0, 0.9]
    cut = split(8, "block-influence", statistics({}, influences), keep=5, size=2)
    assert shape(cut) == [([0, 1], False), ([4, 5], True), ([7], False)]


@pytest.mark.parametrize("name", MEASURING)
def test_as_many_layers_are_kept_by_measure_as_in_the_default_split(name, split):
    for layers in (3, 6, 30, 36):
        cut = split(layers, name, statistics({}, [0.5] * layers))
        assert len(cut.kept) == len(split(layers).kept)


@pytest.mark.parametrize("name", MEASURING)
def test_everything_or_the_block_alone_may_be_kept(name, split):
    flat = statistics({}, FLAT)
    assert split(8, name, flat, keep=8, size=3).removed == ()
    assert split(8, name, flat, keep=3, size=3).looped == split(8, name, flat, keep=3, size=3).kept


@pytest.mark.parametrize("name", MEASURING)
@pytest.mark.parametrize(("options", "keep"), [({"keep": 9}, 9), ({"keep": 2, "size": 3}, 2), ({"size": 5}, 9)])
def test_more_layers_than_there_are_or_fewer_than_the_block_are_refused(name, options, keep, split):
    with pytest.raises(UserError, match=f"keep={keep} with a block of size=.* does not fit into 8 layers"):
        split(8, name, statistics({}, FLAT), **options)


@pytest.mark.parametrize("name", MEASURING)
def test_what_is_not_measured_is_not_guessed(name, make):
    with pytest.raises(UserError, match=f"splitter '{name}' chooses by what the layers do to text"):
        make(splitter={"use": name})


# All of them, as models

OPTIONS = {"from-config": {"prelude": 1, "size": 3, "coda": 2}}
SPLITTERS = ["prelude-recurrent-coda", "refine-last", "whole", "from-config", *SHARING, *MEASURING]


@pytest.mark.parametrize("name", SPLITTERS)
def test_with_neutral_parts_one_turn_is_the_kept_layers(name, host, ids):
    intact, measured = tiny_model(), statistics({(1, 5): 0.1}, [0.5] * 6)
    tables = {"splitter": {"use": name, **OPTIONS.get(name, {})}, "modulator": {"use": "none"}}
    built = build(resolve(host, [tables]), host, intact, measured)
    assert checks.identity(built.model, [null_parts(host, facts) for facts in built.facts], intact, ids).passed


def test_every_splitter_is_tried_here(host):
    assert sorted(part.name for _, part in host.parts(Slot.SPLITTER)) == sorted(SPLITTERS)
