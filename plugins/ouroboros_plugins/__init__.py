"""The built-in plugin: every part here comes in by the road of a third party, one hook that returns parts."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from ouroboros_core.anatomy import Anatomy
from ouroboros_core.contracts import Part
from ouroboros_core.hooks import hookimpl
from ouroboros_core.presets import Preset
from ouroboros_plugins import (
    adapters,
    anatomies,
    entries,
    gates,
    halters,
    modulators,
    norms,
    objectives,
    schedules,
    splitters,
)

SLOTS = (splitters, entries, modulators, gates, norms, halters, schedules, objectives, adapters)


@hookimpl
def ouroboros_parts() -> Iterable[Part]:
    """Every built-in part."""
    for slot in SLOTS:
        yield from slot.PARTS


@hookimpl
def ouroboros_presets() -> Iterable[Preset]:
    """Every file in the folder `presets`."""
    folder = files("ouroboros_plugins") / "presets"
    presets = [Preset.read(file) for file in folder.iterdir() if file.name.endswith(".toml")]
    return sorted(presets, key=lambda preset: preset.name)


@hookimpl
def ouroboros_anatomy(config: Any) -> Anatomy | None:
    """The families we know."""
    return anatomies.known(config)
