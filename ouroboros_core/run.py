"""The main job: build, check, train, judge, write down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ouroboros_core import checks, hub, pretrained, rundir, weights
from ouroboros_core.accounting import Operations, mean_depth, operations, parameters
from ouroboros_core.build import Built, build, control_settings, null_parts
from ouroboros_core.contracts import LayerStatistics
from ouroboros_core.data import Text, align, prepare
from ouroboros_core.devices import accelerator_for, peak_memory
from ouroboros_core.errors import Interrupted, UserError
from ouroboros_core.files import need_room
from ouroboros_core.host import PluginHost
from ouroboros_core.judge import CONTROL, INTACT, KEPT, TRAINED, Judge
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.measure import measured
from ouroboros_core.model import RecursiveLM
from ouroboros_core.pretrained import Pretrained
from ouroboros_core.refusals import refuse_nonsense, refuse_untaught, refuse_warmup_alone
from ouroboros_core.reporting import Reporter, Silent
from ouroboros_core.settings import Settings
from ouroboros_core.training import Training

CHECKED = 64  # tokens of each of two sequences that the causality and identity checks read


@dataclass(frozen=True)
class Outcome:
    """What a run found. `evaluation` is what `evaluation.json` holds."""

    folder: Path
    evaluation: dict[str, Any]
    speaker: bool = True  # false in all processes of a distributed run but one


def run(
    settings: Settings, host: PluginHost, reporter: Reporter | None = None, *, resume: Path | None = None,
    folder: Path | None = None,
) -> Outcome:  # fmt: skip
    """Make the model recursive, train it, judge it on text it never saw, and write everything into a run folder.

    Args:
        settings: from `resolve`; of a run to be resumed, from `rundir.settings_of`.
        resume: the folder of an unfinished run.
        folder: where a fresh run is written; None: a new name in `run.folder`.

    Raises:
        UserError: a mistake in the settings, or something that is not there.
        CheckFailed: a trust check failed.
        Interrupted: Ctrl-C; what was done is saved.
    """
    settings.forget_reads()
    refuse_nonsense(settings)
    refuse_warmup_alone(settings.train)
    job = Job(settings, host, reporter or Silent(), resume, folder)
    job.check()
    job.begin()
    try:
        job.train()
        return job.judge()
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise Interrupted(f"{str(stopped) or 'stopped'}. Go on with: ouro run --resume {job.folder}") from None


class Job:
    """A run in pieces. Making one loads, reads and builds everything, and writes nothing."""

    def __init__(
        self, settings: Settings, host: PluginHost, reporter: Reporter, resume: Path | None, folder: Path | None = None
    ) -> None:
        self.settings, self.host = settings, host
        self.accelerator = accelerator_for(settings.base.device)
        self.reporter = reporter if self.accelerator.is_main_process else Silent()
        self.seconds: dict[str, float] = {}
        fresh = rundir.new_name(settings, folder)
        self.resumed, self.folder = bool(resume), resume or fresh
        with self.stage("load the base model"):
            self.base = pretrained.load(settings.base, settings.train.seed)
            if self.base.random:
                self.reporter.note(f"base: random weights of this config, tokenizer of {settings.base.name}")
            self.base.model.to(self.accelerator.device)
            self.stock = StockLM(self.base.model, host.anatomy(self.base.model.config))
        with self.stage("read the text"):
            self.text = read_text(settings, self.base)
        with self.stage("build the recursive model"):
            self.statistics = self._statistics()
            self.built = build(settings, host, self.base.model, self.statistics)
            self.built.model.config.base = self.base.told(settings.base)
            refuse_untaught(settings, self.built)
            self.control = self._control() if settings.eval.control else None
        self.training = self._training(self.built)
        self.judgement = Judge(settings.eval, self.text, self.accelerator.device, self.reporter)
        need_room(self.folder, room(self.built, settings.train.keep) * (2 if self.control else 1))

    def check(self) -> None:
        """Make the trust checks.

        Raises:
            CheckFailed: one failed.
        """
        model, device = self.built.model.eval(), self.accelerator.device
        batches = self.training.batches(0) + [align(domain.blocks[:2].to(device)) for domain in self.judgement.domains]
        ids = self.text.train[:2, :CHECKED].to(device)
        null = [null_parts(self.host, facts).to(device) for facts in self.built.facts]
        teacher = self.stock if self.built.wants_teacher else None
        with self.stage("check"):
            tell = self.reporter.check
            tell(checks.causality(model, ids, allowed=self.settings.run.allow_leak))
            tell(checks.labels(model, self.built.objectives, batches, teacher))
            tell(checks.identity(model, null, self.base.model, ids))
            tell(checks.settings_took_effect(self.settings))

    def begin(self) -> None:
        """Make the run folder, or make sure that the one resumed is of this base and text."""
        facts = {
            "base": {"name": self.settings.base.name, "fingerprint": self.base.fingerprint},
            "text": dict(self.text.fingerprint),
            "plugins": self.host.versions,
            "split": self.built.model.split.drawn(self.settings.loop.turns),
        }
        if self.resumed:
            must_be_same(self.folder, facts)
        elif self.accelerator.is_main_process:
            self.folder = rundir.begin(self.folder, self.settings, facts, self.statistics)
        (self.folder,) = broadcast_object_list([self.folder])  # every process in the folder that the first one made

    def train(self) -> None:
        """Train the model, and the control if there is one. What is finished already is loaded."""
        with self.stage("train"):
            self._finish(self.training, self.folder)
            if self.accelerator.is_main_process:  # the folder is a model that the library loads
                hub.describe(self.built.model, self.folder)
                self.base.tokenizer.save_pretrained(self.folder)
        if self.control:
            with self.stage("train the control"):
                self._finish(self._training(self.control), self.folder / "control")

    def judge(self) -> Outcome:
        """Let every model read the held-out text, and write down what was found."""
        models = self.models()
        with self.stage("judge"):
            for name, model in models.items():
                self.judgement.hear(name, model)
            domains = self.judgement.verdict()
        evaluation = {
            "domains": domains,
            "parameters": {name: asdict(parameters(model)) for name, model in models.items()},
            "per_token": {name: asdict(self._operations(name, model)) for name, model in models.items()},
            "split": self.built.model.split.drawn(self.settings.loop.turns),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(),
        }
        if self.accelerator.is_main_process:
            rundir.write_evaluation(self.folder, evaluation)
        return Outcome(self.folder, evaluation, self.accelerator.is_main_process)

    def models(self) -> dict[str, RecursiveLM | StockLM]:
        """What is compared, by name."""
        anatomy, split = self.built.model.anatomy, self.built.model.split
        found: dict[str, RecursiveLM | StockLM] = {} if self.base.random else {INTACT: self.stock}
        found |= {KEPT: StockLM(kept_once(self.base.model, anatomy, split), anatomy), TRAINED: self.built.model}
        return found | ({CONTROL: self.control.model} if self.control else {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self.reporter.stage(name)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def _statistics(self) -> LayerStatistics | None:
        stored = self.folder / rundir.LAYERS
        return measured(self.settings, self.base.model, self.stock.anatomy, self.text.train, stored)

    def _control(self) -> Built:
        built = build(control_settings(self.settings, self.host), self.host, self.base.model, self.statistics)
        if not any(parameter.requires_grad for parameter in built.model.parameters()):
            raise UserError(
                "--control: without an adapter the control has nothing to train, it is the kept layers. Give both "
                "one, for example --adapter coda-lora, or leave --control out"
            )
        return built

    def _operations(self, name: str, model: RecursiveLM | StockLM) -> Operations:
        train, built = self.settings.train, self.control if name == CONTROL else self.built
        depth = mean_depth(built.schedule, train.steps, train.seed) if built else None
        return operations(model, self.settings.data.length, depth)

    def _training(self, built: Built) -> Training:
        teacher = self.stock if built.wants_teacher else None
        return Training(built, self.text.train, self.settings.train, self.accelerator, self.reporter, teacher)

    def _finish(self, training: Training, folder: Path) -> None:
        if (folder / weights.PARTS).exists():
            weights.load_parts(training.built.model, folder)
            return
        folder.mkdir(exist_ok=True)
        training.run(folder)
        if self.accelerator.is_main_process:
            weights.save_parts(training.built.model, self.base.fingerprint, folder)
        self.accelerator.wait_for_everyone()


def read_text(settings: Settings, base: Pretrained) -> Text:
    """All text of a run, as much of it as the run will read."""
    train, judged = settings.train, settings.eval
    return prepare(
        settings.data,
        base.tokenizer,
        train_tokens=train.steps * train.batch * settings.data.length,
        heldout_tokens=judged.tokens,
        validation_tokens=judged.validation,
    )


def must_be_same(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse to resume on another base or other text.

    Raises:
        UserError: something differs from what the run began with, or the manifest is missing.
    """
    try:
        then = json.loads((folder / rundir.MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / rundir.MANIFEST} cannot be read: {error}. Start the run anew") from error
    for what in ("base", "text", "split"):
        if then.get(what) != facts[what]:
            raise UserError(f"{folder} began with another {what}: {then.get(what)}; now it is {facts[what]}")


def room(built: Built, keep: int) -> int:
    """Bytes that a run will write: parts, and checkpoints with two moments a trained value."""
    trained = sum(4 * p.numel() for p in built.model.parameters() if p.requires_grad)
    parts = sum(t.numel() * t.element_size() for t in weights.own_tensors(built.model).values())
    return parts + 3 * trained * (keep + 1)
