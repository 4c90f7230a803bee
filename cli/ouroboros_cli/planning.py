"""`ouro plan`."""

from __future__ import annotations

import json as jsons
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ouroboros_cli.flags import Layers


def plan_and_show(layers: Layers, *, third_party: bool, json: bool) -> None:
    """Plan, and print the tables, or JSON, on stdout."""
    from ouroboros_core.host import PluginHost
    from ouroboros_core.plan import plan
    from ouroboros_core.resolve import resolve

    host = PluginHost.installed(third_party=third_party)
    found = plan(resolve(host, layers.read()), host)
    if json:
        print(jsons.dumps(found, indent=2))
        return
    console = Console()
    console.print(f"[bold]{found['base']}[/bold] ({found['model_type']})", highlight=False)
    console.print(f"layers {found['split']}", highlight=False, markup=False)
    console.print(_components(found))
    for line in _facts(found):
        console.print(line, highlight=False, markup=False)


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
