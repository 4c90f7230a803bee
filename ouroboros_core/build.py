"""From settings to modules: the split, the parts, the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import Anatomy, HFModel
from ouroboros_core.bases import svd_bases, svd_residuals
from ouroboros_core.contracts import (
    TURN_SLOTS,
    Adapter,
    Factors,
    LayerStatistics,
    LoopFacts,
    ModelFacts,
    Objective,
    Schedule,
    Slot,
    TapFacts,
)
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost
from ouroboros_core.kept import started
from ouroboros_core.loop import Parts
from ouroboros_core.model import RecursiveLM
from ouroboros_core.ops import Ops, merge
from ouroboros_core.settings import Choice, Settings
from ouroboros_core.split import Segment, Split


@dataclass(frozen=True)
class Built:
    """A recursive model, and what trains it."""

    model: RecursiveLM
    schedule: Schedule
    objectives: Mapping[str, Objective]
    facts: Sequence[LoopFacts]  # one for each loop
    rates: Mapping[str, float]  # own peak rate of a parameter, by name; any other learns at `train.lr`
    gives_shares: bool  # the halter tells, in training, how likely each turn is to be the last

    @property
    def wants_teacher(self) -> bool:
        """Whether an objective reads the intact model."""
        return any(objective.wants_teacher for objective in self.objectives.values())

    @property
    def wants_turns(self) -> bool:
        """Whether an objective reads every turn."""
        return any(objective.wants_turns for objective in self.objectives.values())


class Chain(nn.Module):
    """Several modulators as one."""

    def __init__(self, modulators: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modulators = nn.ModuleList(modulators)

    def forward(self, *state_and_turn: object) -> Ops:
        """The ops of all, merged."""
        return merge(modulator(*state_and_turn) for modulator in self.modulators)


def build(
    settings: Settings, host: PluginHost, intact: HFModel, statistics: LayerStatistics | None = None, *,
    fill_bases: bool = True, split: Split | None = None,
) -> Built:  # fmt: skip
    """Make the recursive model that the settings describe, on the intact model's device.

    The generator is seeded here, so that equal settings give equal initial values. Without `fill_bases` the SVD bases
    are zeros, to be loaded.

    Args:
        statistics: of the intact model's layers, for a splitter that measures.
        split: one that was drawn before; None: what the splitter draws.

    Raises:
        UserError: the split does not fit the model, or a part or its options do not fit the loop.
    """
    torch.manual_seed(settings.train.seed)
    anatomy = host.anatomy(intact.config)
    split = split or split_of(settings, anatomy, intact, statistics)
    _refuse_untaught(settings.one(Slot.HALTER), split)
    schedule: Schedule = _make(settings.one(Slot.SCHEDULE), _model_facts(settings, anatomy, intact, statistics))
    facts = [
        _loop_facts(anatomy, intact, split, segment, settings.loop.turns, schedule.most, fill_bases)
        for segment in split.segments
        if segment.looped
    ]
    with anatomy.head(intact).weight.device:
        parts = [_parts(settings, each) for each in facts]
        model = RecursiveLM(
            intact, anatomy, split, parts, settings.loop.turns,
            seed=settings.train.seed, recompute=settings.loop.recompute,
            probed=settings.one(Slot.HALTER).part.reads_logits, causal=_causal(settings),
        )  # fmt: skip
        model.config.tables = settings.tables()
        rates = _adapted(model, [_make(choice, facts[0]) for choice in settings.parts[Slot.ADAPTER]])
    _float_masters(model)
    objectives = {choice.name: _make(choice, facts[0]) for choice in settings.parts[Slot.OBJECTIVE]}
    return Built(model, schedule, objectives, facts, rates, settings.one(Slot.HALTER).part.gives_shares)


def split_of(settings: Settings, anatomy: Anatomy, intact: HFModel, statistics: LayerStatistics | None) -> Split:
    """The split that the settings choose.

    Raises:
        UserError: it does not fit the model, or it must be measured and was not.
    """
    choice = settings.one(Slot.SPLITTER)
    if choice.part.measures and statistics is None:
        raise UserError(
            f"splitter '{choice.name}' chooses by what the layers do to text, which a config does not tell: "
            "ouro plan --measure loads the weights"
        )
    facts = _model_facts(settings, anatomy, intact, statistics)
    split: Split = _make(choice, facts)(facts)
    return split


def null_parts(host: PluginHost, facts: LoopFacts) -> Parts:
    """Parts that change nothing: with them, one turn is the kept layers in order."""
    return Parts(*(part.build(part.options(), facts) for part in map(host.null, TURN_SLOTS)))


def control_settings(settings: Settings, host: PluginHost) -> Settings:
    """The trained control: the same layers, text, budget, objectives and adapter; one turn, every turn's part null.

    An objective that reads a halter's shares has nothing to read there, and is left out.
    """
    null = {slot: host.null(slot) for slot in (*TURN_SLOTS, Slot.SCHEDULE)}
    one_turn = settings.loop.model_copy(update={"turns": 1})
    objectives = tuple(choice for choice in settings.parts[Slot.OBJECTIVE] if not choice.part.needs_shares)
    control = settings.with_parts(host, null if objectives else {**null, Slot.OBJECTIVE: host.default(Slot.OBJECTIVE)})
    control = control.with_tables(loop=one_turn)
    return replace(control, parts={**control.parts, Slot.OBJECTIVE: objectives}) if objectives else control


def _causal(settings: Settings) -> bool:
    return all(choice.options.causal for choices in settings.parts.values() for choice in choices)


def _refuse_untaught(halter: Choice, split: Split) -> None:
    loops = sum(segment.looped for segment in split.segments)
    if halter.part.read_by_objective and loops > 1:
        raise UserError(
            f"halter '{halter.name}' learns from an objective that reads shares, the last loop's alone, and this split "
            f"has {loops} loops: name a splitter with one loop, or --halter act"
        )


def _make(choice: Choice, facts: ModelFacts | LoopFacts):  # type: ignore[no-untyped-def]
    return choice.part.build(choice.options, facts)


def _parts(settings: Settings, facts: LoopFacts) -> Parts:
    made = {slot: [_make(choice, facts) for choice in settings.parts[slot]] for slot in TURN_SLOTS}
    return Parts(*(several[0] if len(several) == 1 else Chain(several) for several in made.values()))


def _adapted(model: RecursiveLM, adapters: Sequence[Adapter]) -> dict[str, float]:
    """Let each adapter make its part of the base learn; returns rates that are not the run's, by the final names."""
    rates: dict[Tensor, float] = {}
    for adapter in adapters:
        before = {id(p) for p in model.parameters() if p.requires_grad}
        adapter(model)
        if adapter.rate is not None:
            rates |= {p: adapter.rate for p in model.parameters() if p.requires_grad and id(p) not in before}
    return {name: rates[p] for name, p in model.named_parameters() if p in rates}


def _float_masters(model: RecursiveLM) -> None:
    """Keep what learns in float32, since the base's dtype loses small updates; norms answer in the dtype they get."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.base.modules():
        if not isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters(recurse=False)):
            module.register_forward_hook(_in_the_dtype_it_got)


def _in_the_dtype_it_got(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y.to(args[0].dtype) if args[0].is_floating_point() else y


def _model_facts(
    settings: Settings, anatomy: Anatomy, intact: HFModel, statistics: LayerStatistics | None
) -> ModelFacts:
    layers = len(anatomy.inner(intact).layers)
    return ModelFacts(layers, intact.config.hidden_size, settings.loop.turns, statistics)


def _loop_facts(
    anatomy: Anatomy, intact: HFModel, split: Split, segment: Segment, turns: int, trained: int, fill_bases: bool
) -> LoopFacts:
    layers = anatomy.inner(intact).layers
    block = started(intact, anatomy, split, segment.layers)
    taps = {
        f"{place}.{name}": TapFacts(linear.in_features, linear.out_features)
        for place, layer in enumerate(block)
        for name, linear in anatomy.linears(layer).items()
    }
    like = next(block[0].parameters())

    def zeros(rank: int, tap: TapFacts) -> Factors:
        sides = (rank, tap.inputs), (tap.outputs, rank)
        down, up = (like.new_zeros(side, dtype=torch.float32) for side in sides)
        return down, up

    def bases(rank: int) -> Mapping[str, Factors]:
        if not fill_bases:
            return {name: zeros(rank, tap) for name, tap in taps.items()}
        return svd_bases(anatomy, block, [layers[i] for i in split.residual_layers], rank)

    def residuals(rank: int) -> Mapping[str, Sequence[Factors]]:
        if not fill_bases:
            return {name: [zeros(min(rank, tap.inputs, tap.outputs), tap)] * len(segment.stands_for)
                    for name, tap in taps.items()}  # fmt: skip
        return svd_residuals(anatomy, block, [[layers[i] for i in turn] for turn in segment.stands_for], rank)

    return LoopFacts(intact.config.hidden_size, turns, trained, taps, bases, residuals, len(block))
