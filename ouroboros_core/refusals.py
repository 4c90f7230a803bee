"""Combinations that make no sense, refused in one line before anything is trained."""

from __future__ import annotations

from ouroboros_core.build import Built
from ouroboros_core.contracts import Slot
from ouroboros_core.errors import UserError
from ouroboros_core.settings import Settings, TrainSettings


def refuse_nonsense(settings: Settings) -> None:
    """Refuse parts that let a token see later ones, that would read nothing, or that nothing would teach.

    Raises:
        UserError: a part declares that it leaks, and `run.allow_leak` is off; an objective is about halting, and every
            token takes every turn; a halter learns from objectives, and none is about halting; or a splitter
            measures random weights.
    """
    halter, splitter = settings.one(Slot.HALTER), settings.one(Slot.SPLITTER)
    about_halting = [choice for choice in settings.parts[Slot.OBJECTIVE] if choice.part.needs_shares]
    if about_halting and not halter.part.gives_shares:
        raise UserError(
            f"objective '{about_halting[0].name}' is about when tokens halt, and halter '{halter.name}' tells nothing "
            "of that in training: name another, for example --halter act"
        )
    if halter.part.read_by_objective and not about_halting:
        raise UserError(
            f"halter '{halter.name}' learns from an objective that reads its shares, and none does: name one, "
            "--objective exit-gate or ponder-kl"
        )
    if splitter.part.measures and settings.base.config is not None:
        raise UserError(
            f"splitter '{splitter.name}' chooses by what trained layers do to text, and base.config makes random "
            "weights: name another splitter"
        )
    for slot, choices in settings.parts.items():
        for choice in choices:
            if not choice.options.causal and not settings.run.allow_leak:
                raise UserError(
                    f"{slot} '{choice.name}', so configured, lets a token see later ones: its loss would not be that "
                    "of a language model. Choose another option, or say --allow-leak to study it"
                )


def refuse_warmup_alone(train: TrainSettings) -> None:
    """Refuse a training that is over before its rate is at its peak.

    Raises:
        UserError: no step is left behind the warm-up.
    """
    if train.warmup >= train.steps:
        raise UserError(
            f"train.warmup={train.warmup} is not less than train.steps={train.steps}: lower it, for example --set "
            f"train.warmup={train.steps // 10}"
        )


def refuse_untaught(settings: Settings, built: Built) -> None:
    """Refuse a base of random weights that nobody trains, or that is to be learnt from.

    Raises:
        UserError: some of its weights stay frozen, or an objective reads it as a teacher.
    """
    if not settings.base.config:
        return
    frozen = [name for name, parameter in built.model.base.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise UserError(f"base.config makes random weights, and {frozen[0]} would stay random: add --adapter full")
    if teachers := [name for name, objective in built.objectives.items() if objective.wants_teacher]:
        raise UserError(
            f"base.config makes random weights, and objective '{teachers[0]}' learns from them: leave it out"
        )


def refuse_idle(built: Built) -> None:
    """Refuse a model that has nothing to train.

    Raises:
        UserError: every parameter is frozen.
    """
    if not any(parameter.requires_grad for parameter in built.model.parameters()):
        raise UserError("nothing learns: every part is without parameters, and the adapter leaves the base frozen")
