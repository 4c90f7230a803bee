"""`ouro eval`."""

from __future__ import annotations

import json as jsons
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ouroboros_cli.render import interval, result_table
from ouroboros_cli.running import watching
from ouroboros_core.errors import UserError

if TYPE_CHECKING:
    from ouroboros_core.examine import Asked

WRITTEN = "eval.json"
LISTS = ("turns", "cache", "tasks")  # given as a,b,c
FIRST, DOMAIN = 22, 19  # widths: of a table's own columns, and of a loss with its interval
NO_NUMBER = "no number"


def examine_and_show(
    folder: Path, given: dict[str, Any], *, base: str | None, third_party: bool, json: bool, quiet: bool
) -> None:  # fmt: skip
    """Examine, print the tables, or JSON, on stdout, and write the result into the run folder."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with watching(quiet) as display:
        from ouroboros_core.examine import examine, sections_of
        from ouroboros_core.host import PluginHost
        from ouroboros_core.rundir import load_run, write_json

        asked = _asked(given)
        sections_of(asked)  # a mistake is told before anything is loaded
        host = PluginHost.installed(third_party=third_party)
        found = examine(load_run(folder, host, base), folder, asked, display, host=host)
    console = Console()
    if json:
        print(jsons.dumps({"folder": str(folder), **found}, indent=2))
    else:
        show(found, console)
    write_json(folder / WRITTEN, found)
    if not json:
        console.print(f"written to {folder / WRITTEN}", highlight=False, markup=False, soft_wrap=True)


def _asked(given: dict[str, Any]) -> Asked:
    from ouroboros_core.examine import Asked

    names = {name: [one.strip() for one in (given[name] or "").split(",") if one.strip()] for name in LISTS}
    try:
        turns = [int(text) for text in names.pop("turns")]
    except ValueError as error:
        raise UserError(f"--turns {given['turns']}: give whole numbers, for example --turns 1,2,4") from error
    several = {name: _several(given[name] or []) for name in ("only", "domains")}
    return Asked(**{**given, **several, **names, "turns": turns})


def _several(given: Sequence[str]) -> list[str]:
    """What an option was given, again and again or as a,b,c."""
    return [one.strip() for text in given for one in text.split(",") if one.strip()]


def show(found: Mapping[str, Any], console: Console) -> None:
    """Section by section, as wide as the terminal is."""
    for name, view in VIEWS.items():
        if name not in found:
            continue
        for piece in view({"split": found["split"], **found[name]} if name == "loss" else found[name], console.width):
            if isinstance(piece, Table):
                console.print()
            console.print(piece, highlight=False, markup=not isinstance(piece, str))


def losses(found: Mapping[str, Any], width: int) -> Iterator[Table | Text | str]:
    """Models by row, domains by column, as a run shows them."""
    yield result_table(dict(found))
    judged = "; ".join(f"{name}: {one['units']} {one['unit']}" for name, one in found["domains"].items())
    yield f"Below each loss and share: its 95 % interval over units. {judged}."


def curve(found: Mapping[str, Any], width: int) -> Iterator[Table | Text | str]:
    """Turns by row, domains by column, as many side by side as there is room for."""
    names, room = list(found["domains"]), max(1, (width - FIRST) // DOMAIN)
    for start in range(0, len(names), room):
        some = {name: found["domains"][name] for name in names[start : start + room]}
        table = _table("held-out loss by turns, nats", "turns", "trained", "", *map(_last, some))
        for rows in zip(*some.values(), strict=True):
            count = rows[0]["turns"]
            here = "*" if count == found["evaluated"] else ""
            table.add_row(str(count), rows[0]["where"], here, *(_interval(row["loss"]) for row in rows))
        yield table
    starred = found["evaluated"] in [row["turns"] for row in found["domains"][names[0]]]
    yield ("* turns at evaluation; at" if starred else "At") + f" most {found['trained']} were trained."
    if found["cap"]:
        yield "The halter is adaptive: turns are a cap, and a token may stop before."


def moved(found: Mapping[str, Any], width: int) -> Iterator[Table | Text | str]:
    """One row a turn, and one more application."""
    table = _table(
        "how far a turn moves the state, relative to it", "turn", "mean", "median", "over two", "norm", right=True
    )
    for row in [*found["turns"], found["further"]]:
        cells = [_small(row[kind]) for kind in ("mean", "median", "over_two", "norm")]
        table.add_row(f"{row['turn']}{' (further)' if row is found['further'] else ''}", *cells)
    yield table
    yield (
        f"{found['tokens']:,} tokens of all domains. To zero: the loop converges. Not to zero, but over two turns: it "
        "alternates. Neither, and the norm grows: it diverges."
    )
    if found["held_back"]:
        yield "The halter is adaptive and was held back: every token took every turn."


def halted(found: Mapping[str, Any] | None, width: int) -> Iterator[Table | Text | str]:
    """One table a domain: what tokens took, what they lost, and what all would have lost there."""
    if found is None:
        yield "halting: the halter is fixed, every token takes every turn"
        return
    for name, report in found.items():
        table = _table(f"halting on {escape(name)}", "turns", "tokens", "their loss", "all, read there", right=True)
        rows = zip_longest(report["took"], report["if_read"])
        for took, read in ((took, read) for took, read in rows if took["tokens"] or read is not None):
            share = f"{took['share']:.1%}" if took["tokens"] else ""
            table.add_row(str(took["turns"]), share, _number(took["loss"]), _number(read))
        yield table
        yield (
            f"mean {report['mean_turns']:.2f} turns; {report['at_first']:.1%} of {report['tokens']:,} tokens stop as "
            f"early as can be, {report['at_last']:.1%} take all turns; loss {_number(report['loss'])} nats"
        )
        if report["alarm"]:
            yield Text(f"ALARM {name}: {report['alarm']}", style="bold red")


def answered(found: Mapping[str, Any], width: int) -> Iterator[Table | Text | str]:
    """One table a task: models by row."""
    for results in zip(*found.values(), strict=True):
        name, items = results[0]["task"], results[0]["items"]
        others = list(results[0]["other"])
        table = _table(f"task {escape(name)}, {items:,} items", "", "acc", "acc_norm", *others)
        for model, result in zip(found, results, strict=True):
            other = [str(result["other"].get(metric, "")) for metric in others]
            table.add_row(escape(model), _share(result["acc"]), _share(result["acc_norm"]), *map(escape, other))
        yield table


def shared(found: Mapping[str, Any], width: int) -> Iterator[Table | Text | str]:
    """One table a domain: cache policies by row."""
    for name, policies in found.items():
        table = _table(f"cache on {escape(name)}", "slots", "KV bytes a token", "loss", "costs", right=True)
        for row in policies:
            cells = f"{row['kv_bytes']:,}", _number(row["loss"]), _interval(row["costs"])
            table.add_row(escape(row["policy"]), *cells)
        yield table
        yield f"{policies[0]['tokens']:,} tokens, read one by one; costs: nats a token more than a slot for each turn."


VIEWS = {
    "loss": losses, "depth": curve, "residuals": moved, "halting": halted,
    "cache": shared, "tasks": answered,
}  # fmt: skip


def _table(title: str, *headings: str, right: bool = False) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for heading in headings:
        table.add_column(escape(heading), overflow="fold", justify="right" if right and table.columns else "left")
    return table


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _interval(told: Mapping[str, float | None] | None) -> str:
    return NO_NUMBER if told is None else f"{told['value']:.3f} {interval(told)}"


def _share(told: Mapping[str, float] | None) -> str:
    return "" if told is None else f"{told['value']:.1%} {interval(told, '.0f', 100)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
