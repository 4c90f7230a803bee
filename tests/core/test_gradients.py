"""The watch for dead parameters, with planted ones."""

import pytest
import torch
from torch import nn

from ouroboros_core.contracts import Depth
from ouroboros_core.errors import CheckFailed
from ouroboros_core.gradients import WATCHED_STEPS, GradientWatch
from ouroboros_core.tables import TurnTable
from ouroboros_core.testing import tiny_model

ONE = Depth.full(1)


def watched(model, loss, depth=ONE, steps=WATCHED_STEPS, lr=0.1):
    """Train for the watched steps and ask for the verdict."""
    watch = GradientWatch(model)
    for _ in range(steps):
        model.zero_grad()
        loss(model).backward()
        watch.look()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
    return watch.verdict()


class Net(nn.Module):
    """A product of two factors, and a parameter that is counted and not used unless told so."""

    def __init__(self, first=1.0, second=1.0, unused=False):
        super().__init__()
        self.first = nn.Parameter(torch.full((4,), first))
        self.second = nn.Parameter(torch.full((4,), second))
        self.extra = nn.Parameter(torch.ones(3)) if unused else None

    def forward(self):
        return (self.first * self.second - torch.arange(2.0, 6.0)).square().sum()


def loss_of(model):
    return model()


def test_parameters_that_move_pass_and_are_counted():
    result = watched(Net(), loss_of, lr=0.01)
    assert result.passed
    assert "8 trainable parameters" in result.detail


def test_a_parameter_nobody_uses_is_caught():
    with pytest.raises(CheckFailed, match="dead parameters: no gradient in the first 3 steps in extra: all rows"):
        watched(Net(unused=True), loss_of, lr=0.01)


class Rows(nn.Module):
    """Rows of a matrix, read by number in no way that the watch knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2))


def test_a_row_nobody_reads_is_caught():
    with pytest.raises(CheckFailed, match=r"weight: 1 of 4 rows"):
        watched(Rows(), lambda rows: rows.weight[[0, 1, 3]].square().sum())


def test_rows_may_move_at_different_steps():
    steps = iter([[0], [1, 2], [3]])
    assert watched(Rows(), lambda rows: rows.weight[next(steps)].square().sum()).passed


def test_embeddings_of_tokens_that_did_not_occur_are_not_asked_for():
    torch.manual_seed(0)
    assert watched(nn.Embedding(9, 2), lambda e: e(torch.tensor([0, 1, 3])).square().sum()).passed


def test_an_embedding_of_a_token_that_occurred_must_move():
    steps = iter(([0, 1], [5], [1, 7]))

    def loss(embedding):  # of token 5 nothing is learned
        ids = torch.tensor(next(steps))
        return (embedding(ids).square().sum(-1) * (ids != 5)).sum()

    with pytest.raises(CheckFailed, match=r"weight: 1 of 4 rows"):
        watched(nn.Embedding(9, 2), loss)


def test_two_zero_factors_are_caught_and_one_is_not():
    with pytest.raises(CheckFailed, match=r"first: 4 of 4 rows; second: 4 of 4 rows"):
        watched(Net(0.0, 0.0), loss_of)
    assert watched(Net(0.0, 1.0), loss_of, lr=0.01).passed


def test_frozen_parameters_are_not_asked_for():
    net = Net(unused=True)
    net.extra.requires_grad_(False)
    assert watched(net, loss_of, lr=0.01).passed


def test_zero_heads_hide_what_lies_before_them_for_one_step_only():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
    nn.init.zeros_(net[2].weight)
    assert watched(net, lambda n: (n(torch.ones(1, 3)) - 1).square().sum()).passed


def read_rows(turns):
    return lambda table: sum(((index + 1) * table(index)).square().sum() for index in range(turns))


def test_rows_for_turns_that_are_never_trained_are_not_asked_for():
    assert watched(TurnTable(64, 4, 2, fill=1.0), read_rows(4), depth=Depth.full(4)).passed


def test_rows_for_turns_that_were_not_drawn_yet_are_not_asked_for():
    assert watched(TurnTable(64, 16, 2, fill=1.0), read_rows(4), depth=Depth.full(4)).passed


def test_a_row_of_a_turn_that_was_taken_must_move():
    with pytest.raises(CheckFailed, match=r"weight: 1 of 4 rows"):
        watched(
            TurnTable(64, 4, 2, fill=1.0), lambda table: read_rows(3)(table) + 0 * table(3).sum(), depth=Depth.full(4)
        )


def test_the_rows_of_the_last_turns_are_asked_for_where_they_alone_carry_gradient():
    with pytest.raises(CheckFailed, match=r"weight: 1 of 2 rows"):
        watched(TurnTable(64, 4, 2, fill=1.0), lambda table: table(2).sum() + 0 * table(3).sum(), depth=Depth(4, 2))


def test_fewer_steps_than_are_watched_say_so():
    result = watched(Net(unused=True), loss_of, steps=2, lr=0.01)
    assert result.detail == "not checked: it takes 3 steps"


def test_after_the_watched_steps_nothing_is_noted_any_more():
    net = Net(unused=True)
    watch = GradientWatch(net)
    for step in range(4):
        (net() + (net.extra.sum() if step == 3 else 0)).backward()
        watch.look()
    with pytest.raises(CheckFailed, match="extra: all rows"):
        watch.verdict()


def trained(model, ids, depth):
    return watched(model, lambda m: m.trace(ids, depth=depth).nll(ids).mean(), depth=depth, lr=0.01)


@pytest.mark.parametrize("halter", ["fixed", "act"])
def test_the_default_parts_are_alive_within_the_watched_steps(halter, make, ids):
    model = make(loop={"turns": 3}, halter={"use": halter}).model
    assert trained(model, ids, Depth.full(3)).passed


def test_rows_of_turns_after_every_token_has_halted_are_not_asked_for(make, ids):
    model = make(loop={"turns": 16}, halter={"use": "act"}).model
    assert model.trace(ids).taken.max() < 16
    assert trained(model, ids, Depth.full(16)).passed


def test_rows_of_turns_without_gradient_are_not_asked_for(make, ids):
    model = make(loop={"turns": 4}, schedule={"with_gradient": 2}).model
    assert trained(model, ids, Depth(4, 2)).passed


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_base_is_alive_but_for_the_tokens_that_did_not_occur(tied, make, ids):
    intact = tiny_model()
    if tied:
        intact.lm_head.weight = intact.model.embed_tokens.weight
    model = make(intact, loop={"turns": 2}, adapter={"use": "full"}).model
    assert trained(model, ids, Depth.full(2)).passed
    occurred = ids.unique()
    unread = torch.ones(320, dtype=torch.bool).index_fill(0, occurred, False)
    assert model.base.model.embed_tokens.weight.grad[unread].any() == tied  # the head has a gradient in every row


def test_a_dead_layer_of_a_base_that_learns_is_caught(make, ids):
    model = make(loop={"turns": 2}, adapter={"use": "full"}).model
    model.layer(5).mlp.up_proj.weight.data.zero_()
    model.layer(5).mlp.down_proj.weight.data.zero_()
    with pytest.raises(CheckFailed, match=r"base\.model\.layers\.5\.mlp\.(gate|up|down)_proj\.weight: \d+ of"):
        trained(model, ids, Depth.full(2))


def shallow(net, loss, deep=0, exits=False):
    """Watch six steps of one turn, then so many deeper ones."""
    watch = GradientWatch(net, exits)
    for step in range(6 + deep):
        net.zero_grad()
        loss(net).backward()
        watch.look(deep=step >= 6)
    return watch


def test_three_steps_of_one_turn_suffice_where_everything_moved():
    watch = shallow(Net(), loss_of)
    assert (watch.done, watch.steps) == (True, WATCHED_STEPS)
    assert watch.verdict().passed


def test_a_parameter_in_no_graph_of_one_turn_is_dead_unless_it_may_be_a_learned_exits():
    with pytest.raises(CheckFailed, match=r"first 3 steps in extra: all rows\."):
        shallow(Net(0.0, 1.0, unused=True), loss_of).verdict()
    assert not shallow(Net(unused=True), loss_of, exits=True).done
    with pytest.raises(CheckFailed, match="extra: all rows"):
        shallow(Net(unused=True), loss_of, deep=3, exits=True).verdict()


def test_what_one_turn_leaves_without_gradient_is_dead_only_after_three_deeper_steps():
    assert not shallow(Net(0.0, 0.0), loss_of, deep=2).done
    with pytest.raises(CheckFailed, match="first: 4 of 4 rows"):
        shallow(Net(0.0, 0.0), loss_of, deep=3).verdict()
