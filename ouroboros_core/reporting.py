"""What a long job tells whoever watches: plain calls on a value, so that the core knows no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class CheckResult:
    """The verdict of one trust check."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Progress:
    """One optimiser step."""

    step: int  # steps done
    steps: int
    loss: float  # nats a token
    terms: dict[str, float] = field(repr=False)  # what each objective contributes; they add up to the loss
    lr: float
    gradient_norm: float
    turns: int
    tokens_per_second: float


class Reporter(Protocol):
    """Hears what happens. Every call returns at once."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def check(self, result: CheckResult) -> None:
        """A check was made."""
        ...

    def step(self, progress: Progress) -> None:
        """A step was trained."""
        ...

    def read(self, model: str, domain: str, rows: int, total: int) -> None:
        """`rows` more of `total` held-out rows have been read."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Silent:
    """Nobody watches."""

    def stage(self, name: str) -> None:
        """Ignored."""

    def check(self, result: CheckResult) -> None:
        """Ignored."""

    def step(self, progress: Progress) -> None:
        """Ignored."""

    def read(self, model: str, domain: str, rows: int, total: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
