"""Ops: their order, how they merge, and the scope in which they hold."""

import pytest
import torch
from torch import nn

from ouroboros_core.ops import STATE, Add, LowRank, Scale, StateTap, Tap, applied, merge, shifted

B, T, IN, OUT, R = 2, 3, 5, 4, 2


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(IN, OUT)


@pytest.fixture
def x():
    return torch.randn(B, T, IN, generator=torch.Generator().manual_seed(1))


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_low_rank_op_is_a_change_of_weight(linear, x):
    down, up, core = random(R, IN), random(OUT, R), random(R)
    taps = {"0.q": Tap(linear)}
    with applied(taps, {"0.q": [LowRank(down, up, core)]}):
        y = linear(x)
    changed = linear.weight + up @ torch.diag(core) @ down
    torch.testing.assert_close(y, x @ changed.T + linear.bias)


@pytest.mark.parametrize("shape", [(B, 1, R), (B, T, R)])
def test_a_low_rank_op_may_differ_by_row_and_by_token(shape, linear, x):
    down, up, core = random(R, IN), random(OUT, R), random(*shape)
    taps = {"0.q": Tap(linear)}
    with applied(taps, {"0.q": [LowRank(down, up, core)]}):
        y = linear(x)
    for b in range(B):
        for t in range(T):
            changed = linear.weight + up @ torch.diag(core.expand(B, T, R)[b, t]) @ down
            torch.testing.assert_close(y[b, t], changed @ x[b, t] + linear.bias)


def test_on_a_linear_deltas_come_first_then_scales_then_additions(linear, x):
    first, second = (LowRank(random(R, IN), random(OUT, R), core) for core in (random(R), random(R, 1).flatten()))
    add, scale, more = random(OUT), random(OUT) + 3, random(B, T, OUT)
    taps = {"0.q": Tap(linear)}
    with applied(taps, {"0.q": [Add(add), first, Scale(scale), Add(more), second]}):
        y = linear(x)
    deltas = sum((x @ op.down.T * op.core) @ op.up.T for op in (first, second))  # both on the linear's own input
    torch.testing.assert_close(y, (x @ linear.weight.T + linear.bias + deltas) * scale + add + more)


def test_on_the_state_additions_come_first_then_scales(x):
    add, scale = random(IN), random(B, T, IN)
    torch.testing.assert_close(shifted(x, [Scale(scale), Add(add), Scale(scale)]), (x + add) * scale * scale)


def test_ops_on_the_state_reach_the_input_of_the_first_layer(linear, x):
    taps = {STATE: StateTap(linear)}
    with applied(taps, {STATE: [Add(torch.ones(IN)), Scale(torch.full((IN,), 2.0))]}):
        y = linear(x)
    torch.testing.assert_close(y, ((x + 1) * 2) @ linear.weight.T + linear.bias)


def test_merged_ops_keep_the_order_of_the_chain_under_each_name():
    one, two, three = Add(torch.ones(1)), Scale(torch.ones(1)), Add(torch.zeros(1))
    merged = merge([{"0.q": [one]}, {"0.q": [two], "0.k": [three]}, {}])
    assert merged == {"0.q": [one, two], "0.k": [three]}


def test_merging_leaves_what_it_was_given_alone():
    first = {"0.q": [Add(torch.ones(1))]}
    merge([first, {"0.q": [Scale(torch.ones(1))]}])
    assert len(first["0.q"]) == 1


def test_outside_the_scope_the_linear_is_as_it_was(linear, x):
    before, taps = linear(x), {"0.q": Tap(linear)}
    with applied(taps, {"0.q": [Add(torch.ones(OUT))]}):
        assert not torch.equal(linear(x), before)
    assert torch.equal(linear(x), before)


def test_an_error_inside_the_scope_ends_it_too(linear, x):
    before, taps = linear(x), {"0.q": Tap(linear), STATE: StateTap(linear)}
    everywhere = {"0.q": [Add(torch.ones(OUT))], STATE: [Scale(torch.zeros(IN))]}
    with pytest.raises(ZeroDivisionError), applied(taps, everywhere):
        raise ZeroDivisionError
    assert torch.equal(linear(x), before)


def test_an_unknown_linear_is_named_and_nothing_is_applied(linear, x):
    before, taps = linear(x), {"0.q": Tap(linear)}
    several = {"0.q": [Add(torch.ones(OUT))], "0.z": [Add(torch.ones(OUT))]}
    with pytest.raises(KeyError, match=r"names \['0\.z'\]; the block has \['0\.q'\]"), applied(taps, several):
        pass
    assert torch.equal(linear(x), before)


def test_the_activations_keep_their_dtype(linear, x):
    linear, taps = linear.bfloat16(), {}
    taps["0.q"] = Tap(linear)
    delta = LowRank(random(R, IN), random(OUT, R), random(R))
    with applied(taps, {"0.q": [delta, Scale(random(OUT)), Add(random(OUT))]}):
        assert linear(x.bfloat16()).dtype == torch.bfloat16
    assert shifted(x.bfloat16(), [Add(random(IN)), Scale(random(IN))]).dtype == torch.bfloat16


def test_a_low_rank_op_on_the_state_is_refused_and_not_ignored(linear, x):
    taps = {STATE: StateTap(linear)}
    delta = LowRank(random(R, IN), random(IN, R), random(R))
    with pytest.raises((KeyError, TypeError, ValueError), match="state"), applied(taps, {STATE: [delta]}):
        linear(x)
