"""Ouroboros: recursive transformers from parts, with numbers to be believed. Start with `contracts`, then `loop`."""

from ouroboros_core.hooks import hookimpl
from ouroboros_core.options import NoOptions, Options

__all__ = ["NoOptions", "Options", "hookimpl"]
