"""Halting against Graves 2016, written out token by token, and what the loop owes every halter and every stage."""

from functools import partial

import pytest
import torch
from torch import nn

from ouroboros_core.contracts import TURN_SLOTS, Depth, Halt, Slot
from ouroboros_core.loop import Parts, Scene, Tokens, loop
from ouroboros_core.ops import STATE, Add, Normed, Scale, Site
from ouroboros_core.testing import PlainMemory, PlainReader, loop_facts
from ouroboros_plugins.halters.act import ACTHalter

B, T, D = 2, 5, 16


class Recorder(nn.Module):
    """A norm that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.turns = []

    def forward(self, state, turn):
        self.turns.append(turn)
        return state


class Ones(nn.Module):
    """A gate that gives ones, whatever it is given."""

    def forward(self, old, new, turn):
        return torch.ones_like(new)


class HaltAt(nn.Module):
    """Each token stops after a number of turns of its own; the last state is read."""

    weighted = False

    def __init__(self, turns, adaptive=True):
        super().__init__()
        self.turns, self.adaptive = turns, adaptive

    def forward(self, old, new, turn):
        return Halt(turn.index + 1 >= self.turns)


def parts(host, **chosen):
    null = {slot: host.null(slot) for slot in TURN_SLOTS}
    made = {slot: part.build(part.options(), loop_facts(D)) for slot, part in null.items()}
    return Parts(*({**made, **{Slot(name): part for name, part in chosen.items()}}.values()))


def act(seed=3, spread=0.6, bias=-1.0):
    halter = ACTHalter(D, bias)
    torch.manual_seed(seed)
    nn.init.normal_(halter.unit[4].weight, std=spread)
    return halter


EVERY = torch.ones(B, T, dtype=torch.bool)


class PlainStage:
    """Tokens mix with those before them, and one that has stopped is seen as it entered the last turn that it took."""

    def __init__(self, reader=None, taps=None):
        self.reader, self.taps = reader or PlainReader(D), taps or {}
        self.seen, self.computed, self.going, self.skipped = {}, [], [], []

    def scene(self, turn, going):
        self.going.append(going)
        return Scene(partial(self.block, turn, going), self.reader, PlainMemory(EVERY))

    def block(self, turn, going, x):
        self.computed.append(x.shape[:2].numel())
        whole = going.few.put(torch.zeros(B, T, D), x) if going.few else x
        seen = torch.where(going.running[..., None], whole, self.seen[turn - 1]) if turn else whole
        self.seen[turn] = seen if torch.is_grad_enabled() else seen.detach()
        return mixed(x, going.few.take(seen.cumsum(1)) if going.few else seen.cumsum(1))

    def skip(self, turn):
        self.skipped.append(turn)


def looped(prelude, depth, made, stage=None, mask=EVERY, **others):
    """Loop over these tokens; `depth` turns, or turns of which some carry gradient."""
    depth = depth if isinstance(depth, Depth) else Depth.full(depth)
    return loop(prelude, depth, Tokens(torch.arange(T).expand(B, -1), mask), stage or PlainStage(), made, **others)


@pytest.fixture
def prelude():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


MATRIX = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) * 0.6


def mixed(x, before):
    return torch.tanh((x + 0.5 * before) @ MATRIX)


def block(x):
    """A turn that every token takes."""
    return mixed(x, x.cumsum(1))


def graves(prelude, turns, unit, epsilon=0.01):
    """Adaptive computation time, one token at a time. -> read-out, N, R, each token's weights and last state."""
    state = {(b, t): prelude[b, t] for b in range(B) for t in range(T)}
    weights, remainder, read, seen = {spot: [] for spot in state}, {}, {}, {}
    probability = dict.fromkeys(state, 0.0)
    for n in range(turns):
        seen |= {spot: each for spot, each in state.items() if spot not in remainder}
        new = {(b, t): mixed(state[b, t], sum(seen[b, s] for s in range(t + 1))) for b, t in state}
        for b, t in state:
            if (b, t) in remainder:
                continue
            state[b, t] = new[b, t]
            p = torch.sigmoid(unit(new[b, t]))[0]
            if probability[b, t] + p >= 1 - epsilon or n == turns - 1:
                p = 1 - probability[b, t]
                remainder[b, t] = p
            probability[b, t] = probability[b, t] + p
            weights[b, t].append(p)
            read[b, t] = read.get((b, t), 0) + p * new[b, t]
    return read, {spot: len(w) for spot, w in weights.items()}, remainder, weights, state


def by_spot(found):
    rows = [torch.stack([torch.as_tensor(found[b, t], dtype=torch.float32) for t in range(T)]) for b in range(B)]
    return torch.stack(rows)


@pytest.mark.parametrize("turns", [1, 2, 4, 9])
def test_adaptive_halting_is_graves_token_by_token(turns, host, prelude):
    halter = act()
    visit = looped(prelude, turns, parts(host, halter=halter))
    read, taken, remainder, weights, _ = graves(prelude, turns, halter.unit)
    torch.testing.assert_close(visit.read, by_spot(read), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(visit.taken, by_spot(taken))
    torch.testing.assert_close(visit.remainder, by_spot(remainder), atol=1e-6, rtol=1e-5)
    assert all(torch.as_tensor(sum(w)).item() == pytest.approx(1, abs=1e-6) for w in weights.values())


def test_tokens_of_one_batch_stop_at_different_turns(host, prelude):
    visit = looped(prelude, 9, parts(host, halter=act()))
    assert 1 < len(visit.taken.unique()) <= 9


def test_the_weights_of_every_token_sum_to_one(host, prelude):
    norm = Recorder()
    visit = looped(prelude, 7, parts(host, halter=act(), gate=Ones()))
    torch.testing.assert_close(visit.read, torch.ones(B, T, D))  # a weighted sum of ones
    looped(prelude, 7, parts(host, halter=act(), norm=norm))
    before_last = torch.stack([turn.spent for turn in norm.turns])
    assert ((before_last >= 0) & (before_last <= 1 + 1e-6)).all()


def test_gradients_of_halting_are_those_of_the_plain_loop(host, prelude):
    mine, theirs = act(), act()
    visit = looped(prelude, 5, parts(host, halter=mine))
    (visit.read.sin().sum() + visit.remainder.sum()).backward()
    read, _, remainder, _, _ = graves(prelude, 5, theirs.unit)
    (by_spot_graph(read).sin().sum() + by_spot_graph(remainder).sum()).backward()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def by_spot_graph(found):
    return torch.stack([torch.stack([found[b, t] for t in range(T)]) for b in range(B)])


def test_the_price_of_thinking_has_its_gradient_in_the_remainder_alone(host, prelude):
    halter = act()
    visit = looped(prelude, 6, parts(host, halter=halter))
    assert not visit.taken.requires_grad
    from_both = torch.autograd.grad((visit.taken + visit.remainder).sum(), halter.unit[4].weight, retain_graph=True)
    from_one = torch.autograd.grad(visit.remainder.sum(), halter.unit[4].weight)
    assert torch.equal(from_both[0], from_one[0])
    assert from_one[0].any()


def test_a_halted_token_stays_as_it_was(host, prelude):
    when = torch.tensor([[1, 2, 3, 4, 4], [2, 1, 4, 3, 4]])
    visit = looped(prelude, 4, parts(host, halter=HaltAt(when)), keep_states=True)
    for b in range(B):
        for t in range(T):
            for state in visit.states[when[b, t] - 1 :]:
                assert torch.equal(state[b, t], visit.states[when[b, t] - 1][b, t])
    torch.testing.assert_close(visit.read, states_of(prelude, when)[-1])
    assert torch.equal(visit.taken, when.float())


class Generous(nn.Module):
    """Stops every token after its first turn, and goes on giving shares to all of them."""

    adaptive, weighted = False, True

    def forward(self, old, new, turn):
        return Halt(torch.ones_like(turn.mask), torch.ones_like(turn.spent))


def test_a_halted_token_is_read_out_no_more_whatever_the_halter_says(host, prelude):
    visit = looped(prelude, 3, parts(host, halter=Generous()))
    torch.testing.assert_close(visit.read, block(prelude))
    assert visit.remainder.eq(1).all()


def test_the_loop_ends_when_every_token_has_halted_and_nothing_else_differs(host, prelude):
    when = torch.tensor([[1, 2, 3, 2, 1], [3, 3, 1, 2, 2]])
    visits, turns = [], []
    for adaptive in (True, False):
        norm = Recorder()
        halter = HaltAt(when, adaptive)
        visits.append(looped(prelude, 8, parts(host, halter=halter, norm=norm)))
        turns.append(len(norm.turns))
    assert turns == [3, 8]
    assert torch.equal(visits[0].read, visits[1].read)
    assert torch.equal(visits[0].taken, visits[1].taken)


def test_adaptive_time_that_ends_early_reads_the_same(host, prelude):
    early, late, norm = act(bias=1.0), act(bias=1.0), Recorder()
    late.adaptive = False
    short = looped(prelude, 20, parts(host, halter=early, norm=norm))
    whole = looped(prelude, 20, parts(host, halter=late))
    assert len(norm.turns) < 20
    for name in ("read", "taken", "remainder"):
        assert torch.equal(getattr(short, name), getattr(whole, name))


def test_every_turn_is_told_where_it_stands(host, prelude):
    norm = Recorder()
    looped(prelude, 3, parts(host, norm=norm), seed=42)
    assert [turn.index for turn in norm.turns] == [0, 1, 2]
    assert [turn.last for turn in norm.turns] == [False, False, True]
    assert {turn.seed for turn in norm.turns} == {42}


class Start(nn.Module):
    """An entry that begins with zeros and shows the prelude at each turn."""

    def start(self, prelude, turn):
        return torch.zeros_like(prelude)

    def inject(self, state, prelude, turn):
        return state + prelude


def test_the_entry_decides_the_start_and_what_each_turn_sees(host, prelude):
    visit = looped(prelude, 3, parts(host, entry=Start()))
    state = torch.zeros_like(prelude)
    for _ in range(3):
        state = block(state + prelude)
    torch.testing.assert_close(visit.read, state)


class Telling(nn.Module):
    """Tells how likely each turn is to be the last, and stops each token after a number of turns of its own."""

    adaptive = False

    def __init__(self, shares, turns, weighted):
        super().__init__()
        self.shares, self.turns, self.weighted = shares, turns, weighted

    def forward(self, old, new, turn):
        return Halt(turn.index + 1 >= self.turns, self.shares[turn.index])


SHARES = torch.rand(4, B, T, generator=torch.Generator().manual_seed(4))
WHEN = torch.tensor([[1, 2, 3, 4, 9], [9, 9, 1, 2, 3]])  # 9: still running at the end
RUNNING = torch.stack([torch.ones(B, T), *(n < WHEN for n in (1, 2, 3))])  # at each turn


def states_of(prelude, when):
    """Each turn's states, where a token keeps the state it halted with, and is seen as it entered its last turn."""
    states, state, seen = [], prelude, prelude
    for n in range(4):
        running = (n < when)[..., None]
        seen = torch.where(running, state, seen)
        state = torch.where(running, mixed(state, seen.cumsum(1)), state)
        states.append(state)
    return states


def test_the_shares_are_those_the_halter_gives_and_none_to_a_halted_token(host, prelude):
    norm = Recorder()
    visit = looped(prelude, 4, parts(host, halter=Telling(SHARES, WHEN, weighted=True), norm=norm))
    torch.testing.assert_close(torch.stack(visit.shares), SHARES * RUNNING)
    spent = torch.stack([turn.spent for turn in norm.turns])
    torch.testing.assert_close(spent, (SHARES * RUNNING).cumsum(0) - SHARES * RUNNING)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_weighted_sum_is_read_where_the_halter_says_so_and_else_the_last_state(weighted, host, prelude):
    visit = looped(prelude, 4, parts(host, halter=Telling(SHARES, WHEN, weighted)))
    states = states_of(prelude, WHEN)
    summed = sum(share[..., None] * state for share, state in zip(SHARES * RUNNING, states, strict=True))
    torch.testing.assert_close(visit.read, summed if weighted else states[-1])


def test_the_remainder_is_the_share_of_a_tokens_last_turn_whether_it_stops_there_or_not(host, prelude):
    visit = looped(prelude, 4, parts(host, halter=Telling(SHARES, WHEN, weighted=False)))
    last = WHEN.clamp(max=4) - 1
    assert torch.equal(visit.remainder, SHARES.gather(0, last[None])[0])
    assert torch.equal(visit.taken, last + 1.0)


def test_a_halter_that_gives_no_shares_leaves_none(host, prelude):
    visit = looped(prelude, 4, parts(host, halter=HaltAt(WHEN)))
    assert visit.shares == []
    assert not visit.remainder.any()


def test_every_turns_states_are_kept_where_they_are_asked_for(host, prelude):
    made = parts(host, halter=HaltAt(WHEN))
    visit = looped(prelude, 4, made, keep_states=True)
    assert all(torch.equal(kept, plain) for kept, plain in zip(visit.states, states_of(prelude, WHEN), strict=True))
    assert torch.equal(visit.states[-1], visit.read)
    assert looped(prelude, 4, made).states == []


def test_parts_are_told_what_the_loop_was_entered_with_and_how_a_state_would_be_read(host, prelude):
    norm, reader = Recorder(), PlainReader(D)
    looped(prelude, 3, parts(host, norm=norm, entry=Start()), PlainStage(reader))
    assert all(turn.prelude is prelude and turn.reader is reader for turn in norm.turns)


class Within(nn.Module):
    """A norm or gate that acts inside the block too, and a norm that acts on what is read."""

    def __init__(self, **inside):
        super().__init__()
        self.ops = inside

    def forward(self, *states_and_turn):
        return states_and_turn[-2]  # the new state

    def inside(self, turn):
        return {name: [op] for name, op in self.ops.items()} if turn.index == 1 else {}

    def read(self, state):
        return (state * 3).double()


class Modulating(nn.Module):
    def __init__(self, **ops):
        super().__init__()
        self.ops = ops

    def forward(self, state, turn):
        return {name: [op] for name, op in self.ops.items()}


class Watching:
    """A stage that keeps what its taps hold in each turn's block, which changes nothing."""

    def __init__(self, taps):
        self.taps, self.held = taps, []

    def scene(self, turn, going):
        return Scene(self.block, PlainReader(D), PlainMemory(EVERY))

    def block(self, x):
        self.held.append({name: list(tap.ops) for name, tap in self.taps.items()})
        return x


def test_the_ops_of_norm_and_gate_join_the_modulators_in_their_turn(host, prelude):
    add = Add(torch.ones(D))
    norm, gate = Normed(lambda x: x), Scale(torch.full((D,), 2.0))
    made = parts(host, modulator=Modulating(state=add), norm=Within(sum=norm), gate=Within(state=gate))
    taps = {"state": Site("state"), "sum": Site("0.ffn-sum")}
    stage = Watching(taps=taps)
    looped(prelude, 3, made, stage)
    usual = {"state": [add], "sum": []}
    assert stage.held == [usual, {"state": [add, gate], "sum": [norm]}, usual]
    assert not any(tap.ops for tap in taps.values())


def test_what_a_norm_does_to_what_is_read_keeps_the_dtype_and_a_norm_without_it_leaves_the_state(host, prelude):
    torch.testing.assert_close(parts(host, norm=Within()).read(prelude), prelude * 3)
    assert parts(host).read(prelude) is prelude


class Failing(nn.Module):
    """A modulator that names a linear the block lacks."""

    def forward(self, state, turn):
        return {"9.q": [Add(torch.zeros(D))]}


def test_a_modulator_that_names_an_unknown_linear_is_refused(host, prelude):
    with pytest.raises(KeyError, match=r"names \['9\.q'\]"):
        looped(prelude, 1, parts(host, modulator=Failing()), PlainStage(taps={STATE: Site(STATE)}))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_stops_where_the_last_turns_begin(recompute, host, prelude):
    start = prelude.clone().requires_grad_()
    whole = looped(start, Depth(3, 3), parts(host), recompute=recompute).read
    cut = looped(start, Depth(3, 2), parts(host), recompute=recompute).read
    assert torch.equal(whole, cut)
    assert torch.autograd.grad(whole.sum(), start)[0].any()
    assert not cut.requires_grad  # nothing after the cut learns here


def test_turns_without_gradient_give_the_halting_unit_none(host, prelude):
    halter = act(bias=-3.0)  # no token halts before the last turn, which takes what is left
    visit = looped(prelude, Depth(4, 1), parts(host, halter=halter))
    assert visit.taken.eq(4).all()
    visit.remainder.sum().backward()
    assert not any(p.grad.any() for p in halter.parameters())


# What the loop tells its stage, and what it leaves to it


def test_the_stage_is_told_at_each_turn_which_tokens_take_it(host, prelude):
    stage = PlainStage()
    looped(prelude, 4, parts(host, halter=HaltAt(WHEN)), stage)
    assert torch.equal(torch.stack([going.running for going in stage.going]), RUNNING.bool())
    assert all(going.few is None for going in stage.going)


@pytest.mark.parametrize(("longest", "adaptive", "skipped"), [(2, True, [2, 3, 4]), (5, True, []), (2, False, [])])
def test_turns_that_no_token_takes_are_skipped_one_by_one(longest, adaptive, skipped, host, prelude):
    stage = PlainStage()
    looped(prelude, 5, parts(host, halter=HaltAt(torch.full((B, T), longest), adaptive)), stage)
    assert stage.skipped == skipped
    assert len(stage.going) + len(skipped) == 5


def test_padding_takes_no_turn_and_the_loop_does_not_wait_for_it(host, prelude):
    mask, stage = EVERY.clone(), PlainStage()
    mask[0, :2] = mask[1, 3:] = False
    when = torch.where(mask, 2, 4)
    visit = looped(prelude, 4, parts(host, halter=HaltAt(when)), stage, mask)
    assert torch.equal(visit.taken, 2.0 * mask)
    assert torch.equal(visit.read[~mask], prelude[~mask])
    assert stage.skipped == [2, 3]


class Given(nn.Module):
    """A part that keeps how much of each turn it was given; a halter stops tokens as `when` says, by position."""

    weighted, adaptive = False, True

    def __init__(self, when):
        super().__init__()
        self.when, self.sizes = when, []

    def forward(self, old, new, turn):
        assert old.shape == new.shape == turn.prelude.shape
        assert old.shape[:2] == turn.positions.shape == turn.mask.shape == turn.spent.shape
        self.sizes.append(int(turn.mask.sum()))
        return Halt(turn.index + 1 >= self.when[turn.positions])


def test_gathered_or_not_a_loop_gives_the_same_and_gathered_computes_only_what_goes_on(host, prelude):
    when = torch.tensor([4, 1, 2, 1, 4])
    whole, few = PlainStage(), PlainStage()
    plain = looped(prelude, 6, parts(host, halter=Given(when)), whole, keep_states=True)
    halter = Given(when)
    gathered = looped(prelude, 6, parts(host, halter=halter), few, keep_states=True, gather=True)
    assert (whole.computed, few.computed) == ([10] * 4, [10, 6, 4, 4])
    assert halter.sizes == few.computed
    for name in ("read", "taken", "remainder"):
        torch.testing.assert_close(getattr(gathered, name), getattr(plain, name))
    torch.testing.assert_close(torch.stack(gathered.states), torch.stack(plain.states))
    assert whole.skipped == few.skipped == [4, 5]


@pytest.mark.parametrize("turns", [2, 5, 9])
def test_adaptive_time_may_be_gathered(turns, host, prelude):
    """Shares and remainders too, of tokens that stop at different turns."""
    few = PlainStage()
    with torch.no_grad():
        plain = looped(prelude, turns, parts(host, halter=act()))
        gathered = looped(prelude, turns, parts(host, halter=act()), few, gather=True)
    assert (sum(few.computed) < B * T * turns) == (turns > 2)
    for name in ("read", "taken", "remainder"):
        torch.testing.assert_close(getattr(gathered, name), getattr(plain, name))
    torch.testing.assert_close(torch.stack(gathered.shares), torch.stack(plain.shares))


def test_where_all_turns_are_to_be_taken_nothing_is_gathered(host, prelude):
    for when in ([1, 1, 1, 1, 1], [1, 3, 1, 1, 1]):
        stage, halter = PlainStage(), Given(torch.tensor(when))
        looped(prelude, Depth(4, 4, whole=True), parts(host, halter=halter), stage, gather=True)
        assert stage.computed == [B * T] * 4
        assert stage.skipped == []
