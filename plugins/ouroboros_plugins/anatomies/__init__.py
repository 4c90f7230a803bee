"""Anatomies: families of decoders we know how to take apart."""

from typing import Any

from ouroboros_core.anatomy import Anatomy
from ouroboros_plugins.anatomies.llama import FAMILY, LlamaAnatomy


def known(config: Any) -> Anatomy | None:
    """The anatomy of a model with this config, if it is one of ours."""
    return LlamaAnatomy() if getattr(config, "model_type", None) in FAMILY else None
