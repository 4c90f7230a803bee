"""Every weight learns."""

from dataclasses import dataclass

from pydantic import Field

from ouroboros_core.model import RecursiveLM
from ouroboros_core.options import Options


class FullOptions(Options):
    """All weights of the base learn."""

    rate: float | None = Field(None, gt=0, description="their own peak learning rate; None: `train.lr`")


@dataclass(frozen=True)
class Full:
    """Every kept weight is trained: uptraining (Bae 2024), healing (McLeish 2025), or training from scratch."""

    rate: float | None = None

    def __call__(self, model: RecursiveLM) -> None:
        """Unfreeze everything."""
        model.base.requires_grad_(True)
