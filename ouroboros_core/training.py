"""Training: a short loop on Accelerate. One clock, optimiser steps; data and depth are functions of the step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from ouroboros_core import checkpoint, snapshot
from ouroboros_core.build import Built
from ouroboros_core.contracts import Depth
from ouroboros_core.data import align, rows_of_step
from ouroboros_core.errors import CheckFailed, Interrupted, UserError
from ouroboros_core.gradients import GradientWatch
from ouroboros_core.kept import StockLM
from ouroboros_core.losses import IGNORE
from ouroboros_core.refusals import refuse_idle
from ouroboros_core.reporting import Progress, Reporter
from ouroboros_core.settings import TrainSettings
from ouroboros_core.signals import interruptible
from ouroboros_core.tables import TurnTable
from ouroboros_core.trace import to_the_end

Batch = tuple[Tensor, Tensor]  # ids and aligned labels, (B, T) each
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


class Loss(nn.Module):
    """The model and what it is trained for, as one module: what data-parallel wrappers need to see."""

    def __init__(self, built: Built, teacher: StockLM | None) -> None:
        super().__init__()
        self.model = built.model
        self.objectives, self.wants_turns = built.objectives, built.wants_turns
        self._teacher = (teacher,)  # in a tuple, so that it is no part of this module

    def forward(self, ids: Tensor, labels: Tensor, depth: Depth, seed: int = 0) -> dict[str, Tensor]:
        """What each objective contributes, summed over the labelled tokens. ids, labels (B, T)."""
        trace = self.model.trace(ids, depth=depth, seed=seed, keep_turns=self.wants_turns)
        trace = to_the_end(trace, depth.turns) if self.wants_turns else trace
        (teacher,) = self._teacher
        if teacher is not None:
            with torch.no_grad():
                trace = replace(trace, teacher=teacher.trace(ids))
        scored = labels != IGNORE
        return {name: (term(trace, labels) * scored).sum() for name, term in self.objectives.items()}


class Training:
    """One training run: set up at once, so that every setting is read before the first step; then `run`.

    Args:
        blocks: (N, T + 1) packed tokens.
        teacher: the intact model, where an objective wants it.

    Raises:
        UserError: the batch cannot be shared out evenly, or nothing learns.
    """

    def __init__(
        self, built: Built, blocks: Tensor, settings: TrainSettings, accelerator: Accelerator, reporter: Reporter,
        teacher: StockLM | None = None,
    ) -> None:  # fmt: skip
        self.built, self.blocks, self.reporter = built, blocks, reporter
        self.accelerator = accelerator
        self.steps, self.batch, self.accumulate = settings.steps, settings.batch, settings.accumulate
        self.seed, self.clip = settings.seed, settings.clip
        self.save_every, self.keep = settings.save_every, settings.keep
        self._must_share_out()
        refuse_idle(built)
        groups = parameter_groups(built.model, settings.weight_decay, built.rates)
        self.peaks = [settings.lr if rate is None else rate for rate, _ in groups]
        optimizer = torch.optim.AdamW([group for _, group in groups], lr=settings.lr, betas=settings.betas)
        self.shape = get_scheduler("cosine", optimizer, settings.warmup, settings.steps + 1).lr_lambdas[0]
        self.loss, self.optimizer = accelerator.prepare(Loss(built, teacher), optimizer)
        self.watch = GradientWatch(built.model, built.gives_shares)

    def run(self, folder: Path) -> None:
        """Train to the last step, from the newest checkpoint in the folder if there is one.

        Writes `metrics.jsonl`, one record a step, and `checkpoints/`.

        Raises:
            CheckFailed: a reachable trainable row never had a gradient, or a loss is not finite.
            Interrupted: the user pressed Ctrl-C; the state is saved.
            UserError: the disk is full, or a checkpoint is damaged.
        """
        self.folder = folder
        torch.manual_seed(self.seed + self.accelerator.process_index)  # whatever ran before; a resume overrides it
        start = self._resume()
        self.loss.train()
        told = False
        with interruptible() as interrupted:
            for step in range(start, self.steps):
                progress = self._step(step)
                self._record(progress)
                if not told and (self.watch.done or step + 1 == self.steps):
                    self.reporter.check(self.watch.verdict())
                    told = True
                stop = self._any(interrupted())
                if (step + 1) % self.save_every == 0 or step + 1 == self.steps or stop:
                    self._save(step + 1)
                if stop and step + 1 < self.steps:
                    raise Interrupted(f"stopped after step {step + 1} of {self.steps}; its state is saved")

    def batches(self, step: int) -> list[Batch]:
        """What this process reads in a step: ids and labels (B, T) of each micro-step."""
        return [align(self.blocks[rows].to(self.accelerator.device)) for rows in self._rows(step)]

    def _rows(self, step: int) -> list[list[int]]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        every = rows_of_step(step, self.batch, len(self.blocks), self.seed)
        size = self.batch // (self.accumulate * world)
        return [every[i : i + size] for i in range(rank * size, self.batch, size * world)]

    def _step(self, step: int) -> Progress:
        shape = self.shape(step + 1)  # from 1, so that the first step has a rate, and the last still has
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * shape
        depth = self.built.schedule(step, step / self.steps, self.seed)
        began = time.perf_counter()
        seed = self.seed * 1_000_003 + step  # of random states, which must not be the same at every step
        terms, tokens = backward(self.loss, self.batches(step), depth, self.accelerator, seed)
        norm = float(self.accelerator.clip_grad_norm_(self.loss.parameters(), self.clip))
        if not math.isfinite(norm + sum(terms.values())):
            self._give_up(step, terms, norm)
        self.watch.look(deep=depth.turns > 1 or self.built.schedule.most == 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        speed = tokens / (time.perf_counter() - began)
        rate = self.optimizer.param_groups[0]["lr"]
        return Progress(step + 1, self.steps, sum(terms.values()), terms, rate, norm, depth.turns, speed)

    def _give_up(self, step: int, terms: dict[str, float], norm: float) -> None:
        kept = checkpoint.stored(self.folder / CHECKPOINTS)
        last = f"the last checkpoint is {kept[-1].name}" if kept else "there is no checkpoint yet"
        raise CheckFailed(
            f"step {step + 1}: the loss or its gradient is not finite ({terms}, gradient norm {norm}), on blocks "
            f"{self._rows(step)} of the training text; {last}. Try a lower train.lr or train.clip"
        )

    def _record(self, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(asdict(progress)) + "\n")
        self.reporter.step(progress)

    def _save(self, step: int) -> None:
        taken = snapshot.take(self.loss, self.optimizer, step, self.accelerator)
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder / CHECKPOINTS, step, taken, self.keep)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        step, stored = 0, checkpoint.stored(self.folder / CHECKPOINTS)
        if stored:
            step = snapshot.restore(checkpoint.load(stored[-1]), self.loss, self.optimizer, self.accelerator)
            self.reporter.note(f"resumed after step {step} from {stored[-1]}")
        if self.accelerator.is_main_process:
            _cut(self.folder / METRICS, step)
        return step

    def _any(self, told: bool) -> bool:
        """Whether any process was told: all must save, and stop, at the same step."""
        return bool(self.accelerator.reduce(torch.tensor(int(told), device=self.accelerator.device), "sum"))

    def _must_share_out(self) -> None:
        pieces = self.accumulate * self.accelerator.num_processes
        if self.batch % pieces:
            raise UserError(
                f"train.batch={self.batch} cannot be shared out by {self.accelerator.num_processes} process(es) and "
                f"train.accumulate={self.accumulate}: make it a multiple of {pieces}"
            )


def backward(
    loss: Callable[..., dict[str, Tensor]], batches: list[Batch], depth: Depth, accelerator: Accelerator, seed: int = 0
) -> tuple[dict[str, float], int]:
    """Gradients of one optimiser step, normalised by the labelled tokens of the whole step.

    Args:
        batches: ids and aligned labels (B, T) of each micro-step.

    Returns:
        What each objective contributes to the mean loss over all processes, and those tokens.
    """
    labelled = torch.stack([(labels != IGNORE).sum() for _, labels in batches]).sum()
    tokens = int(accelerator.reduce(labelled, "sum"))
    share = accelerator.num_processes / tokens  # data-parallel wrappers average gradients over processes
    sums: dict[str, Tensor] = {}
    for number, (ids, labels) in enumerate(batches, start=1):
        with accelerator.no_sync(loss) if number < len(batches) else nullcontext():
            terms = loss(ids, labels, depth, seed)
            accelerator.backward(torch.stack(list(terms.values())).sum() * share)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
    return {name: float(accelerator.reduce(total, "sum")) / tokens for name, total in sums.items()}, tokens


def parameter_groups(
    model: nn.Module, decay: float, rates: Mapping[str, float]
) -> list[tuple[float | None, dict[str, Any]]]:
    """Trainable parameters, matrices with weight decay. Biases, norms, embeddings and rows by turn are not decayed.

    Args:
        rates: own peak rate of some, by name.

    Returns:
        Own rate, or None for the run's, and group; those at the run's rate first.
    """
    tables = (TurnTable, nn.Embedding)
    spared = {id(p) for module in model.modules() if isinstance(module, tables) for p in module.parameters()}
    groups: dict[tuple[float | None, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = rates.get(name), parameter.ndim < 2 or id(parameter) in spared
            group = groups.setdefault(key, {"params": [], "weight_decay": 0.0 if key[1] else decay})
            group["params"].append(parameter)
    found = [(rate, group) for (rate, _), group in groups.items()]
    return sorted(found, key=lambda pair: pair[0] is not None)


def _cut(metrics: Path, step: int) -> None:
    """Drop what was recorded after a step: it is about to be done again."""
    if metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(lines[:step]))
