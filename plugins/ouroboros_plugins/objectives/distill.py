"""Learning from the intact model."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ouroboros_core.options import Options
from ouroboros_core.trace import Trace


class DistillOptions(Options):
    """KL divergence to the intact base."""

    weight: float = Field(1.0, gt=0, description="of this term")
    temperature: float = Field(1.0, gt=0, description="of both distributions")


@dataclass(frozen=True)
class Distill:
    """temperature^2 KL(intact || model) of the next-token distributions (Hinton 2015), in nats."""

    wants_teacher: ClassVar[bool] = True
    wants_turns: ClassVar[bool] = False
    weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, trace: Trace, labels: Tensor) -> Tensor:
        """labels (B, T), not looked at -> (B, T)."""
        assert trace.teacher is not None, "whoever runs an objective that wants a teacher provides one"
        return self.weight * trace.kl_from(trace.teacher, self.temperature)
