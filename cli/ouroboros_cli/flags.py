"""The flags that every command on settings shares: short for `--set`, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ouroboros_core.slots import Slot

if TYPE_CHECKING:
    from ouroboros_core.host import PluginHost

SHORT: dict[str, tuple[str, type, str]] = {
    "base": ("base.name", str, "pretrained model: a known name, a Hugging Face id, a folder, a GGUF file"),
    "turns": ("loop.turns", int, "turns of the loop"),
    "steps": ("train.steps", int, "optimiser steps"),
    "seed": ("train.seed", int, "of initial values, order of the text and depth"),
    "device": ("base.device", str, "auto, cpu, cuda or mps"),
    "dtype": ("base.dtype", str, "of the frozen weights: bfloat16 or float32"),
    "name": ("run.name", str, "last part of the run folder's name"),
    "control": ("eval.control", bool, "also train the control, which has no recursion"),
    "allow-leak": ("run.allow_leak", bool, "let parts see later tokens"),
}
ThirdParty = Annotated[
    bool, typer.Option("--third-party/--no-third-party", help="load plugins that other packages bring")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but the result")]


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared flags; it receives them as layers of settings, in order of precedence.

    The command's own first parameter is `layers`; a settings file, slot flags, short flags and `--set` become it.
    """
    declared = inspect.signature(command, eval_str=True).parameters.values()
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in declared if p.name != "layers"]
    mine = {p.name for p in own}
    every = [*_file(), _preset(), *(_slot(slot) for slot in Slot), *(_short(name) for name in SHORT), _set()]
    shared = [p for p in every if p.name not in mine]

    @wraps(command)
    def with_flags(**given: Any) -> None:
        kept = {name: given.pop(name) for name in mine}
        command(layers=Layers(given), **kept)

    parameters = [*shared, *own]
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_flags


class Layers:
    """The flags as given; `read` turns them into layers, which needs the core."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    @property
    def empty(self) -> bool:
        """Nothing was said."""
        return all(value is None or value == [] for value in self.given.values())

    def read(self, host: PluginHost) -> list[Mapping[str, Any]]:
        """Preset < file < slot flags < short flags < `--set`."""
        from ouroboros_core.resolve import assignment, read_file

        preset = [host.preset(name).settings] if (name := self.given.get("preset")) else []
        file = [read_file(self.given["file"])] if self.given["file"] else []
        slots = [{slot.value: {"use": _names(self.given[slot])}} for slot in Slot if self.given[slot] is not None]
        short = []
        for name, (path, _, _) in SHORT.items():
            table, key = path.split(".")
            if (value := self.given.get(name.replace("-", "_"))) is not None:
                short.append({table: {key: value}})
        return [*preset, *file, *slots, *short, *(assignment(text) for text in self.given["settings"])]


def _names(text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names if len(names) > 1 else names[0]


def _file() -> list[inspect.Parameter]:
    annotation = Annotated[
        Path | None, typer.Argument(help="settings, for example a run's resolved.toml", show_default=False)
    ]
    return [_parameter("file", annotation, None)]


def _preset() -> inspect.Parameter:
    option = typer.Option(
        "--preset", help="a published system by name; `ouro list-presets` shows them", show_default=False
    )
    return _parameter("preset", Annotated[str | None, option], None)


def _slot(slot: Slot) -> inspect.Parameter:
    help_text = f"part for the {slot} slot" + ("; several as a,b" if slot.takes_many else "")
    option = typer.Option(f"--{slot}", help=help_text, rich_help_panel="Parts", show_default=False)
    return _parameter(slot.value, Annotated[str | None, option], None)


def _short(name: str) -> inspect.Parameter:
    path, kind, help_text = SHORT[name]
    option = typer.Option(f"--{name}", help=f"{help_text} ({path})", rich_help_panel="Settings", show_default=False)
    return _parameter(name.replace("-", "_"), Annotated[kind | None, option], None)


def _set() -> inspect.Parameter:
    option = typer.Option(
        "--set", help="any setting, as slot.key=value", metavar="SLOT.KEY=VALUE", rich_help_panel="Settings"
    )
    return _parameter("settings", Annotated[list[str], option], [])


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
