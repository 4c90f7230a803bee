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


def test_the_kept_layers_run_in_the_order_of_the_segments():
    assert Split(6, (Segment((0, 4)), Segment((2, 1), True), Segment((5,))), ()).order == (0, 4, 2, 1, 5)


def test_loops_of_one_layer_are_drawn_together():
    loops = [Segment((layer,), looped=True) for layer in (1, 4)]
    assert Split(6, (Segment((0,)), *loops, Segment((5,))), ()).drawn(3) == "0 | 1, 4 each x 3 | 5   (removed: 2-3)"
    assert Split(6, (*loops[:1], Segment((2, 3), True), *loops[1:]), ()).drawn(3).startswith("1 x 3 | 2-3 x 3 | 4 x 3")


def test_what_a_layer_starts_as_the_mean_of_is_counted():
    averaged = {1: (1, 3), 2: (2, 4)}
    assert (
        Split(6, (Segment((1, 2), True), Segment((5,))), (), averaged)
        .drawn(2)
        .startswith("1-2 x 2 (each the mean of 2) | 5 ")
    )
    assert Split(2, (Segment((0,), True),), (), {0: (0, 1)}).drawn(2) == "0 x 2 (the mean of 2)   (removed: 1)"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((), ""),
        ((3,), "3"),
        ((0, 1), "0-1"),
        ((0, 1, 2, 5), "0-2, 5"),
        ((1, 3, 4, 9), "1, 3-4, 9"),
        ((0, 2, 3, 4), "0, 2-4"),
        ((0, 3, 6, 9), "0, 3, 6, 9"),
    ],
)
def test_numbers_that_follow_each_other_become_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 2, 4, 6, 8), "0, 2, ... 8"),
        (tuple(range(1, 30, 2)), "1, 3, ... 29"),
        ((0, *range(5, 30, 5), 26, 27), "0, 5, ... 25, 26-27"),
    ],
)
def test_many_numbers_at_equal_distances_are_not_named_one_by_one(numbers, text):
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
