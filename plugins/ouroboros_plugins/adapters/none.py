"""No adapter."""

from typing import ClassVar

from ouroboros_core.model import RecursiveLM


class NoAdapter:
    """Nothing of the base learns."""

    rate: ClassVar[float | None] = None

    def __call__(self, model: RecursiveLM) -> None:
        """Leave it as it is."""
