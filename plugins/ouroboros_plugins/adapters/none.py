"""No adapter."""

from ouroboros_core.model import RecursiveLM


def no_adapter(model: RecursiveLM) -> None:
    """Nothing of the base learns."""
