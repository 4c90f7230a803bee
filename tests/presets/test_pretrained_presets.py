"""Presets that start from pretrained weights, against their equations written out; and what all presets promise."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch.nn import functional as F

from ouroboros_core import checks
from ouroboros_core.build import build, null_parts
from ouroboros_core.contracts import Depth, ModelFacts, Slot
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.gradients import WATCHED_STEPS
from ouroboros_core.host import PluginHost
from ouroboros_core.kept import StockLM
from ouroboros_core.refusals import refuse_nonsense
from ouroboros_core.reporting import Silent
from ouroboros_core.resolve import resolve
from ouroboros_core.run import accelerator_for
from ouroboros_core.settings import TABLES
from ouroboros_core.testing import a_turn, tiny_model
from ouroboros_core.training import Training
from tests.presets.restated import (
    PATHS,
    assert_same_logits,
    embedded,
    own_linears,
    padded,
    read_out,
    run_layer,
    run_layers,
    weight,
)

RANK, ALPHA, TURNS = 4, 16, 3


# The systems, written out


def prefix_mean(h):
    """Row t is the mean of rows up to t. (B, T, D) -> (B, T, D)."""
    length = h.shape[1]
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None] @ h


def sequence_mean(h):
    """Every row is the mean of all. (B, T, D) -> (B, 1, D)."""
    return h.mean(1, keepdim=True)


def controlled(modulator, h, turn, pool):
    """Ouroboros, eq. 2: f_k = head_k(style([SiLU(W pool(h)); e_t])), (B, T, R) for each of the seven linears."""
    see, first, second = modulator.see[0], modulator.style[0], modulator.style[2]
    seen = F.silu(F.linear(pool(h), see.weight, see.bias))
    step = modulator.step.weight[turn].expand(*seen.shape[:-1], -1)
    style = F.silu(F.linear(torch.cat([seen, step], -1), first.weight, first.bias))
    style = F.silu(F.linear(style, second.weight, second.bias))
    return [F.linear(style, head.weight) for head in modulator.heads]


def tabled(modulator, h, turn):
    """Ouroboros, section 5.1: a row of a table, (R) for each of the seven linears."""
    return modulator.diagonals.weight[turn]


def scaled_linears(layer, bases, diagonals):
    """Ouroboros, eq. 3: W x + (alpha / R) B diag(f) A x."""
    f = dict(zip(PATHS, diagonals, strict=True))

    def linear(name, x):
        down, up = bases.get_buffer(f"0_{name}_a"), bases.get_buffer(f"0_{name}_b")
        return F.linear(x, weight(layer, name)) + ALPHA / RANK * F.linear(f[name] * F.linear(x, down), up)

    return linear


def ouroboros(model, ids, diagonals, split, normed=True, gated=True):
    """Prelude; h <- g n + (1 - g) h with n = RMSNorm_t(block_t(h)), g = sigmoid(W [n; h] + b); coda."""
    base, parts, (prelude, block, coda) = model.base, model.loops[0], split
    layer = base.model.layers[str(block)]
    h = run_layers(base, prelude, embedded(base, ids))
    for turn in range(TURNS):
        f = diagonals(parts.modulator, h, turn)
        new = run_layer(base, layer, h, scaled_linears(layer, parts.modulator.bases, f))
        if normed:
            new = F.rms_norm(new, new.shape[-1:], parts.norm.scale.weight[turn], eps=1e-6)
        if gated:
            g = torch.sigmoid(F.linear(torch.cat([new, h], -1), parts.gate.open.weight, parts.gate.open.bias))
            new = g * new + (1 - g) * h
        h = new
    return read_out(base, run_layers(base, coda, h))


def relaxed(model, ids, shared):
    """K shared layers in a cycle; at turn t the linears of layer k are W + B_tk A_tk."""
    base, lora = model.base, model.loops[0].modulator
    tables = dict(zip(lora.places, zip(lora.down, lora.up, strict=True), strict=True))

    def linears(layer, place, turn):
        def linear(name, x):
            down, up = tables[f"{place}.{name}"]
            return F.linear(x, weight(layer, name) + up.weight[turn] @ down.weight[turn])

        return linear

    h = embedded(base, ids)
    for turn in range(TURNS):
        for place, index in enumerate(shared):
            layer = base.model.layers[str(index)]
            h = run_layer(base, layer, h, linears(layer, place, turn))
    return read_out(base, h)


def retrofit(model, ids, prelude, core, coda):
    """e = prelude(ids); s <- core(W [s; e]) from noise s; coda."""
    base, entry = model.base, model.loops[0].entry
    e = run_layers(base, prelude, embedded(base, ids))
    s = noise(model, e)
    for _ in range(TURNS):
        s = run_layers(base, core, F.linear(torch.cat([s, e], -1), entry.mix.weight))
    return read_out(base, run_layers(base, coda, s))


def noise(model, like, seed=0):
    """The model's first state: what it is drawn from has tests of its own. (B, T, D) -> (B, T, D)."""
    batch, tokens, width = like.shape
    return model.loops[0].entry.start(like, a_turn(batch, tokens, seed=seed, width=width))


# The systems, as presets on tiny models


@dataclass(frozen=True)
class Case:
    """A preset, what a model of so few layers and dimensions needs changed, and the system written out."""

    preset: str
    layers: int
    plain: Callable[..., Any]
    tables: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, settings_of, **more):
        return settings_of(self.preset, {"loop": {"turns": TURNS}}, self.tables, more)

    def build(self, settings_of, host, **more):
        return build(self.settings(settings_of, **more), host, tiny_model(self.layers))


SMALL = {"modulator": {"rank": RANK}}
MIDDLE, LAST = ([0, 1], 4, [7, 8]), ([0, 1, 2, 3, 4], 5, [])
CAUSAL, PAPERS = partial(controlled, pool=prefix_mean), partial(controlled, pool=sequence_mean)
CASES = {
    "ouroboros": Case("ouroboros", 9, partial(ouroboros, diagonals=CAUSAL, split=MIDDLE), SMALL),
    "ouroboros-paper": Case("ouroboros-paper", 9, partial(ouroboros, diagonals=PAPERS, split=MIDDLE), SMALL),
    "ouroboros-static": Case("ouroboros-static", 9, partial(ouroboros, diagonals=tabled, split=MIDDLE), SMALL),
    "refiner": Case("refiner", 6, partial(ouroboros, diagonals=CAUSAL, split=LAST, normed=False), SMALL),
    "refiner without gate": Case(
        "refiner",
        6,
        partial(ouroboros, diagonals=CAUSAL, split=LAST, normed=False, gated=False),
        SMALL | {"gate": {"use": "none"}},
    ),
    "relaxed": Case("relaxed", 6, partial(relaxed, shared=[0, 1]), SMALL | {"splitter": {"layers": 2}}),
    "retrofit": Case(
        "retrofit",
        12,
        partial(retrofit, prelude=[0, 1], core=[6, 7, 8], coda=[9, 10, 11]),
        {"splitter": {"prelude": 2, "block": 6, "size": 3, "coda": 3}},
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
of_ouroboros = pytest.mark.parametrize("name", ["ouroboros", "ouroboros-paper", "ouroboros-static"])
of_refiner = pytest.mark.parametrize("name", ["refiner", "refiner without gate"])


@every_case
@torch.no_grad()
def test_the_model_is_its_equations(case, settings_of, host, randomise, ids):
    model = case.build(settings_of, host).model
    randomise(model)
    expected = case.plain(model, ids)
    assert_same_logits(model.trace(ids).logits(), expected)
    one_turn_less = model.trace(ids, depth=Depth.full(TURNS - 1)).logits()
    assert (one_turn_less - expected).abs().max() > 0.01 * expected.abs().max()


@every_case
def test_every_trained_row_has_a_gradient_within_the_watched_steps_of_the_presets_own_training(
    case, settings_of, host, tmp_path
):
    steps = {"steps": 2 * WATCHED_STEPS, "warmup": 0, "batch": 2}  # steps of one turn are not enough
    settings = case.settings(settings_of, train=steps)
    intact = tiny_model(case.layers)
    built = build(settings, host, intact)
    teacher = StockLM(intact, host.anatomy(intact.config)) if built.wants_teacher else None
    blocks = torch.randint(0, 320, (6, 13), generator=torch.Generator().manual_seed(0))
    training = Training(built, blocks, settings.train, accelerator_for("cpu"), Silent(), teacher)
    training.run(tmp_path)
    assert "every reachable row" in training.watch.verdict().detail


@every_case
def test_every_option_of_the_chosen_parts_is_read(case, settings_of, host):
    settings = case.settings(settings_of)
    settings.forget_reads()
    build(settings, host, tiny_model(case.layers))
    assert [name for name in settings.unread() if name.partition(".")[0] in list(Slot)] == []


@every_case
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_moves_no_real_token(side, case, settings_of, host, randomise, ids):
    model = case.build(settings_of, host).model
    randomise(model)
    longer, mask, real = padded(ids, side)
    assert_same_logits(model.trace(longer, mask).logits()[:, real], model.trace(ids).logits())


@every_case
def test_with_neutral_parts_it_is_the_kept_layers(case, settings_of, host, ids):
    built = case.build(settings_of, host)
    null = [null_parts(host, facts) for facts in built.facts]
    assert checks.identity(built.model, null, tiny_model(case.layers), ids).passed


@pytest.mark.parametrize("name", [name for name in CASES if name != "ouroboros-paper"])
def test_no_token_sees_a_later_one(name, settings_of, host, ids):
    case = CASES[name]
    refuse_nonsense(case.settings(settings_of))
    assert checks.causality(case.build(settings_of, host).model, ids).passed


def test_the_letter_of_the_paper_is_refused_and_its_leak_is_found(settings_of, host, ids):
    case = CASES["ouroboros-paper"]
    with pytest.raises(UserError, match="modulator 'controller', so configured, lets a token see later ones"):
        refuse_nonsense(case.settings(settings_of))
    refuse_nonsense(case.settings(settings_of, run={"allow_leak": True}))
    model = case.build(settings_of, host).model
    with pytest.raises(CheckFailed, match="the model sees the future"):
        checks.causality(model, ids)
    assert checks.causality(model, ids, allowed=True).detail.startswith("LEAKS, as allowed")


# What they start as


def truncated(matrix, rank):
    """The best approximation of a rank, in double precision."""
    u, s, v = torch.linalg.svd(matrix.double())
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).float()


def mean_weight(layers, name):
    return torch.stack([weight(layer, name) for layer in layers]).mean(0)


def assert_best_change(down, up, change, rank=RANK):
    """B A is the truncated SVD of the change, with A of orthonormal rows."""
    torch.testing.assert_close(up @ down, truncated(change, rank), atol=1e-5, rtol=0)
    torch.testing.assert_close(down @ down.T, torch.eye(len(down)), atol=1e-5, rtol=0)
    assert (up @ down).abs().max() > 0.1


def assert_bases(model, intact, block, others):
    layers = intact.model.layers
    for name in PATHS:
        down, up = (model.loops[0].modulator.bases.get_buffer(f"0_{name}_{factor}") for factor in "ab")
        change = mean_weight([layers[i] for i in others], name) - weight(layers[block], name)
        assert_best_change(down, up, change)


def assert_intact(model, intact):
    """What of the base is kept is the intact model's own."""
    before = intact.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.base.state_dict().items())


def learns(built):
    return {name.partition(".")[0] for name, p in built.model.named_parameters() if p.requires_grad}


def equals(tensor, value):
    return tensor.numel() > 0 and torch.equal(tensor, torch.full_like(tensor, value))


@of_ouroboros
def test_ouroboros_starts_with_a_gate_that_keeps_and_directions_that_were_removed(name, settings_of, host):
    case = CASES[name]
    built, intact = case.build(settings_of, host), tiny_model(case.layers)
    parts = built.model.loops[0]
    assert equals(parts.gate.open.weight, 0)
    assert equals(parts.gate.open.bias, -2)
    assert parts.norm.scale.weight.shape == (64, 32)
    assert equals(parts.norm.scale.weight, 1)
    assert_bases(built.model, intact, block=4, others=[2, 3, 5, 6])
    assert_intact(built.model, intact)
    assert learns(built) == {"loops"}


@pytest.mark.parametrize("name", ["ouroboros", "ouroboros-paper", "refiner"])
def test_the_controller_has_the_papers_sizes_and_heads_of_zeros(name, settings_of, host):
    controller = CASES[name].build(settings_of, host).model.loops[0].modulator
    shapes = [tuple(linear.weight.shape) for linear in (controller.see[0], controller.style[0], controller.style[2])]
    assert shapes == [(256, 32), (256, 256 + 128), (128, 256)]
    assert controller.step.weight.shape == (64, 128)
    assert abs(controller.step.weight.std() - 1) < 0.05
    assert len(controller.heads) == 7
    assert all(head.bias is None and equals(head.weight, 0) for head in controller.heads)


@of_ouroboros
def test_ouroboros_has_the_papers_rank_and_alpha(name, settings_of):
    options = settings_of(name).one(Slot.MODULATOR).options
    assert (options.rank, options.alpha, options.rows) == (32, 16.0, 64)


def test_the_static_table_starts_as_zeros(settings_of, host):
    table = CASES["ouroboros-static"].build(settings_of, host).model.loops[0].modulator.diagonals.weight
    assert table.shape == (64, 7, RANK)
    assert equals(table, 0)


@of_refiner
def test_the_refiner_starts_as_the_intact_model_with_a_last_layer_to_loop(name, settings_of, host, ids):
    case = CASES[name]
    built, intact = case.build(settings_of, host), tiny_model(case.layers)
    assert built.model.split.removed == ()
    assert_bases(built.model, intact, block=5, others=[0, 1, 2, 3, 4])
    assert_intact(built.model, intact)
    assert learns(built) == {"loops"}
    if name == "refiner":
        assert equals(built.model.loops[0].gate.open.weight, 0)
        assert equals(built.model.loops[0].gate.open.bias, -2)


@torch.no_grad()
def test_the_refiner_without_gate_starts_as_the_intact_model_run_on_into_its_last_layer(settings_of, host, ids):
    built, intact = CASES["refiner without gate"].build(settings_of, host), tiny_model(6)
    again = deepcopy(intact)
    again.model.layers.extend([again.model.layers[5]] * (TURNS - 1))
    again.config.num_hidden_layers += TURNS - 1
    for turns, library in ((1, intact), (TURNS, again)):
        plain = library(input_ids=ids, use_cache=False).logits
        assert_same_logits(built.model.trace(ids, depth=Depth.full(turns)).logits(), plain)


def test_relaxed_starts_from_means_and_what_they_lost(settings_of, host):
    built, intact = CASES["relaxed"].build(settings_of, host), tiny_model(6)
    layers, kept, lora = intact.model.layers, built.model.base.model.layers, built.model.loops[0].modulator
    assert sorted(kept) == ["0", "1"]
    tables = dict(zip(lora.places, zip(lora.down, lora.up, strict=True), strict=True))
    assert sorted(tables) == sorted(f"{place}.{name}" for place in (0, 1) for name in PATHS)
    for place in (0, 1):
        for name in PATHS:
            shared = weight(kept[str(place)], name)
            own = [weight(layers[i], name) for i in (place, place + 2, place + 4)]
            torch.testing.assert_close(shared, torch.stack(own).mean(0))
            down, up = tables[f"{place}.{name}"]
            assert len(down.weight) == len(up.weight) == TURNS
            for turn in range(TURNS):
                assert_best_change(down.weight[turn], up.weight[turn], own[turn] - shared)
    assert learns(built) == {"base", "loops"}
    assert all(parameter.requires_grad for parameter in built.model.parameters())


@torch.no_grad()
def test_relaxed_at_full_rank_starts_as_the_intact_model(settings_of, host, ids):
    plain = tiny_model(6)(input_ids=ids, use_cache=False).logits
    full = CASES["relaxed"].build(settings_of, host, modulator={"rank": 32}).model
    assert_same_logits(full.trace(ids).logits(), plain)
    less = CASES["relaxed"].build(settings_of, host).model
    assert (less.trace(ids).logits() - plain).abs().max() > 0.1 * plain.abs().max()


@torch.no_grad()
def test_retrofit_starts_as_the_kept_layers_whatever_the_noise_and_the_turns(settings_of, host, ids):
    built, intact = CASES["retrofit"].build(settings_of, host), tiny_model(12)
    mix = built.model.loops[0].entry.mix
    assert torch.equal(mix.weight, torch.cat([torch.zeros(32, 32), torch.eye(32)], 1))
    assert mix.bias is None
    assert_intact(built.model, intact)
    assert all(parameter.requires_grad for parameter in built.model.parameters())
    kept = run_plainly(intact, [0, 1, 6, 7, 8, 9, 10, 11], ids)
    for turns, seed in ((1, 0), (TURNS, 1)):
        assert_same_logits(built.model.trace(ids, depth=Depth.full(turns), seed=seed).logits(), kept)


def run_plainly(intact, indices, ids):
    h = embedded(intact, ids)
    for i in indices:
        h = run_layer(intact, intact.model.layers[i], h, own_linears(intact.model.layers[i]))
    return read_out(intact, h)


@torch.no_grad()
def test_retrofit_starts_a_sequence_from_noise_of_its_seed(settings_of, host, randomise, ids):
    model = CASES["retrofit"].build(settings_of, host).model
    drawn = noise(model, torch.empty(1, 200, 32))
    assert drawn.abs().max() <= 3 * (2 / 5) ** 0.5
    assert abs(drawn.std() - (2 / 5) ** 0.5) < 0.02
    randomise(model.loops)
    one, same, another = (model.trace(ids, seed=seed).logits() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - another).abs().max() > 1e-3


def test_retrofit_heals_the_base_at_a_rate_of_its_own(settings_of, host):
    rates = CASES["retrofit"].build(settings_of, host).rates
    assert set(rates.values()) == {1e-4}
    assert all(name.startswith("base.") for name in rates)


def drawn_split(settings, layers):
    """The split of a model of so many layers, drawn."""
    choice, facts = settings.one(Slot.SPLITTER), ModelFacts(layers, 32, settings.loop.turns)
    return choice.part.build(choice.options, facts)(facts).drawn(settings.loop.turns)


@pytest.mark.parametrize(
    ("name", "layers", "drawn"),
    [
        ("ouroboros", 36, "0-7 | 18 x 4 | 28-35   (removed: 8-17, 19-27)"),
        ("ouroboros-paper", 36, "0-7 | 18 x 8 | 28-35   (removed: 8-17, 19-27)"),
        ("ouroboros-static", 36, "0-7 | 18 x 4 | 28-35   (removed: 8-17, 19-27)"),
        ("refiner", 24, "0-22 | 23 x 4"),
        ("relaxed", 18, "0-8 x 2 (each the mean of 2)   (removed: 9-17)"),
        ("retrofit", 30, "0-3 | 20-25 x 4 | 26-29   (removed: 4-19)"),
    ],
)
def test_the_layers_are_shared_out_as_published(name, layers, drawn, settings_of):
    assert drawn_split(settings_of(name), layers) == drawn


@pytest.mark.parametrize(
    ("name", "table", "values"),
    [
        ("ouroboros-paper", "train", {"lr": 3e-4, "weight_decay": 0.05, "betas": [0.9, 0.95], "clip": 1.0}),
        ("ouroboros-paper", "schedule", {"use": "choice", "turns": [4, 8, 16]}),
        ("relaxed", "objective", {"use": ["next-token", "distill"]}),
        ("relaxed", "modulator", {"use": ["lora"], "lora": {"rank": 16, "start": "svd"}}),
        (
            "retrofit",
            "schedule",
            {"use": "ramp", "over": 0.75, "shape": "one-minus-sqrt", "sigma": 0.5, "with_gradient": 8},
        ),
    ],
)
def test_training_is_as_published(name, table, values, settings_of):
    assert settings_of(name).tables()[table].items() >= values.items()


# What differs between them, and what all presets promise


def differing(one, other, where=""):
    """The paths at which two nested tables differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        every = sorted(one.keys() | other.keys())
        return [path for key in every for path in differing(one.get(key), other.get(key), f"{where}.{key}")]
    return [] if one == other else [where[1:]]


def test_the_static_ablation_differs_in_the_modulator_only(settings_of):
    controller, static = (settings_of(name).tables() for name in ("ouroboros", "ouroboros-static"))
    assert differing(controller, static) == ["modulator.controller", "modulator.static", "modulator.use"]
    of_both = (dict(tables["modulator"][tables["modulator"]["use"][0]]) for tables in (controller, static))
    assert differing(*of_both) == ["pool"]  # a static diagonal sees nothing to pool


def test_the_letter_of_the_paper_differs_in_the_pool_and_in_how_it_is_trained(settings_of):
    ours, papers = (settings_of(name).tables() for name in ("ouroboros", "ouroboros-paper"))
    assert differing(ours, papers) == [
        "loop.turns", "modulator.controller.pool", "schedule.turns", "schedule.use", "train.lr",
    ]  # fmt: skip


def built_in():
    """Every preset of the host."""
    return [preset for _, preset in PluginHost.installed(third_party=False).presets()]


PRESETS = {preset.name: preset for preset in built_in()}
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


@every_preset
def test_a_preset_tells_what_it_is_where_it_is_from_and_how_true_to_that(preset, host):
    assert all([preset.summary, preset.source, preset.faithful, preset.open])
    assert resolve(host, [preset.settings]).tables()


def options_in(preset):
    """Every option that a preset sets, as a path: slot, perhaps part, option. Names of parts are not among them."""
    for table, values in preset.settings.items():
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from ((table, key, inner) for inner in value)
            elif key != "use":
                yield table, key


def holder(settings, path):
    """The options, or the table within a table, that a path's last key is of."""
    if path[0] in TABLES:
        table = getattr(settings, path[0])
        return table if len(path) == 2 else getattr(table, path[1])
    options = {choice.name: choice.options for choice in settings.parts[Slot(path[0])]}
    return options.get(path[1], next(iter(options.values())))


def value_at(settings, path):
    held = holder(settings, path)
    return held[path[-1]] if isinstance(held, Mapping) else getattr(held, path[-1])


def another(settings, path):
    """Some other value that may be chosen there."""
    held, value = holder(settings, path), value_at(settings, path)
    kind = None if isinstance(held, Mapping) else type(held).model_fields[path[-1]].annotation
    if get_origin(kind) is Literal:
        return next(
            choice for choice in get_args(kind) if choice not in (value, "prompt")
        )  # which needs an option more
    if isinstance(value, bool):
        return not value
    return {str: "another", list: [3]}.get(type(value)) or value * 2


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


OPTIONS = [(preset.name, path) for preset in PRESETS.values() for path in options_in(preset)]


@pytest.mark.parametrize(("name", "path"), OPTIONS, ids=lambda each: each if isinstance(each, str) else ".".join(each))
def test_every_option_of_a_preset_gives_way_to_a_later_layer_which_changes_nothing_else(name, path, settings_of):
    before = settings_of(name)
    wanted = another(before, path)
    after = settings_of(name, nested(path, wanted))
    assert value_at(after, path) == wanted != value_at(before, path)
    (changed,) = differing(before.tables(), after.tables())
    assert changed.split(".")[0] == path[0]
    assert changed.split(".")[-1] == path[-1]


@pytest.mark.parametrize(
    ("name", "slot"),
    [(preset.name, slot) for preset in PRESETS.values() for slot in preset.settings if slot in [*Slot]],
)
def test_every_part_of_a_preset_gives_way_to_another(name, slot, settings_of, host):
    chosen = settings_of(name).parts[Slot(slot)]
    other = next(part.name for _, part in host.parts(Slot(slot)) if part.name not in [each.name for each in chosen])
    after = settings_of(name, {slot: {"use": other}}).one(Slot(slot))
    assert after.name == other
    assert after.options == after.part.options()
