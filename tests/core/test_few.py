"""Tokens that go on when others have stopped, against plain loops over rows and tokens."""

from dataclasses import replace

import pytest
import torch

from ouroboros_core.errors import UserError
from ouroboros_core.few import WORTH, Carried, Few, Going
from ouroboros_core.testing import a_turn

B, T, D = 3, 6, 4


def rows(*written):
    """Who runs, written with x for those who do."""
    return torch.tensor([[each == "x" for each in row] for row in written])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SCATTERED = rows(".x...x", "......", "..x...")
WRITTEN = [
    SCATTERED,
    rows("x.....", "......", "......"),
    rows("......", "x.x.x.", ".....x"),
    rows("xxxxxx", "......", "......"),
    rows("xxxx..", "..xxxx", "x....."),
]


def spots(running):
    """The running tokens of each row that has any: [(row, [places])]."""
    found = [(b, [t for t in range(T) if running[b, t]]) for b in range(B)]
    return [(b, places) for b, places in found if places]


@pytest.mark.parametrize("running", WRITTEN)
def test_rows_with_running_tokens_are_gathered_and_filled_up_to_the_longest(running):
    few, expected = Few.of(running), spots(running)
    width = max(len(places) for _, places in expected)
    assert few.rows.tolist() == [b for b, _ in expected]
    assert few.at.shape == few.real.shape == (len(expected), width)
    for at, real, (_, places) in zip(few.at, few.real, expected, strict=True):
        assert at[: len(places)].tolist() == places  # in order
        assert real.tolist() == [n < len(places) for n in range(width)]


@pytest.mark.parametrize("shape", [(), (D,), (2, D)])
@pytest.mark.parametrize("running", WRITTEN)
def test_what_is_taken_of_each_token_is_its_own(running, shape):
    whole = drawn(B, T, *shape)
    taken = Few.of(running).take(whole)
    for row, (b, places) in zip(taken, spots(running), strict=True):
        for n, t in enumerate(places):
            assert torch.equal(row[n], whole[b, t])


@pytest.mark.parametrize("shape", [(), (D,), (2, D)])
@pytest.mark.parametrize("running", WRITTEN)
def test_what_is_put_back_replaces_the_running_tokens_alone_and_fillers_never(running, shape):
    few, whole = Few.of(running), drawn(B, T, *shape)
    new = drawn(*few.at.shape, *shape, seed=1)
    new[~few.real] = torch.nan
    expected = whole.clone()
    for row, (b, places) in zip(new, spots(running), strict=True):
        for n, t in enumerate(places):
            expected[b, t] = row[n]
    before = whole.clone()
    assert torch.equal(few.put(whole, new), expected)
    assert torch.equal(whole, before)


def test_what_is_put_back_takes_the_dtype_of_the_whole():
    few = Few.of(SCATTERED)
    assert few.put(torch.zeros(B, T, dtype=torch.bool), few.real).equal(SCATTERED)
    assert few.put(drawn(B, T).bfloat16(), few.take(drawn(B, T))).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "running",
    [
        rows("......", "......", "......"),
        rows("xxxxxx", "xxxxxx", "xxxxxx"),
        rows(".....x", "xxxxxx", ".x...."),  # three rows as long as the longest
        rows("xxxxx.", "x.....", "x....."),
    ],
)
def test_nothing_is_gathered_where_none_runs_or_too_many_would_be_computed(running):
    assert Few.of(running) is None


@pytest.mark.parametrize("count", range(1, 21))
def test_it_is_worth_it_up_to_a_share_of_the_batch(count):
    running = torch.arange(20)[None] < count
    assert (Few.of(running) is not None) == (count <= WORTH * 20)


def test_a_turn_of_the_few_tells_of_those_tokens():
    turn = replace(
        a_turn(B, T, index=2, prelude=drawn(B, T, D), spent=drawn(B, T, seed=1)),
        mask=rows("xxxxxx", "xxxxxx", "xxx..."),
    )
    few = Few.of(SCATTERED)
    told = few.turn(turn)
    for name in ("positions", "spent", "prelude"):
        assert torch.equal(getattr(told, name), few.take(getattr(turn, name)))
    assert told.mask.tolist() == [[True, True], [True, False]]
    for name in ("index", "last", "seed", "reader", "memory"):
        assert getattr(told, name) is getattr(turn, name)


# What is kept


def plainly_kept(running, before, now):
    kept = before.clone()
    for b in range(B):
        for t in range(T):
            if running[b, t]:
                kept[b, t] = now[b, t]
    return kept


@pytest.mark.parametrize("shape", [(), (D,), (2, D)])
@pytest.mark.parametrize("running", WRITTEN)
def test_running_tokens_get_what_is_new_and_stopped_ones_keep_what_was(running, shape):
    before, now, few = drawn(B, T, *shape), drawn(B, T, *shape, seed=1), Few.of(running)
    expected = plainly_kept(running, before, now)
    assert torch.equal(Going(running).kept(before, now), expected)
    assert torch.equal(Going(running, few).kept(before, few.take(now)), expected)


def test_where_nothing_was_before_everything_is_new():
    now, few = drawn(B, T, D), Few.of(SCATTERED)
    assert Going(SCATTERED).kept(None, now) is now
    first = Going(SCATTERED, few).kept(None, few.take(now))
    assert first.shape == now.shape
    assert torch.equal(first[SCATTERED], now[SCATTERED])


# What is carried from turn to turn

FEWER = [
    rows("xxxxxx", "xxxxx.", "xxxxxx"),
    rows("x.xx.x", "x.....", "xx...x"),
    rows("x....x", "......", ".x...x"),
    rows("x.....", "......", "......"),
]


def goings(gather):
    return [Going(running, Few.of(running) if gather and index else None) for index, running in enumerate(FEWER)]


def given(going, whole):
    return going.few.take(whole) if going.few else whole


@pytest.mark.parametrize("gather", [False, True])
def test_a_stopped_token_keeps_the_value_of_the_last_turn_that_it_took(gather):
    carried, values = Carried(), [drawn(B, T, D, seed=turn) for turn in range(4)]
    for turn, going in enumerate(goings(gather)):
        found = carried("keys", turn, given(going, values[turn]), going)
        for b in range(B):
            for t in range(T):
                took = [n for n in range(turn + 1) if FEWER[n][b, t]] or [0]  # padding takes none
                assert torch.equal(found[b, t], values[took[-1]][b, t])


def test_names_do_not_mix():
    carried, (first, second, *_) = Carried(), goings(False)
    for turn, going in enumerate((first, second)):
        for name in ("keys", ("keys", 1)):
            found = carried(name, turn, torch.full((B, T), float(turn + len(name))), going)
            assert torch.equal(found, torch.where(second.running | (turn == 0), turn, 0.0) + len(name))


def test_a_turn_run_again_after_later_ones_finds_what_it_found_at_first():
    carried, values = Carried(), [drawn(B, T, D, seed=turn) for turn in range(4)]
    first = [carried("keys", turn, values[turn], going).clone() for turn, going in enumerate(goings(False))]
    for order in ((3, 2, 1, 0), (0, 1, 2, 3), (1, 1)):
        for turn in order:
            assert torch.equal(carried("keys", turn, values[turn], goings(False)[turn]), first[turn])


def test_a_part_that_asks_without_gradient_within_a_turn_finds_it_again_too():
    carried, values = Carried(), [drawn(B, T, D, seed=turn) for turn in range(4)]
    with torch.no_grad():
        first = [carried("keys", turn, values[turn], going) for turn, going in enumerate(goings(False))]
        for turn in (3, 2, 1):
            assert torch.equal(carried("keys", turn, values[turn], goings(False)[turn]), first[turn])


@torch.no_grad()
def test_where_nothing_can_be_run_again_only_the_last_two_turns_are_held():
    carried = Carried()
    for turn, going in enumerate(goings(False)):
        carried("keys", turn, drawn(B, T, seed=turn), going)
        assert len(carried.left) <= 2


def test_gradient_goes_to_the_turn_that_a_value_came_from_and_to_none_that_carries_none():
    carried, (first, second, *_) = Carried(), goings(False)
    early, late = drawn(B, T).requires_grad_(), drawn(B, T).requires_grad_()
    carried("with", 0, early, first)
    found = carried("with", 1, late, second)
    from_early, from_late = torch.autograd.grad(found.sum(), (early, late))
    assert torch.equal(from_early, (~second.running).float())
    assert torch.equal(from_late, second.running.float())
    with torch.no_grad():
        carried("without", 0, early, first)
    assert torch.autograd.grad(carried("without", 1, late, second).sum(), early, allow_unused=True) == (None,)


@pytest.mark.parametrize("gather", [False, True])
def test_what_was_not_asked_at_the_turn_before_is_refused(gather):
    carried, going = Carried(), goings(gather)
    carried("keys", 0, drawn(B, T), going[0])
    for name, turn in (("keys", 2), ("values", 1)):
        with pytest.raises(UserError, match="ask at every turn"):
            carried(name, turn, given(going[turn], drawn(B, T)), going[turn])


def test_a_skipped_turn_is_left_what_the_one_before_left():
    carried, going = Carried(), goings(False)[0]
    both = {name: carried(name, 0, drawn(B, T, seed=seed), going) for seed, name in enumerate(("keys", "values"))}
    for turn in (1, 2):
        assert all(value is both[name] for name, value in carried.skipped(turn))
        assert dict(carried.skipped(turn)).keys() == both.keys()


def test_what_was_not_asked_at_the_turn_before_is_left_to_none_that_is_skipped():
    carried = Carried()
    assert list(carried.skipped(1)) == []
    carried("keys", 0, drawn(B, T), goings(False)[0])
    assert list(carried.skipped(2)) == []
