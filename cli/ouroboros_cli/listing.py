"""`ouro list-plugins` and `ouro describe`."""

from __future__ import annotations

import json as jsons
from dataclasses import asdict
from typing import Any

import tomli_w
from rich import box
from rich.console import Console
from rich.table import Table

from ouroboros_core.contracts import Slot
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost, PluginRecord
from ouroboros_core.options import Options
from ouroboros_core.resolve import resolve


def show_plugins(slot: str | None, *, third_party: bool, json: bool) -> None:
    """Every plugin's parts; broken plugins with the cause."""
    wanted = [_slot(slot)] if slot else list(Slot)
    records = PluginHost.installed(third_party=third_party).records
    if json:
        print(jsons.dumps([_facts(record, wanted) for record in records], indent=2))
        return
    console = Console()
    console.print(_parts_table(records, wanted))
    for record in records:
        if record.error:
            console.print(
                f"broken: {record.name} ({record.distribution} {record.version}): {record.cause}",
                style="red", markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def show_part(slot: str, name: str, *, third_party: bool, json: bool) -> None:
    """One part's options."""
    part = PluginHost.installed(third_party=third_party).find(_slot(slot), name)
    if json:
        facts = {"slot": part.slot, "name": part.name, "summary": part.summary, "source": part.source}
        print(jsons.dumps({**facts, "options": part.options.model_json_schema()}, indent=2))
        return
    console = Console()
    console.print(f"[bold]{part.slot} {part.name}[/bold]", highlight=False)
    console.print(part.summary + (f"\nSource: {part.source}" if part.source else ""), markup=False, highlight=False)
    console.print(_options_table(part.options) if part.options.model_fields else "It has no options.")


def show_presets(*, third_party: bool, json: bool) -> None:
    """Every preset, with its source and where it comes from."""
    offers = list(PluginHost.installed(third_party=third_party).presets())
    if json:
        told = [{"name": one.name, "summary": one.summary, "source": one.source, "plugin": record.name}
                for record, one in offers]  # fmt: skip
        print(jsons.dumps(told, indent=2))
        return
    table = Table("preset", "what it is", "source", "from", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for record, one in offers:
        table.add_row(one.name, one.summary, one.source, _origin(record))
    Console().print(table)


def show_preset(name: str, *, third_party: bool, json: bool) -> None:
    """A preset's parts, what it sets against the defaults, and how faithful it is."""
    host = PluginHost.installed(third_party=third_party)
    preset = host.preset(name)
    settings = resolve(host, [preset.settings])
    parts = {slot.value: [choice.name for choice in choices] for slot, choices in settings.parts.items()}
    defaults = resolve(host, [{slot: {"use": names} for slot, names in parts.items()}])
    differs = changes(defaults.tables(), settings.tables())
    if json:
        told = {key: {"value": value, "default": default} for key, (value, default) in differs.items()}
        print(jsons.dumps({**asdict(preset), "parts": parts, "settings": told}, indent=2))
        return
    console = Console()
    console.print(f"[bold]preset {preset.name}[/bold]", highlight=False)
    about = {word: getattr(preset, word) for word in ("source", "faithful", "open")}
    for line in (preset.summary, *(f"{word.capitalize()}: {text}" for word, text in about.items() if text)):
        console.print(line, markup=False, highlight=False)
    console.print(_chosen_table(parts))
    console.print(_changes_table(differs) if differs else "Every option is at its default.")


def _chosen_table(parts: dict[str, list[str]]) -> Table:
    table = Table("slot", "part", box=box.SIMPLE_HEAD)
    for slot, names in parts.items():
        table.add_row(slot, ", ".join(names))
    return table


def _changes_table(differs: dict[str, tuple[Any, Any]]) -> Table:
    table = Table("option", "value", "default", box=box.SIMPLE_HEAD)
    for key, (value, default) in differs.items():
        table.add_row(key, _literal(value), _literal(default))
    return table


def changes(before: dict[str, Any], after: dict[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two settings, as `table.key` -> (value, default); what a part that went had is left out."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict):
            found |= changes(old if isinstance(old, dict) else {}, value, f"{where}{key}.")
        elif value != old:
            found[where + key] = value, old
    return found


def _literal(value: Any) -> str:
    return "" if value is None else tomli_w.dumps({"v": value}).partition("=")[2].strip().replace("\n", " ")


def _origin(record: PluginRecord) -> str:
    return "built in" if record.builtin else f"{record.distribution} {record.version}"


def _parts_table(records: list[PluginRecord], wanted: list[Slot]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="* what fills the slot when nothing is said")
    for heading in ("slot", "part", "what it does", "from"):
        table.add_column(heading, no_wrap=heading in ("slot", "part"))
    for slot in wanted:
        offers = [(record, part) for record in records for part in record.parts if part.slot == slot]
        for row, (record, part) in enumerate(offers):
            name = part.name + (" *" if part.default and record.builtin else "")
            table.add_row(
                "" if row else slot.value, name, part.summary, _origin(record), end_section=row == len(offers) - 1
            )
    return table


def _options_table(options: type[Options]) -> Table:
    table = Table("option", "type", "default", "what it does", box=box.SIMPLE_HEAD)
    schema = options.model_json_schema()["properties"]
    for name, field in options.model_fields.items():
        table.add_row(name, _type(schema[name]), str(field.default), field.description or "")
    return table


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema's type in a few words: `integer | null`, `list of integer`."""
    if choices := schema.get("enum"):
        return " | ".join(choices)
    if several := schema.get("anyOf"):
        return " | ".join(_type(one) for one in several)
    return f"list of {_type(schema['items'])}" if schema.get("type") == "array" else str(schema.get("type", "any"))


def _facts(record: PluginRecord, wanted: list[Slot]) -> dict[str, Any]:
    parts = [
        {"slot": part.slot, "name": part.name, "summary": part.summary, "source": part.source,
         "default": part.default and record.builtin}
        for part in record.parts
        if part.slot in wanted
    ]  # fmt: skip
    plugin = {"name": record.name, "distribution": record.distribution, "version": record.version}
    return {**plugin, "error": record.cause or None, "parts": parts}


def _slot(name: str) -> Slot:
    if name not in list(Slot):
        raise UserError(f"no slot is called '{name}'. Slots: {', '.join(Slot)}")
    return Slot(name)
