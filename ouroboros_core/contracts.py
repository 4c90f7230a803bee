"""The contracts: what a slot is, what fills it, and what passes between them.

Letters in shapes: B batch, T tokens, D width, R rank. A *slot* is a place in the recursion, a *part* fills it.
Every slot of the turn has a null part, so that the loop needs no `if`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ouroboros_core.options import Options
from ouroboros_core.slots import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from ouroboros_core.model import RecursiveLM
    from ouroboros_core.ops import Ops
    from ouroboros_core.split import Split
    from ouroboros_core.trace import Trace


@dataclass(frozen=True)
class Part:
    """An offer to fill a slot: what a plugin's `ouroboros_parts` hook returns."""

    slot: Slot
    name: str  # kebab-case, what the user types
    options: type[Options]
    build: Callable[[Any, Any], Any]  # (options, ModelFacts for splitter and schedule, else LoopFacts) -> the part
    summary: str
    source: str = ""  # the paper and equation
    null: bool = False  # changes nothing: the identity check and the trained control use it
    default: bool = False  # the slot's default; heeded for built-in parts only


@dataclass(frozen=True)
class ModelFacts:
    """What is known before the loop is drawn."""

    layers: int  # of the intact model
    width: int  # D
    turns: int  # `loop.turns`: turns at evaluation and decoding


@dataclass(frozen=True)
class TapFacts:
    """One named linear of the recurrent block."""

    inputs: int
    outputs: int


class Bases(Protocol):
    """Gives, for a rank R, the frozen factors of every tap: name -> (A (R, in), B (out, R))."""

    def __call__(self, rank: int) -> Mapping[str, tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class LoopFacts:
    """What the model fixes about one recurrent block; a part's options hold what the user chooses."""

    width: int  # D
    turns: int  # turns at evaluation
    trained_turns: int  # the most turns a training step takes; later turns reuse the last trained row
    taps: Mapping[str, TapFacts]  # keyed "<layer of the block>.<linear>", for example "0.q"
    bases: Bases


@dataclass(frozen=True)
class Depth:
    """How many turns a step takes, and how many of them, the last ones, carry gradient."""

    turns: int
    with_gradient: int

    @classmethod
    def full(cls, turns: int) -> Depth:
        """Every turn carries gradient."""
        return cls(turns, turns)


@dataclass(frozen=True)
class Turn:
    """What a part may know about the present turn."""

    index: int  # from 0
    last: bool  # no turn will follow
    positions: Tensor  # (B, T) of each token in its own sequence
    mask: Tensor  # (B, T) bool: true for real tokens, false for padding
    spent: Tensor  # (B, T) read-out weight given by earlier turns
    seed: int


@dataclass(frozen=True)
class Halt:
    """A halter's verdict on each token."""

    stop: Tensor  # (B, T) bool
    weight: Tensor | None  # (B, T) of this turn's state in the read-out; None: the last state is read


class Splitter(Protocol):
    """Which layers are prelude, block and coda, and which are removed. A pure function of the facts."""

    def __call__(self, facts: ModelFacts) -> Split: ...


class Entry(Protocol):
    """What the loop starts from, and what of the prelude each turn sees again."""

    def start(self, prelude: Tensor, turn: Turn) -> Tensor: ...  # (B, T, D) -> (B, T, D)

    def inject(self, state: Tensor, prelude: Tensor, turn: Turn) -> Tensor: ...  # 2 x (B, T, D) -> (B, T, D)


class Modulator(Protocol):
    """How this turn's weights differ: ops on the block's input and on its named linears."""

    def __call__(self, state: Tensor, turn: Turn) -> Ops: ...  # state (B, T, D)


class Norm(Protocol):
    """How each turn is normalised."""

    def __call__(self, state: Tensor, turn: Turn) -> Tensor: ...  # (B, T, D) -> (B, T, D)


class Gate(Protocol):
    """How old and new state mix."""

    def __call__(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor: ...  # 2 x (B, T, D) -> (B, T, D)


class Halter(Protocol):
    """When a token stops, and with what weight each of its states is read out.

    `adaptive` says whether the loop may end before its last turn: only then does it wait for the answer.
    """

    adaptive: bool

    def __call__(self, old: Tensor, new: Tensor, turn: Turn) -> Halt: ...  # 2 x (B, T, D)


class Schedule(Protocol):
    """How many turns a training step takes: a pure function, so that every rank agrees.

    `most` is the largest number of turns it ever answers.
    """

    most: int

    def __call__(self, step: int, progress: float, seed: int) -> Depth: ...


class Objective(Protocol):
    """One term of the loss, a value for each token (B, T), from labels that are already aligned.

    `wants_teacher`: the trace must carry the intact model's view of the same tokens.
    """

    wants_teacher: bool

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor: ...  # labels (B, T) -> (B, T)


class Adapter(Protocol):
    """Makes some of the base's own weights learn. Called once, when everything of the base is frozen."""

    def __call__(self, model: RecursiveLM) -> None: ...


TURN_SLOTS: Sequence[Slot] = (Slot.ENTRY, Slot.MODULATOR, Slot.NORM, Slot.GATE, Slot.HALTER)
