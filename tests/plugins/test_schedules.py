"""How many turns a training step takes."""

from collections import Counter

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
