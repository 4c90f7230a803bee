"""Modulators against their equations: pools by a python loop, the controller from its raw weights, and those that
are a change of weights or states against the library's own model, changed by hand."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from transformers import DynamicCache

from ouroboros_core.bases import svd_residuals
from ouroboros_core.build import null_parts
from ouroboros_core.contracts import Depth, Slot, TapFacts
from ouroboros_core.errors import UserError
from ouroboros_core.few import Going
from ouroboros_core.gradients import WATCHED_STEPS, GradientWatch
from ouroboros_core.kept import started
from ouroboros_core.memory import Sums, SumsOfTurn
from ouroboros_core.model import RecursiveLM
from ouroboros_core.refusals import refuse_nonsense
from ouroboros_core.resolve import resolve
from ouroboros_core.split import Segment, Split
from ouroboros_core.tables import TurnTable
from ouroboros_core.testing import PlainMemory, a_turn, loop_facts, tiny_model
from ouroboros_plugins.modulators.controller import ControllerOptions
from ouroboros_plugins.modulators.pooling import pooling

B, T, D = 3, 6, 16


@pytest.fixture
def state():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


def left_padded():
    """A turn whose rows have no, two and five padding tokens on the left."""
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, :2] = mask[2, :5] = False
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return replace(a_turn(B, T), positions=positions, mask=mask, memory=PlainMemory(mask))


def plain_pool(state, mask, seen_by):
    """Row t of a sequence is the mean of the real tokens that `seen_by(t, n)` admits; n counts real tokens."""
    pooled = {}
    for b in range(B):
        real = [t for t in range(T) if mask[b, t]]
        for t in real:
            pooled[b, t] = torch.stack([state[b, s] for n, s in enumerate(real) if seen_by(t, s, n)]).mean(0)
    return pooled


@pytest.mark.parametrize(
    ("name", "prompt", "seen_by"),
    [
        ("prefix-mean", None, lambda t, s, n: s <= t),
        ("token", None, lambda t, s, n: s == t),
        ("prompt", 3, lambda t, s, n: s <= t and n < 3),
        ("sequence-mean", None, lambda t, s, n: True),
    ],
)
def test_a_pool_is_the_mean_of_the_tokens_it_may_see(name, prompt, seen_by, state):
    turn = left_padded()
    found = pooling(name, prompt)(state, turn)
    for (b, t), expected in plain_pool(state, turn.mask, seen_by).items():
        torch.testing.assert_close(found[b, t], expected, atol=1e-6, rtol=1e-5)
    assert found.shape == state.shape
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "prompt", "causal"),
    [("prefix-mean", None, True), ("token", None, True), ("prompt", 2, True), ("sequence-mean", None, False)],
)
def test_a_pool_that_says_so_is_causal_and_the_papers_is_not(name, prompt, causal, state):
    changed, turn = state.clone(), left_padded()
    changed[:, 4:] += 1
    pool = pooling(name, prompt)
    assert torch.equal(pool(state, turn)[:2, :4], pool(changed, turn)[:2, :4]) is causal
    assert ControllerOptions(pool=name, prompt=prompt).causal is causal


@pytest.mark.parametrize(("name", "prompt"), [("prefix-mean", None), ("prompt", 2), ("prompt", 4)])
@pytest.mark.parametrize("cut", [1, 3])
def test_a_causal_pool_of_a_row_read_in_two_pieces_is_that_of_the_row_read_at_once(name, prompt, cut, state):
    turn, cache, pool = left_padded(), DynamicCache(), pooling(name, prompt)
    pieces = []
    for piece in (slice(0, cut), slice(cut, T)):
        mask = turn.mask[:, piece]
        memory = SumsOfTurn(Sums(cache, 0, mask), 0, Going(mask))
        told = replace(turn, positions=turn.positions[:, piece], mask=mask, memory=memory)
        pieces.append(pool(state[:, piece], told))
    torch.testing.assert_close(torch.cat(pieces, 1), pool(state, turn))


@pytest.mark.parametrize(("name", "prompt"), [("prefix-mean", None), ("prompt", 4)])
def test_a_causal_pool_counts_tokens_that_have_stopped_as_they_were_left(name, prompt, state):
    going = torch.ones(B, T, dtype=torch.bool)
    going[:, 0] = going[0, 2] = False
    sums, later = Sums(None, 0, torch.ones(B, T, dtype=torch.bool)), state.flip(0)
    pool = pooling(name, prompt)
    pool(state, replace(a_turn(B, T), memory=SumsOfTurn(sums, 0, Going(torch.ones_like(going)))))
    found = pool(later, replace(a_turn(B, T), memory=SumsOfTurn(sums, 1, Going(going))))
    as_left = torch.where(going[..., None], later, state)
    expected = pool(as_left, a_turn(B, T))
    torch.testing.assert_close(found[going], expected[going])


def test_a_long_prefix_in_bfloat16_is_summed_in_float32():
    state = torch.full((1, 3000, 1), 1.0078125, dtype=torch.bfloat16)
    assert pooling("prefix-mean", None)(state, a_turn(1, 3000))[0, -1] == 1.0078125


@pytest.mark.parametrize("options", [{"pool": "prompt"}, {"prompt": 4}, {"pool": "token", "prompt": 4}])
def test_the_prompt_pool_and_its_length_go_together(options):
    with pytest.raises(ValidationError, match="go together"):
        ControllerOptions(**options)
    assert ControllerOptions(pool="prompt", prompt=4).prompt == 4


def test_the_papers_pool_is_refused_unless_leaks_are_allowed(host):
    leaky = {"modulator": {"pool": "sequence-mean"}}
    with pytest.raises(UserError, match="modulator 'controller', so configured, lets a token see later ones"):
        refuse_nonsense(resolve(host, [leaky]))
    refuse_nonsense(resolve(host, [leaky, {"run": {"allow_leak": True}}]))


def modulator(host, name="controller", facts=None, **options):
    part = host.find(Slot.MODULATOR, name)
    torch.manual_seed(0)
    small = {"rank": 4} if "rank" in part.options.model_fields else {}
    return part.build(part.options(**(small | options)), facts or loop_facts(D))


@pytest.mark.parametrize("index", [0, 2])
def test_the_controllers_diagonals_follow_its_equation(index, host, randomise, state):
    controller = randomise(modulator(host, pool="token", alpha=6.0))
    w = dict(controller.named_parameters())
    seen = F.silu(state @ w["see.0.weight"].T + w["see.0.bias"])
    joint = torch.cat([seen, w["step.weight"][index].expand(B, T, -1)], -1)
    style = F.silu(joint @ w["style.0.weight"].T + w["style.0.bias"])
    style = F.silu(style @ w["style.2.weight"].T + w["style.2.bias"])
    ops = controller(state, replace(left_padded(), index=index))
    for head, (name, (down, up)) in enumerate(loop_facts(D).bases(4).items()):
        (op,) = ops[name]
        torch.testing.assert_close(op.core, style @ w[f"heads.{head}.weight"].T * 6.0 / 4)
        assert torch.equal(op.down, down)
        assert torch.equal(op.up, up)


@pytest.mark.parametrize("index", [0, 1, 2, 9])
def test_a_static_diagonal_depends_on_the_turn_alone(index, host, randomise, state):
    static = randomise(modulator(host, "static", alpha=6.0))
    ops = static(state, replace(left_padded(), index=index))
    for place, name in enumerate(loop_facts(D).taps):
        torch.testing.assert_close(ops[name][0].core, static.diagonals.weight[min(index, 2), place] * 6.0 / 4)


def test_no_modulation_is_no_ops(host, state):
    part = host.null(Slot.MODULATOR)
    assert part.build(part.options(), loop_facts(D))(state, left_padded()) == {}


def test_the_papers_controller_has_its_number_of_parameters(host):
    taps = {f"0.{name}": TapFacts(2048, 2048) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    with torch.device("meta"):
        bases = {name: (torch.empty(32, 8), torch.empty(8, 32)) for name in taps}
        facts = replace(loop_facts(2048, turns=4), taps=taps, bases=lambda rank: bases)
        controller = modulator(host, facts=facts, rank=32)
    assert sum(p.numel() for p in controller.parameters() if p.requires_grad) == 692_864


@pytest.mark.parametrize("name", ["controller", "static"])
def test_a_fresh_modulator_is_nothing_and_can_learn(name, host, state):
    fresh = modulator(host, name)
    ops = fresh(state, left_padded())
    assert not any(op.core.any() for (op,) in ops.values())
    moved = [op(torch.ones(B, T, op.down.shape[1])).sum() for (op,) in ops.values()]
    torch.stack(moved).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in fresh.parameters())


FRESH = [
    {},
    {"use": "static", "rank": 4},
    {"use": "lora", "start": "zero", "rank": 4},
    {"use": "level-signal"},
    {"use": "step-embedding", "kind": "learned"},
    {"use": "step-scale"},
    {"use": "step-scale", "on": "output"},
]


@pytest.mark.parametrize("table", FRESH)
def test_a_fresh_modulator_leaves_the_logits_of_a_model_alone(table, make, ids):
    without, fresh = make(modulator={"use": "none"}).model, make(modulator=table).model
    assert torch.equal(fresh.trace(ids).logits(), without.trace(ids).logits())
    fresh.trace(ids).nll(ids).mean().backward()
    assert any(p.grad.any() for p in fresh.loops[0].modulator.parameters() if p.grad is not None)


def test_the_frozen_directions_are_saved_and_not_trained(host):
    controller = modulator(host)
    assert {name for name in controller.state_dict() if name.startswith("bases.")} == {
        "bases.0_q_a",
        "bases.0_q_b",
        "bases.0_down_a",
        "bases.0_down_b",
    }
    assert not any(name.startswith("bases.") for name, _ in controller.named_parameters())


def test_chained_modulators_add_their_deltas(make, randomise, ids):
    both = make(modulator={"use": ["controller", "static"], "controller": {"rank": 4}, "static": {"rank": 4}}).model
    names = [type(part).__name__ for part in both.loops[0].modulator.modulators]
    assert names == ["Controller", "StaticDiagonal"]
    randomise(both.loops)
    ops = both.loops[0].modulator(torch.ones(1, 2, 32), a_turn(1, 2))
    assert all(len(these) == 2 for these in ops.values())
    _, static = both.loops[0].modulator.modulators
    assert torch.equal(ops["0.q"][1].core, static(torch.ones(1, 2, 32), a_turn(1, 2))["0.q"][0].core)


# LoRA by turn


@pytest.mark.parametrize(("index", "row"), [(0, 0), (1, 1), (2, 1), (9, 1)])
def test_a_lora_starts_as_the_residual_of_the_layer_that_its_turn_stands_for(index, row, host, state):
    facts = loop_facts(D, turns=3, trained_turns=2)
    ops = modulator(host, "lora", facts)(state, a_turn(B, T, index))
    for name, rows in facts.residuals(4).items():
        (op,) = ops[name]
        x = torch.randn(B, T, facts.taps[name].inputs)
        down, up = rows[row]
        torch.testing.assert_close(op(x), x @ (up @ down).T, atol=1e-4, rtol=1e-4)
        assert op.core is None


def test_a_lora_from_zero_has_a_row_for_each_trained_turn_and_one_factor_that_is_not_zero(host):
    lora = modulator(host, "lora", loop_facts(256, turns=5, trained_turns=3), start="zero")
    for down, up, inputs in zip(lora.down, lora.up, (256, 512), strict=True):
        assert down.weight.shape == (3, 4, inputs)
        assert not up.weight.any()
        assert down.weight.abs().max() <= inputs**-0.5  # as torch.nn.Linear starts
        torch.testing.assert_close(down.weight.std().item(), (3 * inputs) ** -0.5, atol=0, rtol=0.1)


def test_a_lora_may_be_for_some_linears_only(host, state):
    assert set(modulator(host, "lora", linears=["down"])(state, a_turn(B, T))) == {"0.down"}
    with pytest.raises(UserError, match="no linear 'o' in the block; it has q, down"):
        modulator(host, "lora", linears=["q", "o"])


def test_more_trained_turns_than_the_splitter_has_layers_for_are_refused(host):
    facts = replace(loop_facts(D, turns=3), trained_turns=4)
    message = "4 turns are trained but the part has rows for 3: train no more turns than the splitter has layers for"
    with pytest.raises(UserError, match=message):
        modulator(host, "lora", facts)
    assert modulator(host, "lora", facts, start="zero").down[0].weight.shape[0] == 4


def test_a_splitter_that_tells_of_no_layers_gives_a_lora_nothing_to_start_from(make):
    with pytest.raises(UserError, match="or start from zero"):
        make(modulator={"use": "lora", "rank": 4})


def related(rank):
    """A tiny model whose layers 1 to 3 differ, in every linear, by changes of this rank."""
    intact, generator = tiny_model(), torch.Generator().manual_seed(3)
    for name, first in intact.model.layers[1].named_parameters():
        for index in (2, 3) if first.ndim == 2 else ():
            up, down = (torch.randn(n, rank, generator=generator) * 0.15 for n in first.shape)
            intact.model.layers[index].get_parameter(name).data = first + up @ down.T
    return intact


def standing_for(host, intact, split, rank, trained=3):
    """The split's model with a LoRA on its block, and no other part."""
    anatomy, (segment,) = host.anatomy(intact.config), [s for s in split.segments if s.looped]
    block = started(intact, anatomy, split, segment.layers)
    stood_for = [[intact.model.layers[i] for i in turn] for turn in segment.stands_for]
    linears = anatomy.linears(block[0])
    taps = {f"{p}.{n}": TapFacts(x.in_features, x.out_features) for p in range(len(block)) for n, x in linears.items()}
    residuals = partial(svd_residuals, anatomy, block, stood_for)
    facts = replace(loop_facts(32), trained_turns=trained, taps=taps, residuals=residuals, layers=len(block))
    parts = null_parts(host, facts)
    parts.modulator = modulator(host, "lora", facts, rank=rank)
    return RecursiveLM(intact, anatomy, split, [parts], turns=len(segment.stands_for))


@pytest.mark.parametrize("averaged", [{}, {2: (1, 2, 3)}])
def test_with_enough_directions_every_turn_is_the_layer_it_stands_for(averaged, host, ids):
    intact, turns = related(4), ((1,), (2,), (3,))
    segments = Segment((0,)), Segment((2,), looped=True, stands_for=turns), Segment((4, 5))
    split = Split(6, segments, (1, 3), averaged)
    expected = intact(ids).logits
    exact = standing_for(host, intact, split, rank=8)
    torch.testing.assert_close(exact.trace(ids).logits(), expected, atol=1e-4, rtol=1e-4)
    exact.trace(ids).nll(ids).mean().backward()
    assert all(p.grad.flatten(1).any(1).all() for p in exact.loops[0].modulator.up.parameters())
    fewer = standing_for(host, intact, split, rank=2).trace(ids).logits()
    assert (fewer - expected).abs().max() > 0.1


def test_every_layer_of_a_longer_block_has_a_lora_of_its_own(host, ids):
    intact = related(4)
    layers = intact.model.layers
    layers[4].load_state_dict(layers[2].state_dict())
    segments = Segment((0,)), Segment((2, 3), looped=True, stands_for=((1, 3), (2, 1), (3, 4))), Segment((5,))
    expected = library(intact, [layers[i] for i in (0, 1, 3, 2, 1, 3, 4, 5)], ids)
    found = standing_for(host, intact, Split(6, segments, (1, 4)), rank=8).trace(ids).logits()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def library(intact, layers, ids):
    """The logits of the library's own model with these layers."""
    model = copy.deepcopy(intact)
    model.model.layers = torch.nn.ModuleList(copy.deepcopy(layer) for layer in layers)
    model.config.num_hidden_layers = len(layers)
    return model(ids, use_cache=False).logits


# Modulators in a model, against the library's own with one changed layer for each turn


@pytest.fixture
def alone(make, randomise):
    """Build a model of two turns of layer 2, its modulator moved by noise, with no other part that does anything."""

    def alone(table, spread=0.3, intact=None):
        null = {slot: {"use": "none"} for slot in ("gate", "norm", "adapter")}
        splitter = {"prelude": 1, "block": 2, "coda": 1}
        model = make(intact, splitter=splitter, loop={"turns": 2}, modulator=table, **null).model
        return model, randomise(model.loops[0].modulator, spread)

    return alone


def two_turns(change, ids):
    """The logits of the library's own model with layers 0, 2, 2, 5, after `change`(layer, turn) of the middle two."""
    layers = copy.deepcopy(tiny_model().model.layers)
    turns = [copy.deepcopy(layers[2]) for _ in range(2)]
    for turn, layer in enumerate(turns):
        change(layer, turn)
    return library(tiny_model(), [layers[0], *turns, layers[5]], ids)


def linear(layer, name):
    return layer.get_submodule(f"{'self_attn' if name in 'qkvo' else 'mlp'}.{name}_proj")


def low_rank(layer, modulator, turn):
    """A low-rank modulator's equations, as a change of weights."""
    for place, down, up in zip(modulator.places, modulator.down, modulator.up, strict=True):
        delta = up.weight[turn] @ down.weight[turn]
        if place != "0.ffn-in":
            linear(layer, place[2:]).weight.data += delta
            continue
        for name in ("gate", "up"):  # W (x + F x) = (W + W F) x
            linear(layer, name).weight.data += linear(layer, name).weight @ delta


def on_input(layer, change):
    layer.register_forward_pre_hook(lambda layer, args: (change(args[0]), *args[1:]))


@pytest.mark.parametrize("table", [{"use": "level-signal"}, {"use": "lora", "start": "zero", "rank": 4}])
def test_a_low_rank_modulator_is_a_change_of_each_turns_weights(table, alone, ids):
    model, modulator = alone(table)
    expected = two_turns(lambda layer, turn: low_rank(layer, modulator, turn), ids)
    torch.testing.assert_close(model.trace(ids).logits(), expected, atol=1e-4, rtol=1e-4)
    assert (expected - two_turns(lambda layer, turn: None, ids)).abs().max() > 0.1


@pytest.mark.parametrize("on", ["input", "output"])
def test_a_step_scale_multiplies_what_the_block_is_given_or_makes(on, alone, ids):
    model, scale = alone({"use": "step-scale", "on": on})
    rows = scale.scale.weight

    def change(layer, turn):
        if on == "input":
            return on_input(layer, lambda x: x * rows[turn])
        return layer.register_forward_hook(lambda layer, args, y: y * rows[turn])

    torch.testing.assert_close(model.trace(ids).logits(), two_turns(change, ids), atol=1e-4, rtol=1e-4)


def test_chained_modulators_act_together(alone, ids):
    parts = {"lora": {"start": "zero", "rank": 4}, "step-embedding": {"positions": True}}
    model, chain = alone({"use": ["lora", "level-signal", "step-scale", "step-embedding"], **parts})
    lora, signal, scale, _ = chain.modulators
    places = torch.stack([wave(t, 32) for t in range(12)])

    def change(layer, turn):
        low_rank(layer, lora, turn)
        low_rank(layer, signal, turn)
        on_input(layer, lambda x: (x + wave(turn, 32) + places) * scale.scale.weight[turn])  # additions come first

    torch.testing.assert_close(model.trace(ids).logits(), two_turns(change, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("table", FRESH)
def test_every_row_that_a_turn_reads_has_a_gradient_within_three_steps(table, dtype, alone, ids):
    model, fresh = alone(table, spread=0, intact=tiny_model().to(dtype))
    watch, tables = GradientWatch(model), [m for m in fresh.modules() if isinstance(m, TurnTable)]
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    for _ in range(WATCHED_STEPS):
        optimizer.zero_grad()
        model.trace(ids, depth=Depth.full(2)).nll(ids).mean().backward()
        watch.look()
        optimizer.step()
    assert watch.verdict().passed
    for table in tables:
        assert table.weight.dtype == torch.float32
        assert table.weight.isfinite().all()


def facts_with(names, width=D, layers=2):
    taps = {f"{layer}.{name}": TapFacts(width, width // 2) for layer in range(layers) for name in names}
    return replace(loop_facts(width), taps=taps, layers=layers)


@pytest.mark.parametrize(("width", "rank", "found"), [(64, None, 4), (8, None, 1), (64, 7, 7)])
def test_level_signals_start_as_nothing_with_a_sixteenth_of_the_width(width, rank, found, host):
    signal = modulator(host, "level-signal", facts_with(["q", "k", "v", "o"], width), rank=rank)
    assert set(signal.places) == {f"{n}.{name}" for n in (0, 1) for name in ("q", "k", "v", "ffn-in")}
    for place, down, up in zip(signal.places, signal.down, signal.up, strict=True):
        assert down.weight.shape == (3, found, width)
        assert up.weight.shape == (3, width if place.endswith("ffn-in") else width // 2, found)
        assert not down.weight.any()
        torch.testing.assert_close(up.weight.std().item(), 1e-6, atol=0, rtol=0.5)


def test_the_spread_of_level_signals_and_their_rows_are_the_users(host):
    signal = modulator(host, "level-signal", facts_with(["q"]), spread=0.5, rows=5)
    assert [up.weight.shape[0] for up in signal.up] == [5, 5, 5, 5]
    torch.testing.assert_close(signal.up[0].weight.std().item(), 0.5, atol=0, rtol=0.25)
    with pytest.raises(UserError, match="raise its `rows`"):
        modulator(host, "level-signal", facts_with(["q"]), rows=2)


def test_level_signals_need_a_block_with_queries_keys_or_values(host):
    with pytest.raises(UserError, match=r"linears named q, k, v, and the block has 0\.qkv, 0\.down: choose another"):
        modulator(host, "level-signal", facts_with(["qkv", "down"], layers=1))


def wave(i, width):
    """P(i) of the Universal Transformer, number by number."""
    angles = [i / 10000 ** (2 * (d // 2) / width) for d in range(width)]
    return torch.tensor([math.cos(a) if d % 2 else math.sin(a) for d, a in enumerate(angles)])


@pytest.mark.parametrize("width", [16, 7, 1])
@pytest.mark.parametrize("index", [0, 1, 6])
@pytest.mark.parametrize("positions", [False, True])
def test_a_sinusoid_tells_the_turn_and_if_asked_the_position_in_the_tokens_own_sequence(width, index, positions, host):
    embedding, turn = modulator(host, "step-embedding", positions=positions), replace(left_padded(), index=index)
    ((op,),) = embedding(torch.zeros(B, T, width), turn).values()
    for b in range(B):
        for t in range(T):
            place = wave(int(turn.positions[b, t]), width) if positions else 0
            torch.testing.assert_close(op.value.expand(B, T, width)[b, t], wave(index, width) + place)
    assert not list(embedding.parameters())


@pytest.mark.parametrize("positions", [False, True])
def test_a_learned_step_embedding_starts_at_zero_and_leaves_positions_to_the_sinusoid(
    positions, host, randomise, state
):
    embedding = modulator(host, "step-embedding", kind="learned", positions=positions)
    assert embedding.steps.weight.shape == (64, D)
    assert not embedding.steps.weight.any()
    randomise(embedding)
    ((op,),) = embedding(state, a_turn(B, T, index=2)).values()
    places = torch.stack([wave(t, D) if positions else torch.zeros(D) for t in range(T)])
    torch.testing.assert_close(op.value.expand(B, T, D), (embedding.steps.weight[2] + places).expand(B, T, D))


def test_rows_of_a_sinusoid_are_a_setting_without_effect(host):
    part = host.find(Slot.MODULATOR, "step-embedding")
    for kind, unread in (("sinusoid", ["rows"]), ("learned", [])):
        options = part.options(kind=kind, rows=8)
        part.build(options, loop_facts(D))
        assert options.unread() == unread


def test_a_step_scale_starts_at_one_and_each_turn_has_its_own(host, randomise, state):
    scale = modulator(host, "step-scale", replace(loop_facts(D), layers=2), on="output", rows=4)
    assert torch.equal(scale.scale.weight, torch.ones(4, D))
    randomise(scale)
    for index, row in ((0, 0), (2, 2), (3, 2)):
        ((place, (op,)),) = scale(state, a_turn(B, T, index)).items()
        assert place == "1.ffn-sum"
        assert torch.equal(op.value, scale.scale.weight[row])
