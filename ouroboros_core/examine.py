"""What can be learned of a trained run afterwards: losses, depth, residuals, halting, cache policies, tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ouroboros_core import measure, rundir, weights
from ouroboros_core.accounting import parameters
from ouroboros_core.build import build, control_settings
from ouroboros_core.contracts import Slot
from ouroboros_core.data import ROLES, Domain, Text
from ouroboros_core.depth import Done, depth_curve, depth_turns, residuals
from ouroboros_core.devices import accelerator_for
from ouroboros_core.errors import UserError
from ouroboros_core.halting import halting_report
from ouroboros_core.host import PluginHost
from ouroboros_core.judge import CONTROL, INTACT, KEPT, TRAINED, Judge
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.model import RecursiveLM
from ouroboros_core.reporting import Reporter, Silent
from ouroboros_core.run import read_text
from ouroboros_core.rundir import Loaded
from ouroboros_core.settings import Settings

LEAST = {"turns": 1, "tokens": 256, "batch": 1, "limit": 1}


@dataclass(frozen=True)
class Asked:
    """What to examine, and on what. What is empty or None is as the run has it."""

    only: Sequence[str] = ()  # sections; none: all that need nothing more, and those that something is given for
    turns: Sequence[int] = ()  # of the depth curve; the residuals go to the largest
    domains: Sequence[str] = ()
    tokens: int | None = None  # most of a domain
    batch: int | None = None
    device: str | None = None
    tasks: Sequence[str] = ()
    tasks_from: Path | None = None  # a folder of task files
    limit: int | None = None  # items of a task
    cache: Sequence[str] = ()  # policies


def examine(
    loaded: Loaded, folder: Path, asked: Asked | None = None, reporter: Reporter | None = None, *,
    host: PluginHost | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Examine a trained run, section by section; plain values. Nothing is written.

    Args:
        folder: of the run.
        host: where the run's parts come from; asked for only where the run has a control.

    Raises:
        UserError: a section, a domain or a number is asked for that there cannot be, or the text is not what it was.
    """
    asked = asked or Asked()
    sections = sections_of(asked)
    subject = Examination(loaded, folder, asked, reporter or Silent(), host)
    model = loaded.built.model
    found: dict[str, Any] = {"split": model.split.drawn(model.turns)}
    for name in sections:
        subject.reporter.stage(name)
        found[name] = SECTIONS[name](subject)
    return found


def sections_of(asked: Asked) -> list[str]:
    """The sections to go through, in order.

    Raises:
        UserError: one is unknown or lacks what it needs, or a number is too small.
    """
    if unknown := [name for name in asked.only if name not in SECTIONS]:
        raise UserError(f"no section is called '{unknown[0]}'. Known: {', '.join(SECTIONS)}")
    given = {"tasks": asked.tasks, "cache": asked.cache}
    if empty := [name for name in asked.only if not given.get(name, True)]:
        raise UserError(f"section '{empty[0]}' needs names: {NAMED[empty[0]]}")
    numbers = [("turns", turns) for turns in asked.turns]
    numbers += [(name, value) for name in ("tokens", "batch", "limit") if (value := getattr(asked, name)) is not None]
    if few := [(name, value) for name, value in numbers if value < LEAST[name]]:
        raise UserError("{} = {}: at least {}".format(*few[0], LEAST[few[0][0]]))
    return [name for name in SECTIONS if (name in asked.only if asked.only else given.get(name, True))]


class Examination:
    """A trained run on its device, and the text it is read with; text and models are made when first asked for."""

    def __init__(self, loaded: Loaded, folder: Path, asked: Asked, reporter: Reporter, host: PluginHost | None) -> None:
        self.loaded, self.folder, self.asked, self.reporter, self.host = loaded, folder, asked, reporter, host
        self.device: torch.device = accelerator_for(asked.device or loaded.settings.base.device).device
        given = {"tokens": asked.tokens, "batch": asked.batch}
        judged = loaded.settings.eval.model_copy(update={name: n for name, n in given.items() if n is not None})
        self.settings: Settings = loaded.settings.with_tables(eval=judged)
        self.model: RecursiveLM = loaded.built.model.to(self.device).eval()
        self.trained: int = loaded.built.schedule.most

    @cached_property
    def text(self) -> Text:
        """The held-out text, as the run reads it."""
        text = read_text(self.settings, self.loaded.base)
        must_be_its_text(self.folder, text, self.settings.data.train)
        names = [domain.name for domain in _domains(text)]
        if unknown := [name for name in self.asked.domains if name not in names]:
            raise UserError(f"no held-out domain of {self.folder} is called '{unknown[0]}'. Known: {', '.join(names)}")
        wanted = {domain.name: domain for domain in _domains(text) if domain.name in (self.asked.domains or names)}
        heldout = [domain for domain in text.heldout if domain.name in wanted]
        return replace(text, heldout=heldout, validation=wanted.get("validation"))

    @property
    def domains(self) -> list[Domain]:
        """What is read, validation text last."""
        return _domains(self.text)

    @property
    def turns(self) -> list[int]:
        """Of the depth curve."""
        return sorted(set(self.asked.turns)) or depth_turns(self.trained, self.model.turns)

    @cached_property
    def models(self) -> dict[str, RecursiveLM | StockLM]:
        """What the trained model is compared with, and itself, by name."""
        intact, anatomy = self.loaded.base.model.to(self.device), self.model.anatomy
        stock = {} if self.loaded.base.random else {INTACT: StockLM(intact, anatomy)}
        kept = StockLM(kept_once(intact, anatomy, self.model.split), anatomy)
        return {**stock, KEPT: kept, TRAINED: self.model, **self._control()}

    def done(self, what: str, times: int = 1) -> Done:
        """Tells the reporter of rows of every domain, which are read `times` times."""
        total = times * sum(len(domain.blocks) for domain in self.domains)
        return lambda rows: self.reporter.read(what, "held-out text", rows, total)

    def _control(self) -> dict[str, RecursiveLM]:
        place = self.folder / "control"
        if not (place / weights.PARTS).is_file():
            return {}
        settings, host = self.loaded.settings, self.host or PluginHost.installed()
        measured = settings.one(Slot.SPLITTER).part.measures
        statistics = measure.loads(self.folder / rundir.LAYERS) if measured else None
        built = build(control_settings(settings, host), host, self.loaded.base.model, statistics, fill_bases=False)
        weights.load_parts(built.model, place)
        return {CONTROL: built.model.to(self.device).eval()}


def _loss(subject: Examination) -> dict[str, Any]:
    """Held-out loss by domain and model, as at the end of a run."""
    judge = Judge(subject.settings.eval, subject.text, subject.device, subject.reporter)
    for name, model in subject.models.items():
        judge.hear(name, model)
    return {
        "domains": judge.verdict(),
        "parameters": {name: asdict(parameters(model)) for name, model in subject.models.items()},
    }


def _depth(subject: Examination) -> dict[str, Any]:
    """The depth curve."""
    turns, judged = subject.turns, subject.settings.eval
    done = subject.done("depth curve", len(turns))
    curve = depth_curve(
        subject.model, subject.domains, turns,
        trained=subject.trained, batch=judged.batch, resamples=judged.resamples, done=done,
    )  # fmt: skip
    return asdict(curve)


def _residuals(subject: Examination) -> dict[str, Any]:
    """Fixed-point residuals, as far as the depth curve goes."""
    batch, done = subject.settings.eval.batch, subject.done("residuals")
    return asdict(residuals(subject.model, subject.domains, max(subject.turns), batch=batch, done=done))


def _halting(subject: Examination) -> dict[str, Any] | None:
    """The halting report by domain; None where the halter is fixed."""
    batch, done = subject.settings.eval.batch, subject.done("halting")
    found = halting_report(subject.model, subject.domains, batch=batch, done=done)
    return None if found is None else {name: asdict(report) for name, report in found.items()}


def _cache(subject: Examination) -> Any:
    """The loss that each policy of the cache costs."""
    from ouroboros_core.policies import MOST, policy_losses

    judged, tokens = subject.settings.eval, min(MOST, subject.settings.eval.tokens)
    found = policy_losses(
        subject.model, subject.domains, subject.asked.cache, tokens=tokens, batch=judged.batch,
        resamples=judged.resamples, done=partial(subject.reporter.read, "cache"),
    )  # fmt: skip
    return {name: [asdict(one) for one in each] for name, each in found.items()}


def _tasks(subject: Examination) -> dict[str, Any]:
    """What each model scores on the tasks."""
    from ouroboros_core.tasks import evaluate_tasks

    asked, tokenizer = subject.asked, subject.loaded.base.tokenizer
    if not subject.model.config.causal:
        raise UserError("a part lets tokens see later ones, the answers too: no task can be asked")
    ask = partial(evaluate_tasks, folder=asked.tasks_from, limit=asked.limit, batch=subject.settings.eval.batch)
    plain = {name: model.base if isinstance(model, StockLM) else model for name, model in subject.models.items()}
    return {
        name: [asdict(one) for one in ask(model, tokenizer, asked.tasks, done=partial(subject.reporter.read, name))]
        for name, model in plain.items()
    }


SECTIONS: Mapping[str, Callable[[Examination], Any]] = {  # names that may be wrong are looked up first
    "tasks": _tasks, "cache": _cache, "loss": _loss, "depth": _depth, "residuals": _residuals, "halting": _halting,
}  # fmt: skip
NAMED = {"tasks": "say which tasks, --tasks arc_easy,piqa", "cache": "say which policies, --cache last,modulo:2"}


def must_be_its_text(folder: Path, text: Text, source: str) -> None:
    """Refuse text that is split otherwise than when the run was trained: it may be judged on what it was trained on.

    Raises:
        UserError: the training source differs, or the manifest is missing.
    """
    try:
        then = json.loads((folder / rundir.MANIFEST).read_text())["text"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / rundir.MANIFEST} cannot be read: {error}") from error
    if changed := [role for role in ROLES if then.get(role) != text.fingerprint.get(role)]:
        raise UserError(
            f"data {source} is not what {folder} was trained on ({', '.join(changed)} differ): held-out documents may "
            "have been trained on. Give it the same text, and of a streamed data set the same number of tokens"
        )


def _domains(text: Text) -> list[Domain]:
    return [*text.heldout, *([text.validation] if text.validation else [])]
