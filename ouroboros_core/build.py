"""From settings to modules: the split, the parts, the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import Anatomy, HFModel
from ouroboros_core.bases import svd_bases
from ouroboros_core.contracts import TURN_SLOTS, LoopFacts, ModelFacts, Objective, Schedule, Slot, TapFacts
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost
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

    @property
    def wants_teacher(self) -> bool:
        """Whether an objective reads the intact model."""
        return any(objective.wants_teacher for objective in self.objectives.values())


class Chain(nn.Module):
    """Several modulators as one."""

    def __init__(self, modulators: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modulators = nn.ModuleList(modulators)

    def forward(self, *state_and_turn: object) -> Ops:
        """The ops of all, merged."""
        return merge(modulator(*state_and_turn) for modulator in self.modulators)


def build(settings: Settings, host: PluginHost, intact: HFModel, *, fill_bases: bool = True) -> Built:
    """Make the recursive model that the settings describe, on the intact model's device.

    The generator is seeded here, so that equal settings give equal initial values. Without `fill_bases` the SVD bases
    are zeros, to be loaded: then the removed layers are not looked at.

    Raises:
        UserError: the split does not fit the model, or a part's options do not fit the loop.
    """
    torch.manual_seed(settings.train.seed)
    anatomy = host.anatomy(intact.config)
    inner = anatomy.inner(intact)
    model_facts = ModelFacts(len(inner.layers), intact.config.hidden_size, settings.loop.turns)
    split: Split = _make(settings.one(Slot.SPLITTER), model_facts)(model_facts)
    schedule: Schedule = _make(settings.one(Slot.SCHEDULE), model_facts)
    facts = [
        _loop_facts(anatomy, intact, split, segment, settings.loop.turns, schedule.most, fill_bases)
        for segment in split.segments
        if segment.looped
    ]
    with inner.get_input_embeddings().weight.device:
        parts = [_parts(settings, each) for each in facts]
        model = RecursiveLM(
            intact, anatomy, split, parts, settings.loop.turns,
            seed=settings.train.seed, recompute=settings.loop.recompute,
        )  # fmt: skip
        for choice in settings.parts[Slot.ADAPTER]:
            _make(choice, facts[0])(model)
    for parameter in model.parameters():  # an adapter's may be of the base's dtype, which loses small updates
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    objectives = {choice.name: _make(choice, facts[0]) for choice in settings.parts[Slot.OBJECTIVE]}
    return Built(model, schedule, objectives, facts)


def null_parts(host: PluginHost, facts: LoopFacts) -> Parts:
    """Parts that change nothing: with them, one turn is the kept layers in order."""
    return Parts(*(part.build(part.options(), facts) for part in map(host.null, TURN_SLOTS)))


def control_settings(settings: Settings, host: PluginHost) -> Settings:
    """The trained control: the same layers, text, budget, objectives and adapter; one turn, every turn's part null."""
    null = {slot: host.null(slot) for slot in (*TURN_SLOTS, Slot.SCHEDULE)}
    one_turn = settings.loop.model_copy(update={"turns": 1})
    return settings.with_parts(host, null).with_tables(loop=one_turn)


def refuse_leaks(settings: Settings) -> None:
    """Refuse parts that declare that a token sees later ones.

    Raises:
        UserError: there is one, and `run.allow_leak` is off.
    """
    for slot, choices in settings.parts.items():
        for choice in choices:
            if not choice.options.causal and not settings.run.allow_leak:
                raise UserError(
                    f"{slot} '{choice.name}', so configured, lets a token see later ones: its loss would not be that "
                    "of a language model. Choose another option, or say --allow-leak to study it"
                )


def _make(choice: Choice, facts: ModelFacts | LoopFacts):  # type: ignore[no-untyped-def]
    return choice.part.build(choice.options, facts)


def _parts(settings: Settings, facts: LoopFacts) -> Parts:
    made = {slot: [_make(choice, facts) for choice in settings.parts[slot]] for slot in TURN_SLOTS}
    return Parts(*(several[0] if len(several) == 1 else Chain(several) for several in made.values()))


def _loop_facts(
    anatomy: Anatomy,
    intact: HFModel,
    split: Split,
    segment: Segment,
    turns: int,
    trained: int,
    fill_bases: bool,
) -> LoopFacts:
    layers = anatomy.inner(intact).layers
    taps = {
        f"{place}.{name}": TapFacts(linear.in_features, linear.out_features)
        for place, index in enumerate(segment.layers)
        for name, linear in anatomy.linears(layers[index]).items()
    }

    def bases(rank: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        if not fill_bases:
            like = next(layers[segment.layers[0]].parameters())
            return {k: (like.new_zeros(rank, t.inputs), like.new_zeros(t.outputs, rank)) for k, t in taps.items()}
        return svd_bases(anatomy, layers, segment.layers, split.residual_layers, rank)

    return LoopFacts(intact.config.hidden_size, turns, trained, taps, bases)
