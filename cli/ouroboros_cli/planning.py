"""`ouro plan`."""

from __future__ import annotations

import json as jsons
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ouroboros_cli.flags import Layers

FATES = {"looped": "bold", "kept": "", "removed": "dim"}


def plan_and_show(layers: Layers, *, measure: bool, third_party: bool, json: bool) -> None:
    """Plan, and print the tables, or JSON, on stdout."""
    from ouroboros_core.host import PluginHost
    from ouroboros_core.plan import measured_plan, plan
    from ouroboros_core.resolve import resolve

    host = PluginHost.installed(third_party=third_party)
    settings = resolve(host, layers.read(host))
    found = measured_plan(settings, host) if measure else plan(settings, host)
    if json:
        print(jsons.dumps(found, indent=2))
        return
    console = Console()
    console.print(f"[bold]{found['base']}[/bold] ({found['model_type']})", highlight=False)
    console.print(f"layers {found['split']}", highlight=False, markup=False)
    if measure:
        _show_measured(console, found)
    console.print(_components(found))
    for line in _facts(found):
        console.print(line, highlight=False, markup=False)


def _show_measured(console: Console, found: dict[str, Any]) -> None:
    told = found["measured"]
    console.print(_picture(told))
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in told["losses"].items() if loss is not None)
    where = f"validation loss in nats, {told['validation_tokens']:,} tokens, before any training"
    console.print(f"{where}: {losses or 'there is no such text'}", highlight=False, markup=False)


def _picture(told: dict[str, Any]) -> Table:
    """One row a layer: how far it turns the state, and what becomes of it."""
    table = Table(box=box.SIMPLE_HEAD, caption=f"on {told['tokens']:,} tokens of training text", padding=(0, 1, 0, 0))
    for heading in ("layer", "influence", "angle", "", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    most = max(*told["influence"], 1e-9)
    for layer, (influence, angle) in enumerate(zip(told["influence"], told["angle"], strict=True)):
        fate = "looped" if layer in told["looped"] else "kept" if layer in told["kept"] else "removed"
        bar = "█" * max(1, round(24 * (max(influence, 0) / most) ** 0.5))
        table.add_row(str(layer), f"{influence:.4f}", f"{angle:.4f}", bar, fate, style=FATES[fate])
    return table


def _components(found: dict[str, Any]) -> Table:
    table = Table("component", box=box.SIMPLE_HEAD, show_footer=True)
    count = found["parameters"]
    table.columns[0].footer = "total"
    table.add_column("parameters", justify="right", footer=f"{count['unique']:,}")
    table.add_column("trainable", justify="right", footer=f"{count['trainable']:,}")
    for row in found["components"]:
        table.add_row(row["component"], f"{row['stored']:,}", f"{row['trainable']:,}" if row["trainable"] else "")
    return table


def _facts(found: dict[str, Any]) -> list[str]:
    flops, memory = found["flops_per_token"], found["memory_bytes"]
    return [
        f"effective parameters: {found['parameters']['effective']:,} (as if every turn had layers of its own)",
        f"operations a token at length {flops['length']}: {flops['forward'] / 1e9:.3f} GFLOP forward, "
        f"{flops['train step'] / 1e9:.3f} GFLOP in a training step",
        f"keys and values: {found['kv_bytes_per_token']:,} bytes a token",
        *(f"memory, {name}: {size / 1e6:,.1f} MB" for name, size in memory.items()),
    ]
