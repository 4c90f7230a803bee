"""Halting against Graves 2016, written out token by token, and what the loop owes every halter."""

import pytest
import torch
from torch import nn

from ouroboros_core.contracts import TURN_SLOTS, Depth, Halt, Slot
from ouroboros_core.loop import Parts, Tokens, loop
from ouroboros_core.ops import STATE, Add
from ouroboros_core.testing import loop_facts
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


class HaltAt(nn.Module):
    """Each token stops after a number of turns of its own; the last state is read."""

    def __init__(self, turns, adaptive=True):
        super().__init__()
        self.turns, self.adaptive = turns, adaptive

    def forward(self, old, new, turn):
        return Halt(turn.index + 1 >= self.turns, weight=None)


def parts(host, **chosen):
    null = {slot: host.null(slot) for slot in TURN_SLOTS}
    made = {slot: part.build(part.options(), loop_facts(D)) for slot, part in null.items()}
    return Parts(*({**made, **{Slot(name): part for name, part in chosen.items()}}.values()))


def act(seed=3, spread=0.6, bias=-1.0):
    halter = ACTHalter(D, bias)
    torch.manual_seed(seed)
    nn.init.normal_(halter.unit[4].weight, std=spread)
    return halter


def tokens():
    return Tokens(torch.arange(T).expand(B, -1), torch.ones(B, T, dtype=torch.bool))


@pytest.fixture
def prelude():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


MATRIX = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) * 0.6


def block(x):
    """Tokens mix with those before them."""
    return torch.tanh((x + 0.5 * x.cumsum(1)) @ MATRIX)


def graves(prelude, turns, unit, epsilon=0.01):
    """Adaptive computation time, one token at a time. -> read-out, N, R, each token's weights and last state."""
    state = {(b, t): prelude[b, t] for b in range(B) for t in range(T)}
    weights, remainder, read = {spot: [] for spot in state}, {}, {}
    probability = dict.fromkeys(state, 0.0)
    for n in range(turns):
        whole = torch.stack([torch.stack([state[b, t] for t in range(T)]) for b in range(B)])
        new = block(whole)
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
    visit = loop(prelude, Depth.full(turns), tokens(), block, {}, parts(host, halter=halter))
    read, taken, remainder, weights, _ = graves(prelude, turns, halter.unit)
    torch.testing.assert_close(visit.read, by_spot(read), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(visit.taken, by_spot(taken))
    torch.testing.assert_close(visit.remainder, by_spot(remainder), atol=1e-6, rtol=1e-5)
    assert all(torch.as_tensor(sum(w)).item() == pytest.approx(1, abs=1e-6) for w in weights.values())


def test_tokens_of_one_batch_stop_at_different_turns(host, prelude):
    visit = loop(prelude, Depth.full(9), tokens(), block, {}, parts(host, halter=act()))
    assert 1 < len(visit.taken.unique()) <= 9


def test_the_weights_of_every_token_sum_to_one(host, prelude):
    norm = Recorder()
    visit = loop(torch.ones_like(prelude), Depth.full(7), tokens(), torch.ones_like, {}, parts(host, halter=act()))
    torch.testing.assert_close(visit.read, torch.ones(B, T, D))  # a weighted sum of ones
    visit = loop(prelude, Depth.full(7), tokens(), block, {}, parts(host, halter=act(), norm=norm))
    before_last = torch.stack([turn.spent for turn in norm.turns])
    assert ((before_last >= 0) & (before_last <= 1 + 1e-6)).all()


def test_gradients_of_halting_are_those_of_the_plain_loop(host, prelude):
    mine, theirs = act(), act()
    visit = loop(prelude, Depth.full(5), tokens(), block, {}, parts(host, halter=mine))
    (visit.read.sin().sum() + visit.remainder.sum()).backward()
    read, _, remainder, _, _ = graves(prelude, 5, theirs.unit)
    (by_spot_graph(read).sin().sum() + by_spot_graph(remainder).sum()).backward()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def by_spot_graph(found):
    return torch.stack([torch.stack([found[b, t] for t in range(T)]) for b in range(B)])


def test_the_price_of_thinking_has_its_gradient_in_the_remainder_alone(host, prelude):
    halter = act()
    visit = loop(prelude, Depth.full(6), tokens(), block, {}, parts(host, halter=halter))
    assert not visit.taken.requires_grad
    from_both = torch.autograd.grad((visit.taken + visit.remainder).sum(), halter.unit[4].weight, retain_graph=True)
    from_one = torch.autograd.grad(visit.remainder.sum(), halter.unit[4].weight)
    assert torch.equal(from_both[0], from_one[0])
    assert from_one[0].any()


def test_a_halted_token_stays_as_it_was(host, prelude):
    when = torch.tensor([[1, 2, 3, 4, 4], [2, 1, 4, 3, 4]])
    visit = loop(prelude, Depth.full(4), tokens(), block, {}, parts(host, halter=HaltAt(when)))
    state, expected = prelude, torch.zeros_like(prelude)
    for n in range(1, 5):
        new = block(state)
        state = torch.where((when >= n)[..., None], new, state)
        expected = torch.where((when == n)[..., None], state, expected)
    torch.testing.assert_close(visit.read, expected)
    assert torch.equal(visit.taken, when.float())


class Generous(nn.Module):
    """Stops every token after its first turn, and goes on giving weight to all of them."""

    adaptive = False

    def forward(self, old, new, turn):
        return Halt(torch.ones_like(turn.mask), torch.ones_like(turn.spent))


def test_a_halted_token_is_read_out_no_more_whatever_the_halter_says(host, prelude):
    visit = loop(prelude, Depth.full(3), tokens(), block, {}, parts(host, halter=Generous()))
    torch.testing.assert_close(visit.read, block(prelude))
    assert visit.remainder.eq(1).all()


def test_the_loop_ends_when_every_token_has_halted_and_nothing_else_differs(host, prelude):
    when = torch.tensor([[1, 2, 3, 2, 1], [3, 3, 1, 2, 2]])
    visits, turns = [], []
    for adaptive in (True, False):
        norm = Recorder()
        halter = HaltAt(when, adaptive)
        visits.append(loop(prelude, Depth.full(8), tokens(), block, {}, parts(host, halter=halter, norm=norm)))
        turns.append(len(norm.turns))
    assert turns == [3, 8]
    assert torch.equal(visits[0].read, visits[1].read)
    assert torch.equal(visits[0].taken, visits[1].taken)


def test_adaptive_time_that_ends_early_reads_the_same(host, prelude):
    early, late, norm = act(bias=1.0), act(bias=1.0), Recorder()
    late.adaptive = False
    short = loop(prelude, Depth.full(20), tokens(), block, {}, parts(host, halter=early, norm=norm))
    whole = loop(prelude, Depth.full(20), tokens(), block, {}, parts(host, halter=late))
    assert len(norm.turns) < 20
    for name in ("read", "taken", "remainder"):
        assert torch.equal(getattr(short, name), getattr(whole, name))


def test_every_turn_is_told_where_it_stands(host, prelude):
    norm = Recorder()
    loop(prelude, Depth.full(3), tokens(), block, {}, parts(host, norm=norm), seed=42)
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
    visit = loop(prelude, Depth.full(3), tokens(), block, {}, parts(host, entry=Start()))
    state = torch.zeros_like(prelude)
    for _ in range(3):
        state = block(state + prelude)
    torch.testing.assert_close(visit.read, state)


class Failing(nn.Module):
    """A modulator that names a linear the block lacks."""

    def forward(self, state, turn):
        return {"9.q": [Add(torch.zeros(D))]}


def test_a_modulator_that_names_an_unknown_linear_is_refused(host, prelude):
    with pytest.raises(KeyError, match=r"names \['9\.q'\]"):
        loop(prelude, Depth.full(1), tokens(), block, {STATE: None}, parts(host, modulator=Failing()))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_stops_where_the_last_turns_begin(recompute, host, prelude):
    start = prelude.clone().requires_grad_()
    whole = loop(start, Depth(3, 3), tokens(), block, {}, parts(host), recompute=recompute).read
    cut = loop(start, Depth(3, 2), tokens(), block, {}, parts(host), recompute=recompute).read
    assert torch.equal(whole, cut)
    assert torch.autograd.grad(whole.sum(), start)[0].any()
    assert not cut.requires_grad  # nothing after the cut learns here


def test_turns_without_gradient_give_the_halting_unit_none(host, prelude):
    halter = act(bias=-3.0)  # no token halts before the last turn, which takes what is left
    visit = loop(prelude, Depth(4, 1), tokens(), block, {}, parts(host, halter=halter))
    assert visit.taken.eq(4).all()
    visit.remainder.sum().backward()
    assert not any(p.grad.any() for p in halter.parameters())
