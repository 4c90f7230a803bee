"""Resolving: how defaults, file, flags and `--set` are laid over each other and checked.

Precedence, later wins: defaults < preset < file < slot flags < `--set`. Naming another part drops the options that
belonged to the old one. A slot that takes several parts names them in a list; their options are `slot.part.option`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from ouroboros_core.contracts import Slot
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost
from ouroboros_core.options import Options
from ouroboros_core.settings import TABLES, Choice, Settings

Layer = Mapping[str, Any]  # nested tables, as TOML gives them


def read_file(path: Path) -> Layer:
    """The tables of a TOML file.

    Raises:
        UserError: it is not there, or is no TOML.
    """
    try:
        return tomli.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}. Give a TOML file of settings, or none") from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from error


def assignment(text: str) -> Layer:
    """`slot.key=value` as nested tables. The right side is a TOML literal; a bare word is a string.

    Raises:
        UserError: no `=`, or no dot on its left.
    """
    left, equals, right = text.partition("=")
    keys = left.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"--set {text}: expected slot.key=value, for example gate.bias=-2")
    try:
        value = tomli.loads(f"value = {right}")["value"]
    except tomli.TOMLDecodeError:
        value = right.strip()
    for key in reversed(keys):
        value = {key: value}
    return value


def resolve(host: PluginHost, layers: Iterable[Layer]) -> Settings:
    """Lay these over the defaults, later ones on top, and check every value.

    Raises:
        UserError: an unknown table, part or key, or a value of the wrong type.
    """
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    slots = {slot: _Slot(host, slot) for slot in Slot}
    for layer in layers:
        for name, values in layer.items():
            if name not in TABLES and name not in list(Slot):
                raise UserError(_no_such("table of settings", name, [*TABLES, *Slot]))
            if not isinstance(values, Mapping):
                raise UserError(f"{name} = {values!r}: expected a table, for example {name}.key=value")
            if name in TABLES:
                tables[name] = _laid(tables[name], values)
            else:
                slots[Slot(name)].lay(values)
    checked = {name: fill(kind, tables[name], name) for name, kind in TABLES.items()}
    return Settings(**checked, parts={slot: state.choices() for slot, state in slots.items()})


class _Slot:
    """What the layers so far say of one slot: which parts, and options by part."""

    def __init__(self, host: PluginHost, slot: Slot) -> None:
        self.host, self.slot = host, slot
        self.options: dict[str, dict[str, Any]] = {host.default(slot).name: {}}

    def lay(self, values: Mapping[str, Any]) -> None:
        values = dict(values)
        if (use := values.pop("use", None)) is not None:
            names = self._names(use)
            self.options = {name: self.options.get(name, {}) for name in names}
        for key, value in values.items():
            if self.slot.takes_many and key in self.options and isinstance(value, Mapping):
                self.options[key].update(value)
            else:
                self.options[self._sole(key)][key] = value

    def choices(self) -> tuple[Choice, ...]:
        found = []
        for name, values in self.options.items():
            part = self.host.find(self.slot, name)
            where = f"{self.slot}.{name}" if len(self.options) > 1 else self.slot.value
            found.append(Choice(name, part, fill(part.options, values, where)))
        return tuple(found)

    def _names(self, use: Any) -> list[str]:
        names = [use] if isinstance(use, str) else use
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self.slot}.use = {use!r}: expected the name of a part")
        if len(names) > 1 and not self.slot.takes_many:
            raise UserError(f"{self.slot}.use = {use!r}: this slot takes one part")
        if len(set(names)) < len(names):
            raise UserError(f"{self.slot}.use = {use!r}: a part is named twice")
        return list(names)

    def _sole(self, key: str) -> str:
        names = list(self.options)
        if len(names) > 1:
            known = ", ".join(f"{self.slot}.{name}" for name in names)
            raise UserError(f"{self.slot}.{key}: the slot has several parts, so say whose option it is: {known}")
        return names[0]


def fill(kind: type[Options], values: Layer, where: str) -> Any:
    """An options model with these values.

    Raises:
        UserError: a key that is not there (with the nearest one that is), or a value of the wrong type.
    """
    if unknown := [key for key in values if key not in kind.model_fields]:
        raise UserError(_no_such("setting", f"{where}.{unknown[0]}", list(kind.model_fields)))
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        spot = ".".join([where, *(str(place) for place in first["loc"])])
        raise UserError(f"{spot} = {first['input']!r}: {first['msg']}") from error


def _laid(under: Layer, over: Layer) -> dict[str, Any]:
    """One table over another; tables within them too, but for an empty one, which clears what it is laid over."""
    both = {key: _laid(under[key], value) for key, value in over.items() if _nested(under.get(key), value)}
    return {**under, **over, **both}


def _nested(under: Any, over: Any) -> bool:
    return isinstance(under, Mapping) and isinstance(over, Mapping) and bool(over)


def _no_such(what: str, name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name.split(".")[-1], known, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    return f"{name}: no such {what}.{meant} Known: {', '.join(known) or 'none'}"
