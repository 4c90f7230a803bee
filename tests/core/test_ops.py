"""Ops: their order, how they merge, and the scope in which they hold."""

import pytest
import torch
from torch import nn

from ouroboros_core.ops import STATE, Add, Branches, LowRank, Normed, Scale, Site, Tap, applied, merge

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


def test_a_low_rank_op_without_a_core_is_the_product_of_its_factors(linear, x):
    down, up = random(R, IN), random(OUT, R)
    taps = {"0.q": Tap(linear)}
    with applied(taps, {"0.q": [LowRank(down, up)]}):
        torch.testing.assert_close(linear(x), x @ (linear.weight + up @ down).T + linear.bias)


SITES = [STATE, "0.attention-in", "0.ffn-out", "1.ffn-sum"]


def at_site(name, x, ops):
    """What a site makes of a state."""
    site = Site(name)
    with applied({name: site}, {name: ops}):
        return site(x)


@pytest.mark.parametrize("name", SITES)
def test_at_a_site_additions_come_first_then_scales_then_deltas_of_the_stream(name, x):
    first, second = (LowRank(random(R, IN), random(IN, R), core) for core in (None, random(B, T, R)))
    add, scale = random(IN), random(B, T, IN)
    y = at_site(name, x, [first, Scale(scale), Add(add), second, Scale(scale)])
    stream = (x + add) * scale * scale
    deltas = stream @ (first.up @ first.down).T + (stream @ second.down.T * second.core) @ second.up.T
    torch.testing.assert_close(y, stream + deltas)


def test_behind_a_branch_the_norm_comes_last(x):
    scale, delta = random(IN), LowRank(random(R, IN), random(IN, R))
    y = at_site("0.ffn-sum", x, [Normed(torch.tanh), delta, Scale(scale)])
    torch.testing.assert_close(y, torch.tanh(x * scale + x * scale @ (delta.up @ delta.down).T))


def test_a_site_without_ops_hands_on_the_very_state(x):
    assert Site(STATE)(x) is x


def residual_branch(taps, h, ops):
    """A branch whose norm doubles and whose body squares."""
    with applied(taps, ops):
        return Branches(taps, 1)("ffn", h, lambda h: 2 * h, torch.square)


def branch_sites():
    return {name: Site(name) for name in ("1.ffn-in", "1.ffn-out", "1.ffn-sum", "1.attention-in", "0.ffn-in")}


def test_a_branch_adds_its_body_of_the_normed_stream(x):
    torch.testing.assert_close(residual_branch(branch_sites(), x, {}), x + (2 * x) ** 2)


def test_a_branch_passes_its_three_sites_in_their_places(x):
    a, b, c = random(IN), random(B, T, IN), random(B, 1, IN)
    ops = {"1.ffn-in": [Add(a)], "1.ffn-out": [Scale(b)], "1.ffn-sum": [Add(c), Normed(torch.tanh)]}
    expected = torch.tanh(x + (2 * x + a) ** 2 * b + c)
    torch.testing.assert_close(residual_branch(branch_sites(), x, ops), expected)


def test_a_branch_passes_no_site_of_another_branch_or_layer(x):
    ops = {"1.attention-in": [Add(random(IN))], "0.ffn-in": [Add(random(IN))]}
    assert torch.equal(residual_branch(branch_sites(), x, ops), residual_branch(branch_sites(), x, {}))


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
    before, taps = linear(x), {"0.q": Tap(linear), STATE: Site(STATE)}
    everywhere = {"0.q": [Add(torch.ones(OUT))], STATE: [Scale(torch.zeros(IN))]}
    with pytest.raises(ZeroDivisionError), applied(taps, everywhere):
        raise ZeroDivisionError
    assert torch.equal(linear(x), before)
    assert taps[STATE](x) is x


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


@pytest.mark.parametrize("name", SITES)
def test_a_site_keeps_the_dtype_of_the_stream(name, x):
    delta = LowRank(random(R, IN), random(IN, R), random(R))
    norm = [Normed(lambda x: x.float())] if name == STATE or name.endswith("-sum") else []
    assert at_site(name, x.bfloat16(), [delta, Scale(random(IN)), Add(random(IN)), *norm]).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["0.attention-in", "0.ffn-out", "0.q"])
def test_a_norm_is_refused_where_the_stream_is_not_whole_and_nothing_is_applied(name, linear):
    taps = {"0.down": Tap(linear), name: Tap(linear) if name == "0.q" else Site(name)}
    ops = {"0.down": [Add(torch.ones(OUT))], name: [Normed(torch.tanh)]}
    takes = "LowRank, Scale, Add" if name == "0.q" else "Add, Scale, LowRank"
    with pytest.raises(TypeError, match=rf"^{name} takes {takes}, and was given Normed$"), applied(taps, ops):
        pass
    assert not any(tap.ops for tap in taps.values())
