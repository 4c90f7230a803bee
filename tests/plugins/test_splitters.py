"""Where the layers go."""

import pytest

from ouroboros_core.contracts import ModelFacts, Slot
from ouroboros_core.errors import UserError


@pytest.fixture
def split(host):
    """Split a model of so many layers with a part and its options."""

    def split(layers, name="prelude-recurrent-coda", **options):
        part = host.find(Slot.SPLITTER, name)
        facts = ModelFacts(layers, 8, 4)
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
