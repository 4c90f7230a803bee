"""The recursive model against the library's own, and against a turn written out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from ouroboros_core.build import null_parts
from ouroboros_core.contracts import Depth
from ouroboros_core.model import StockLM
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
        return built.model(ids, depth=Depth.full(1)).logits()


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
    built.model(ids).nll(ids).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in intact.state_dict().items())


def test_the_stock_window_shows_the_librarys_logits(host, ids):
    intact = tiny_model()
    seen = StockLM(intact, host.anatomy(intact.config))(ids).logits()
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
        torch.testing.assert_close(model(ids[:1]).logits(), expected, atol=1e-5, rtol=1e-5)
        untouched = library_logits(intact, [*PRELUDE, BLOCK, *CODA], ids[:1])
    assert (expected - untouched).abs().max() > 0.1  # the parts do something


def test_the_gradient_is_that_of_a_loop_that_detaches_before_its_last_turns(make, randomise, ids):
    intact = tiny_model()
    model = make(intact, loop={"turns": 4}).model
    randomise(model.loops)
    theirs = copy.deepcopy(model.loops[0])
    weights = torch.randn(1, 12, 320, generator=torch.Generator().manual_seed(2))
    (model(ids[:1], depth=Depth(turns=4, with_gradient=2)).logits() * weights).sum().backward()
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
        model(ids, depth=Depth(4, with_gradient)).nll(ids).mean().backward()
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
        torch.testing.assert_close(model(ids[:1]).logits(), expected, atol=1e-5, rtol=1e-5)


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
            alone, together = model(ids), model(*padded(ids, side))
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
    model(ids[:, :5], torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]))
    assert recorder.turn.positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert recorder.turn.mask.tolist() == [[False, False, True, True, True], [True, True, True, False, False]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_do_not_disturb_each_other(side, make, randomise, ids):
    model = make(halter={"use": "act"}).model
    randomise(model.loops)
    short, mask = padded(ids[1:, :9], side)
    with torch.no_grad():
        batch = model(torch.cat([ids[:1], short]), torch.cat([torch.ones(1, 12, dtype=torch.long), mask])).logits()
        long_alone, short_alone = model(ids[:1]).logits(), model(ids[1:, :9]).logits()
    real = slice(3, None) if side == "left" else slice(None, -3)
    torch.testing.assert_close(batch[:1], long_alone, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(batch[1:, real], short_alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("modulator", MODULATORS)
def test_the_order_of_a_batch_does_not_matter(modulator, make, randomise, ids):
    model = make(modulator=MODULATORS[modulator], halter={"use": "act"}).model
    randomise(model.loops)
    with torch.no_grad():
        torch.testing.assert_close(model(ids.flip(0)).logits().flip(0), model(ids).logits(), atol=2e-5, rtol=1e-4)


def logits_with_another_end(model, ids, first):
    changed = ids.clone()
    changed[:, first:] = (ids[:, first:] + 11) % 320
    with torch.no_grad():
        return model(ids).logits(), model(changed).logits()


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
    assert model(ids).hidden.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
