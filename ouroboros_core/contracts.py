"""The contracts: what a slot is, what fills it, and what passes between them.

Letters in shapes: B batch, T tokens, D width, R rank. A *slot* is a place in the recursion, a *part* fills it.
Every slot of the turn has a null part, so that the loop needs no `if`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ouroboros_core.options import Options
from ouroboros_core.slots import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from ouroboros_core.model import RecursiveLM
    from ouroboros_core.ops import Ops
    from ouroboros_core.split import Split
    from ouroboros_core.trace import Trace

BRANCHES = ("attention", "ffn")  # the residual branches of a layer
Place = Literal["in", "out", "sum"]  # of a branch: its normed input, its output, and the residual stream behind it
SITES = [f"{branch}-{place}" for branch in BRANCHES for place in ("in", "out", "sum")]  # of a layer


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
    default: bool = False  # the slot's default; heeded for built-in parts only


@dataclass(frozen=True)
class LayerStatistics:
    """What the intact model does to a calibration text: how far its hidden states turn from layer to layer.

    Row and column a are of the states before layer a, the last ones of the states behind the last layer.
    """

    cosine: Tensor  # (L + 1, L + 1) mean cosine between the states
    angle: Tensor  # (L + 1, L + 1) mean angle between them, as a share of half a turn: arccos(cosine) / pi
    tokens: int  # of the text


@dataclass(frozen=True)
class ModelFacts:
    """What is known before the loop is drawn."""

    layers: int  # of the intact model
    width: int  # D
    turns: int  # `loop.turns`: turns at evaluation and decoding
    statistics: LayerStatistics | None = None  # measured where the splitter's part says `measures`


@dataclass(frozen=True)
class TapFacts:
    """One named linear of the recurrent block."""

    inputs: int
    outputs: int


Factors = tuple["Tensor", "Tensor"]  # A (R, in) and B (out, R): B A is a change of a weight (out, in)


class Bases(Protocol):
    """Gives, for a rank R, frozen factors of every tap: the mean residual of the layers that the block replaces."""

    def __call__(self, rank: int) -> Mapping[str, Factors]: ...


class Residuals(Protocol):
    """Gives, for a rank R, factors of every tap and turn: the residual of the layer that the turn stands for."""

    def __call__(self, rank: int) -> Mapping[str, Sequence[Factors]]: ...


@dataclass(frozen=True)
class LoopFacts:
    """What the model fixes about one recurrent block; a part's options hold what the user chooses."""

    width: int  # D
    turns: int  # turns at evaluation
    trained_turns: int  # the most turns a training step takes; later turns reuse the last trained row
    taps: Mapping[str, TapFacts]  # keyed "<layer of the block>.<linear>", for example "0.q"
    bases: Bases
    residuals: Residuals
    layers: int = 1  # of the block

    def sites(self, *places: Place) -> list[str]:
        """The names of these places in every residual branch of the block, for example "0.ffn-in"."""
        return [f"{layer}.{branch}-{place}" for layer in range(self.layers) for branch in BRANCHES for place in places]


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
    """How a state would be read if the loop ended now. Nothing is computed until a part asks."""

    def normed(self, state: Tensor) -> Tensor: ...  # the base's final norm: (B, T, D) -> (B, T, D)

    def logits(self, state: Tensor) -> Tensor: ...  # coda, final norm and head: (B, T, D) -> (B, T, V)


@dataclass(frozen=True)
class Turn:
    """What a part may know about the present turn."""

    index: int  # from 0
    last: bool  # no turn will follow
    positions: Tensor  # (B, T) of each token in its own sequence
    mask: Tensor  # (B, T) bool: true for real tokens, false for padding
    spent: Tensor  # (B, T) shares given by earlier turns
    prelude: Tensor  # (B, T, D) what the loop was entered with
    reader: Reader
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

    `adaptive` says whether the loop may end before its last turn: only then does it wait for the answer. `weighted`
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
