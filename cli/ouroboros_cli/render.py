"""What a person sees of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ouroboros_core.run import Outcome

VALIDATION = "validation"


def show_outcome(outcome: Outcome) -> None:
    """The table of a run, on stdout."""
    console = Console()
    found = outcome.evaluation
    console.print(result_table(found))
    console.print(_footnotes(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {outcome.folder}", highlight=False, markup=False, soft_wrap=True)


def result_table(found: dict[str, Any]) -> Table:
    """Models by row: loss and recovered share of each held-out domain, parameters, speed. Fits 80 columns."""
    domains = {name: domain for name, domain in found["domains"].items() if name != VALIDATION}
    table = Table(title=f"layers {found['split']}", box=box.SIMPLE_HEAD, padding=0, title_justify="left")
    table.pad_edge = False
    table.add_column("", min_width=10)
    for name in domains:
        table.add_column(f"{name}\nnats", justify="right", no_wrap=True)
        table.add_column("recov-\nered", justify="right", no_wrap=True)
    for heading in ("train-\nable", "unique", "effec-\ntive", "tokens\n/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model, count in found["parameters"].items():
        cells = [cell for domain in domains.values() for cell in _judged(domain["models"][model])]
        speed = max(domain["models"][model]["tokens_per_second"] for domain in domains.values())
        numbers = [short(count[kind]) for kind in ("trainable", "unique", "effective")]
        table.add_row(model, *cells, *numbers, f"{speed:,.0f}")
    return table


def short(count: float) -> str:
    """1017024 as `1.02M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def _judged(model: dict[str, Any]) -> tuple[str, str]:
    loss, share = model["loss"], model["recovered"]
    losses = f"{loss['value']:.3f}\n{interval(loss)}"
    return losses, f"{share['value']:.1%}\n{interval(share, '.0f', 100)}" if share else ""


def interval(told: Mapping[str, float | None], style: str = ".2f", times: int = 1) -> str:
    """From low to high."""
    low, high = told["low"], told["high"]
    if low is None or high is None:
        return "no range"
    dash = " to " if low < 0 else "–"  # which beside a minus sign nobody can read
    return f"{low * times:{style}}{dash}{high * times:{style}}"


def _footnotes(found: dict[str, Any]) -> str:
    lines = []
    for name, domain in found["domains"].items():
        what = f"{name}: {domain['tokens']:,} tokens in {domain['units']} {domain['unit']}"
        if name == VALIDATION:
            losses = ", ".join(f"{model} {one['loss']['value']:.3f}" for model, one in domain["models"].items())
            what += f", to choose settings on: {losses}"
        lines.append(what)
    lines.append("Intervals: 95 % bootstrap over these units. Recovered: of what removing the layers cost.")
    seconds = ", ".join(f"{name} {spent:.0f} s" for name, spent in found["seconds"].items())
    lines.append(f"{seconds}; peak memory {found['peak_memory_bytes'] / 2**30:.1f} GiB")
    return "\n".join(lines)
