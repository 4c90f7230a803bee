"""`ouro compare`."""

from __future__ import annotations

import json as jsons
import os
import textwrap
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ouroboros_cli.flags import Layers
from ouroboros_cli.render import interval, short
from ouroboros_cli.running import watching
from ouroboros_core.errors import UserError

NAMES, EDGES, LOSS, DOMAIN, NUMBERS = 20, 3, 11, 21, 57  # widths: least of names; a loss, a domain, all costs
COSTS = {
    "trainable": ("train-\nable", "trained parameters"),
    "unique": ("unique", "unique parameters"),
    "effective": ("effec-\ntive", "effective parameters"),
    "train_flops": ("train\nFLOPs/\ntoken", "training FLOPs a token"),
    "decode_flops": ("decode\nFLOPs/\ntoken", "decoding FLOPs a token"),
    "kv_bytes": ("KV\nbytes/\ntoken", "bytes of keys and values a token"),
    "tokens_per_second": ("tokens\n/s", "tokens a second"),
    "trained_tokens": ("trained\ntokens", "training tokens"),
}


def compare_and_show(
    layers: Layers, presets: list[str], seeds: int | None, control: str | None, resume: Path | None, *,
    third_party: bool, json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Run the cells, and print one table, or JSON, on stdout."""
    if resume and (presets or seeds or control or not layers.empty):
        raise UserError("--resume takes the plan from the comparison's folder: leave out presets and settings")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with watching(quiet) as display:
        from ouroboros_core import compare, rundir
        from ouroboros_core.host import PluginHost

        host = PluginHost.installed(third_party=third_party)
        if resume:
            cells, folder = compare.cells_of(resume, host), resume
        else:
            taught = None if control == "none" else control or compare.CONTROL
            cells = compare.plan_cells(host, presets, layers.read(host), seeds or compare.SEEDS, taught)
            folder = rundir.new_name(cells[0].settings)
        found = compare.compare(cells, host, folder, display)
    if json:
        print(jsons.dumps({"folder": str(folder), **found}, indent=2))
        return
    console = Console()
    show(found, console)
    console.print(f"written to {folder}", highlight=False, markup=False, soft_wrap=True)


def show(found: dict[str, Any], console: Console) -> None:
    """Losses by domain, as many side by side as there is room for; costs; then what they do not show."""
    domains = {name: one for name, one in found["domains"].items() if name != "validation"}
    wide = console.width - EDGES
    room = max(1, (wide - NAMES) // DOMAIN)
    for start in range(0, len(domains), room):
        some = dict(list(domains.items())[start : start + room])
        console.print(losses(found, some, wide - DOMAIN * len(some)))
    console.print(costs(found, wide - NUMBERS))
    for line in notes(found, domains):
        console.print(line, highlight=False, markup=False)


def losses(found: dict[str, Any], domains: dict[str, Any], room: int) -> Table:
    """Variants by row, domains by column: loss, interval, share of the gap recovered."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trained")
    for name in domains:
        table.add_column(f"{escape(name.rpartition('/')[2])}\nnats", width=LOSS, overflow="fold")
        table.add_column("recov-\nered", justify="right", no_wrap=True)
    for variant in found["variants"]:
        cells = [cell for one in domains.values() for cell in _judged(one["variants"][variant])]
        table.add_row(_wrapped(variant, room), *cells)
    if found["intact"]:
        table.add_row(
            _wrapped("intact model, untrained", room),
            *(cell for one in domains.values() for cell in (_loss(one["intact"]), "")),
            style="dim",
        )
    return table


def costs(found: dict[str, Any], room: int) -> Table:
    """Variants by row: parameters, operations, memory, speed."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("cost")
    shown = [cost for cost in COSTS if cost != "trained_tokens"]
    for cost in shown:
        table.add_column(COSTS[cost][0], justify="right", no_wrap=True)
    for variant, row in found["variants"].items():
        table.add_row(_wrapped(variant, room), *(_number(row[cost]) for cost in shown))
    if row := found["intact"]:
        table.add_row("intact model", *(_number(row[cost]) for cost in shown), style="dim")
    return table


def notes(found: dict[str, Any], domains: dict[str, Any]) -> list[str]:
    """What was judged, what the marks mean, and which budgets are not equal."""
    rows = found["variants"]
    trained = " to ".join(f"{n:,}" for n in sorted({row["trained_tokens"] for row in rows.values()}))
    unequal = ", ".join(
        f"{COSTS[cost][1]} ({_number(rows[two['least']][cost])} to {_number(rows[two['most']][cost])})"
        for cost, two in found["unequal"].items()
    )
    spread = "these units and the seeds" if len(found["seeds"]) > 1 else "these units; one seed tells of no other"
    judged = "; ".join(f"{name}: {one['units']} {one['unit']}" for name, one in domains.items())
    return [
        f"{trained} training tokens each, seeds {', '.join(map(str, found['seeds']))}.",
        f"Judged on {judged}.",
        f"Below each loss: its 95 % interval over {spread}.",
        "* the lowest loss; ≈ within noise of it, not corrected for the number of rows. Recovered: of what removing "
        "the variant's own layers cost.",
        "Training FLOPs: at the mean depth of the schedule; decoding, keys and values: at loop.turns.",
        *([f"Not equal: {unequal}."] if unequal else []),
    ]


def _wrapped(name: str, room: int) -> str:
    """A name on as many lines as it takes, so that the next row is told from its second line."""
    return escape(textwrap.fill(name, max(NAMES, room), subsequent_indent="  ", break_on_hyphens=False))


def _judged(one: dict[str, Any]) -> tuple[str, str]:
    mark = " *" if one["best"] else " ≈" if one["within_noise"] else ""
    share = one["recovered"]
    return _loss(one["loss"], mark), "" if share is None else f"{share:.1%}"


def _loss(told: dict[str, float | None], mark: str = "") -> str:
    return f"{told['value']:.3f}{mark}\n{interval(told)}"


def _number(count: float | None) -> str:
    return short(count) if count else ""
