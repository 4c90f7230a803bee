"""Training: whose rate is whose, and what each step is drawn from."""

import pytest
import torch
from torch import nn

from ouroboros_core.contracts import Depth
from ouroboros_core.devices import accelerator_for
from ouroboros_core.errors import CheckFailed
from ouroboros_core.tables import TurnTable
from ouroboros_core.testing import tiny_model
from ouroboros_core.trace import to_the_end
from ouroboros_core.training import Loss, Training, parameter_groups

RATE, OWN = 3e-3, 1e-4


class Rates:
    """A reporter that notes the rates of every step."""

    def __init__(self):
        self.seen, self.told, self.training, self.checked = [], [], None, None

    def step(self, progress):
        self.seen.append([group["lr"] for group in self.training.optimizer.param_groups])
        self.told.append(progress.lr)

    def note(self, text):
        pass

    def check(self, result):
        self.checked = len(self.seen)  # after so many steps


@pytest.fixture
def train(settings, make, tmp_path):
    """Train a tiny model for ten steps; gives the training and the rates of its steps."""

    def train(train=(), **tables):
        built, reporter = make(tiny_model(), **tables), Rates()
        told = settings(train={"lr": RATE, "steps": 10, "warmup": 3, "save_every": 10, **dict(train)}).train
        blocks = torch.randint(0, 320, (8, 13), generator=torch.Generator().manual_seed(0))
        reporter.training = Training(built, blocks, told, accelerator_for("cpu"), reporter)
        reporter.training.run(tmp_path)
        return reporter

    return train


def moved(reporter):
    """How far the base went from where it began, at most."""
    before, after = tiny_model().state_dict(), reporter.training.built.model.base.named_parameters()
    return max((p.detach() - before[name]).abs().max().item() for name, p in after)


def test_the_optimiser_uses_both_rates_and_one_shape(train):
    rates = train(adapter={"use": "full", "rate": OWN})
    groups = rates.training.optimizer.param_groups
    names = {id(p): name for name, p in rates.training.built.model.named_parameters()}
    peaks = [OWN if all(names[id(p)].startswith("base.") for p in group["params"]) else RATE for group in groups]
    assert sorted(set(peaks)) == [OWN, RATE]
    assert {name for group in groups for name in (names[id(p)] for p in group["params"])} == set(names.values())
    shapes = [[rate / peak for rate, peak in zip(step, peaks, strict=True)] for step in rates.seen]
    for shape in shapes:
        assert shape == pytest.approx([shape[0]] * len(peaks))
    first = [shape[0] for shape in shapes]
    assert first[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert first[2:] == sorted(first[2:], reverse=True)
    assert 0 < first[-1] < 0.1


def test_the_rate_that_is_told_is_the_runs(train):
    rates = train(adapter={"use": "full", "rate": OWN})
    assert max(rates.told) == pytest.approx(RATE)


def test_without_a_rate_of_its_own_the_base_learns_at_the_runs(train):
    rates = train(adapter={"use": "full"})
    assert all(len(set(step)) == 1 for step in rates.seen)
    assert max(step[0] for step in rates.seen) == pytest.approx(RATE)


def test_a_slow_base_moves_less_than_a_fast_one(train, tmp_path):
    slow = moved(train(adapter={"use": "full", "rate": 1e-6}))
    (tmp_path / "checkpoints").rename(tmp_path / "slow")  # or the second training would go on from the first one's end
    fast = moved(train(adapter={"use": "full", "rate": 1e-2}))
    assert 0 < slow < 2e-5
    assert fast > 100 * slow


class Several(nn.Module):
    """A matrix, its bias, an embedding and rows by turn; one matrix is frozen."""

    def __init__(self):
        super().__init__()
        self.mix, self.words, self.rows = nn.Linear(3, 3), nn.Embedding(5, 3), TurnTable(4, 4, 3)
        self.still = nn.Linear(3, 3).requires_grad_(False)


@pytest.mark.parametrize("own", [{}, {"mix.weight": OWN}, {"mix.weight": OWN, "mix.bias": OWN, "words.weight": RATE}])
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(own):
    model = Several()
    groups = parameter_groups(model, 0.05, own)
    found = {id(p): (rate, group["weight_decay"]) for rate, group in groups for p in group["params"]}
    decays = {"mix.weight": 0.05, "mix.bias": 0.0, "words.weight": 0.0, "rows.weight": 0.0}
    expected = {name: (own.get(name), decay) for name, decay in decays.items()}
    assert {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found} == expected
    assert sum(len(group["params"]) for _, group in groups) == len(decays)
    assert [rate is None for rate, _ in groups] == sorted((rate is None for rate, _ in groups), reverse=True)


def test_a_model_where_nothing_learns_has_no_groups():
    assert parameter_groups(nn.Linear(3, 3).requires_grad_(False), 0.05, {}) == []


class Seeds(nn.Module):
    """A norm that notes the seed it is called with."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, state, turn):
        self.seen.append(turn.seed)
        return state * self.scale


def seeds(make, settings, tmp_path, seed):
    built = make(tiny_model(), loop={"turns": 1}, schedule={"turns": 1}, train={"seed": seed})
    built.model.loops[0].norm = norm = Seeds()
    told = settings(train={"steps": 4, "warmup": 1, "batch": 2, "accumulate": 2, "seed": seed}).train
    folder = tmp_path / f"seed-{seed}"
    folder.mkdir()
    blocks = torch.randint(0, 320, (8, 13), generator=torch.Generator().manual_seed(0))
    reporter = Rates()
    reporter.training = Training(built, blocks, told, accelerator_for("cpu"), reporter)
    reporter.training.run(folder)
    return norm.seen


def test_each_step_has_a_seed_of_its_own_and_its_micro_steps_share_it(make, settings, tmp_path):
    one, other = (seeds(make, settings, tmp_path, seed) for seed in (1, 2))
    steps = one[0::2]
    assert steps == one[1::2]
    assert len(set(steps)) == 4
    assert not set(one) & set(other)


def test_an_objective_that_wants_turns_gets_them_in_training(make):
    built = make(tiny_model(), loop={"turns": 3}, schedule={"turns": 3})

    class ByTurn:
        wants_teacher, wants_turns = False, True

        def __call__(self, trace, labels):
            self.turns = len(trace.turns)
            return torch.stack(trace.nll_by_turn(labels)).mean(0)

    objective = ByTurn()
    built.objectives["by-turn"] = objective
    assert built.wants_turns
    ids = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    loss = Loss(built, None)(ids, ids, built.schedule(0, 0.0, 0))
    assert objective.turns == 3
    assert loss.keys() == {"next-token", "by-turn"}


@pytest.mark.parametrize("objective", ["every-turn", "ponder-kl", "exit-gate"])
def test_what_a_token_costs_does_not_depend_on_when_the_rest_of_the_batch_halts(objective, make):
    built = make(tiny_model(), loop={"turns": 12}, halter={"use": "act"}, objective={"use": objective})
    halter, depth = built.model.loops[0].halter, built.schedule(0, 0.0, 0)
    torch.nn.init.normal_(halter.unit[-1].weight, std=2.0, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(0, 320, (4, 2), generator=torch.Generator().manual_seed(0))
    assert len(built.model.trace(ids, keep_turns=True).turns) > len(built.model.trace(ids[:1], keep_turns=True).turns)
    loss = Loss(built, None)
    together = loss(ids, ids, depth)[objective]
    alone = torch.stack([loss(row[None], row[None], depth)[objective] for row in ids])
    torch.testing.assert_close(together, alone.sum(), atol=1e-4, rtol=1e-5)


def test_turns_that_were_left_out_are_what_taking_them_would_give(make, ids):
    model = make(loop={"turns": 12}, halter={"use": "act", "bias": 0.5}).model
    short = model.trace(ids, depth=Depth.full(12), keep_turns=True)
    whole = model.trace(ids, depth=Depth(12, 12, whole=True), keep_turns=True)
    assert len(short.turns) < len(whole.turns) == 12
    told = to_the_end(short, 12)
    for ours, theirs in ((told.turns, whole.turns), (told.shares, whole.shares)):
        torch.testing.assert_close(torch.stack(list(ours)), torch.stack(list(theirs)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", [["next-token", "every-turn"], ["ponder-kl"]], ids=str)
def test_rows_of_turns_that_no_token_takes_are_not_dead_where_every_turn_is_read(objective, train):
    told = train(loop={"turns": 16}, schedule={"turns": 16}, halter={"use": "act"}, objective={"use": objective})
    assert told.training.watch.verdict().passed


RAMP = {"use": "ramp", "turns": 4, "over": 1.0}  # of ten steps the first five take one turn


@pytest.mark.parametrize(("tables", "step"), [
    ({}, 3),
    ({"halter": {"use": "act"}}, 7),
    ({"halter": {"use": "exit-gate"}, "objective": {"use": "exit-gate"}}, 6),
    ({"entry": {"use": "zeros"}}, 6),
])  # fmt: skip
def test_steps_of_one_turn_suffice_unless_they_hide_what_a_deeper_one_moves(tables, step, train):
    checked = train(schedule=RAMP, loop={"turns": 4}, **tables).checked
    assert checked == step


def test_a_dead_parameter_is_found_after_three_steps_of_one_turn(make, settings, tmp_path):
    built, reporter = make(tiny_model(), schedule=RAMP, loop={"turns": 4}), Rates()
    built.model.loops[0].unused = nn.Linear(3, 3)
    told = settings(train={"steps": 10, "warmup": 3, "batch": 4}).train
    blocks = torch.randint(0, 320, (8, 13), generator=torch.Generator().manual_seed(0))
    reporter.training = Training(built, blocks, told, accelerator_for("cpu"), reporter)
    with pytest.raises(CheckFailed, match=r"no gradient in the first 3 steps in loops\.0\.unused"):
        reporter.training.run(tmp_path)
    assert len(reporter.seen) == 3
