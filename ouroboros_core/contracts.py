"""The contracts: what a slot is, what fills it, and what passes between them.

Letters in shapes: B batch, T tokens, D width, R rank. A *slot* is a place in the recursion, a *part* fills it.
Every slot of the turn has a null part, so that the loop needs no `if`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ouroboros_core.facts import (
    BRANCHES,
    SITES,
    Bases,
    Factors,
    LayerStatistics,
    LoopFacts,
    ModelFacts,
    Place,
    Residuals,
    TapFacts,
)
from ouroboros_core.options import Options
from ouroboros_core.slots import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from ouroboros_core.model import RecursiveLM
    from ouroboros_core.ops import Ops
    from ouroboros_core.split import Split
    from ouroboros_core.trace import Trace

__all__ = [
    "BRANCHES", "SITES", "TURN_SLOTS", "Adapter", "Bases", "Depth", "Entry", "Factors", "Gate", "Halt", "Halter",
    "Inside", "LayerStatistics", "LoopFacts", "Memory", "ModelFacts", "Modulator", "Norm", "Objective", "Part", "Place",
    "Reader", "Reads", "Residuals", "Schedule", "Slot", "Splitter", "TapFacts", "Turn",
]  # fmt: skip


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
    measures: bool = False  # a splitter that reads `ModelFacts.statistics`
    gives_shares: bool = False  # a halter that tells, in training, how likely each turn is to be the last
    read_by_objective: bool = False  # a halter that learns only where an objective reads its shares
    needs_shares: bool = False  # an objective that reads them
    reads_logits: bool = False  # a halter that asks `turn.reader` for logits at evaluation: decoding keeps room for it
    starts_null: bool | Callable[[Any], bool] = False  # at its start it changes nothing; perhaps by its options
    default: bool = False  # the slot's default; heeded for built-in parts only


@dataclass(frozen=True)
class Depth:
    """How many turns a step takes, and how many of them, the last ones, carry gradient."""

    turns: int
    with_gradient: int
    whole: bool = False  # take them all, also when every token has halted: what is counted must not depend on text

    @classmethod
    def full(cls, turns: int) -> Depth:
        """Every turn carries gradient."""
        return cls(turns, turns)


class Reader(Protocol):
    """How a state would be read if the loop ended now. Nothing is computed until a part asks.

    `logits` is to be asked at every turn but the last, which nothing follows, or at none.
    """

    def normed(self, state: Tensor) -> Tensor: ...  # the base's final norm: (B, T, D) -> (B, T, D)

    def logits(self, state: Tensor) -> Tensor: ...  # coda, final norm and head: (B, T, D) -> (B, T, V)

    @property
    def before(self) -> Tensor | None: ...  # (B, T, V) what `logits` answered at the turn before, if it was asked then


class Memory(Protocol):
    """What a turn knows of tokens other than those it computes: earlier ones, and ones that have stopped.

    A part that looks along the sequence must do it through here. In decoding, earlier tokens are not there any more;
    and where others have stopped, only those that go on are.
    """

    def summed(self, name: str, values: Tensor) -> Tensor:
        """The sum of the values of a row's real tokens up to each one, in float32. (B, T, ...) -> (B, T, ...).

        A token that has stopped counts with its last value. To be asked at every turn or at none, under a name that
        the part uses once a turn.
        """
        ...


@dataclass(frozen=True)
class Turn:
    """What a part may know about the present turn.

    B and T are of the tokens that the turn computes: those of the batch, or those of them that have not stopped.
    """

    index: int  # from 0
    last: bool  # no turn will follow
    positions: Tensor  # (B, T) of each token in its own sequence
    mask: Tensor  # (B, T) bool: true for real tokens, false for padding
    spent: Tensor  # (B, T) shares given by earlier turns
    prelude: Tensor  # (B, T, D) what the loop was entered with
    reader: Reader
    memory: Memory
    seed: int  # another one at every training step


@dataclass(frozen=True)
class Halt:
    """A halter's verdict on each token."""

    stop: Tensor  # (B, T) bool
    share: Tensor | None = None  # (B, T) the probability that this turn is its last; over the turns they sum to one


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
    """How each turn is normalised. It may be `Inside`, and may have `read`, applied to what the loop is left with."""

    def __call__(self, state: Tensor, turn: Turn) -> Tensor: ...  # (B, T, D) -> (B, T, D)


class Gate(Protocol):
    """How old and new state mix. It may be `Inside`."""

    def __call__(self, old: Tensor, new: Tensor, turn: Turn) -> Tensor: ...  # 2 x (B, T, D) -> (B, T, D)


@runtime_checkable
class Inside(Protocol):
    """A norm or gate that also acts inside the block: ops at its sites, joined to the modulator's."""

    def inside(self, turn: Turn) -> Ops: ...


@runtime_checkable
class Reads(Protocol):
    """A norm that also acts on what the loop is left with, before the coda."""

    def read(self, state: Tensor) -> Tensor: ...  # (B, T, D) -> (B, T, D)


class Halter(Protocol):
    """When a token stops, and which of its states is read.

    `adaptive` says whether a token may stop before the last turn: only then may the loop end early. `weighted`
    says that the sum of the states, weighted by their shares, is read; else the last state is.
    """

    adaptive: bool
    weighted: bool

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
    `wants_turns`: the trace must carry every turn's state as it would be read.
    """

    wants_teacher: bool
    wants_turns: bool

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor: ...  # labels (B, T) -> (B, T)


class Adapter(Protocol):
    """Makes some of the base's own weights learn. Called once, when everything of the base is frozen.

    `rate` is the peak learning rate of what it makes learn; None: `train.lr`.
    """

    rate: float | None

    def __call__(self, model: RecursiveLM) -> None: ...


TURN_SLOTS: Sequence[Slot] = (Slot.ENTRY, Slot.MODULATOR, Slot.NORM, Slot.GATE, Slot.HALTER)
