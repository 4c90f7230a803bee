"""`ouro export`."""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def export_and_show(
    run: Path, to: str, out: Path, *, merge_base: bool, turns: int | None, base: str | None, third_party: bool,
    json: bool,
) -> None:  # fmt: skip
    """Export, and print what was written and how it is loaded, or JSON, on stdout."""
    from ouroboros_core.export import export
    from ouroboros_core.host import PluginHost

    host = PluginHost.installed(third_party=third_party)
    told = export(run, to, out, merge_base=merge_base, turns=turns, base=base, host=host)
    if json:
        print(jsons.dumps(told, indent=2))
        return
    console = Console()
    said = [f"written to {told['folder']}, to take {told['turns']} turns", _files(told), "Load it with:", *told["load"]]
    for one in said:
        console.print(one, highlight=False, markup=False, soft_wrap=True)


def _files(told: dict[str, Any]) -> Table:
    table = Table("file", box=box.SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("bytes", justify="right", footer=f"{sum(told['files'].values()):,}")
    for name, size in told["files"].items():
        table.add_row(name, f"{size:,}")
    return table
