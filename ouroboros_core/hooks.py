"""The hooks a plugin may implement. pluggy serves discovery only: nothing here is called inside a turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ouroboros_core.anatomy import Anatomy
    from ouroboros_core.contracts import Part
    from ouroboros_core.presets import Preset

PROJECT = "ouroboros"  # also the entry-point group
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The specifications."""

    @hookspec
    def ouroboros_parts(self) -> Iterable[Part]:  # type: ignore[empty-body]
        """Offer parts for the loop. Called once for each plugin, when plugins load."""

    @hookspec
    def ouroboros_presets(self) -> Iterable[Preset]:  # type: ignore[empty-body]
        """Offer presets: named settings. Called once for each plugin, when plugins load."""

    @hookspec(firstresult=True)
    def ouroboros_anatomy(self, config: Any) -> Anatomy | None:
        """Say where this model keeps its embeddings, layers, norm and head; None if it is not yours."""
