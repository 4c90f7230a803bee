"""`ouro check`."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ouroboros_cli.flags import Layers

if TYPE_CHECKING:
    from ouroboros_core.reporting import CheckResult

FAILED = 1  # exit code


def check_and_show(layers: Layers, only: Sequence[str], *, third_party: bool, json: bool) -> None:
    """Check, and print the table, or JSON, on stdout.

    Raises:
        typer.Exit: a check failed; what was found is printed all the same.
    """
    from ouroboros_core.conformance import conformance
    from ouroboros_core.host import PluginHost
    from ouroboros_core.resolve import resolve

    host = PluginHost.installed(third_party=third_party)
    results = conformance(resolve(host, layers.read(host)), host, only)
    if json:
        print(jsons.dumps([asdict(result) for result in results], indent=2))
    else:
        Console().print(_table(results))
    if not all(result.passed for result in results):
        raise typer.Exit(FAILED)


def _table(results: Sequence[CheckResult]) -> Table:
    table = Table("check", "", "found", box=box.SIMPLE_HEAD)
    for result in results:
        said = ("ok", "") if result.passed else ("FAILED", "bold red")
        table.add_row(result.name, said[0], escape(result.detail), style=said[1])
    return table
