"""Ouroboros: recursive transformers from parts, with numbers to be believed. Start with `contracts`, then `loop`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ouroboros_core.auto import announce

if TYPE_CHECKING:
    from ouroboros_core.hooks import hookimpl
    from ouroboros_core.options import NoOptions, Options

__all__ = ["NoOptions", "Options", "hookimpl"]

HOMES = {"NoOptions": "options", "Options": "options", "hookimpl": "hooks"}


def __getattr__(name: str) -> Any:
    """What plugin authors need, imported when asked for: `ouro --help` does not wait for it."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


announce()  # the one import with an effect: AutoModelForCausalLM knows our model
