"""The live display of a run, on stderr: stages, checks, a bar with loss, speed, rate and time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ouroboros_core.reporting import CheckResult
from ouroboros_core.reporting import Progress as Step

PLAIN_LINES = 10  # of a training run, where no terminal shows the bar


class Display:
    """A `Reporter` for people. Where stderr is no terminal it prints plain lines instead of bars."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None
        self.name = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, name: str) -> None:
        """A heading, and a new bar."""
        self._bar(name, None)
        self.console.print(f"[bold]{escape(name)}[/bold]", highlight=False)

    def check(self, result: CheckResult) -> None:
        """One line a check."""
        mark = "[green]ok[/green]" if result.passed else "[red]failed[/red]"
        line = f"  {mark}  {result.name}: {escape(result.detail)}"
        self.console.print(line, highlight=False, soft_wrap=not self.console.is_terminal)

    def step(self, progress: Step) -> None:
        """Move the bar."""
        terms = " ".join(f"{name} {value:.3f}" for name, value in progress.terms.items())
        shown = f"loss {progress.loss:.3f}" + (f" ({terms})" if len(progress.terms) > 1 else "")
        facts = f"{shown} · {progress.tokens_per_second:,.0f} tokens/s · lr {progress.lr:.1e} · {progress.turns} turns"
        self._bar(self.name if self.name.startswith("train") else "train", progress.steps)
        self._move(progress.step, facts)
        if not self.console.is_terminal and progress.step % max(1, progress.steps // PLAIN_LINES) == 0:
            self.console.print(f"  step {progress.step}/{progress.steps}: {facts}", highlight=False, soft_wrap=True)

    def read(self, model: str, domain: str, rows: int, total: int) -> None:
        """Move the bar of one model on one domain."""
        self._bar(f"judge: {model} on {domain}", total)
        if self.task is not None:
            self.progress.advance(self.task, rows)

    def note(self, text: str) -> None:
        """A line."""
        self.console.print(f"  {text}", markup=False, highlight=False)

    def _bar(self, name: str, total: int | None) -> None:
        if self.task is not None and self.name == name and total == self.progress.tasks[-1].total:
            return
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.name, self.task = name, self.progress.add_task(name, total=total, facts="")

    def _move(self, done: int, facts: str) -> None:
        if self.task is not None:
            self.progress.update(self.task, completed=done, facts=facts)
