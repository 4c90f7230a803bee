"""Running sums along the sequence, against a plain loop over rows, tokens and turns."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from ouroboros_core.errors import UserError
from ouroboros_core.few import Few, Going
from ouroboros_core.memory import Sums, SumsLayer, SumsOfTurn
from ouroboros_core.testing import PlainMemory, tiny_config

B, T, D, TURNS = 3, 6, 4, 4
EVERY = torch.ones(B, T, dtype=torch.bool)
WHEN = torch.tensor([[1, 4, 2, 2, 1, 3], [1, 1, 1, 1, 1, 1], [2, 1, 1, 4, 1, 1]])  # each token's last turn, from 1


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values_of(shape=(D,)):
    return [drawn(B, T, *shape, seed=turn) for turn in range(TURNS)]


def plainly(mask, when, values, turn):
    """Row by row, the sum over real tokens up to each one, each with the value of the last turn that it took."""
    found = torch.zeros(values[0].shape)
    for b in range(B):
        total = torch.zeros(values[0].shape[2:])
        for t in range(T):
            if mask[b, t]:
                total = total + values[min(turn, when[b, t] - 1)][b, t]
            found[b, t] = total
    return found


def goings(mask, when, gather):
    runs = [mask & (when > turn) for turn in range(TURNS)]
    return [Going(running, Few.of(running) if gather and turn else None) for turn, running in enumerate(runs)]


def given(going, whole):
    return going.few.take(whole) if going.few else whole


def padding():
    mask = EVERY.clone()
    mask[0, :2] = mask[2, 4:] = False
    return mask


@pytest.mark.parametrize("shape", [(), (D,), (2, D)])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("mask", [EVERY, padding()], ids=["full", "padded"])
def test_a_sum_counts_each_real_token_with_the_value_of_the_last_turn_that_it_took(shape, gather, mask):
    sums, values = Sums(None, 0, mask), values_of(shape)
    for turn, going in enumerate(goings(mask, WHEN, gather)):
        found = SumsOfTurn(sums, turn, going).summed("mean", given(going, values[turn]))
        expected = given(going, plainly(mask, WHEN, values, turn))
        real = going.few.real if going.few else EVERY
        torch.testing.assert_close(found[real], expected[real])


def test_where_nothing_stops_a_sum_is_that_of_the_plain_memory_of_the_tests():
    found = SumsOfTurn(Sums(None, 0, padding()), 0, Going(padding())).summed("mean", drawn(B, T, D))
    torch.testing.assert_close(found, PlainMemory(padding()).summed("mean", drawn(B, T, D)))


def test_a_cache_that_was_filled_in_inference_mode_and_forked_is_continued_by_each_branch():
    cache, values = DynamicCache(config=tiny_config()), drawn(B, T, D)
    with torch.inference_mode():
        Sums(cache, 0, EVERY).keep("mean", 0, values)
    sums = SumsLayer.of(cache).sums
    left = dict(sums)
    for _ in range(2):
        sums.update(left)  # a fork that shares tensors
        torch.testing.assert_close(Sums(cache, 0, EVERY).keep("mean", 0, values)[:, -1], 2 * values.sum(1))


def test_two_sums_of_one_name_in_a_turn_are_refused_unless_the_turn_may_be_computed_again():
    memory = SumsOfTurn(Sums(None, 0, EVERY), 0, Going(EVERY))
    for _ in range(2):
        memory.summed("mean", drawn(B, T, D))
    with torch.no_grad(), pytest.raises(UserError, match=r"two sums of one turn are called 'mean'.* rename one"):
        memory.summed("mean", drawn(B, T, D))


def test_a_long_sum_in_bfloat16_is_made_in_float32():
    values, mask = torch.full((1, 3000), 1.0078125, dtype=torch.bfloat16), torch.ones(1, 3000, dtype=torch.bool)
    found = SumsOfTurn(Sums(None, 0, mask), 0, Going(mask)).summed("mean", values)
    assert found.dtype == torch.float32
    assert found[0, -1] == 3000 * 1.0078125


# Piece by piece


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 3, 1]], ids=str)
def test_sums_go_on_where_earlier_tokens_have_left_them(gather, sizes):
    """Also where a piece ends before its last turn, which is then skipped."""
    mask, values, cache, start = padding(), values_of(), DynamicCache(), 0
    expected = [plainly(mask, WHEN, values, turn) for turn in range(TURNS)]
    for size in sizes:
        piece = slice(start, start + size)
        now, sums = mask[:, piece], Sums(cache, 0, mask[:, piece])
        for turn, going in enumerate(goings(now, WHEN[:, piece], gather)):
            if turn and not going.running.any():
                sums.skip(turn)
                continue
            found = SumsOfTurn(sums, turn, going).summed("mean", given(going, values[turn][:, piece]))
            wanted = given(going, expected[turn][:, piece])
            real = going.few.real if going.few else now
            torch.testing.assert_close(found[real], wanted[real])
        start += size
    left = SumsLayer.of(cache).sums
    assert set(left) == {(0, turn, "mean") for turn in range(TURNS)}
    for (_, turn, _), total in left.items():
        torch.testing.assert_close(total, expected[turn][:, -1])


def test_loops_turns_and_names_have_sums_of_their_own():
    cache = DynamicCache()
    for loop in (0, 1):
        for turn in (0, 1):
            for name in ("a", "b"):
                sums = Sums(cache, loop, EVERY)
                sums.keep(name, turn, torch.full((B, T), 100.0 * loop + 10 * turn + len(name + name * (name == "b"))))
    assert {key: total[0].item() / T for key, total in SumsLayer.of(cache).sums.items()} == {
        (loop, turn, name): 100.0 * loop + 10 * turn + size
        for loop in (0, 1) for turn in (0, 1) for name, size in (("a", 1), ("b", 2))
    }  # fmt: skip


def test_a_skipped_turn_before_which_nothing_was_summed_leaves_no_sum():
    cache = DynamicCache()
    Sums(cache, 0, EVERY).skip(1)
    assert cache.layers == []


# In the library's cache


def with_sums(kind=DynamicCache, **told):
    """A cache of two layers, of which each knows three tokens, and a sum that differs from row to row."""
    cache = kind(config=tiny_config(layers=2), **told)
    for layer in (0, 1):
        cache.update(drawn(B, 2, 3, 8), drawn(B, 2, 3, 8), layer)
    SumsLayer.of(cache).sums[0, 0, "mean"] = torch.arange(B * D).view(B, D).float()
    return cache


def the_sum(cache):
    return SumsLayer.of(cache).sums[0, 0, "mean"]


def test_a_cache_has_one_layer_of_sums_and_it_is_the_last():
    cache = with_sums()
    assert SumsLayer.of(cache) is SumsLayer.of(cache) is cache.layers[-1]
    assert len(cache.layers) == 3


def test_sums_move_with_the_rows_when_beams_are_reordered():
    cache = with_sums()
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert the_sum(cache)[:, 0].tolist() == [8, 8, 0]
    assert torch.equal(cache.layers[0].keys, drawn(B, 2, 3, 8)[[2, 2, 0]])


def test_sums_are_repeated_with_the_rows():
    cache = with_sums()
    cache.batch_repeat_interleave(2)
    assert the_sum(cache)[:, 0].tolist() == [0, 0, 4, 4, 8, 8]


def test_sums_are_selected_with_the_rows():
    cache = with_sums()
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert the_sum(cache)[:, 0].tolist() == [8, 0]


def test_sums_that_move_leave_those_before_as_they_were():
    """What another cache still holds."""
    cache = with_sums()
    before = the_sum(cache)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert torch.equal(before, the_sum(with_sums()))


def test_sums_are_forgotten_when_the_cache_is():
    cache = with_sums()
    cache.reset()
    assert SumsLayer.of(cache).sums == {}


def test_tokens_cannot_be_taken_back_from_a_sum():
    cache = with_sums()
    with pytest.raises(UserError, match="which cannot be taken back: decode without an assistant") as caught:
        cache.crop(-1)
    assert "\n" not in str(caught.value)
    SumsLayer.of(cache).crop(0)


def test_sums_hold_no_tokens_and_limit_none():
    plain, cache = StaticCache(config=tiny_config(layers=2), max_cache_len=9), with_sums(StaticCache, max_cache_len=9)
    assert cache.get_seq_length() == 3
    assert SumsLayer.of(cache).get_seq_length() == 0
    assert cache.get_max_length() == plain.get_max_length() == 9
    assert cache.is_sliding == [*plain.is_sliding, False]
