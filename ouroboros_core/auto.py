"""Telling the library's Auto classes of our model, without importing the library for it."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

HOME = "transformers.models.auto.configuration_auto"  # of AutoConfig


def announce() -> None:
    """Register the config now if the library is there already, else as soon as its AutoConfig is imported.

    Importing the library takes seconds, and `import ouroboros_core` must not.
    """
    if HOME in sys.modules:
        register()
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def register() -> None:
    """`AutoConfig` knows `RecursiveConfig`, which brings its model when the first config is made."""
    from transformers import AutoConfig

    from ouroboros_core.config import RecursiveConfig

    AutoConfig.register(RecursiveConfig.model_type, RecursiveConfig, exist_ok=True)


def register_model() -> None:
    """`AutoModelForCausalLM` knows `RecursiveLM`."""
    from transformers import AutoModelForCausalLM

    from ouroboros_core.config import RecursiveConfig
    from ouroboros_core.model import RecursiveLM

    AutoModelForCausalLM.register(RecursiveConfig, RecursiveLM, exist_ok=True)


class _Watch(MetaPathFinder):
    """Waits for the import of one module, and then registers."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != HOME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec and spec.loader:
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                register()

            loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
