"""How many turns a training step takes."""

import math
from collections import Counter
from statistics import fmean, pvariance

import pytest
from pydantic import ValidationError

from ouroboros_core.contracts import Depth, ModelFacts, Slot
from ouroboros_core.errors import UserError


@pytest.fixture
def schedule(host):
    """A schedule for a model of four turns."""

    def schedule(name, **options):
        part = host.find(Slot.SCHEDULE, name)
        return part.build(part.options(**options), ModelFacts(6, 8, turns=4))

    return schedule


def test_the_default_is_the_turns_of_the_loop_at_every_step(schedule):
    fixed = schedule("fixed")
    assert {fixed(step, step / 50, seed=step) for step in range(50)} == {Depth(4, 4)}
    assert fixed.most == 4


def test_fixed_turns_may_differ_from_those_at_evaluation(schedule):
    fixed = schedule("fixed", turns=2)
    assert (fixed(0, 0.0, 0), fixed.most) == (Depth(2, 2), 2)


@pytest.mark.parametrize(("with_gradient", "kept"), [(1, 1), (3, 3), (None, 4)])
def test_fewer_turns_may_carry_gradient(with_gradient, kept, schedule):
    assert schedule("fixed", with_gradient=with_gradient)(0, 0.0, 0) == Depth(4, kept)


def test_more_turns_with_gradient_than_are_taken_are_refused(schedule):
    with pytest.raises(UserError, match=r"schedule\.with_gradient=9: a step takes only 4 turn"):
        schedule("fixed", with_gradient=9)


def test_a_choice_is_a_function_of_step_and_seed_alone(schedule):
    one, other = schedule("choice"), schedule("choice")
    there = [one(step, step / 100, seed=3) for step in range(100)]
    back = [other(step, 0.5, seed=3) for step in reversed(range(100))]
    assert there == back[::-1]


def test_another_seed_draws_another_order(schedule):
    choice = schedule("choice")
    assert [choice(step, 0, 1) for step in range(50)] != [choice(step, 0, 2) for step in range(50)]


def test_a_choice_draws_each_of_its_numbers_about_as_often(schedule):
    choice = schedule("choice", turns=[2, 5, 8])
    drawn = Counter(choice(step, 0, 0).turns for step in range(900))
    assert set(drawn) == {2, 5, 8}
    assert all(240 < count < 360 for count in drawn.values())
    assert choice.most == 8


def test_a_choice_truncates_what_is_deeper_than_its_gradient(schedule):
    choice = schedule("choice", turns=[2, 8], with_gradient=4)
    assert {choice(step, 0, 0) for step in range(50)} == {Depth(2, 2), Depth(8, 4)}


@pytest.mark.parametrize("turns", [[], [0], [4, -1]])
def test_a_choice_of_no_turns_is_refused(turns, schedule):
    with pytest.raises(ValidationError, match="turns"):
        schedule("choice", turns=turns)


@pytest.mark.parametrize("options", [{"turns": 0}, {"with_gradient": 0}])
def test_no_turn_and_no_gradient_are_refused(options, schedule):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        schedule("fixed", **options)


def depths(schedule, draws=20_000, progress=1.0, seed=0):
    return [schedule(step, progress, seed).turns for step in range(draws)]


def test_log_normal_poisson_draws_one_more_than_its_mean_with_the_variance_of_the_mixture(schedule):
    """E[r] = m + 1; Var[r] = E[lambda] + Var[lambda] = m + m^2 (exp(sigma^2) - 1)."""
    drawn = depths(schedule("log-normal-poisson", mean=8, sigma=0.5, most=1000))
    assert fmean(drawn) == pytest.approx(9, abs=0.15)
    assert pvariance(drawn) == pytest.approx(8 + 64 * (math.exp(0.25) - 1), rel=0.08)
    assert min(drawn) == 1


def test_without_spread_it_is_poisson_and_one(schedule):
    drawn = Counter(depths(schedule("log-normal-poisson", mean=3, sigma=0.0, most=1000)))
    for r in range(1, 8):
        expected = math.exp(-3) * 3 ** (r - 1) / math.factorial(r - 1)
        assert drawn[r] / 20_000 == pytest.approx(expected, abs=0.012)


def test_the_mean_is_the_turns_of_the_loop_and_the_cut_four_times_that(schedule):
    plain = schedule("log-normal-poisson")
    drawn = depths(plain)
    assert (plain.mean, plain.most) == (4, 16)
    assert max(drawn) == 16
    assert sum(r == 16 for r in drawn) < 0.02 * len(drawn)


def test_deeper_draws_are_cut_and_the_last_turns_alone_carry_gradient(schedule):
    cut = schedule("log-normal-poisson", mean=6, most=10, with_gradient=3)
    drawn = {cut(step, 0.0, 0) for step in range(2000)}
    assert {depth.turns for depth in drawn} == set(range(1, 11))
    assert all(depth.with_gradient == min(3, depth.turns) for depth in drawn)
    assert {d.with_gradient for d in map(schedule("log-normal-poisson"), range(500), [0] * 500, [0] * 500)} >= {1, 8}


@pytest.mark.parametrize(("name", "options"), [("log-normal-poisson", {}), ("ramp", {"sigma": 0.5})])
def test_a_drawn_depth_is_a_function_of_its_arguments_alone(name, options, schedule):
    one, other = schedule(name, **options), schedule(name, **options)
    there = [one(step, 0.6, seed=3) for step in range(200)]
    assert there == [other(step, 0.6, seed=3) for step in reversed(range(200))][::-1]
    assert there != [one(step, 0.6, seed=4) for step in range(200)]


@pytest.mark.parametrize(
    ("shape", "share"), [("one-minus-sqrt", lambda x: 1 - (1 - x) ** 0.5), ("linear", lambda x: x)]
)
def test_a_ramp_grows_from_one_turn_to_all_over_its_share_of_training(shape, share, schedule):
    ramp = schedule("ramp", turns=12, over=0.6, shape=shape)
    for step in range(101):
        progress = step / 100
        expected = 12 if progress >= 0.6 else max(1, math.ceil(12 * share(progress / 0.6)))
        assert ramp(step, progress, seed=step).turns == expected
    assert ramp.most == 12


def test_by_default_a_ramp_is_slow_at_first_and_full_after_three_quarters(schedule):
    ramp = schedule("ramp")
    assert [ramp(0, progress, 0).turns for progress in (0, 0.3, 0.35, 0.7, 0.75, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert ramp.most == 4


def test_a_ramp_truncates_what_is_deeper_than_its_gradient(schedule):
    ramp = schedule("ramp", turns=12)
    assert ramp(0, 0.0, 0) == Depth(1, 1)
    assert ramp(0, 1.0, 0) == Depth(12, 8)
    assert schedule("ramp", turns=12, with_gradient=2)(0, 1.0, 0) == Depth(12, 2)


@pytest.mark.parametrize(("progress", "mean"), [(0.0, 1), (0.375, 3), (1.0, 8)])
def test_a_ramp_with_a_spread_draws_around_its_present_depth(progress, mean, schedule):
    ramp = schedule("ramp", turns=8, sigma=0.5)
    drawn = depths(ramp, progress=progress)
    assert fmean(drawn) == pytest.approx(mean + 1, abs=0.15)
    assert ramp.most == 32
    assert max(drawn) <= 32


SPREAD = [("log-normal-poisson", {}), ("ramp", {"turns": 64})]


@pytest.mark.parametrize("sigma", [5.01, 40.0, math.inf, math.nan])
@pytest.mark.parametrize(("name", "options"), SPREAD)
def test_a_spread_that_nothing_could_be_drawn_with_is_refused(name, options, sigma, schedule):
    with pytest.raises(ValidationError, match="sigma"):
        schedule(name, sigma=sigma, **options)


@pytest.mark.parametrize(("name", "options"), SPREAD)
def test_the_widest_spread_can_be_drawn_with(name, options, schedule):
    widest = schedule(name, sigma=5.0, most=100, **options)
    assert {1, 100} <= set(depths(widest)) <= set(range(1, 101))


def test_a_drawn_ramp_is_cut(schedule):
    ramp = schedule("ramp", turns=8, sigma=0.5, most=9)
    assert max(depths(ramp, draws=300)) == ramp.most == 9


def test_a_cut_that_an_exact_ramp_never_reaches_is_refused(schedule):
    with pytest.raises(UserError, match=r"schedule\.most=9: without schedule\.sigma the ramp takes 4 turn"):
        schedule("ramp", most=9)
    assert schedule("ramp", most=3)(0, 1.0, 0).turns == 3


@pytest.mark.parametrize("options", [{"over": 0.0}, {"over": 1.5}, {"shape": "steep"}, {"sigma": -0.1}, {"turns": 0}])
def test_a_ramp_that_cannot_be_is_refused(options, schedule):
    with pytest.raises(ValidationError, match=next(iter(options))):
        schedule("ramp", **options)
