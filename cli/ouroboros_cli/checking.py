"""`ouro check`."""

from __future__ import annotations

import json as jsons
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from ouroboros_cli.flags import Layers

if TYPE_CHECKING:
    from ouroboros_core.conformance.pairs import Outcome
    from ouroboros_core.reporting import CheckResult

Kind = TypeVar("Kind")
FAILED = 1  # exit code
SAID = {"ok": ("ok", ""), "refused": ("refused", "dim"), "failed": ("FAILED", "bold red")}  # and its style


def check_and_show(layers: Layers, only: Sequence[str], *, third_party: bool, json: bool) -> None:
    """Check, and print the table, or JSON, on stdout.

    Raises:
        typer.Exit: a check failed; what was found is printed all the same.
    """
    from ouroboros_core.conformance import subject_of, verdict, wanted
    from ouroboros_core.host import PluginHost
    from ouroboros_core.resolve import resolve

    host, names = PluginHost.installed(third_party=third_party), wanted(only)
    subject = subject_of(resolve(host, layers.read(host)), host)
    results = [verdict(name, subject) for name in _watched(names)]
    if json:
        print(jsons.dumps([asdict(result) for result in results], indent=2))
    else:
        Console().print(_table(results))
    if not all(result.passed for result in results):
        raise typer.Exit(FAILED)


def combine_and_show(
    layers: Layers, only: Sequence[str], *, pairs: str | None, product: str | None, third_party: bool, json: bool
) -> None:
    """Check combinations of the parts of some slots, and print a row for each, or JSON, on stdout.

    Args:
        pairs: the slots, with commas, of whose parts every two are to meet; or
        product: the slots of which all combinations are to be checked.

    Raises:
        UserError: both are given, or every combination is refused.
        typer.Exit: a check failed; what was found is printed all the same.
    """
    from ouroboros_core import pretrained
    from ouroboros_core.conformance import wanted
    from ouroboros_core.conformance.pairs import rows, tried
    from ouroboros_core.errors import UserError
    from ouroboros_core.host import PluginHost
    from ouroboros_core.resolve import resolve

    if pairs and product:
        raise UserError("--pairs and --product: name one of them; --product holds every pair")
    host = PluginHost.installed(third_party=third_party)
    settings, names = resolve(host, layers.read(host)), wanted(only)
    chosen = rows(settings, host, [slot.strip() for slot in (pairs or product or "").split(",")], every=not pairs)
    config = pretrained.load_config(settings.base)
    outcomes = [tried(settings, host, row, names, config) for row in _watched(chosen)]
    if all(outcome.refused for outcome in outcomes):
        raise UserError(f"every combination is refused, the first one so: {outcomes[0].refused}")
    if json:
        print(jsons.dumps([{**asdict(outcome), "verdict": outcome.verdict} for outcome in outcomes], indent=2))
    else:
        Console().print(_combinations(outcomes))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(FAILED)


def _watched(several: Sequence[Kind]) -> Iterable[Kind]:
    """With a bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    return track(several, "check", console=console, transient=True, disable=not console.is_terminal)


def _table(results: Sequence[CheckResult]) -> Table:
    table = Table("check", "", "found", box=box.SIMPLE_HEAD)
    for result in results:
        said = ("ok", "") if result.passed else ("FAILED", "bold red")
        table.add_row(result.name, said[0], escape(result.detail), style=said[1])
    return table


def _combinations(outcomes: Sequence[Outcome]) -> Table:
    slots = list(dict.fromkeys(slot for outcome in outcomes for slot in outcome.parts))
    counted = Counter(outcome.verdict for outcome in outcomes)
    caption = ", ".join(f"{counted[verdict]} {verdict}" for verdict in SAID)
    table = Table(*slots, "", "found", box=box.SIMPLE_HEAD, caption=f"{len(outcomes)} combinations: {caption}")
    for outcome in outcomes:
        found = outcome.refused or "\n".join(f"{check.name}: {check.detail}" for check in outcome.failed)
        said, style = SAID[outcome.verdict]
        table.add_row(*(outcome.parts.get(slot, "") for slot in slots), said, escape(found), style=style)
    return table
