"""Which slot of a cache holds what, and what each turn of a layer finds there, against plain lists of keys."""

from itertools import chain, product

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from ouroboros_core.errors import UserError
from ouroboros_core.few import Carried, Few, Going
from ouroboros_core.keys import Again, Keys, Once, Slots, Stack
from ouroboros_core.memory import SumsLayer
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_config

ONE = Split(9, (Segment((0, 1)), Segment((4,), True), Segment((7, 8))), ())
NO_PRELUDE = Split(9, (Segment((3, 5), True), Segment((8,))), ())
NO_CODA = Split(9, (Segment((0,)), Segment((2, 3), True)), ())
TWICE = Split(9, (Segment((0,)), Segment((2, 3), True), Segment((4,)), Segment((4, 6, 7), True), Segment((8,))), ())
SPLITS = {"one loop": ONE, "no prelude": NO_PRELUDE, "no coda": NO_CODA, "two loops": TWICE}
H, T, W = 2, 4, 3  # heads, tokens, head width


# The slots


def layouts(split, shares=(None, 1, 2, 3, 9)):
    """The layouts of a split's slots."""
    return [Slots(SPLITS[split], *told) for told in product((1, 2, 5), shares, (False, True))]


def asked_for(slots):
    """(layer, slot) of everything that a forward pass may ask for, in the order of segments, turns and layers."""
    found = []
    for place, segment in enumerate(slots.split.segments):
        for turn in range(slots.turns if segment.looped else 1):
            found += zip(segment.layers, slots.of_segment(place, turn), strict=True)
    for turn in range(slots.turns - 1 if slots.probed else 0):
        found += zip(slots.split.coda, slots.of_probe(turn), strict=True)
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_every_slot_is_asked_for_by_its_layer_and_no_other_slot_is(split):
    for slots in layouts(split):
        assert {slot for _, slot in asked_for(slots)} == set(range(len(slots.layers)))
        assert all(slots.layers[slot] == layer for layer, slot in asked_for(slots))


@pytest.mark.parametrize("split", SPLITS)
def test_where_no_turn_shares_each_slot_is_asked_for_once_and_in_order(split):
    for slots in layouts(split, shares=(None,)):
        assert [slot for _, slot in asked_for(slots)] == list(range(len(slots.layers)))


@pytest.mark.parametrize("split", SPLITS)
def test_the_slots_of_different_segments_and_of_the_probes_are_disjoint(split):
    for slots in layouts(split):
        owners = [set() for _ in slots.split.segments]
        for place, segment in enumerate(slots.split.segments):
            for turn in range(slots.turns if segment.looped else 1):
                owners[place] |= set(slots.of_segment(place, turn))
        probes = [slots.of_probe(turn) for turn in range(slots.turns - 1 if slots.probed else 0)]
        owners.append(set(chain.from_iterable(probes)))
        assert sum(map(len, owners)) == len(set().union(*owners)) == len(slots.layers)


@pytest.mark.parametrize("split", SPLITS)
def test_turns_share_a_slot_where_their_numbers_differ_by_a_multiple(split):
    looped = [place for place, segment in enumerate(SPLITS[split].segments) if segment.looped]
    for slots in layouts(split, shares=(1, 2, 3)):
        for a, b in product(range(slots.turns), repeat=2):
            same = (a - b) % slots.shared == 0
            assert all((slots.of_segment(place, a) == slots.of_segment(place, b)) == same for place in looped)
            if slots.probed and slots.split.coda and max(a, b) < slots.turns - 1:
                assert (slots.of_probe(a) == slots.of_probe(b)) == same


def test_a_layout_written_out():
    slots = Slots(TWICE, 3, 2, probed=True)
    assert slots.layers == (0, 2, 3, 2, 3, 4, 4, 6, 7, 4, 6, 7, 8, 8, 8)
    assert [slots.of_segment(1, turn) for turn in range(3)] == [range(1, 3), range(3, 5), range(1, 3)]
    assert [slots.of_segment(3, turn) for turn in range(3)] == [range(6, 9), range(9, 12), range(6, 9)]
    assert [slots.of_probe(turn) for turn in range(2)] == [range(13, 14), range(14, 15)]


@pytest.mark.parametrize("split", SPLITS)
def test_more_slots_than_turns_are_a_slot_for_each_turn(split):
    assert Slots(SPLITS[split], 3, 9, probed=True).layers == Slots(SPLITS[split], 3, None, probed=True).layers


@pytest.mark.parametrize("split", SPLITS)
def test_questions_for_which_no_room_is_kept_have_no_slot_of_the_cache(split):
    for slots in layouts(split):
        for turn in [slots.turns - 1] if slots.probed else range(slots.turns):
            assert len(slots.of_probe(turn)) == len(slots.split.coda)
            assert not set(slots.of_probe(turn)) & set(range(len(slots.layers)))


# Keys and values in the library's caches

SLOTS = Slots(ONE, 3)  # 0 1 | 2 3 4 | 5 6


def config():
    return tiny_config(layers=len(SLOTS.layers))


CACHES = {
    "dynamic": lambda: DynamicCache(config=config()),
    "as it goes": DynamicCache,
    "static": lambda: StaticCache(config=config(), max_cache_len=16),
}


def drawn(tokens=T, seed=0, batch=2, heads=H):
    return torch.randn(batch, heads, tokens, W, generator=torch.Generator().manual_seed(seed))


def real(kept, count):
    """What a cache returned, without the room that a static one has left."""
    assert not kept[:, :, count:].any()
    return kept[:, :, :count]


def test_without_a_cache_a_slot_returns_what_it_is_given():
    keys, values = drawn(), drawn(seed=1)
    found = Keys(None, SLOTS, T).put(2, keys, values)
    assert found[0] is keys
    assert found[1] is values


@pytest.mark.parametrize("cache", CACHES)
def test_a_slot_returns_all_that_it_was_given_token_after_token(cache):
    cache, all_keys, all_values = CACHES[cache](), drawn(7), drawn(7, seed=1)
    for start, end in ((0, 4), (4, 5), (5, 7)):
        keys = Keys(cache, SLOTS, end - start)
        for slot in (6, 0, 2):  # in any order
            found = keys.put(slot, all_keys[:, :, start:end] + slot, all_values[:, :, start:end] - slot)
            torch.testing.assert_close(real(found[0], end), all_keys[:, :, :end] + slot)
            torch.testing.assert_close(real(found[1], end), all_values[:, :, :end] - slot)


@pytest.mark.parametrize("cache", CACHES)
def test_a_later_turn_in_a_shared_slot_replaces_the_present_tokens_and_no_earlier_ones(cache):
    cache, left = CACHES[cache](), torch.zeros(2, H, 0, W)
    for forward, count in enumerate((4, 1, 2)):
        keys = Keys(cache, SLOTS, count)
        for turn in range(3):
            now = drawn(count, seed=10 * forward + turn)
            found = keys.put(2, now, now + 1)
            torch.testing.assert_close(found[0][:, :, : left.shape[2] + count], torch.cat([left, now], 2))
            torch.testing.assert_close(found[1][:, :, : left.shape[2] + count], torch.cat([left, now], 2) + 1)
        left = torch.cat([left, now], 2)
        assert int(cache.layers[2].get_seq_length()) == left.shape[2]


def test_what_a_turn_was_given_is_not_changed_when_a_later_one_replaces_it():
    """A gradient may need it."""
    cache = DynamicCache(config=config())
    keys = Keys(cache, SLOTS, T)
    found = keys.put(2, drawn(), drawn(seed=1))
    before = [each.clone() for each in found]
    keys.put(2, drawn(seed=2), drawn(seed=3))
    assert all(map(torch.equal, found, before))


def test_turns_that_share_a_sliding_window_are_refused_in_one_line_and_others_are_not():
    cache = DynamicCache(config=config())
    cache.layers[2] = DynamicSlidingWindowLayer(sliding_window=3)
    for forward in range(3):
        keys = Keys(cache, SLOTS, 1)
        keys.put(2, drawn(1, seed=forward), drawn(1))
    with pytest.raises(UserError, match="decode with a slot for each turn") as caught:
        keys.put(2, drawn(1), drawn(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("made", [1, len(SLOTS.layers) - 1, len(SLOTS.layers) + 3])
@pytest.mark.parametrize("sums", [False, True])
def test_a_cache_for_another_number_of_slots_is_refused_in_one_line(made, sums):
    cache = DynamicCache(config=tiny_config(layers=made))
    if sums:
        SumsLayer.of(cache)
    with pytest.raises(UserError, match=f"a cache of {made} slots, where these turns take 7") as caught:
        Keys(cache, SLOTS, T)
    assert "\n" not in str(caught.value)


def test_a_cache_that_makes_its_layers_as_it_goes_gets_them_before_anything_else_is_kept():
    cache = DynamicCache()
    Keys(cache, SLOTS, T)
    sums = SumsLayer.of(cache)
    Keys(cache, SLOTS, T).put(6, drawn(), drawn())
    assert len(cache.layers) == len(SLOTS.layers) + 1
    assert cache.layers[-1] is sums


# What a layer takes for the cache

EVERY = torch.ones(2, T, dtype=torch.bool)
FEWER = torch.tensor([[True, False, False, True], [False] * T])
GOING = {"all": Going(FEWER), "few": Going(FEWER, Few.of(FEWER))}


def by_token(few, each):
    """(B, heads, T, W) of the few: (r, heads, w, W)."""
    return few.take(each.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("how", GOING)
@pytest.mark.parametrize("cached", [False, True])
def test_a_turn_sees_stopped_tokens_with_the_keys_and_values_of_their_last_turn(how, cached):
    going, carried = GOING[how], Carried()
    cache = DynamicCache(config=config()) if cached else None
    past = drawn(3, seed=9)[:, :, : 3 if cached else 0]
    if cached:
        for slot in (2, 3):
            Keys(cache, SLOTS, 3).put(slot, past, -past)
    keys = Keys(cache, SLOTS, T)
    first, second = drawn(), drawn(seed=1)
    Again(keys, 2, 0, Going(EVERY), carried, 0).update(first, first + 1, layer_idx=4)
    now = by_token(going.few, second) if going.few else second
    found = Again(keys, 3, 1, going, carried, 0).update(now, now + 1, layer_idx=4)
    together = first.clone()
    for b, t in FEWER.nonzero().tolist():
        together[b, :, t] = second[b, :, t]
    rows = [0] if going.few else [0, 1]
    torch.testing.assert_close(found[0], torch.cat([past, together], 2)[rows])
    torch.testing.assert_close(found[1], torch.cat([-past, together + 1], 2)[rows])
    if cached:  # later tokens will find the same
        torch.testing.assert_close(cache.layers[3].keys, torch.cat([past, together], 2))
        torch.testing.assert_close(cache.layers[2].keys, torch.cat([past, first], 2))


def test_a_layer_that_runs_once_finds_all_tokens_in_its_slot():
    cache = DynamicCache(config=config())
    for start in (0, 2):
        view = Once(Keys(cache, SLOTS, 2), 5)
        found = view.update(drawn()[:, :, start : start + 2], drawn()[:, :, start : start + 2], 8)
    assert torch.equal(found[0], drawn())


def stack(cache, stops):
    return Stack(Keys(cache, SLOTS, T), lambda turn: SLOTS.of_segment(1, turn), stops)


def test_a_layer_is_given_a_view_where_something_is_kept_and_else_none():
    assert stack(None, stops=False).views(1, Going(EVERY)) == [None]
    (once,) = stack(DynamicCache(config=config()), stops=False).views(1, Going(EVERY))
    (again,) = stack(None, stops=True).views(2, Going(EVERY))
    assert isinstance(once, Once)
    assert isinstance(again, Again)
    assert (once.slot, again.slot, again.turn, again.place) == (3, 4, 2, 0)


@pytest.mark.parametrize("cache", CACHES)
def test_skipped_turns_leave_for_later_tokens_what_the_last_turn_has_left(cache):
    cache = CACHES[cache]()
    layers = stack(cache, stops=True)
    for turn, going in enumerate((Going(EVERY), GOING["all"])):
        (view,) = layers.views(turn, going)
        now = drawn(seed=turn)
        left = view.update(now, now + 1, 4)
    layers.skip(2)
    assert int(cache.layers[4].get_seq_length()) == T
    assert torch.equal(cache.layers[4].keys, left[0])
    assert torch.equal(cache.layers[4].values, left[1])
    assert torch.equal(cache.layers[2].keys[:, :, :T], drawn())


@pytest.mark.parametrize("cache", [None, DynamicCache(config=config())], ids=["none", "one"])
@pytest.mark.parametrize("stops", [False, True])
def test_a_turn_before_which_nothing_was_asked_leaves_nothing(cache, stops):
    stack(cache, stops).skip(1)
    assert cache is None or not any(layer.get_seq_length() for layer in cache.layers)


def test_a_skipped_turn_leaves_nothing_where_the_cache_keeps_no_room():
    slots, cache = Slots(ONE, 2, probed=True), DynamicCache(config=tiny_config(layers=8))
    probes = Stack(Keys(cache, slots, T), slots.of_probe, stops=True)
    assert len(slots.layers) == 8
    for view in probes.views(0, Going(EVERY)):
        view.update(drawn(), drawn(), 8)
    probes.skip(1)
    assert [int(layer.get_seq_length()) for layer in cache.layers] == [0] * 6 + [T, T]
    assert all(torch.equal(layer.keys, drawn()) for layer in cache.layers[6:])
