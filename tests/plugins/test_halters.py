"""Halters: one turn's verdict. The whole recursion of adaptive time is in the tests of the loop."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from ouroboros_core.accounting import flops_per_token
from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.testing import PlainReader, a_turn, loop_facts, tiny_model
from ouroboros_plugins.halters.act import ACTHalter, ACTOptions
from ouroboros_plugins.halters.exit_gate import ExitGateHalter
from ouroboros_plugins.halters.kl import KLHalter
from ouroboros_plugins.halters.latent_diff import LatentDiffHalter
from ouroboros_plugins.halters.ponder import PonderHalter, uniform

B, T, D = 2, 5, 16
TRAINING_FREE = [KLHalter, LatentDiffHalter]
LEARNED = [ExitGateHalter, PonderHalter]


class Halving(PlainReader):
    """A reader whose norm is seen to be used."""

    def normed(self, state):
        return state / 2


class Silent(PlainReader):
    """A reader that must not be asked."""

    def logits(self, state):
        raise AssertionError("the logits were asked for")


@pytest.fixture
def state():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


def nudge(size):
    """Moves of each token's state by another size, (B, T, D)."""
    sizes = size * torch.logspace(-3, 0, B * T).view(B, T, 1)
    return sizes * torch.randn(B, T, D, generator=torch.Generator().manual_seed(7))


def visit(halter, states):
    """The shares and stops of a token's turns, with what earlier turns gave kept as the loop keeps it."""
    spent, halts = torch.zeros(B, T), []
    for index, new in enumerate(states):
        turn = a_turn(index=index, last=index == len(states) - 1, spent=spent)
        halts.append(halter(states[index - 1] if index else new, new, turn))
        spent = spent + halts[-1].share
    return torch.stack([halt.share for halt in halts]), torch.stack([halt.stop for halt in halts])


def plain_shares(unit, states, norm=lambda h: h):
    """p_t = l_t (1 - l_1) ... (1 - l_{t-1}) for each token in turn; the last turn takes the remainder."""
    shares = torch.zeros(len(states), B, T)
    for b in range(B):
        for t in range(T):
            going_on = 1.0
            for n, new in enumerate(states[:-1]):
                halting = 1 / (1 + math.exp(-(unit.weight[0] @ norm(new[b, t]) + unit.bias).item()))
                shares[n, b, t] = halting * going_on
                going_on *= 1 - halting
            shares[-1, b, t] = going_on
    return shares


def test_the_fixed_halter_stops_nobody_and_reads_the_last_state(host, state):
    part = host.default(Slot.HALTER)
    fixed = part.build(part.options(), loop_facts(D))
    halt = fixed(state, state, a_turn())
    assert not halt.stop.any()
    assert halt.share is None
    assert not fixed.adaptive
    assert not fixed.weighted


def test_at_the_start_every_token_halts_with_the_bias_alone(state):
    halt = ACTHalter(D)(state, state, a_turn())
    torch.testing.assert_close(halt.share, torch.full((2, 5), 0.119203), atol=1e-6, rtol=0)
    assert not halt.stop.any()


def test_the_halting_unit_has_two_hidden_layers_and_ends_at_zero_with_a_bias_of_minus_two():
    unit = ACTHalter(D).unit
    shapes = [tuple(p.shape) for p in unit.parameters()]
    assert shapes == [(256, D), (256,), (256, 256), (256,), (1, 256), (1,)]
    assert not unit[-1].weight.any()
    assert unit[-1].bias.item() == -2


def test_the_linear_unit_is_one_map_that_starts_at_zero_with_the_given_bias(host):
    part = host.find(Slot.HALTER, "act")
    unit = part.build(part.options(unit="linear", bias=1.0), loop_facts(D)).unit
    assert [tuple(p.shape) for p in unit.parameters()] == [(1, D), (1,)]
    assert not unit[-1].weight.any()
    assert unit[-1].bias.item() == 1


def test_the_linear_unit_gives_the_sigmoid_of_its_map_of_the_new_state(randomise, state):
    halter = randomise(ACTHalter(D, unit="linear"), spread=0.3)
    weight, bias = halter.unit[0].weight[0], halter.unit[0].bias
    expected = 1 / (1 + (-(state * weight).sum(-1) - bias).exp())
    torch.testing.assert_close(halter(state + 1, state, a_turn()).share, expected)


def test_a_token_stops_when_its_probabilities_reach_one_but_for_epsilon(state):
    spent = torch.tensor([[0.0, 0.8, 0.87, 0.89, 0.95]] * 2)
    halt = ACTHalter(D, epsilon=0.01)(state, state, a_turn(spent=spent))
    assert halt.stop[0].tolist() == [False, False, False, True, True]  # each adds 0.1192
    torch.testing.assert_close(halt.share[0, 3:], torch.tensor([0.11, 0.05]))


def test_a_larger_epsilon_stops_sooner(state):
    spent = torch.full((2, 5), 0.7)
    assert not ACTHalter(D, epsilon=0.1)(state, state, a_turn(spent=spent)).stop.any()
    assert ACTHalter(D, epsilon=0.2)(state, state, a_turn(spent=spent)).stop.all()


def test_the_last_turn_takes_what_is_left(state):
    spent = torch.full((2, 5), 0.3)
    halt = ACTHalter(D)(state, state, a_turn(last=True, spent=spent))
    assert halt.stop.all()
    torch.testing.assert_close(halt.share, torch.full((2, 5), 0.7))


def test_the_new_state_decides(randomise, state):
    halter = randomise(ACTHalter(D))
    shares = halter(torch.zeros_like(state), state, a_turn()).share
    assert torch.equal(shares, halter(state + 1, state, a_turn()).share)
    assert not torch.equal(shares, halter(state, state + 1, a_turn()).share)


@pytest.mark.parametrize("epsilon", [0, 1, -0.1])
def test_an_epsilon_outside_zero_and_one_is_refused(epsilon):
    with pytest.raises(ValidationError, match="epsilon"):
        ACTOptions(epsilon=epsilon)


@pytest.mark.parametrize("threshold", [5e-4, 0.05])
def test_a_token_stops_when_its_next_words_diverge_by_less_than_the_threshold(threshold, state):
    turn, new = a_turn(index=1, old=state), state + nudge(0.5)
    stop = KLHalter(threshold).eval()(state, new, turn).stop
    for b in range(B):
        for t in range(T):
            p, q = (torch.softmax(turn.reader.head @ h[b, t], 0) for h in (new, state))
            assert stop[b, t] == (float((p * (p / q).log()).sum()) < threshold)
    assert stop.any()
    assert not stop.all()


def test_the_divergence_is_that_of_the_old_distribution_from_the_new():
    """Of (0.9, 0.1) from (0.5, 0.5) it is 0.368 nats, the other way round 0.511."""
    even, sure = torch.zeros(B, T, D), torch.zeros(B, T, D)
    sure[..., 0] = math.log(0.9 / 0.1)

    def stops(old, new):
        reader = PlainReader(D, words=2, old=old)
        reader.head = torch.zeros(2, D)
        reader.head[0, 0] = 1.0
        return KLHalter(0.44).eval()(old, new, replace(a_turn(index=1), reader=reader)).stop

    assert stops(sure, even).all()
    assert not stops(even, sure).any()


class Asked(PlainReader):
    """A reader that counts how often it is asked for logits."""

    def __init__(self, old):
        super().__init__(D, old=old)
        self.times = 0

    @property
    def before(self):
        return self.old @ self.head.T

    def logits(self, state):
        self.times += 1
        return super().logits(state)


def test_the_distribution_after_each_turn_is_made_once_and_none_after_the_last(state):
    for turn, times in ((a_turn(index=1), 1), (a_turn(index=1, last=True), 0)):
        reader = Asked(state)
        KLHalter().eval()(state, state + nudge(0.5), replace(turn, reader=reader))
        assert reader.times == times


def test_a_token_is_compared_with_what_was_said_at_the_turn_before_not_with_its_old_state_read_again(state):
    """What was said depends on other tokens too, which have moved on since."""
    new, halter = -state, KLHalter().eval()
    assert halter(state, new, a_turn(index=1, old=new)).stop.all()
    assert not halter(new, new, a_turn(index=1, old=state)).stop.any()


@pytest.mark.parametrize("threshold", [0.03, 0.3])
def test_a_token_stops_when_its_state_moves_by_a_smaller_share(threshold, state):
    new = state + nudge(1.0)
    stop = LatentDiffHalter(threshold).eval()(state, new, a_turn(index=1)).stop
    for b in range(B):
        for t in range(T):
            moved = math.sqrt(sum(float(x) ** 2 for x in new[b, t] - state[b, t]))
            assert stop[b, t] == (moved / math.sqrt(sum(float(x) ** 2 for x in new[b, t])) < threshold)
    assert stop.any()
    assert not stop.all()


def test_a_move_is_measured_by_the_new_state(state):
    """From h to 3h / 2: a third of the new state, half of the old one."""
    assert LatentDiffHalter(0.4).eval()(state, 1.5 * state, a_turn(index=1)).stop.all()
    assert not LatentDiffHalter(0.4).eval()(1.5 * state, state, a_turn(index=1)).stop.any()


@pytest.mark.parametrize("halter", TRAINING_FREE)
def test_a_state_that_no_longer_moves_stops_but_not_after_the_first_turn(halter, state):
    halter = halter().eval()
    assert halter(state, state, a_turn(index=1, old=state)).stop.all()
    assert not halter(state, state, a_turn(index=0)).stop.any()


@pytest.mark.parametrize("halter", TRAINING_FREE)
def test_in_training_nobody_stops_and_no_logits_are_made(halter, state):
    halter, turn = halter().train(), replace(a_turn(index=1), reader=Silent(D))
    halt = halter(state, state, turn)
    assert not halt.stop.any()
    assert halt.share is None


@pytest.mark.parametrize("halter", TRAINING_FREE)
def test_a_bfloat16_state_is_compared_in_float32(halter, state):
    old, new = state.bfloat16(), (state + nudge(0.5)).bfloat16()

    class Exact(PlainReader):
        def logits(self, state):
            return state

    halter = halter(threshold=2e-3).eval()
    rounded, exact = (
        halter(before, after, replace(a_turn(index=1), reader=Exact(D, old=before))).stop
        for before, after in ((old, new), (old.float(), new.float()))
    )
    assert torch.equal(rounded, exact)
    assert 0 < rounded.sum() < B * T


@pytest.mark.parametrize("halter", TRAINING_FREE)
def test_a_comparison_carries_no_gradient(halter, state):
    new = (state + nudge(0.5)).requires_grad_()
    assert not halter().eval()(state, new, a_turn(index=1, old=state)).stop.requires_grad


@pytest.mark.parametrize("halter", [*TRAINING_FREE, *(lambda kind=kind: kind(D) for kind in LEARNED)])
def test_the_loop_may_end_early_at_evaluation_only_and_the_last_state_is_read(halter):
    halter = halter()
    assert halter.eval().adaptive
    assert not halter.train().adaptive
    assert not halter.weighted


def test_half_of_what_is_left_stops_at_every_turn_at_the_start(state):
    shares, _ = visit(ExitGateHalter(D), [state] * 4)
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.5, 0.25, 0.125, 0.125]))


def test_the_prior_is_the_probability_of_every_turn_at_the_start(state):
    shares, _ = visit(PonderHalter(D, prior=0.2), [state] * 4)
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.2, 0.16, 0.128, 0.512]))


@pytest.mark.parametrize(("halter", "bias"), [(ExitGateHalter, 0.0), (PonderHalter, math.log(0.2 / 0.8))])
def test_the_gate_is_one_linear_map_that_starts_at_zero(halter, bias):
    weight, offset = halter(D).parameters()
    assert weight.shape == (1, D)
    assert not weight.any()
    assert offset.item() == pytest.approx(bias)


@pytest.mark.parametrize("halter", LEARNED)
def test_the_shares_are_those_of_ending_now_after_having_gone_on(halter, randomise, state):
    halter = randomise(halter(D), spread=0.5)
    states = [state, state + 1, state * 2, state - 1]
    shares, stops = visit(halter.train(), states)
    torch.testing.assert_close(shares, plain_shares(halter.shares.unit, states), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(shares.sum(0), torch.ones(B, T))
    assert not stops.any()


def test_the_exit_gate_reads_the_state_behind_the_final_norm(randomise, state):
    halter = randomise(ExitGateHalter(D), spread=0.5)
    turn = replace(a_turn(), reader=Halving(D))
    expected = plain_shares(halter.shares.unit, [state, state], norm=lambda h: h / 2)[0]
    torch.testing.assert_close(halter(state, state, turn).share, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_a_token_stops_at_the_first_turn_that_reaches_the_quantile(quantile, randomise, state):
    halter = randomise(ExitGateHalter(D, quantile), spread=0.3).eval()
    shares, stops = visit(halter, [state, state + 1, state * 2, state - 1])
    for b in range(B):
        for t in range(T):
            cumulative = [shares[: n + 1, b, t].sum().item() for n in range(4)]
            assert stops[:, b, t].tolist() == [reached >= quantile for reached in cumulative[:3]] + [True]
    assert len(stops.flatten(1).unique(dim=1).T) > 1  # tokens differ


@pytest.mark.parametrize("halter", LEARNED)
def test_every_parameter_of_a_gate_at_its_start_has_a_gradient(halter, state):
    halter = halter(D)
    shares, _ = visit(halter, [state, state + 1, state * 2])
    (shares * torch.tensor([1.0, 2.0, 4.0])[:, None, None]).sum().backward()
    assert all(p.grad.ne(0).all() for p in halter.parameters())


@pytest.mark.parametrize("halter", LEARNED)
def test_a_step_of_one_turn_leaves_a_gradient_of_zero_and_not_none(halter, state):
    halter = halter(D)
    halter(state, state, a_turn(last=True)).share.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in halter.parameters())


def test_the_turn_is_drawn_from_the_shares():
    """Of 20,000 positions, each turn ends as many as its share says."""
    many = 20_000
    halter, state = PonderHalter(D, prior=0.3).eval(), torch.zeros(1, many, D)
    ended, spent = torch.zeros(1, many, dtype=torch.long), torch.zeros(1, many)
    running = torch.ones(1, many, dtype=torch.bool)
    for index in range(4):
        halt = halter(state, state, a_turn(1, many, index, last=index == 3, spent=spent))
        ended[running & halt.stop] = index
        running, spent = running & ~halt.stop, spent + halt.share
    assert not running.any()
    found = ended.flatten().bincount(minlength=4) / many
    torch.testing.assert_close(found, torch.tensor([0.3, 0.21, 0.147, 0.343]), atol=0.012, rtol=0)


def test_a_draw_is_a_function_of_seed_and_position_alone():
    everywhere = torch.arange(200).expand(3, -1)
    drawn = uniform(5, everywhere)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[:, :70], uniform(5, everywhere[:, :70]))
    assert torch.equal(drawn[:1, 130:131], uniform(5, torch.tensor([[130]])))
    padded = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    assert torch.equal(uniform(5, padded), drawn[0][padded])
    assert not torch.equal(drawn, uniform(6, everywhere))


def test_draws_of_blocks_and_seeds_differ_and_are_uniform():
    drawn = torch.cat([uniform(seed, torch.arange(640)[None]) for seed in range(4)])
    assert len(drawn.unique()) > 0.99 * drawn.numel()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03
    assert abs(float(drawn.var()) - 1 / 12) < 0.01


def test_another_seed_stops_other_tokens():
    halter, state = PonderHalter(D, prior=0.5).eval(), torch.zeros(1, 64, D)
    stops = [halter(state, state, a_turn(1, 64, seed=seed)).stop for seed in (1, 1, 2)]
    assert torch.equal(stops[0], stops[1])
    assert not torch.equal(stops[0], stops[2])


@pytest.mark.parametrize(("slot", "gives"), [("act", True), ("exit-gate", True), ("ponder", True), ("kl", False)])
def test_parts_say_whether_they_give_shares(slot, gives, host):
    assert host.find(Slot.HALTER, slot).gives_shares is gives


@pytest.mark.parametrize("name", ["kl", "latent-diff", "exit-gate", "ponder"])
def test_a_model_in_training_takes_all_its_turns_whatever_the_halter(name, make, ids):
    model = make(halter={"use": name}, schedule={"use": "fixed", "turns": 3}).model.train()
    trace = model.trace(ids, depth=Depth.full(3), keep_turns=True)
    assert trace.taken.eq(3).all()
    assert len(trace.turns) == 3
    if trace.shares:
        torch.testing.assert_close(torch.stack(list(trace.shares)).sum(0), torch.ones(2, 12))


@pytest.mark.parametrize(("name", "threshold"), [("kl", 1e9), ("latent-diff", 1e9)])
def test_a_model_at_evaluation_exits_after_the_second_turn_when_everything_counts_as_settled(
    name, threshold, make, ids
):
    model = make(halter={"use": name, "threshold": threshold}).model.eval()
    assert model.trace(ids).taken.eq(2).all()


def test_a_threshold_that_nothing_undercuts_changes_nothing(make, ids):
    plain = make().model.eval()
    for name in ("kl", "latent-diff"):
        model = make(halter={"use": name, "threshold": 1e-30}).model.eval()
        assert torch.equal(model.trace(ids).logits(), plain.trace(ids).logits())


@pytest.mark.parametrize(("quantile", "turns"), [(0.5, 1), (0.6, 2), (0.8, 3), (1.0, 4)])
def test_a_fresh_exit_gate_exits_at_the_turn_that_its_quantile_names(quantile, turns, make, ids):
    model = make(halter={"use": "exit-gate", "quantile": quantile}).model.eval()
    assert model.trace(ids).taken.eq(turns).all()


@pytest.mark.parametrize("name", ["kl", "exit-gate", "ponder"])
def test_no_exit_depends_on_later_tokens(name, make, ids, randomise):
    options = {"kl": {"threshold": 0.1}}.get(name, {})
    model = make(halter={"use": name, **options}, gate={"use": "none"}).model.eval()
    randomise(model.loops)
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] + 1) % 320
    before, after = model.trace(ids), model.trace(changed)
    assert len(before.taken.unique()) > 1
    assert torch.equal(before.taken[:, :7], after.taken[:, :7])
    torch.testing.assert_close(before.logits()[:, :7], after.logits()[:, :7], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["fixed", "act", "kl", "latent-diff", "exit-gate", "ponder"])
def test_operations_are_counted_on_shapes_alone(name, make):
    parts = {"halter": {"use": name}, "modulator": {"use": "none"}}
    empty = make(tiny_model().to("meta"), **parts).model
    assert flops_per_token(empty, 16) == flops_per_token(make(**parts).model, 16)


def test_every_halter_is_counted_on_shapes_alone(host):
    assert {part.name for _, part in host.parts(Slot.HALTER)} == {
        "fixed", "act", "kl", "latent-diff", "exit-gate", "ponder",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "needs"), [("act", False), ("kl", False), ("exit-gate", True), ("ponder", True)])
def test_parts_say_whether_an_objective_alone_reads_their_shares(name, needs, host):
    assert host.find(Slot.HALTER, name).read_by_objective is needs
