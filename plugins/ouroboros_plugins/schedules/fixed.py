"""Always the same depth."""

from dataclasses import dataclass

from pydantic import Field

from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.options import Options


class FixedOptions(Options):
    """The same number of turns at every step."""

    turns: int | None = Field(None, ge=1, description="turns of a training step; None: `loop.turns`")
    with_gradient: int | None = Field(None, ge=1, description="the last so many turns carry gradient; None: all")


@dataclass(frozen=True)
class Fixed:
    """`most` turns at every step."""

    most: int
    with_gradient: int | None = None

    def __post_init__(self) -> None:
        """Refuse more turns with gradient than there are.

        Raises:
            UserError: there are fewer.
        """
        if self.with_gradient and self.with_gradient > self.most:
            raise UserError(f"schedule.with_gradient={self.with_gradient}: a step takes only {self.most} turn(s)")

    def __call__(self, step: int, progress: float, seed: int) -> Depth:
        """The same answer to everything."""
        return Depth(self.most, self.with_gradient or self.most)
