"""The recursive model against the library's own, and against a turn written out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from ouroboros_core.build import null_parts
from ouroboros_core.contracts import BRANCHES, Depth
from ouroboros_core.errors import UserError
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.model import RecursiveLM
from ouroboros_core.ops import Add, Branches, LowRank, Normed, Scale
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]
PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
RANK, ALPHA = 4, 16.0
PRELUDE, BLOCK, CODA, REMOVED = [0], 3, [5], [1, 2, 4]  # of six layers
MODULATORS = {
    "none": {"use": "none"},
    "static": {"use": "static", "rank": 4},
    "prefix-mean": {"pool": "prefix-mean"},
    "token": {"pool": "token"},
    "prompt": {"pool": "prompt", "prompt": 3},
    "sequence-mean": {"pool": "sequence-mean"},
}
CAUSAL = [name for name in MODULATORS if name != "sequence-mean"]


def library_logits(intact, layers, ids):
    """The library's own forward over some of its layers."""
    short = copy.deepcopy(intact)
    short.model.layers = nn.ModuleList(short.model.layers[i] for i in layers)
    short.config.num_hidden_layers = len(layers)
    if getattr(short.config, "layer_types", None):
        short.config.layer_types = [short.config.layer_types[i] for i in layers]
    return short(input_ids=ids, use_cache=False).logits


def windowed(family, **changes):
    """A tiny model whose attention looks back four tokens, in all layers or some."""
    config = copy.deepcopy(tiny_model(family=family).config)
    for name, value in {"sliding_window": 4, **changes}.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.load_state_dict(tiny_model(family=family).state_dict())
    return model


def one_null_turn(built, host, ids):
    with built.model.with_parts([null_parts(host, facts) for facts in built.facts]), torch.no_grad():
        return built.model.trace(ids, depth=Depth.full(1)).logits()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_turn_of_null_parts_is_the_librarys_model_of_the_kept_layers(family, make, host, ids):
    intact = tiny_model(family=family)
    expected = library_logits(intact, [*PRELUDE, BLOCK, *CODA], ids)
    torch.testing.assert_close(one_null_turn(make(intact), host, ids), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_refining_the_last_layer_with_one_null_turn_is_the_intact_model(family, make, host, ids):
    intact = tiny_model(family=family)
    built = make(intact, splitter={"use": "refine-last"})
    expected = intact(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(one_null_turn(built, host, ids), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 3}),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 3}),
    ],
)
def test_each_layer_keeps_its_own_kind_of_attention(family, changes, make, host, ids):
    intact, unlimited = windowed(family, **changes), tiny_model(family=family)
    kept = [*PRELUDE, BLOCK, *CODA]
    expected = library_logits(intact, kept, ids)
    assert (expected - library_logits(unlimited, kept, ids)).abs().max() > 1e-2  # the window matters
    torch.testing.assert_close(one_null_turn(make(intact), host, ids), expected, atol=1e-6, rtol=0)


def test_the_intact_model_is_not_touched(make, randomise, ids):
    intact = tiny_model()
    before = copy.deepcopy(intact.state_dict())
    built = make(intact, adapter={"use": "unfreeze", "layers": 1})
    randomise(built.model)
    built.model.trace(ids).nll(ids).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in intact.state_dict().items())


def test_the_stock_window_shows_the_librarys_logits(host, ids):
    intact = tiny_model()
    seen = StockLM(intact, host.anatomy(intact.config)).trace(ids).logits()
    torch.testing.assert_close(seen, intact(input_ids=ids).logits, atol=1e-6, rtol=0)


class LinearByToken(nn.Module):
    """y[t] = (W + delta[t]) x[t]: every token has a matrix of its own."""

    def __init__(self, linear, delta):  # delta (T, out, in)
        super().__init__()
        self.matrices = linear.weight + delta

    def forward(self, x):
        return torch.einsum("toi,bti->bto", self.matrices, x)


def plain_bases(intact, path):
    """B (out, R) and A (R, in) of one linear by numpy."""
    weights = [layer.get_submodule(path).weight.double().numpy() for layer in intact.model.layers]
    residual = sum(weights[i] for i in REMOVED) / len(REMOVED) - weights[BLOCK]
    u, s, vt = np.linalg.svd(residual)
    return torch.tensor(u[:, :RANK] * s[:RANK]).float(), torch.tensor(vt[:RANK]).float()


def plain_diagonals(controller, state, index):
    """(T, R) for each linear, from the controller's raw weights. state (1, T, D)."""
    w = dict(controller.named_parameters())
    seen = torch.stack([state[0, : t + 1].mean(0) for t in range(state.shape[1])])
    seen = F.silu(seen @ w["see.0.weight"].T + w["see.0.bias"])
    joint = torch.cat([seen, w["step.weight"][index].repeat(len(seen), 1)], dim=1)
    hidden = F.silu(joint @ w["style.0.weight"].T + w["style.0.bias"])
    style = F.silu(hidden @ w["style.2.weight"].T + w["style.2.bias"])
    return [style @ w[f"heads.{k}.weight"].T for k in range(len(PATHS))]


def plain_block(intact, controller, state, index):
    """The library's layer with its matrices replaced, token by token."""
    layer, length = copy.deepcopy(intact.model.layers[BLOCK]), state.shape[1]
    for path, f in zip(PATHS.values(), plain_diagonals(controller, state, index), strict=True):
        up, down = plain_bases(intact, path)
        delta = ALPHA / RANK * torch.stack([up @ torch.diag(f[t]) @ down for t in range(length)])
        layer.set_submodule(path, LinearByToken(layer.get_submodule(path), delta))
    return run_layer(intact, layer, state)


def run_layer(intact, layer, state):
    length = state.shape[1]
    positions = torch.arange(length)[None]
    future = torch.full((length, length), -torch.inf).triu(1)[None, None]
    rotary = intact.model.rotary_emb(state, position_ids=positions)
    return layer(state, attention_mask=future, position_ids=positions, position_embeddings=rotary)


def plain_turn(intact, parts, state, index):
    """Modulate, normalise, mix: the default turn from raw weights. state (1, T, D)."""
    new = plain_block(intact, parts.modulator, state, index)
    new = new / (new.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * parts.norm.scale.weight[index]
    open_ = parts.gate.open
    g = 1 / (1 + torch.exp(-(torch.cat([new, state], dim=-1) @ open_.weight.T + open_.bias)))
    return g * new + (1 - g) * state


def plain_logits(intact, parts, ids, rows, detach_before=0):
    """The whole model; `rows` are the rows of the tables that the turns read, in order."""
    state = intact.model.embed_tokens(ids)
    for i in PRELUDE:
        state = run_layer(intact, intact.model.layers[i], state)
    for turn, row in enumerate(rows):
        state = plain_turn(intact, parts, state.detach() if turn == detach_before else state, row)
    for i in CODA:
        state = run_layer(intact, intact.model.layers[i], state)
    return intact.lm_head(intact.model.norm(state))


@pytest.mark.parametrize("turns", [1, 3])
def test_the_default_turns_are_their_equations_with_every_matrix_written_out(turns, make, randomise, ids):
    intact = tiny_model()
    model = make(intact, loop={"turns": turns}).model
    randomise(model.loops)
    with torch.no_grad():
        expected = plain_logits(intact, model.loops[0], ids[:1], range(turns))
        torch.testing.assert_close(model.trace(ids[:1]).logits(), expected, atol=1e-5, rtol=1e-5)
        untouched = library_logits(intact, [*PRELUDE, BLOCK, *CODA], ids[:1])
    assert (expected - untouched).abs().max() > 0.1  # the parts do something


def test_the_gradient_is_that_of_a_loop_that_detaches_before_its_last_turns(make, randomise, ids):
    intact = tiny_model()
    model = make(intact, loop={"turns": 4}).model
    randomise(model.loops)
    theirs = copy.deepcopy(model.loops[0])
    weights = torch.randn(1, 12, 320, generator=torch.Generator().manual_seed(2))
    (model.trace(ids[:1], depth=Depth(turns=4, with_gradient=2)).logits() * weights).sum().backward()
    (plain_logits(intact, theirs, ids[:1], range(4), detach_before=2) * weights).sum().backward()
    for (name, mine), other in zip(model.loops[0].named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-3, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("halter", ["fixed", "act"])
@pytest.mark.parametrize("with_gradient", [4, 2])
def test_recomputing_turns_gives_the_same_gradients(halter, with_gradient, make, randomise, ids):
    gradients = []
    for recompute in (False, True):
        model = make(loop={"turns": 4, "recompute": recompute}, halter={"use": halter}).model
        randomise(model.loops)
        model.trace(ids, depth=Depth(4, with_gradient)).nll(ids).mean().backward()
        gradients.append([p.grad for p in model.loops.parameters()])
    assert any(gradient.any() for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_turns_beyond_those_trained_reuse_the_last_trained_row(make, randomise, ids):
    intact = tiny_model()
    model = make(intact, loop={"turns": 4}, schedule={"turns": 2}).model
    randomise(model.loops)
    with torch.no_grad():
        expected = plain_logits(intact, model.loops[0], ids[:1], [0, 1, 1, 1])
        torch.testing.assert_close(model.trace(ids[:1]).logits(), expected, atol=1e-5, rtol=1e-5)


def padded(ids, side, by=3):
    """The ids with some other tokens on one side, and the mask that hides them."""
    filler = torch.full((len(ids), by), 7)
    pieces = [(filler, 0), (ids, 1)] if side == "left" else [(ids, 1), (filler, 0)]
    mask = torch.cat([torch.full_like(tokens, real) for tokens, real in pieces], dim=1)
    return torch.cat([tokens for tokens, _ in pieces], dim=1), mask


@pytest.mark.parametrize("halter", ["fixed", "act"])
@pytest.mark.parametrize("modulator", MODULATORS)
def test_padding_changes_no_real_token(modulator, halter, make, randomise, ids):
    model = make(modulator=MODULATORS[modulator], halter={"use": halter}).model
    randomise(model.loops)
    for side, real in (("left", slice(3, None)), ("right", slice(None, -3))):
        with torch.no_grad():
            alone, together = model.trace(ids), model.trace(*padded(ids, side))
        torch.testing.assert_close(together.logits()[:, real], alone.logits(), atol=2e-5, rtol=1e-4)
        assert torch.equal(together.taken[:, real], alone.taken)


class Recorder(nn.Module):
    """A norm that keeps what it is told of each turn."""

    def forward(self, state, turn):
        self.turn = turn
        return state


def test_parts_are_told_each_tokens_place_in_its_own_sequence_and_which_are_real(make, ids):
    model = make().model
    model.loops[0].norm = recorder = Recorder()
    model.trace(ids[:, :5], torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]))
    assert recorder.turn.positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert recorder.turn.mask.tolist() == [[False, False, True, True, True], [True, True, True, False, False]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_do_not_disturb_each_other(side, make, randomise, ids):
    model = make(halter={"use": "act"}).model
    randomise(model.loops)
    short, mask = padded(ids[1:, :9], side)
    with torch.no_grad():
        both = torch.cat([ids[:1], short]), torch.cat([torch.ones(1, 12, dtype=torch.long), mask])
        batch = model.trace(*both).logits()
        long_alone, short_alone = model.trace(ids[:1]).logits(), model.trace(ids[1:, :9]).logits()
    real = slice(3, None) if side == "left" else slice(None, -3)
    torch.testing.assert_close(batch[:1], long_alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(batch[1:, real], short_alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("modulator", MODULATORS)
def test_the_order_of_a_batch_does_not_matter(modulator, make, randomise, ids):
    model = make(modulator=MODULATORS[modulator], halter={"use": "act"}).model
    randomise(model.loops)
    with torch.no_grad():
        turned, straight = model.trace(ids.flip(0)).logits(), model.trace(ids).logits()
    torch.testing.assert_close(turned.flip(0), straight, atol=2e-5, rtol=1e-4)


def logits_with_another_end(model, ids, first):
    changed = ids.clone()
    changed[:, first:] = (ids[:, first:] + 11) % 320
    with torch.no_grad():
        return model.trace(ids).logits(), model.trace(changed).logits()


@pytest.mark.parametrize(("halter", "gate"), [("fixed", "sigmoid"), ("act", "sigmoid"), ("act", "none")])
@pytest.mark.parametrize("modulator", CAUSAL)
def test_no_token_sees_a_later_one(modulator, halter, gate, make, randomise, ids):
    model = make(modulator=MODULATORS[modulator], halter={"use": halter}, gate={"use": gate}).model
    randomise(model.loops)
    before, after = logits_with_another_end(model, ids, first=8)
    torch.testing.assert_close(after[:, :8], before[:, :8], atol=1e-5, rtol=1e-5)
    assert (after[:, 8:] - before[:, 8:]).abs().max() > 0.1


def test_the_sequence_mean_lets_a_token_see_later_ones(make, randomise, ids):
    model = make(modulator=MODULATORS["sequence-mean"]).model
    randomise(model.loops)
    before, after = logits_with_another_end(model, ids, first=8)
    assert (after[:, :8] - before[:, :8]).abs().max() > 1e-2


def test_other_parts_are_lent_and_taken_back_even_after_an_error(make, host):
    built = make()
    mine = built.model.loops
    with built.model.with_parts([null_parts(host, built.facts[0])]):
        assert built.model.loops is not mine
    with pytest.raises(ZeroDivisionError), built.model.with_parts([null_parts(host, built.facts[0])]):
        raise ZeroDivisionError
    assert built.model.loops is mine


def test_equal_settings_give_equal_weights_and_another_seed_does_not(make):
    first, again, other = (make(train={"seed": seed}).model.loops[0].modulator.see[0].weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_bfloat16_base_is_computed_in_bfloat16_with_float32_parts(make, ids):
    model = make(tiny_model().to(torch.bfloat16)).model
    assert model.trace(ids).hidden.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


# The sites of the block


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 0] + 10 * [1], 9 * [1] + 3 * [0]])])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_through_its_branches_is_the_librarys_layer_to_the_bit(family, mask, make, ids):
    intact = tiny_model(family=family)
    model = make(intact, splitter={"prelude": 1, "block": 2, "size": 2, "coda": 1}).model
    state = model.anatomy.embed(intact, ids)
    calls = model.anatomy.calls(intact, state, torch.arange(12).expand_as(ids), mask)
    for place, layer in enumerate(intact.model.layers[2:4]):
        through = calls(layer, 2 + place, Branches(model.taps[0], place))(state)
        assert torch.equal(through, calls(layer, 2 + place)(state))


class Ops(nn.Module):
    """A modulator that always gives these ops."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops

    def forward(self, state, turn):
        return self.ops


def test_the_block_has_the_sites_that_a_part_is_told_of(make):
    built = make(splitter={"prelude": 1, "block": 2, "size": 2, "coda": 1})
    named = built.facts[0].sites("in", "out", "sum")
    assert len(named) == len(set(named)) == 2 * 2 * 3
    assert set(built.model.taps[0]) == {"state", *named, *built.facts[0].taps}


def plain_sited_layer(intact, layer, place, state, at):
    """A layer of the family by its equations, with what happens at each site. at: name -> a function."""
    attention, _ = layer.self_attn(
        at[f"{place}.attention-in"](layer.input_layernorm(state)),
        attention_mask=torch.full((12, 12), -torch.inf).triu(1)[None, None],
        position_embeddings=intact.model.rotary_emb(state, position_ids=torch.arange(12)[None]),
    )
    state = at[f"{place}.attention-sum"](state + at[f"{place}.attention-out"](attention))
    fed = layer.mlp(at[f"{place}.ffn-in"](layer.post_attention_layernorm(state)))
    return at[f"{place}.ffn-sum"](state + at[f"{place}.ffn-out"](fed))


@torch.no_grad()
def test_ops_at_every_site_do_what_is_written_there(make, host, ids):
    intact = tiny_model()
    built = make(intact, splitter={"prelude": 1, "block": 2, "size": 2, "coda": 2})
    draw = torch.Generator().manual_seed(3)
    values = {site: 1 + 0.3 * torch.randn(32, generator=draw) for site in built.facts[0].sites("in", "out", "sum")}
    ops = {site: [Scale(value)] for site, value in values.items()}
    at = {site: lambda x, value=value: x * value for site, value in values.items()}
    for branch in BRANCHES:  # and one op of each other kind
        add, up = torch.randn(32, generator=draw), torch.randn(32, 1, generator=draw)
        ops |= {f"1.{branch}-sum": [Normed(torch.tanh)], f"0.{branch}-in": [LowRank(up.T, up)]}
        ops[f"0.{branch}-out"] = [Add(add)]
        at |= {f"1.{branch}-sum": torch.tanh, f"0.{branch}-in": lambda x, up=up: x + x @ up @ up.T}
        at[f"0.{branch}-out"] = lambda x, add=add: x + add
    parts = null_parts(host, built.facts[0])
    parts.modulator = Ops(ops)
    with built.model.with_parts([parts]):
        found = built.model.trace(ids, depth=Depth.full(2)).logits()
    state = run_layer(intact, intact.model.layers[0], intact.model.embed_tokens(ids))
    for _ in range(2):
        for place in (0, 1):
            state = plain_sited_layer(intact, intact.model.layers[2 + place], place, state, at)
    for index in (4, 5):
        state = run_layer(intact, intact.model.layers[index], state)
    torch.testing.assert_close(found, intact.lm_head(intact.model.norm(state)), atol=1e-4, rtol=1e-4)


def test_after_a_turn_no_site_and_no_linear_holds_ops(make, ids):
    model = make().model
    model.loops[0].modulator = Ops({name: [Scale(torch.ones(()))] for name in model.taps[0]})
    model.trace(ids)
    assert not any(tap.ops for tap in model.taps[0].values())


# What a turn would be read as


@pytest.mark.parametrize("tables", [{}, {"splitter": {"use": "refine-last"}}], ids=["with a coda", "without"])
def test_each_kept_turn_is_what_a_forward_of_so_many_turns_ends_with(tables, make, randomise, ids):
    model = make(loop={"turns": 4}, **tables).model
    randomise(model.loops)
    with torch.no_grad():
        trace = model.trace(ids, keep_turns=True)
        assert torch.equal(trace.turns[-1], trace.hidden)
        for number, hidden in enumerate(trace.turns, start=1):
            torch.testing.assert_close(hidden, model.trace(ids, depth=Depth.full(number)).hidden, atol=1e-5, rtol=1e-5)
        losses = torch.stack(trace.nll_by_turn(ids))
        plain = [model.trace(ids, depth=Depth.full(number)).nll(ids) for number in (1, 2, 3, 4)]
        torch.testing.assert_close(losses, torch.stack(plain), atol=1e-4, rtol=1e-5)


def test_turns_are_kept_and_shares_told_where_they_are_asked_for(make, ids):
    trace = make(halter={"use": "act"}, loop={"turns": 3}).model.trace(ids)
    assert trace.turns == []
    torch.testing.assert_close(sum(trace.shares), torch.ones(2, 12))
    trace = make(loop={"turns": 3}).model.trace(ids, keep_turns=True)
    assert (len(trace.turns), trace.shares) == (3, [])


def test_the_gradient_of_a_kept_turn_is_that_of_a_loop_which_ended_there(make, randomise, ids):
    model = make(loop={"turns": 3}).model
    randomise(model.loops)
    kept = model.trace(ids, keep_turns=True).nll_by_turn(ids)[1].sum()
    short = model.trace(ids, depth=Depth.full(2)).nll(ids).sum()
    weights = [model.loops[0].gate.open.weight, model.loops[0].norm.scale.weight]
    for mine, other in zip(*(torch.autograd.grad(loss, weights) for loss in (kept, short)), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-4)


class Reading(nn.Module):
    """A norm that reads each state as if the loop ended with it, and triples what is read in the end."""

    def __init__(self):
        super().__init__()
        self.logits, self.normed = [], []

    def forward(self, state, turn):
        self.logits.append(turn.reader.logits(state))
        self.normed.append((state, turn.reader.normed(state)))
        return state

    def read(self, state):
        return state.tanh() * 3


@torch.no_grad()
def test_a_part_may_read_a_state_as_if_the_loop_ended_with_it(make, host, ids):
    built = make(loop={"turns": 3})
    parts, norm = null_parts(host, built.facts[0]), Reading()
    parts.norm = norm
    with built.model.with_parts([parts]):
        built.model.trace(ids)
        told, between = list(norm.logits), list(norm.normed)
        for number, logits in enumerate(told, start=1):
            expected = built.model.trace(ids, depth=Depth.full(number)).logits()
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for state, normed in between:
        assert torch.equal(normed, built.model.base.model.norm(state))


@torch.no_grad()
def test_what_a_norm_does_to_the_read_out_is_done_once_before_the_coda(make, host, ids):
    intact = tiny_model()
    built = make(intact)
    parts = null_parts(host, built.facts[0])
    parts.norm = Reading()
    with built.model.with_parts([parts]):
        trace = built.model.trace(ids, depth=Depth.full(2), keep_turns=True)
    state = run_layer(intact, intact.model.layers[0], intact.model.embed_tokens(ids))
    for _ in range(2):
        state = run_layer(intact, intact.model.layers[BLOCK], state)
    state = run_layer(intact, intact.model.layers[5], state.tanh() * 3)
    torch.testing.assert_close(trace.hidden, intact.model.norm(state), atol=1e-5, rtol=1e-5)
    assert torch.equal(trace.turns[-1], trace.hidden)


def test_parts_draw_from_the_seed_they_are_called_with_and_else_always_from_the_same(make, ids):
    model = make(train={"seed": 7}).model
    model.loops[0].norm = recorder = Recorder()
    seeds = []
    for given in ({"seed": 3}, {"seed": 0}, {}, {}):
        model.trace(ids, **given)
        seeds.append(recorder.turn.seed)
    assert seeds == [3, 0, 7, 7]


# Several loops

TWICE = Split(6, (Segment((0, 1), True), Segment((2,)), Segment((3,), True), Segment((4, 5))), residual_layers=())


@pytest.fixture
def twice(make, host):
    """A model with two loops, of null parts."""
    intact = tiny_model()
    parts = [null_parts(host, make(intact).facts[0]) for _ in range(2)]
    return RecursiveLM(intact, host.anatomy(intact.config), TWICE, parts, turns=2)


@torch.no_grad()
def test_two_loops_are_the_library_with_their_layers_again_and_again(twice, ids):
    trace, order = twice.trace(ids, keep_turns=True), [0, 1, 0, 1, 2, 3, 3, 4, 5]
    torch.testing.assert_close(trace.logits(), library_logits(tiny_model(), order, ids), atol=1e-6, rtol=0)
    assert trace.taken.eq(4).all()
    once_there = library_logits(tiny_model(), [0, 1, 0, 1, 2, 3, 4, 5], ids)
    torch.testing.assert_close(twice.head(trace.turns[0]), once_there, atol=1e-6, rtol=0)


@torch.no_grad()
def test_each_loop_has_parts_of_its_own(twice, ids):
    first, second = Recorder(), Recorder()
    twice.loops[0].norm, twice.loops[1].norm = first, second
    twice.loops[1].modulator = Ops({"0.ffn-out": [Scale(torch.zeros(()))], "0.attention-out": [Scale(torch.zeros(()))]})
    logits = twice.trace(ids).logits()
    torch.testing.assert_close(logits, library_logits(tiny_model(), [0, 1, 0, 1, 2, 4, 5], ids), atol=1e-6, rtol=0)
    assert not torch.equal(first.turn.prelude, second.turn.prelude)


def test_only_the_last_of_several_loops_can_be_read_as_if_it_had_ended(twice, ids):
    twice.loops[1].norm = norm = Reading()
    twice.trace(ids)
    assert len(norm.logits) == 2
    twice.loops[0].norm = Reading()
    with pytest.raises(UserError, match="reads the logits of a loop that another loop follows"):
        twice.trace(ids)


# Every weight may learn


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_base_that_learns_is_computed_in_bfloat16_from_float32_masters(family, make, ids):
    intact = tiny_model(family=family).to(torch.bfloat16)
    frozen, learning = make(intact).model, make(intact, adapter={"use": "full"}).model
    assert {p.dtype for p in learning.parameters()} == {torch.float32}
    assert learning.dtype == torch.bfloat16
    trace, told = learning.trace(ids, keep_turns=True), frozen.trace(ids).logits().float()
    assert {t.dtype for t in (trace.hidden, trace.head, *trace.turns, trace.logits())} == {torch.bfloat16}
    difference = (trace.logits().float() - told).abs().max()
    assert difference < 0.03 * told.abs().max()  # a few roundings of bfloat16
    trace.nll(ids).mean().backward()
    dead = [name for name, p in learning.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in dead if name.startswith("base.")]
    assert {p.grad.dtype for p in learning.parameters() if p.grad is not None} == {torch.float32}


def test_a_base_that_learns_can_be_read_within_the_loop(make, host, ids):
    built = make(tiny_model().to(torch.bfloat16), adapter={"use": "full"})
    built.model.loops[0].norm = norm = Reading()
    built.model.trace(ids)
    assert {logits.dtype for logits in norm.logits} == {torch.bfloat16}


def test_a_rate_of_its_own_belongs_to_what_its_adapter_makes_learn(make):
    built = make(adapter={"use": "full", "rate": 1e-4})
    assert built.rates.keys() == {name for name, _ in built.model.named_parameters() if name.startswith("base.")}
    assert set(built.rates.values()) == {1e-4}
    assert make(adapter={"use": "full"}).rates == {}
    assert make(adapter={"use": "unfreeze", "layers": 1}).rates == {}


def test_what_an_adapter_before_it_made_learn_keeps_that_ones_rate(make):
    use = ["unfreeze", "full"]
    built = make(adapter={"use": use, "unfreeze": {"layers": 1}, "full": {"rate": 1e-4}})
    learns = {name for name, _ in built.model.named_parameters() if name.startswith("base.")}
    assert learns - built.rates.keys() == {name for name in learns if name.startswith("base.model.layers.5.")}


# As the library calls it


@torch.no_grad()
def test_called_as_the_library_calls_models_it_answers_with_the_logits_of_its_trace(make, randomise, ids):
    model = randomise(make(halter={"use": "act"}).model)
    said, trace = model(ids), model.trace(ids)
    assert torch.equal(said.logits, trace.logits())
    assert torch.equal(said.turns, trace.taken)
    assert said.loss is None
    assert said.past_key_values is None
    two = model(input_ids=ids, turns=2)
    assert torch.equal(two.logits, model.trace(ids, depth=Depth.full(2)).logits())
    assert two.turns.max() == 2


@pytest.mark.parametrize("unscored", [[], [(0, 1), (0, 2), (1, 11)]])
def test_with_labels_the_loss_is_the_cross_entropy_of_each_token_from_those_before_it(unscored, make, ids):
    model, labels = make().model, ids.clone()
    for spot in unscored:
        labels[spot] = -100
    said = model(ids, labels=labels)
    losses = []
    for b in range(2):
        for t in range(1, 12):
            if labels[b, t] != -100:
                losses.append(-said.logits[b, t - 1].log_softmax(-1)[labels[b, t]])
    torch.testing.assert_close(said.loss, torch.stack(losses).mean())
    given = model(ids, labels=labels, num_items_in_batch=7).loss  # as a trainer that accumulates gives it
    torch.testing.assert_close(given, torch.stack(losses).sum() / 7)
    gradients = torch.autograd.grad(said.loss, list(model.loops.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("kept", "places"), [(0, range(12)), (1, [11]), (3, [9, 10, 11]), (torch.tensor([2, 5]), [2, 5])]
)
@torch.no_grad()
def test_only_the_logits_that_are_to_be_kept_are_made(kept, places, make, ids):
    model = make().model
    said = model(ids, logits_to_keep=kept)
    torch.testing.assert_close(said.logits, model(ids).logits[:, list(places)], atol=1e-6, rtol=1e-5)
    assert said.turns.shape == ids.shape


@torch.no_grad()
def test_embeddings_may_stand_in_for_tokens(make, randomise, ids):
    model = make().model
    randomise(model.loops)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    assert not torch.equal(model(inputs_embeds=embeds * 2).logits, model(ids).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_places_counted_by_the_caller_are_those_that_it_counts_itself(side, make, randomise, ids):
    model = make(modulator={"use": "step-embedding", "positions": True}).model
    told, mask = padded(ids, side)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    counted = model(told, attention_mask=mask, position_ids=places).logits
    assert torch.equal(counted, model(told, attention_mask=mask).logits)
    assert not torch.equal(counted, model(told, attention_mask=mask, position_ids=places.flip(1)).logits)


@pytest.mark.parametrize("halter", ["fixed", "act", "exit-gate"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_turns(side, halter, make, randomise, ids):
    model = make(halter={"use": halter}).model.eval()
    randomise(model.loops)
    told, mask = padded(ids, side)
    trace = model.trace(told, mask)
    assert trace.taken[mask.bool()].ge(1).all()
    assert not trace.taken[~mask.bool()].any()
    assert not trace.remainder[~mask.bool()].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", ["none", "full"])
def test_its_dtype_is_that_of_the_base_whatever_learns_in_float32(dtype, adapter, make, ids):
    model = make(tiny_model().to(dtype), adapter={"use": adapter}).model
    assert model.dtype == dtype
    assert model(ids).logits.dtype == dtype


@torch.no_grad()
def test_another_number_of_turns_with_a_cache_is_refused_in_one_line_unless_it_is_laid_out_so(make, ids):
    model = make(loop={"turns": 4}).model
    for told in ({"use_cache": True}, {"past_key_values": DynamicCache(config=model.config)}):
        with pytest.raises(UserError, match=r"2 turns, and the cache was made for 4: use laid_out") as caught:
            model(ids, turns=2, **told)
        assert "\n" not in str(caught.value)
    with model.laid_out(2):
        found = model(ids, use_cache=True)
    assert torch.equal(found.logits, model(ids, turns=2).logits)
    with pytest.raises(UserError, match="a cache of 4 slots, where these turns take 6"):
        model(ids, past_key_values=found.past_key_values)


@torch.no_grad()
def test_after_another_layout_the_model_is_as_it_was_even_after_an_error(make, ids):
    model = make(loop={"turns": 4}).model
    before = model.config.to_dict()
    with model.laid_out(9, 2):
        assert (model.turns, model.config.num_hidden_layers) == (9, 4)
    with pytest.raises(ZeroDivisionError), model.laid_out(9, 2):
        raise ZeroDivisionError
    assert model.config.to_dict() == before


@pytest.mark.parametrize("cache", [None, DynamicCache], ids=["its own", "one that grows"])
@torch.no_grad()
def test_tokens_after_those_in_a_cache_are_read_as_if_all_were_read_at_once(cache, make, randomise, ids):
    model = make(halter={"use": "act"}).model
    randomise(model.loops)
    first = model(ids[:, :7], use_cache=True, past_key_values=cache and cache())
    rest = model(ids[:, 7:], past_key_values=first.past_key_values)
    both, whole = torch.cat([first.logits, rest.logits], 1), model(ids)
    torch.testing.assert_close(both, whole.logits, atol=2e-5, rtol=1e-4)
    assert torch.equal(torch.cat([first.turns, rest.turns], 1), whole.turns)


def test_the_kept_layers_alone_decode_with_the_librarys_cache(make, host, ids):
    intact, split = tiny_model(), make().model.split
    alone = kept_once(intact, host.anatomy(intact.config), split)
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(alone.generate(ids, **asked), alone.generate(ids, use_cache=False, **asked))
    assert [layer.self_attn.layer_idx for layer in intact.model.layers] == list(range(6))  # the intact model's stay


@pytest.mark.parametrize(("adapter", "plain"), [("none", True), ("coda-lora", False), ("full", False)])
@torch.no_grad()
def test_a_few_tokens_of_a_bfloat16_model_are_read_nearly_as_many_are(adapter, plain, make):
    model = make(tiny_model().bfloat16(), adapter={"use": adapter}).model.eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.loops.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    few = torch.randint(1, 300, (1, 8), generator=generator)
    many = few.expand(4, -1)
    assert model.plain is plain
    alone, together = model.trace(few).logits().float(), model.trace(many).logits()[:1].float()
    assert alone.dtype == together.dtype
    assert (alone - together).abs().mean() < 0.02 * together.abs().mean()
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert model.generate(few, **asked).shape == (1, 12)


@torch.no_grad()
def test_a_cache_of_fixed_size_decodes_what_one_that_grows_does_without_any_padding(make, randomise, ids):
    model = make().model.eval()  # whose controller keeps sums in the cache
    randomise(model.loops, 0.1)
    asked = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    whole = model.generate(ids, use_cache=False, **asked)
    assert torch.equal(model.generate(ids, **asked), whole)
    assert torch.equal(model.generate(ids, cache_implementation="static", **asked), whole)


@torch.no_grad()
def test_a_mask_that_leaves_out_what_is_in_the_cache_is_refused(make, ids):
    model = make().model.eval()
    past = model(ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(
        UserError, match="an attention mask of 3 tokens, where there are 5 tokens in the cache and 3 new"
    ):
        model(ids[:, 5:8], attention_mask=torch.ones(len(ids), 3), past_key_values=past)


@pytest.mark.parametrize("halter", ["fixed", "act", "kl", "latent-diff", "exit-gate", "ponder"])
@torch.no_grad()
def test_every_halter_decodes_on_a_bfloat16_base(halter, make):
    about = {"objective": {"use": ["next-token", "exit-gate"]}} if halter in ("exit-gate", "ponder") else {}
    model = make(tiny_model().bfloat16(), halter={"use": halter}, **about).model.eval()
    assert model.trace(torch.arange(1, 9)[None]).logits().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_model_may_be_cast_and_reads_few_tokens_and_many(dtype, make, ids):
    model = make(tiny_model()).model.eval().to(torch.bfloat16).to(dtype)
    assert model.dtype == dtype
    for tokens in (ids[:1, :4], torch.cat([ids] * 4)):
        assert model.trace(tokens).logits().dtype == dtype


def test_nonsense_numbers_are_refused_and_leave_the_model_as_it_was(make, ids):
    model = make().model.eval()
    turns = model.turns
    for wrong in ({"turns": "4"}, {"turns": -1}, {"shared_slots": 0}, {"shared_slots": -1}):
        with pytest.raises(UserError, match="expected a whole number of 1 or more"):
            model.generate(ids, max_new_tokens=2, pad_token_id=0, **wrong)
        assert (model.turns, model.config.shared_slots) == (turns, None)
    assert model.generate(ids, max_new_tokens=2, pad_token_id=0).shape[1] == ids.shape[1] + 2
