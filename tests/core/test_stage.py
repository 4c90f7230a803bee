"""Loops of a whole model, against a plain second one that knows rows, dictionaries and no batch, cache or gathering."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from ouroboros_core.contracts import TURN_SLOTS, Depth, Halt, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.loop import Parts
from ouroboros_core.model import RecursiveLM
from ouroboros_core.ops import Add, Scale
from ouroboros_core.passing import gathers
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import loop_facts, tiny_config, tiny_model

B, T, D, TURNS = 2, 10, 32, 5
ONE = Split(6, (Segment((0,)), Segment((2,), True), Segment((4, 5))), ())
DEEP = Split(6, (Segment((0,)), Segment((2, 3), True), Segment((5,))), ())
TWICE = Split(6, (Segment((0, 1), True), Segment((2,)), Segment((3,), True), Segment((5,))), ())
SPLITS = {"one layer": ONE, "two layers": DEEP, "two loops": TWICE}
DIRECTION = torch.randn(D, generator=torch.Generator().manual_seed(5)) / D**0.5


@pytest.fixture
def ids(ids):
    return ids[:, :T]


# Toy parts: halters of the four kinds there are, and a modulator that looks along the sequence


def probability(moved):
    """Smooth, and different from token to token, however far states have moved."""
    return (2 * torch.sin(3 * moved.float()) - 0.5).sigmoid()


class ActLike(nn.Module):
    """Adaptive computation time: the weighted sum is read."""

    adaptive = weighted = True

    def __init__(self):
        super().__init__()
        self.unit = nn.Linear(D, 1)
        self.unit.weight.data, self.unit.bias.data = DIRECTION[None].clone(), torch.zeros(1)

    def forward(self, old, new, turn):
        p = probability(self.unit(new).squeeze(-1))
        stop = (turn.spent + p >= 0.99) | turn.last
        return Halt(stop, torch.where(stop, 1 - turn.spent, p))


def some(measured):
    """Half of all tokens, whatever the size of what is measured; which ones, it decides."""
    return measured * 5 % 1 < 0.5


class DiffLike(nn.Module):
    """Stops by how far a turn has moved the state: the last state is read."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        moved = (new - old).norm(dim=-1) / new.norm(dim=-1)
        return Halt(some(moved) & (turn.index > 0))


class ExitLike(nn.Module):
    """Stops at a quantile of shares, which the normed state gives: the last state is read."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        share = probability(turn.reader.normed(new) @ DIRECTION.to(new)) * (1 - turn.spent)
        return Halt(turn.spent + share >= 0.6, share)


class SaidLike(nn.Module):
    """Stops by how far a turn has moved what the model would say: the last state is read."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        never = Halt(torch.zeros_like(turn.mask))
        if turn.last:
            return never
        before, now = turn.reader.before, turn.reader.logits(new)
        return never if before is None else Halt(some((now - before).abs().mean(-1)))


HALTERS = {"act": ActLike, "diff": DiffLike, "exit": ExitLike, "said": SaidLike}


class Pooling(nn.Module):
    """What a token is given depends on the mean of those before it."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(6)
        self.matrix = nn.Parameter(torch.randn(D, D, generator=draw) / D**0.5)

    def forward(self, state, turn):
        mean = turn.memory.summed("mean", state) / (turn.positions + 1)[..., None]
        spread = turn.memory.summed("spread", state.square().mean(-1)) / (turn.positions + 1)
        return {
            "state": [Add((mean @ self.matrix.float()).tanh())],
            "0.ffn-out": [Scale(1 / (1 + spread[..., None]))],
        }


class Nothing(nn.Module):
    """A modulator that changes nothing."""

    def forward(self, state, turn):
        return {}


def built(host, split, halter, modulator=Nothing, intact=None, **others):
    """A model of null parts but for these two, the same in every loop."""
    intact = intact or tiny_model()
    null = {slot: host.null(slot) for slot in TURN_SLOTS}

    def parts(kind):
        made = {slot: part.build(part.options(), loop_facts(D)) for slot, part in null.items()}
        return Parts(*{**made, Slot.MODULATOR: modulator(), Slot.HALTER: kind()}.values())

    loops = sum(segment.looped for segment in split.segments)
    kinds = [DiffLike] * (loops - 1) + [halter]  # only the last loop can be asked what it would say
    made = [parts(kind) for kind in kinds]
    return RecursiveLM(intact, host.anatomy(intact.config), split, made, TURNS, **others).eval()


def padded(ids):
    """The first row has two fillers on the left, the second three on the right. -> ids, mask."""
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, -3:] = 0
    return torch.where(mask.bool(), ids, 7), mask


# The plain model: one row of real tokens


def turned(x):
    """Rotary positions, (heads, T, 8)."""
    angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    cos, sin = (torch.cat([each, each], -1) for each in (angle.cos(), angle.sin()))
    return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin


class Row:
    """A recursive model and one sequence."""

    def __init__(self, intact, model, ids):
        self.intact, self.model, self.ids = intact.model, model, ids
        self.head, self.taken = intact.lm_head, torch.zeros(len(ids))

    def layer(self, index, h, running, left, scale=1.0):
        """One layer; `left` is what its tokens have left of keys and values, by (layer, token), and is changed."""
        layer, count = self.intact.layers[index], len(h)
        x = layer.input_layernorm(h)
        q, k, v = (
            linear(x).view(count, -1, 8).transpose(0, 1)
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        q, k = turned(q), turned(k)
        left |= {(index, t): (k[:, t], v[:, t]) for t in range(count) if running[t]}
        mixed = []
        for t in range(count):
            keys, values = (torch.stack([left[index, s][kind] for s in range(t + 1)], 1) for kind in (0, 1))
            keys, values = (each.repeat_interleave(2, 0) for each in (keys, values))
            weights = torch.softmax((keys @ q[:, t, :, None]).squeeze(-1) / 8**0.5, -1)
            mixed.append((weights[..., None] * values).sum(1).flatten())
        h = h + layer.self_attn.o_proj(torch.stack(mixed))
        return h + layer.mlp(layer.post_attention_layernorm(h)) * scale

    def once(self, layers, h):
        for index in layers:
            h = self.layer(index, h, [True] * len(h), {})
        return h

    def modulated(self, modulator, state, running, left):
        """-> what the pooling modulator adds to the block's input, and its scale of the first feed-forward branch."""
        if isinstance(modulator, Nothing):
            return 0.0, 1.0
        left |= {t: state[t] for t in range(len(state)) if running[t]}
        means, spreads = [], []
        for t in range(len(state)):
            seen = torch.stack([left[s] for s in range(t + 1)])
            means.append(seen.mean(0))
            spreads.append(seen.square().mean())
        return (torch.stack(means) @ modulator.matrix).tanh(), 1 / (1 + torch.stack(spreads))[:, None]

    def loop(self, layers, coda, parts, state):
        """-> the read-out."""
        count = len(state)
        running, spent, weighted, said = torch.ones(count, dtype=torch.bool), torch.zeros(count), 0.0, None
        left, pool_left, coda_left = {}, {}, {}
        for n in range(TURNS):
            add, scale = self.modulated(parts.modulator, state, running, pool_left)
            new = state + add
            for place, index in enumerate(layers):
                new = self.layer(index, new, running, left, 1.0 if place else scale)
            new = torch.where(running[:, None], new, state)

            asked = []

            def logits(h, running=running, asked=asked):
                (h,) = h
                for index in coda:
                    h = self.layer(index, h, running, coda_left)
                asked.append(self.head(self.intact.norm(h))[None])
                return asked[-1]

            reader = SimpleNamespace(before=said, normed=self.intact.norm, logits=logits)
            turn = SimpleNamespace(index=n, last=n == TURNS - 1, spent=spent[None], mask=running[None], reader=reader)
            halt = parts.halter(state[None], new[None], turn)
            if asked:
                said = asked[0] if said is None else torch.where(running[None, :, None], asked[0], said)
            state = new
            self.taken = self.taken + running
            if halt.share is not None:
                weighted = weighted + (halt.share[0] * running)[:, None] * state
                spent = spent + halt.share[0] * running
            running = running & ~halt.stop[0]
        return weighted if parts.halter.weighted else state

    def logits(self):
        state, loops = self.intact.embed_tokens(self.ids), iter(self.model.loops)
        for segment in self.model.split.segments:
            if segment.looped:
                state = self.loop(segment.layers, self.model.split.coda, next(loops), state)
            else:
                state = self.once(segment.layers, state)
        return self.head(self.intact.norm(state))


CASES = [(halter, split, Pooling) for halter in HALTERS for split in SPLITS]
CASES += [(halter, "two layers", Nothing) for halter in HALTERS]


@pytest.mark.parametrize(("halter", "split", "modulator"), CASES)
@torch.no_grad()
def test_a_token_that_has_stopped_is_seen_with_the_keys_and_values_of_the_last_turn_it_took(
    halter, split, modulator, host, ids
):
    model = built(host, SPLITS[split], HALTERS[halter], modulator)
    ids, mask = padded(ids)
    trace = model.trace(ids, mask)
    real = mask.bool()
    assert len(trace.taken[real].unique()) > 2  # tokens differ
    for b in range(B):
        row = Row(tiny_model(), model, ids[b][real[b]])
        torch.testing.assert_close(trace.logits()[b][real[b]], row.logits(), atol=1e-4, rtol=1e-4)
        assert torch.equal(trace.taken[b][real[b]], row.taken)
    assert not trace.taken[~real].any()


# Gathered


def blocks_seen(model):
    """How many tokens each call of a looped feed-forward branch gets."""
    seen = []
    for index in model.split.looped:
        model.layer(index).mlp.register_forward_hook(lambda mlp, args, y: seen.append(y.shape[:-1].numel()))
    return seen


def assert_the_same(one, other, real):
    torch.testing.assert_close(one.logits()[real], other.logits()[real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.remainder, other.remainder, atol=1e-5, rtol=1e-5)
    assert torch.equal(one.taken, other.taken)
    assert len(one.shares) == len(other.shares)
    for mine, theirs in zip(one.shares, other.shares, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def both_ways(model, *told):
    """Traces with and without gathering, and how many tokens each computed."""
    seen, traces, counts = blocks_seen(model), [], []
    for model.gather in (True, False):
        seen.clear()
        traces.append(model.trace(*told))
        counts.append(sum(seen))
    return traces, counts


@pytest.mark.parametrize(
    ("halter", "split", "with_padding"),
    [*((halter, split, True) for halter in HALTERS for split in SPLITS), ("act", "two layers", False)],
)
@torch.no_grad()
def test_gathering_changes_nothing_but_how_many_tokens_are_computed(halter, split, with_padding, host, ids):
    ids, mask = padded(ids) if with_padding else (ids, None)
    model = built(host, SPLITS[split], HALTERS[halter], Pooling)
    (gathered, whole), (few, all_) = both_ways(model, ids, mask)
    assert_the_same(gathered, whole, slice(None) if mask is None else mask.bool())
    assert few < all_


def mixed_windows(implementation):
    """A model of full and sliding attention in turn, whose tokens look back four."""
    config = tiny_config(family="qwen2")
    config.layer_types = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    config.sliding_window, config._attn_implementation = 4, implementation
    return like_tiny(config, "qwen2")


def windowed():
    config = tiny_config(family="mistral")
    config.sliding_window = 4
    return like_tiny(config, "mistral")


def like_tiny(config, family):
    model = AutoModelForCausalLM.from_config(config, attn_implementation=config._attn_implementation)
    model.load_state_dict(tiny_model(family=family).state_dict())
    return model.eval().requires_grad_(False)


BASES = {
    "eager": partial(mixed_windows, "eager"), "sdpa": partial(mixed_windows, "sdpa"), "mistral": windowed,
    "qwen3": partial(tiny_model, family="qwen3"),
}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_gathered_tokens_see_what_their_layer_lets_them_see(base, host, ids):
    ids, mask = padded(ids)
    model = built(host, DEEP, ActLike, Pooling, BASES[base]())
    (gathered, whole), (few, all_) = both_ways(model, ids, mask)
    assert_the_same(gathered, whole, mask.bool())
    assert few < all_


@torch.no_grad()
def test_nothing_is_gathered_where_masks_do_not_tell_or_tokens_see_later_ones_or_none_can_stop(host, ids):
    flash, leaky = built(host, ONE, ActLike), built(host, ONE, ActLike, causal=False)
    fixed = built(host, ONE, ActLike)
    flash.base.config._attn_implementation = "flash_attention_2"
    fixed.loops[0].halter.adaptive = False
    assert gathers(built(host, ONE, ActLike))
    assert not any(map(gathers, (flash, leaky, fixed)))
    with torch.enable_grad():
        assert not gathers(built(host, ONE, ActLike))


# Piece by piece, with a cache


def in_pieces(model, ids, mask, sizes, cache):
    """-> logits and turns taken, of the whole text."""
    logits, taken, start = [], [], 0
    for size in sizes:
        end = start + size
        trace = model.trace(ids[:, start:end], mask[:, :end], cache=cache)
        logits.append(trace.logits())
        taken.append(trace.taken)
        start = end
    return torch.cat(logits, 1), torch.cat(taken, 1)


def dynamic(model):
    return DynamicCache(config=model.config)


def static(model):
    return StaticCache(config=model.config, max_cache_len=16)


@pytest.mark.parametrize("halter", HALTERS)
@pytest.mark.parametrize(
    ("sizes", "kind", "gather"),
    [([1] * T, dynamic, True), ([4, 1, 4, 1], dynamic, False), ([4, 1, 4, 1], static, True)],
)
@torch.no_grad()
def test_a_text_read_piece_by_piece_is_the_text_read_at_once(halter, sizes, kind, gather, host, ids):
    """Also where a piece ends its loop early, as a single token does, and a later one does not."""
    model = built(host, DEEP, HALTERS[halter], Pooling, probed=halter == "said")
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    whole = model.trace(ids, mask)
    model.gather = gather
    logits, taken = in_pieces(model, ids, mask, sizes, kind(model))
    assert torch.equal(taken, whole.taken)
    torch.testing.assert_close(logits[mask.bool()], whole.logits()[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", BASES)
@torch.no_grad()
def test_read_piece_by_piece_each_layer_keeps_its_own_kind_of_attention(base, host, ids):
    model, mask = built(host, DEEP, ActLike, Pooling, BASES[base]()), torch.ones_like(ids)
    logits, _ = in_pieces(model, ids, mask, [4, 1, 4, 1], dynamic(model))
    torch.testing.assert_close(logits, model.trace(ids).logits(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_read_piece_by_piece_each_loop_keeps_what_is_its_own(host, ids):
    model = built(host, TWICE, ActLike, Pooling)
    logits, taken = in_pieces(model, ids, torch.ones_like(ids), [4, 1, 4, 1], dynamic(model))
    whole = model.trace(ids)
    torch.testing.assert_close(logits, whole.logits(), atol=1e-4, rtol=1e-4)
    assert torch.equal(taken, whole.taken)


@torch.no_grad()
def test_turns_that_would_share_a_sliding_window_are_refused_in_one_line(host, ids):
    model = built(host, DEEP, ActLike, intact=windowed())
    with model.laid_out(TURNS, 1), pytest.raises(UserError, match="with a slot for each turn") as caught:
        model.trace(ids, cache=dynamic(model))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_row_alone_ends_its_loop_early_and_leaves_for_later_tokens_what_they_will_look_for(host, ids):
    """Every token a piece: turns that nobody takes are skipped, in the loop, in the sums and in the coda's probes."""
    model = built(host, DEEP, SaidLike, Pooling, probed=True)
    row, cache = ids[:1], DynamicCache(config=model.config)
    logits, taken = in_pieces(model, row, torch.ones_like(row), [1] * T, cache)
    assert {2.0, float(TURNS)} <= set(taken.flatten().tolist())
    assert [layer.get_seq_length() for layer in cache.layers[: len(model.config.slots.layers)]] == [T] * 16
    torch.testing.assert_close(logits, model.trace(row).logits(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("halter", ["act", "said"])
@pytest.mark.parametrize(("shared", "kind"), [(1, static), (2, dynamic), (3, dynamic)])
@torch.no_grad()
def test_turns_that_share_slots_find_there_what_the_last_of_them_has_left(halter, shared, kind, host, ids):
    model, first = built(host, DEEP, HALTERS[halter], Pooling, probed=halter == "said"), 6
    ones, cache, expected_cache = torch.ones_like(ids), None, dynamic(model)
    in_pieces(model, ids, ones, [first], expected_cache)
    own = model.config.slots
    for slots, turns in ((partial(own.of_segment, 1), TURNS), (own.of_probe, TURNS - 1 if own.probed else 0)):
        layers = [[expected_cache.layers[slot] for slot in slots(turn)] for turn in range(turns)]
        left = [[(layer.keys, layer.values) for layer in these] for these in layers]
        for turn, these in enumerate(layers):
            last = max(other for other in range(turns) if other % shared == turn % shared)
            for layer, (keys, values) in zip(these, left[last], strict=True):
                layer.keys, layer.values = keys, values
    expected = model.trace(ids[:, first:], ones, cache=expected_cache)
    with model.laid_out(TURNS, shared):
        cache = kind(model)
        assert len(cache.layers) == 2 + 2 * shared + (shared if own.probed else 0)
        before = model.trace(ids[:, :first], cache=cache)
        found = model.trace(ids[:, first:], ones, cache=cache)
    torch.testing.assert_close(before.logits(), model.trace(ids[:, :first]).logits(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits(), expected.logits(), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.taken, expected.taken)


# Asked for logits


class Always(nn.Module):
    """Asks after the last turn too."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        before, now = turn.reader.before, turn.reader.logits(new)
        return Halt(torch.zeros_like(turn.mask) if before is None else some((now - before).abs().mean(-1)))


class Never(nn.Module):
    """Stops nobody."""

    adaptive = weighted = False

    def forward(self, old, new, turn):
        return Halt(torch.zeros_like(turn.mask))


class Late(SaidLike):
    """Asks from the second turn on, when tokens have stopped."""

    def forward(self, old, new, turn):
        return Halt(turn.positions % 3 == 0) if turn.index == 0 else super().forward(old, new, turn)


@torch.no_grad()
def test_without_a_cache_a_part_may_ask_after_the_last_turn_too(host, ids):
    model = built(host, DEEP, Always, Pooling)
    (gathered, whole), (few, all_) = both_ways(model, ids)
    assert_the_same(gathered, whole, slice(None))
    assert few < all_
    row = Row(tiny_model(), model, ids[0])
    torch.testing.assert_close(whole.logits()[0], row.logits(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("turns", [1, TURNS])
@torch.no_grad()
def test_with_a_cache_a_part_that_asks_after_the_last_turn_is_refused(turns, host, ids):
    model = built(host, DEEP, Never, probed=True)
    model.loops[0].norm = Asking()
    with model.laid_out(turns), pytest.raises(UserError, match="after the last turn, which nothing follows"):
        model.trace(ids, cache=dynamic(model))


@pytest.mark.parametrize("gather", [True, False])
@torch.no_grad()
def test_a_part_that_asks_for_logits_only_when_tokens_have_stopped_is_refused(gather, host, ids):
    """The coda of those that go on would see nothing of them."""
    model = built(host, DEEP, Late)
    model.gather = gather
    with pytest.raises(UserError, match="ask at every turn"):
        model.trace(ids)


@torch.no_grad()
def test_where_no_layer_follows_the_loop_logits_may_be_asked_for_at_any_turn(host, ids):
    model = built(host, Split(6, (Segment((0,)), Segment((5,), True)), ()), Late)
    (gathered, whole), (few, all_) = both_ways(model, ids)
    assert_the_same(gathered, whole, slice(None))
    assert few < all_


@torch.no_grad()
def test_where_a_halter_does_not_say_that_it_reads_logits_decoding_keeps_no_room_and_refuses(host, ids):
    model = built(host, DEEP, SaidLike)
    with pytest.raises(UserError, match="give it reads_logits=True"):
        model.trace(ids, cache=dynamic(model))


# Learning


def loss_of(logits):
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(8))
    return (logits * weights).mean()


@pytest.mark.parametrize("split", ["two layers", "two loops"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_goes_through_what_stopped_tokens_have_left(split, recompute, host, ids):
    model = built(host, SPLITS[split], ActLike, Pooling, recompute=recompute)
    trace, row = model.trace(ids[:1]), Row(tiny_model(), model, ids[0])
    assert len(trace.taken.unique()) > 2
    learning = dict(model.loops.named_parameters())
    expected = torch.autograd.grad(loss_of(row.logits()), learning.values())
    found = torch.autograd.grad(loss_of(trace.logits()[0]), learning.values())
    for name, mine, theirs in zip(learning, found, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


class Asking(nn.Module):
    """A norm that scales a state by what would be said, which it asks without gradient, as a part may."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, state, turn):
        with torch.no_grad():
            said = turn.reader.logits(state).tanh().mean(-1, keepdim=True)
        return state * (1 + self.weight * said)


@pytest.mark.parametrize("with_gradient", [TURNS, 2])
@pytest.mark.parametrize("norm", [None, Asking])
def test_recomputed_turns_find_what_was_carried_when_they_were_first_run(with_gradient, norm, host, ids):
    gradients, (ids, mask) = [], padded(ids)
    for recompute in (False, True):
        model = built(host, DEEP, ActLike, Pooling, recompute=recompute)
        model.loops[0].norm = norm() if norm else model.loops[0].norm
        trace = model.trace(ids, mask, Depth(TURNS, with_gradient))
        assert len(trace.taken.unique()) > 2
        (loss_of(trace.logits()) + trace.remainder.mean()).backward()
        gradients.append([p.grad for p in model.loops.parameters()])
    assert all(gradient.any() for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-8, rtol=1e-5)


class AtOnce(nn.Module):
    """Every other token stops after the first turn."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        return Halt(turn.positions % 2 == 0)


def test_no_gradient_comes_from_turns_that_carry_none_by_way_of_stopped_tokens(host, ids):
    model = built(host, DEEP, AtOnce, Pooling)
    embeds = model.anatomy.embed(model.base, ids).requires_grad_()
    hidden = model.trace(embeds=embeds, depth=Depth(TURNS, TURNS - 1)).hidden
    (from_embeds,) = torch.autograd.grad(hidden.sum(), embeds, allow_unused=True)
    assert from_embeds is None or not from_embeds.any()


@pytest.mark.parametrize("name", ["0.modulator.matrix", "0.halter.unit.weight"])
def test_the_gradient_is_how_the_loss_changes_when_a_parameter_is_moved(name, host, ids):
    model = built(host, DEEP, ActLike, Pooling, recompute=True)
    parameter = model.loops.get_parameter(name)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10))

    def moved_by(size):
        parameter.data += size * direction
        trace = model.trace(ids)
        parameter.data -= size * direction
        return loss_of(trace.logits()), trace.taken

    (loss, taken), (up, above), (down, below) = moved_by(0), moved_by(1e-4), moved_by(-1e-4)
    assert torch.equal(taken, above)
    assert torch.equal(taken, below)
    slope = (torch.autograd.grad(loss, parameter)[0] * direction).sum().item()
    assert (up - down).item() / 2e-4 == pytest.approx(slope, rel=0.03)
