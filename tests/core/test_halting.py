"""The halting report against a plain count, on halters of our own making and on the built-in ones."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from ouroboros_core.contracts import Depth, Halt
from ouroboros_core.data import Domain
from ouroboros_core.depth import depth_curve
from ouroboros_core.halting import alarm, halting_report
from ouroboros_core.losses import IGNORE


def text(name="near", seed=0, rows=5):
    """Rows of nine tokens to score, one of them cut short."""
    blocks = torch.randint(0, 320, (rows, 10), generator=torch.Generator().manual_seed(seed))
    blocks[1, 6:] = IGNORE
    return Domain(name, blocks, torch.arange(rows), rows, "documents")


class Planned(nn.Module):
    """Stops a token after as many turns as a function of its position says."""

    adaptive, weighted = True, False

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def forward(self, old, new, turn):
        return Halt(turn.index + 1 >= self.plan(turn.positions))


@pytest.fixture
def planned(make, randomise):
    """A model whose tokens stop as planned."""

    def planned(plan, **tables):
        model = make(**tables).model
        randomise(model.loops)
        for parts in model.loops:
            parts.halter = Planned(plan)
        return model

    return planned


@torch.no_grad()
def plain(model, domain, turns):
    """Turns and nats of every scored token, and its nats after each turn, row by row."""
    found = []
    for row in domain.blocks:
        real = row[row != IGNORE]
        ids, labels = real[None, :-1], real[None, 1:]
        trace = model.trace(ids, depth=Depth.full(turns), keep_turns=True)
        log_p = torch.log_softmax(trace.logits()[0].double(), -1)
        read = [torch.log_softmax((hidden @ trace.head.T)[0].double(), -1) for hidden in trace.turns]
        read += [read[-1]] * (turns - len(read))
        for place, label in enumerate(labels[0].tolist()):
            each = [-float(one[place, label]) for one in read]
            found.append((int(trace.taken[0, place]), -float(log_p[place, label]), each))
    return found


def mean(values):
    return sum(values) / len(values) if values else None


def close(told, plain):
    return plain if plain is None else pytest.approx(plain, rel=1e-4)


def compare(report, tokens):
    """Every number of the report against a plain list of tokens."""
    taken = [took for took, _, _ in tokens]
    assert report.tokens == len(tokens)
    assert report.mean_turns == pytest.approx(mean(taken))
    assert report.loss == pytest.approx(mean([nats for _, nats, _ in tokens]), rel=1e-4)
    for told in report.took:
        nats = [nats for took, nats, _ in tokens if took == told.turns]
        assert (told.tokens, told.share) == (len(nats), pytest.approx(len(nats) / len(tokens)))
        assert told.loss == close(told.loss, mean(nats))
    read = [mean([each[turn] for _, _, each in tokens]) for turn in range(report.turns)]
    assert report.if_read == pytest.approx(read, rel=1e-4)
    assert report.at_first == taken.count(report.loops) / len(taken)
    assert report.at_last == taken.count(report.loops * report.turns) / len(taken)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_number_is_that_of_a_plain_count_whatever_the_batch(planned, batch):
    model = planned(lambda positions: 1 + positions % 3)
    near, far = text(), text("far", seed=1, rows=3)
    found = halting_report(model, [near, far], batch=batch)
    compare(found["near"], plain(model, near, 4))
    compare(found["far"], plain(model, far, 4))


def test_the_distribution_is_the_planned_one(planned):
    (report,) = halting_report(planned(lambda positions: 1 + positions % 3), [text()]).values()
    # four rows of positions 0 to 8, and one of 0 to 4
    assert [took.tokens for took in report.took] == [4 * 3 + 2, 4 * 3 + 2, 4 * 3 + 1, 0]
    assert sum(took.share for took in report.took) == pytest.approx(1)
    assert (report.turns, report.loops, report.alarm) == (4, 1, None)
    assert report.took[3].loss is None


@pytest.mark.parametrize(
    "halter",
    [
        {"use": "act", "bias": -0.5},
        {"use": "kl", "threshold": 0.2},
        {"use": "latent-diff", "threshold": 0.4},
        {"use": "exit-gate", "bias": -1.0, "quantile": 0.6},
        {"use": "ponder"},
    ],
    ids=lambda halter: halter["use"],
)
def test_the_built_in_halters_are_counted_like_that_too(make, randomise, halter):
    model = make(halter=halter).model
    randomise(model.loops, spread=0.3)
    model.eval()
    (report,) = halting_report(model, [text()], batch=1).values()
    compare(report, plain(model, text(), 4))
    assert sum(took.tokens > 0 for took in report.took) > 1  # so that there is something to tell apart
    json.dumps(asdict(report), allow_nan=False)


def test_what_is_read_after_a_turn_is_the_depth_curve(planned):
    model = planned(lambda positions: 1 + positions % 3)
    (report,) = halting_report(model, [text()]).values()
    rows = depth_curve(model, [text()], [1, 2, 3, 4], trained=4, resamples=100).domains["near"]
    assert report.if_read == pytest.approx([row.loss.value for row in rows], rel=1e-5)
    assert report.loss == pytest.approx(rows[-1].loss.value, rel=1e-5)


def test_a_batch_that_ends_early_counts_as_if_it_had_gone_on(planned):
    (report,) = halting_report(planned(lambda positions: torch.full_like(positions, 2)), [text()]).values()
    assert len(report.if_read) == 4
    assert report.if_read[1] == report.if_read[2] == report.if_read[3] == pytest.approx(report.loss)
    assert report.if_read[0] != report.if_read[1]


def test_more_turns_may_be_asked_for(planned):
    model = planned(lambda positions: positions + 1)
    (report,) = halting_report(model, [text()], turns=7).values()
    compare(report, plain(model, text(), 7))
    assert report.turns == len(report.took) == 7


def test_turns_of_several_loops_are_added_up(planned):
    model = planned(
        lambda positions: 1 + positions % 3, splitter={"use": "sequence", "layers": 2}, modulator={"use": "none"}
    )
    (report,) = halting_report(model, [text()]).values()
    compare(report, plain(model, text(), 4))
    assert report.loops == len(model.loops) == 2
    assert [took.tokens for took in report.took] == [0, 14, 0, 14, 0, 13, 0, 0]
    assert report.at_first == pytest.approx(14 / 41)


def test_a_fixed_halter_has_no_report(make):
    assert halting_report(make().model, [text()]) is None


def test_a_halter_that_always_stops_at_once_or_never_raises_an_alarm(planned):
    once, never, twice = (
        halting_report(planned(lambda positions, turns=turns: torch.full_like(positions, turns)), [text()])["near"]
        for turns in (1, 9, 2)
    )
    assert once.alarm == "collapsed to one turn: 100.0% of the tokens take so many"
    assert never.alarm == "never stops early: 100.0% of the tokens take all 4 turns"
    assert twice.alarm == "collapsed to 2 turns: 100.0% of the tokens take so many"
    assert (once.at_first, once.at_last, never.at_first, never.at_last) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("count", "least", "said"),
    [
        ([0, 96, 2, 2], 1, "collapsed to one turn"),
        ([0, 2, 96, 2], 1, "collapsed to 2 turns"),
        ([0, 2, 2, 96], 1, "never stops early"),
        ([0, 95, 5, 0], 1, None),
        ([0, 40, 30, 30], 1, None),
        ([0, 100], 1, None),  # one turn is all there is
        ([0, 0, 100, 0, 0], 2, "collapsed to 2 turns"),
        ([0, 0, 100], 2, None),
    ],
)
def test_more_than_19_of_20_tokens_at_one_number_of_turns_raise_an_alarm(count, least, said):
    told = alarm(np.array(count), least)
    assert told is None if said is None else told.startswith(said)


def test_the_report_tells_of_every_row_it_reads(planned):
    heard = []
    model = planned(lambda positions: 1 + positions % 3)
    halting_report(model, [text(), text("far", 1, rows=3)], batch=2, done=heard.append)
    assert sum(heard) == 8
