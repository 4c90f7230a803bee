"""The depth curve and the residuals of a loop, against plain restatements and loops whose course is known."""

import json
import statistics
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ouroboros_core.contracts import Depth
from ouroboros_core.data import Domain
from ouroboros_core.depth import depth_curve, depth_turns, residuals, where
from ouroboros_core.losses import IGNORE


def text(name="near", seed=0):
    """Five rows of three units, one row cut short."""
    blocks = torch.randint(0, 320, (5, 10), generator=torch.Generator().manual_seed(seed))
    blocks[2, 6:] = IGNORE
    return Domain(name, blocks, torch.tensor([0, 0, 1, 1, 2]), 3, "documents")


@pytest.fixture
def model(make, randomise):
    """A model of four turns, moved from where it starts."""
    built = make()
    randomise(built.model.loops)
    return built.model


def plain_losses(model, domain, turns):
    """Summed nats and scored tokens of each unit, one token at a time."""
    nats, tokens = [0.0] * 3, [0] * 3
    for row, unit in zip(domain.blocks, domain.unit.tolist(), strict=True):
        real = row[row != IGNORE]
        log_p = torch.log_softmax(model.trace(real[None, :-1], depth=Depth.full(turns)).logits()[0].double(), -1)
        for place, label in enumerate(real[1:].tolist()):
            nats[unit] -= float(log_p[place, label])
            tokens[unit] += 1
    return nats, tokens


@pytest.mark.parametrize(
    ("trained", "evaluated", "turns"),
    [
        (4, 4, [1, 2, 4, 8]),
        (1, 1, [1, 2]),
        (3, 5, [1, 2, 3, 4, 5, 8]),
        (6, 4, [1, 2, 4, 6, 8]),
        (2, 8, [1, 2, 4, 8, 16]),
    ],
)
def test_the_turns_are_powers_of_two_up_to_twice_the_larger_depth_and_both_depths(trained, evaluated, turns):
    assert depth_turns(trained, evaluated) == turns


@torch.no_grad()
def test_every_loss_is_that_of_the_model_at_so_many_turns(model):
    near, far = text(), text("far", seed=1)
    curve = depth_curve(model, [near, far], [1, 2, 4, 6], trained=4, batch=2, resamples=100)
    assert list(curve.domains) == ["near", "far"]
    for domain in (near, far):
        rows = curve.domains[domain.name]
        assert [row.turns for row in rows] == [1, 2, 4, 6]
        for row in rows:
            nats, tokens = plain_losses(model, domain, row.turns)
            drawn = np.random.default_rng(0).integers(3, size=(100, 3)).tolist()
            means = sorted(sum(nats[u] for u in units) / sum(tokens[u] for u in units) for units in drawn)
            assert row.loss.value == pytest.approx(sum(nats) / sum(tokens), abs=1e-5)
            assert (row.loss.low, row.loss.high) == pytest.approx((means[2], means[97]), abs=1e-5)
    assert len({row.loss.value for row in curve.domains["near"]}) == 4


def test_a_row_says_whether_it_is_below_at_or_beyond_the_trained_depth(model):
    curve = depth_curve(model, [text()], [1, 2, 3, 4], trained=3, resamples=100)
    assert [row.where for row in curve.domains["near"]] == ["below", "below", "at", "beyond"]
    assert (curve.trained, curve.evaluated) == (3, model.turns)
    assert where(5, 5) == "at"


def test_with_an_adaptive_halter_the_turns_are_a_cap_and_the_curve_says_so(make):
    fixed, stopping = make().model, make(halter={"use": "latent-diff", "threshold": 1e6}).model
    capped, whole = (depth_curve(one, [text()], [1, 2, 4], trained=4, resamples=100) for one in (stopping, fixed))
    assert (capped.cap, whole.cap) == (True, False)
    losses = [row.loss for row in capped.domains["near"]]
    assert losses[1] == losses[2]  # every token stops after its second turn
    assert losses[:2] == [row.loss for row in whole.domains["near"][:2]]


def test_an_adaptive_halter_is_told_of_a_model_in_training_too(make):
    model = make(halter={"use": "latent-diff"}).model.train()
    assert depth_curve(model, [text()], [1], trained=4, resamples=100).cap


def test_the_curve_tells_of_every_row_it_reads(model):
    heard = []
    depth_curve(model, [text(), text("far", 1)], [1, 2, 4], trained=4, batch=2, resamples=100, done=heard.append)
    assert sum(heard) == 2 * 5 * 3


# The course of the state


class Course(nn.Module):
    """A gate that ignores the block: the next state is a function of the old one alone."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, old, new, turn):
        return self.step(old)


class Recorder(nn.Module):
    """A gate that does what another does, and keeps every state: the first old one, and each new one."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.states = gate, []

    def forward(self, old, new, turn):
        after = self.gate(old, new, turn)
        self.states += [after] if turn.index else [old, after]
        return after


def on_course(make, step):
    """A model whose state moves by `step` at every turn."""
    model = make().model
    model.loops[0].gate = Course(step)
    return model


def test_a_state_that_runs_away_has_no_loss_and_no_residual_and_is_still_json(make):
    model = on_course(make, lambda old: old * 1e20)
    curve = depth_curve(model, [text()], [1, 8], trained=4, resamples=100)
    found = residuals(model, [text()], 8)
    assert curve.domains["near"][0].loss is not None
    assert curve.domains["near"][1].loss is None
    assert found.turns[-1].mean is found.turns[-1].norm is None
    json.dumps([asdict(curve), asdict(found)], allow_nan=False)


@torch.no_grad()
@pytest.mark.parametrize("more", [{}, {"splitter": {"use": "sequence", "layers": 2}, "modulator": {"use": "none"}}])
def test_the_residuals_are_those_of_the_last_loops_own_states(make, randomise, more):
    model = make(**more).model
    randomise(model.loops)
    domains = [text(), text("far", seed=1)]
    found = residuals(model, domains, 5, batch=2)
    recorder = model.loops[-1].gate = Recorder(model.loops[-1].gate)
    by_turn = [[] for _ in range(6)]  # (moved, moved over two turns, norm) of each token
    for row in torch.cat([domain.blocks for domain in domains]):
        recorder.states = []
        real = row[row != IGNORE]
        model.trace(real[None, :-1], depth=Depth.full(6))
        states = [state[0].double() for state in recorder.states]
        for place in range(len(real) - 1):
            for turn in range(1, 7):
                here, norm = states[turn][place], states[turn][place].norm()
                two = (here - states[max(0, turn - 2)][place]).norm() / norm
                moved = (here - states[turn - 1][place]).norm() / norm
                by_turn[turn - 1].append((float(moved), float(two), float(norm)))
    assert found.tokens == len(by_turn[0]) == 2 * (4 * 9 + 5)
    for told, tokens in zip([*found.turns, found.further], by_turn, strict=True):
        moved, two, norm = zip(*tokens, strict=True)
        assert told.mean == pytest.approx(statistics.fmean(moved), rel=1e-4)
        assert told.median == pytest.approx(statistics.median(moved), rel=1e-4)
        assert told.norm == pytest.approx(statistics.fmean(norm), rel=1e-4)
        assert told.over_two == (None if told.turn == 1 else pytest.approx(statistics.fmean(two), rel=1e-4))
    assert [told.turn for told in (*found.turns, found.further)] == [1, 2, 3, 4, 5, 6]


def test_a_loop_that_converges_has_residuals_that_go_to_zero(make):
    anchor = torch.full((32,), 3.0)
    found = residuals(on_course(make, lambda old: anchor + (old - anchor) / 2), [text()], 12)
    means = [told.mean for told in found.turns]
    assert all(later < 0.6 * sooner for sooner, later in pairwise(means[3:]))
    assert found.further.mean < 1e-3


def test_a_loop_that_alternates_moves_every_turn_and_not_over_two(make):
    found = residuals(on_course(make, lambda old: -old), [text()], 6)
    assert [told.mean for told in found.turns] == pytest.approx([2.0] * 6)
    assert [told.over_two for told in found.turns[1:]] == pytest.approx([0.0] * 5)
    assert (found.further.mean, found.further.over_two) == pytest.approx((2, 0))


def test_a_loop_that_diverges_keeps_its_residual_and_its_norm_grows(make):
    found = residuals(on_course(make, lambda old: 2 * old), [text()], 6)
    assert [told.mean for told in found.turns] == pytest.approx([0.5] * 6)
    assert [told.over_two for told in found.turns[1:]] == pytest.approx([0.75] * 5)
    norms = [told.norm for told in (*found.turns, found.further)]
    assert [later / sooner for sooner, later in pairwise(norms)] == pytest.approx([2.0] * 6)


def test_a_state_of_zeros_that_stays_has_moved_by_nothing(make):
    found = residuals(on_course(make, torch.zeros_like), [text()], 3)
    assert (found.turns[1].mean, found.turns[2].over_two, found.turns[2].norm) == (0, 0, 0)


def test_an_adaptive_halter_is_held_back_and_put_back(make):
    stopping, fixed = make(halter={"use": "latent-diff", "threshold": 1e6}).model, make().model
    halter = stopping.loops[0].halter
    found, plain = residuals(stopping, [text()], 5), residuals(fixed, [text()], 5)
    assert stopping.loops[0].halter is halter
    assert (found.held_back, plain.held_back) == (True, False)
    assert (found.turns, found.further) == (plain.turns, plain.further)


def test_residuals_do_not_depend_on_the_batch_and_tell_of_every_row(model):
    heard = []
    one, all_ = residuals(model, [text()], 3, batch=1, done=heard.append), residuals(model, [text()], 3, batch=8)
    assert heard == [1] * 5
    for a, b in zip(one.turns, all_.turns, strict=True):
        assert (a.mean, a.median, a.norm) == pytest.approx((b.mean, b.median, b.norm), rel=1e-4)
