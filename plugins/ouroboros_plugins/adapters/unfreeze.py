"""Layers of the coda that learn."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from ouroboros_core.errors import UserError
from ouroboros_core.model import RecursiveLM
from ouroboros_core.options import Options


class UnfreezeOptions(Options):
    """The last layers of the coda learn."""

    layers: int = Field(2, ge=1, description="how many of the coda's last layers")


@dataclass(frozen=True)
class Unfreeze:
    """All weights of the last `layers` of the coda are trained."""

    rate: ClassVar[float | None] = None
    layers: int

    def __call__(self, model: RecursiveLM) -> None:
        """Unfreeze them.

        Raises:
            UserError: the coda has fewer.
        """
        if self.layers > len(model.split.coda):
            raise UserError(f"adapter.layers={self.layers}: the coda has {len(model.split.coda)} layer(s)")
        for index in model.split.coda[-self.layers :]:
            model.layer(index).requires_grad_(True)
