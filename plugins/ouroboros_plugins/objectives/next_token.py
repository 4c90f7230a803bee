"""The language-modelling loss."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace


class NextTokenOptions(Options):
    """Negative log-likelihood of the next token."""

    weight: float = Field(1.0, gt=0, description="of this term")


@dataclass(frozen=True)
class NextToken:
    """-log p(label), in nats."""

    wants_teacher: ClassVar[bool] = False
    wants_turns: ClassVar[bool] = False
    weight: float = 1.0

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), aligned -> (B, T)."""
        return self.weight * trace.nll(labels)
