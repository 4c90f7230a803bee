"""A plugin whose hook raises."""

from ouroboros_core import hookimpl


@hookimpl
def ouroboros_parts():
    """Raise."""
    raise RuntimeError("acme_raising cannot offer anything")
