"""Splits: what is kept, looped and removed, and how they are drawn."""

import pytest

from ouroboros_core.errors import UserError
from ouroboros_core.split import Segment, Split, ranges

CUT = Split(9, (Segment((0, 1)), Segment((4,), looped=True), Segment((7, 8))), residual_layers=(2, 3, 5, 6))


def test_every_layer_is_kept_or_removed():
    assert CUT.kept == (0, 1, 4, 7, 8)
    assert CUT.removed == (2, 3, 5, 6)


def test_the_looped_layers_and_the_coda_are_known():
    assert CUT.looped == (4,)
    assert CUT.coda == (7, 8)


def test_the_coda_runs_after_the_last_of_several_loops():
    twice = Split(5, (Segment((0,), True), Segment((1,)), Segment((2,), True), Segment((3,)), Segment((4,))), ())
    assert (twice.looped, twice.coda) == ((0, 2), (3, 4))


def test_a_split_is_drawn_in_one_line():
    assert CUT.drawn(4) == "0-1 | 4 x 4 | 7-8   (removed: 2-3, 5-6)"


def test_empty_segments_and_empty_removals_are_not_drawn():
    assert Split(2, (Segment(()), Segment((0, 1), True), Segment(())), ()).drawn(3) == "0-1 x 3"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1), "0-1"), ((0, 1, 2, 5), "0-2, 5"), ((1, 3, 4, 9), "1, 3-4, 9")],
)
def test_numbers_that_follow_each_other_become_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize("layer", [5, -1])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match=f"layer {layer} of a model whose layers are 0 to 4"):
        Split(5, (Segment((0,)), Segment((layer,), True)), ())


def test_a_split_without_a_loop_is_refused():
    with pytest.raises(UserError, match="no layer is looped; a recursive model needs a recurrent block"):
        Split(5, (Segment((0,)),), ())


def test_an_empty_recurrent_block_is_refused():
    with pytest.raises(UserError, match="the recurrent block is empty"):
        Split(5, (Segment((0,)), Segment((), True), Segment((1,), True)), ())
