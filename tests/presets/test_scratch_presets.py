"""Presets that start from random weights, against their equations written out; what they start as and promise."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ouroboros_core import checks, pretrained
from ouroboros_core.build import build, null_parts
from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.gradients import WATCHED_STEPS, GradientWatch
from ouroboros_core.judge import Judge
from ouroboros_core.refusals import refuse_nonsense
from ouroboros_core.run import run
from ouroboros_core.rundir import load_run
from ouroboros_core.testing import WORDS, a_turn, tiny_base
from ouroboros_core.training import Loss
from tests.presets.restated import (
    assert_same_logits,
    attention,
    embedded,
    ffn,
    own_linears,
    padded,
    read_out,
    recalling,
    run_layer,
    run_layers,
    weight,
)

WIDTH, WORD_COUNT = 32, 300  # token ids below this are words of the tiny vocabulary
TINY = {"hidden_size": WIDTH, "intermediate_size": 48}
NOISE = math.sqrt(2 / 5)


# The systems, written out: each gives logits (B, T, V), the turns taken (B, T), and for ACT the remainders (B, T)


def waves(indices):
    """Vaswani 2017, section 3.5: sin and cos of i / 10000^(2j/D), in turn. -> (N, D)."""
    angles = [[i / 10_000 ** (2 * j / WIDTH) for j in range(WIDTH // 2)] for i in indices]
    return torch.tensor([[wave(angle) for angle in row for wave in (math.sin, math.cos)] for row in angles])


def universal(model, ids, turns, highway=False, epsilon=0.01):
    """Dehghani 2018: s <- layer(s + P_t + P_i), token by token until its halting probabilities reach 1 - epsilon.

    Graves 2016: y = sum p_n s_n with p_N = R = 1 - (p_1 + ... + p_{N-1}). A halted token's state is copied; others go
    on to see the key and the value of its last turn.
    """
    base, parts = model.base, model.loops[0]
    unit, layer, tokens = parts.halter.unit[0], base.model.layers["0"], list(product(*map(range, ids.shape)))
    e = s = embedded(base, ids)
    read, spent = torch.zeros_like(s), torch.zeros(ids.shape)
    taken, remainder, running = torch.zeros(ids.shape), torch.zeros(ids.shape), set(tokens)
    seen = defaultdict(dict)
    for turn in range(turns):
        going = torch.tensor([[at in running for at in row] for row in rows(ids)])
        x = s + waves([turn]) + waves(range(ids.shape[1]))
        new = run_layer(base, layer, x, recalling(going, seen)(layer))
        if highway:
            opened = parts.gate.open
            t = torch.sigmoid(F.linear(torch.cat([s, new, e], -1), opened.weight, opened.bias))
            new = t * new + (1 - t) * s
        s = torch.where(going[..., None], new, s)
        for at in sorted(running):
            p = torch.sigmoid(unit.weight[0] @ s[at] + unit.bias[0])
            halts = spent[at] + p >= 1 - epsilon or turn == turns - 1
            share = 1 - spent[at] if halts else p
            read[at] += share * s[at]
            spent[at] += share
            taken[at] += 1
            if halts:
                remainder[at] = share
                running.remove(at)
    return read_out(base, read), taken, remainder


def rows(ids):
    """The places (b, i) of every row."""
    return [[(b, i) for i in range(ids.shape[1])] for b in range(len(ids))]


def ringformer(model, ids, turns):
    """Heo 2025: Q = W_q x + B_t A_t x, K and V alike; FFN(x + B_t A_t x); norms of each turn; plain residuals."""
    base, parts, layer = model.base, model.loops[0], model.base.model.layers["0"]
    tables = zip(parts.modulator.down, parts.modulator.up, strict=True)
    signals = dict(zip(parts.modulator.places, tables, strict=True))

    def signal(place, turn, x):
        down, up = signals[place]
        return x @ (up.weight[turn] @ down.weight[turn]).T

    def linear(turn, name, x):
        y = F.linear(x, weight(layer, name))
        return y + signal(f"0.{name}", turn, x) if name in ("q", "k", "v") else y

    def normed(norm, factor, x):
        return F.rms_norm(x, x.shape[-1:], norm.weight * factor, norm.variance_epsilon)

    h = embedded(base, ids)
    for turn in range(turns):
        before_attention, before_ffn = parts.norm.factors.weight[turn]
        linears = partial(linear, turn)
        h = h + attention(base, linears, normed(layer.input_layernorm, before_attention, h))
        x = normed(layer.post_attention_layernorm, before_ffn, h)
        h = h + ffn(linears, x + signal("0.ffn-in", turn, x))
    return read_out(base, h), torch.full(ids.shape, turns), None


def thinking_deeper_turns(model, ids, turns):
    """Chen 2026: h <- g n + (1 - g) h with n = block(h + e_t), each branch times its lambda; logits of every turn."""
    base, parts, layer = model.base, model.loops[0], model.base.model.layers["0"]
    gate, (of_attention, of_ffn), linear = parts.gate.gate.open, parts.gate.scales, own_linears(layer)
    h, told = embedded(base, ids), []
    for turn in range(turns):
        n = h + parts.modulator.steps.weight[turn]
        n = n + of_attention * attention(base, linear, layer.input_layernorm(n))
        n = n + of_ffn * ffn(linear, layer.post_attention_layernorm(n))
        g = torch.sigmoid(F.linear(torch.cat([n, h], -1), gate.weight, gate.bias))
        h = g * n + (1 - g) * h
        told.append(read_out(base, h))
    return told


def thinking_deeper(model, ids, turns):
    return thinking_deeper_turns(model, ids, turns)[-1], torch.full(ids.shape, turns), None


def huginn_start(model, ids):
    """The prelude's output, and the first state; what that is drawn from has tests of its own."""
    e = run_layers(model.base, (0, 1), embedded(model.base, ids))
    return e, model.loops[0].entry.start(e, a_turn(*ids.shape, width=WIDTH, seed=model.seed))


def huginn_core(model, s, e, linears=own_linears):
    """Geiping 2025: x = W [s; e], then x <- n2(attention(n1 x) + x), x <- n4(ffn(n3 x) + x) in each of four layers."""
    base, parts = model.base, model.loops[0]
    scales = [norm.norm.weight for norm in parts.norm.norms]
    x = F.linear(torch.cat([s, e], -1), parts.entry.mix.weight)
    for index, n2, n4 in zip((2, 3, 4, 5), scales[::2], scales[1::2], strict=True):
        layer = base.model.layers[str(index)]
        linear = linears(layer)
        x = F.rms_norm(attention(base, linear, layer.input_layernorm(x)) + x, (WIDTH,), n2, 1e-6)
        x = F.rms_norm(ffn(linear, layer.post_attention_layernorm(x)) + x, (WIDTH,), n4, 1e-6)
    return x


def huginn_read(model, s, linears=own_linears):
    """ln_f behind the loop, coda, final norm, head."""
    s = F.rms_norm(s, (WIDTH,), model.loops[0].norm.after.norm.weight, 1e-6)
    return read_out(model.base, run_layers(model.base, (6, 7), s, linears))


def huginn(model, ids, turns, threshold=5e-4):
    """s <- core(s, e), token by token until KL(p_old || p_new) of its next-token distribution is below the threshold.

    The distributions are of the states as they would be read after each turn. There, as in the core, a token that has
    stopped is seen with the keys and values of its last turn; behind the loop, everybody's state is read anew.
    """
    e, s = huginn_start(model, ids)
    running, taken = torch.ones(ids.shape, dtype=torch.bool), torch.zeros(ids.shape)
    in_core, in_coda, before = defaultdict(dict), defaultdict(dict), None
    for turn in range(turns):
        s = torch.where(running[..., None], huginn_core(model, s, e, recalling(running, in_core)), s)
        taken += running
        after = huginn_read(model, s, recalling(running, in_coda)).softmax(-1)
        if turn:
            running = running & ((before * (before / after).log()).sum(-1) >= threshold)
        before = after
    return huginn_read(model, s), taken, None


# The systems, as presets on tiny models


@dataclass(frozen=True)
class Case:
    """A preset, what is changed of it here, and the system written out."""

    preset: str
    plain: Callable[..., Any]
    tables: Mapping[str, Any] = field(default_factory=dict)
    halts: bool = False  # tokens of the test's text take different numbers of turns
    seed: int = 4  # of the noise on its parameters


EXITS = {"loop": {"turns": 12}, "halter": {"threshold": 0.1}}  # coarse: it tells KL(p || q) from KL(q || p)
CASES = {
    "universal": Case("universal", universal, halts=True, seed=9),
    "universal with highway": Case(
        "universal",
        partial(universal, highway=True),
        {"gate": {"use": "highway"}, "halter": {"bias": -3.0}},
        halts=True,
    ),
    "ringformer": Case("ringformer", ringformer),
    "huginn": Case("huginn", huginn, {"loop": {"turns": 3}}),
    "huginn with exits": Case("huginn", partial(huginn, threshold=0.1), EXITS, halts=True),
    "huginn at its depth": Case("huginn", huginn, halts=True),
    "thinking-deeper": Case("thinking-deeper", thinking_deeper),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SHALLOW = {name: case for name, case in CASES.items() if name != "huginn at its depth"}  # which is slow
shallow_case = pytest.mark.parametrize("case", SHALLOW.values(), ids=SHALLOW)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A base of which only the tokenizer is read."""
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def scratch(settings_of, folder):
    """The settings of a preset for a tiny base."""
    base = {"name": str(folder), "dtype": "float32", "device": "cpu", "config": TINY}
    return lambda name, *layers: settings_of(name, {"base": base}, *layers)


@pytest.fixture(scope="session")
def made(scratch, host):
    """A preset, built on the random base that it asks for."""

    def made(name, *layers):
        settings = scratch(name, *layers)
        return build(settings, host, pretrained.load(settings.base).model)

    return made


@pytest.fixture(scope="session")
def moved(made, randomise):
    """The model of a preset, off its initial values, in evaluation mode."""
    return lambda name, *layers, seed=4: randomise(made(name, *layers).model, spread=0.1, seed=seed).eval()


@pytest.fixture
def ids():
    return torch.randint(0, WORD_COUNT, (2, 12), generator=torch.Generator().manual_seed(0))


@every_case
@torch.no_grad()
def test_the_model_is_its_equations(case, moved, ids):
    model = moved(case.preset, case.tables, seed=case.seed)
    trace = model.trace(ids)
    logits, taken, remainder = case.plain(model, ids, model.turns)
    assert torch.equal(trace.taken, taken.float())
    assert (len(taken.unique()) > 2) == case.halts
    assert_same_logits(trace.logits(), logits)
    if remainder is not None:
        torch.testing.assert_close(trace.remainder, remainder)


@shallow_case
def test_every_trained_row_has_a_gradient_within_three_steps(case, made, scratch):
    built, rate = made(case.preset, case.tables), scratch(case.preset).train.lr
    loss, watch = Loss(built, None).train(), GradientWatch(built.model)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=rate)
    text = torch.randint(0, WORD_COUNT, (WATCHED_STEPS, 2, 13), generator=torch.Generator().manual_seed(0))
    for step, block in enumerate(text):
        depth = built.schedule(step, step / WATCHED_STEPS, 0)
        sum(loss(block[:, :-1], block[:, 1:], depth, step).values()).backward()
        watch.look()
        optimizer.step()
        optimizer.zero_grad()
    assert "every reachable row" in watch.verdict().detail


@every_case
@torch.no_grad()
def test_no_token_sees_a_later_one(case, moved, scratch, ids):
    refuse_nonsense(scratch(case.preset, case.tables))
    assert checks.causality(moved(case.preset, case.tables, seed=case.seed), ids).passed


@shallow_case
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_real_token_and_no_number_of_turns(side, case, moved, ids):
    model = moved(case.preset, case.tables, seed=case.seed)
    longer, mask, real = padded(ids, side)
    ours, plain = model.trace(longer, mask), model.trace(ids)
    assert torch.equal(ours.taken[:, real], plain.taken)
    assert_same_logits(ours.logits()[:, real], plain.logits())


@shallow_case
def test_with_neutral_parts_it_is_the_bases_own_layers(case, made, scratch, host, ids):
    built = made(case.preset, case.tables)
    null = [null_parts(host, facts) for facts in built.facts]
    intact = pretrained.load(scratch(case.preset, case.tables).base).model
    assert built.model.split.removed == ()
    assert checks.identity(built.model, null, intact, ids).passed


@shallow_case
def test_every_weight_learns_and_the_head_is_the_embedding(case, made):
    model = made(case.preset, case.tables).model
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.head.weight is model.base.model.embed_tokens.weight


def equals(tensor, value):
    return tensor.numel() > 0 and torch.equal(tensor, torch.full_like(tensor, value))


def next_token_loss(logits, labels):
    """(B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


# Universal Transformer


@torch.no_grad()
def test_universal_starts_with_every_token_halting_at_the_second_of_twelve_turns(made, scratch, ids):
    built = made("universal")
    (unit,) = built.model.loops[0].halter.unit
    assert unit.weight.shape == (1, WIDTH)
    assert equals(unit.weight, 0)
    assert equals(unit.bias, 1)
    assert [name for name, _ in built.model.loops.named_parameters()] == [
        "0.halter.unit.0.weight",
        "0.halter.unit.0.bias",
    ]
    assert (built.model.turns, built.schedule(0, 0.0, 0)) == (12, Depth(12, 12))
    assert scratch("universal").one(Slot.HALTER).options.epsilon == 0.01
    trace = built.model.eval().trace(ids)
    assert equals(trace.taken, 2)
    torch.testing.assert_close(trace.remainder, torch.full(ids.shape, 1 / (1 + math.e)))


@torch.no_grad()
def test_universal_pays_for_turns_and_remainder(made, moved, ids):
    model = moved("universal", seed=9)
    trace, labels = model.trace(ids), ids.roll(-1, 1)
    logits, taken, remainder = universal(model, ids, 12)
    objectives = made("universal").objectives
    assert list(objectives) == ["next-token", "ponder"]
    torch.testing.assert_close(objectives["ponder"](trace, labels), 0.01 * (taken + remainder))
    torch.testing.assert_close(objectives["next-token"](trace, labels), next_token_loss(logits, labels))


@torch.no_grad()
def test_a_universal_token_that_would_go_on_is_stopped_at_the_last_turn_with_what_is_left(moved, ids):
    model = moved("universal", {"loop": {"turns": 5}})
    unit = model.loops[0].halter.unit[0]
    unit.weight.zero_()
    unit.bias.fill_(-3.0)
    trace = model.trace(ids)
    assert equals(trace.taken, 5)
    torch.testing.assert_close(trace.remainder, torch.full(ids.shape, 1 - 4 / (1 + math.exp(3))))
    assert_same_logits(trace.logits(), universal(model, ids, 5)[0])


def test_the_highway_of_universal_starts_nearly_closed(made):
    opened = made("universal", {"gate": {"use": "highway"}}).model.loops[0].gate.open
    assert opened.weight.shape == (WIDTH, 3 * WIDTH)
    assert equals(opened.bias, -1)


# RingFormer


def test_ringformer_starts_with_signals_of_nothing_and_the_layers_own_norms(made):
    built = made("ringformer")
    signals, norm = built.model.loops[0].modulator, built.model.loops[0].norm
    assert sorted(signals.places) == ["0.ffn-in", "0.k", "0.q", "0.v"]
    for down, up in zip(signals.down, signals.up, strict=True):
        assert down.weight.shape == (6, WIDTH // 16, WIDTH)
        assert equals(down.weight, 0)
        assert abs(up.weight.std() / 1e-6 - 1) < 0.15
        assert abs(up.weight.mean()) < 2e-7
    assert norm.factors.weight.shape[1:] == (2, WIDTH)
    assert equals(norm.factors.weight, 1)
    assert list(built.objectives) == ["next-token"]


def test_ringformer_has_a_rank_of_a_sixteenth_of_any_width(made):
    signals = made("ringformer", {"base": {"config": {"hidden_size": 64}}}).model.loops[0].modulator
    assert {down.weight.shape[1] for down in signals.down} == {4}


# Huginn


def test_huginn_starts_with_norms_of_one_and_an_unbiased_mix(made, scratch):
    built = made("huginn")
    entry, norm = built.model.loops[0].entry, built.model.loops[0].norm
    assert built.model.split.drawn(32) == "0-1 | 2-5 x 32 | 6-7"
    assert entry.std == NOISE
    assert entry.mix.bias is None
    assert entry.mix.weight.shape == (WIDTH, 2 * WIDTH)
    assert entry.mix.weight.std() > 0.05
    assert len(norm.norms) == 2 * 4
    assert all(equals(each.norm.weight, 1) for each in (*norm.norms, norm.after))
    assert built.model.loops[0].halter.threshold == 5e-4


def test_the_first_state_of_huginn_is_a_truncated_normal(made):
    entry = made("huginn").model.loops[0].entry
    drawn = entry.start(torch.zeros(1, 1000, WIDTH), a_turn(1, 1000, width=WIDTH)).flatten().sort().values / NOISE
    inside = math.erf(3 / math.sqrt(2))
    expected = 0.5 + torch.erf(drawn / math.sqrt(2)) / (2 * inside)  # the distribution function of N(0, 1) cut at 3
    found = (torch.arange(len(drawn)) + 0.5) / len(drawn)
    assert drawn.abs().max() <= 3
    assert (found - expected).abs().max() < 1.63 / math.sqrt(len(drawn))  # Kolmogorov-Smirnov, 1 %


def test_the_first_state_of_huginn_depends_on_seed_and_position_only(made):
    entry = made("huginn").model.loops[0].entry
    turn = a_turn(2, 200, width=WIDTH, seed=5)
    drawn = entry.start(torch.zeros(2, 200, WIDTH), turn)
    assert len(drawn[0].unique(dim=0)) == 200
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(entry.start(torch.ones(2, 200, WIDTH), turn), drawn)
    some = replace(turn, positions=torch.tensor([[190, 3, 64], [0, 1, 127]]))
    assert torch.equal(entry.start(torch.zeros(2, 3, WIDTH), some), drawn[0][some.positions])
    other = entry.start(torch.zeros(2, 200, WIDTH), replace(turn, seed=6))
    assert not (other == drawn).all(-1).any()


@torch.no_grad()
def test_huginn_reads_another_first_state_for_another_seed(moved, ids):
    model = moved("huginn", {"loop": {"turns": 3}})
    one, same, another = (model.trace(ids, seed=seed).logits() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - another).abs().max() > 0.01 * one.abs().max()


@torch.no_grad()
def test_nobody_leaves_huginn_early_in_training(moved, ids):
    model = moved("huginn", EXITS)
    assert model.trace(ids).taken.min() < 12
    assert equals(model.train().trace(ids).taken, 12)


def test_huginn_draws_its_depth_around_its_mean_and_learns_from_the_last_eight_turns(made):
    schedule = made("huginn").schedule
    drawn = [schedule(step, 0.0, 0) for step in range(4000)]
    turns = torch.tensor([depth.turns for depth in drawn]).float()
    spread = 32 + 32**2 * math.expm1(0.5**2)  # the variance of a Poisson number around a log-normal mean
    assert abs(turns.mean() - 33) < 1
    assert abs(turns.std() / math.sqrt(spread) - 1) < 0.06
    assert turns.max() <= 128
    assert min(turns) < 8
    assert all(depth.with_gradient == min(8, depth.turns) for depth in drawn)


def test_huginn_learns_from_its_last_turns_only(made, randomise, ids):
    built = made("huginn", {"loop": {"turns": 3}, "schedule": {"with_gradient": 2}})
    model, labels = randomise(built.model, spread=0.1).train(), ids.roll(-1, 1)
    depth = next(depth for step in range(100) if (depth := built.schedule(step, 0.0, 0)).turns == 5)
    assert depth.with_gradient == 2
    ours = gradients(model, model.trace(ids, depth=depth).logits(), labels)

    def plain(without):
        e, s = huginn_start(model, ids)
        for turn in range(5):
            with torch.set_grad_enabled(turn >= without):
                s = huginn_core(model, s, e)
        return gradients(model, huginn_read(model, s), labels)

    truncated, whole = plain(without=3), plain(without=0)
    assert ours.keys() == truncated.keys()
    for name, gradient in truncated.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    mix = "loops.0.entry.mix.weight"
    assert (ours[mix] - whole[mix]).abs().max() > 0.01 * whole[mix].abs().max()


def gradients(model, logits, labels):
    """Of the mean loss, by name."""
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(next_token_loss(logits, labels).mean(), named.values()), strict=True))


# Thinking Deeper


def test_thinking_deeper_starts_all_but_silent(made):
    built = made("thinking-deeper")
    gate, steps = built.model.loops[0].gate, built.model.loops[0].modulator.steps
    assert equals(gate.gate.open.weight, 0)
    assert equals(gate.gate.open.bias, -2)
    assert [scale.shape for scale in gate.scales] == [(WIDTH,)] * 2
    assert gate.sites == ("0.attention-out", "0.ffn-out")
    assert all(equals(scale, 1e-4) for scale in gate.scales)
    assert steps.weight.shape[1:] == (WIDTH,)
    assert equals(steps.weight, 0)
    assert built.model.turns == 8


@torch.no_grad()
@pytest.mark.parametrize(("objective", "taught"), [({}, [7]), ({"use": "every-turn"}, range(8))], ids=str)
def test_thinking_deeper_is_taught_by_its_final_turn_and_its_contrast_by_every_turn(
    objective, taught, made, randomise, ids
):
    built = made("thinking-deeper", {"objective": objective})
    model, labels = randomise(built.model, spread=0.1), ids.roll(-1, 1)
    losses = [next_token_loss(logits, labels).sum() for logits in thinking_deeper_turns(model, ids, 8)]
    assert abs(losses[-1] - sum(losses) / 8) > 0.1
    (loss,) = Loss(built, None)(ids, labels, Depth.full(8)).values()
    torch.testing.assert_close(loss, sum(losses[turn] for turn in taught) / len(taught))


# A whole run


def test_thinking_deeper_learns_a_tiny_text_and_loads_back_to_the_same_logits(
    scratch, host, folder, tmp_path, monkeypatch, ids
):
    (tmp_path / "text").mkdir()
    for number in range(12):
        turned = WORDS[number:] + WORDS[:number]
        (tmp_path / "text" / f"{number:02}.txt").write_text(" ".join(turned * 20))
    tables = {
        "data": {"train": str(tmp_path / "text"), "heldout": ["near"], "length": 32},
        "train": {"steps": 40, "batch": 4, "warmup": 2, "lr": 1e-2},
        "eval": {"tokens": 512, "validation": 256, "resamples": 200},
        "run": {"folder": str(tmp_path / "runs")},
    }
    judged, hear = {}, Judge.hear

    def heard(self, name, model):
        judged[name] = model.eval().trace(ids).logits()
        hear(self, name, model)

    monkeypatch.setattr(Judge, "hear", heard)
    outcome = run(scratch("thinking-deeper", tables), host)
    losses = [json.loads(line)["loss"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 40
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.5
    loaded = load_run(outcome.folder, host).built.model.eval()
    assert torch.equal(loaded.trace(ids).logits(), judged["recursive, trained"])
