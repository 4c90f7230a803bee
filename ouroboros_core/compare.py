"""A comparison: several variants, each trained with every seed on one budget, judged on the same text, in one table.

It is a sweep with one axis: a plan of cells is written first, then each cell is a run of its own, so that a comparison
that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from ouroboros_core import rundir
from ouroboros_core.build import control_settings
from ouroboros_core.contracts import Slot
from ouroboros_core.errors import Interrupted, UserError
from ouroboros_core.files import written_aside
from ouroboros_core.host import PluginHost
from ouroboros_core.plan import rehearse
from ouroboros_core.reporting import Reporter, Silent
from ouroboros_core.resolve import Layer, assignment, resolve
from ouroboros_core.run import run
from ouroboros_core.settings import Settings
from ouroboros_core.tabulate import Finished, must_share_text, table_of

Answer = TypeVar("Answer")
PLAN, CELLS, COMPARISON = "plan.json", "cells", "comparison.json"
SEEDS = 2
CONTROL = "adapter=full adapter.rate=1e-4"  # what the control learns with, where the first variant has no adapter
OURS = ("train.seed", "run.name", "run.folder", "eval.control")  # settings that a comparison gives its cells itself
JUDGED = [("data", key) for key in ("train", "heldout", "length", "column", "split", "apart")]
JUDGED += [("eval", "tokens"), ("eval", "validation")]  # what says on which text, in which rows, losses are taken


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    number: int  # in the plan, from 1
    variant: str  # as it is called in the table
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        """Of its folder. The number tells apart what the words do not: gate.bias=1 and gate.bias=-1."""
        words = re.sub(r"[^a-z0-9]+", "-", self.variant.lower())[:60].strip("-")
        return f"{self.number:02}-{words}-seed{self.seed}"


def variant_layers(host: PluginHost, text: str) -> list[Layer]:
    """`relaxed`, or `ouroboros modulator=none gate.bias=-1`: a preset, and what differs from it. `slot=part` is short.

    Raises:
        UserError: no such preset, or an assignment that is none.
    """
    first, *rest = text.split() or [""]
    if "=" not in first:
        return [host.preset(first).settings, *map(_assigned, rest)]
    return [_assigned(word) for word in (first, *rest)]


def plan_cells(
    host: PluginHost,
    variants: Sequence[str],
    layers: Sequence[Layer],
    seeds: int = SEEDS,
    control: str | None = CONTROL,
) -> list[Cell]:
    """Every variant with every seed, and the trained control of the first one.

    Args:
        variants: see `variant_layers`.
        layers: what is laid over every variant, the budget above all.
        seeds: trainings of each variant, from the first one's `train.seed` on.
        control: what the control learns with, if the first variant has no adapter; None: no control.

    Raises:
        UserError: fewer than one variant, two that are the same, different text, or a mistake in the settings.
    """
    if not variants:
        raise UserError("nothing to compare: give --preset once for each variant, for example --preset ouroboros")
    named = {" ".join(text.split()): variant_layers(host, text) for text in variants}
    if len(named) < len(variants):
        raise UserError(f"--preset {' --preset '.join(variants)}: a variant is given twice")
    for name, its in named.items():
        _must_take_effect(name, its[1:] if "=" not in name.split()[0] else its, layers)
    given = {name: [*its, *layers] for name, its in named.items()}
    _must_be_comparable({name: _of(name, partial(resolve, host, these)) for name, these in given.items()})
    first = next(iter(given))
    start = resolve(host, given[first]).train.seed
    planned: list[tuple[str, int, Settings]] = []
    for seed in range(start, start + seeds):
        seeded = {name: [*these, {"train": {"seed": seed}}] for name, these in given.items()}
        planned += [(name, seed, resolve(host, these)) for name, these in seeded.items()]
        if control:
            planned.append((f"control of {first}", seed, _control(host, seeded[first], control)))
    return [Cell(number, *one) for number, one in enumerate(planned, start=1)]


def compare(cells: Sequence[Cell], host: PluginHost, folder: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run every cell that is not finished, one after another, and write down the table.

    Args:
        folder: of the comparison, new or unfinished.

    Raises:
        UserError: the folder holds another plan; and whatever `run` raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a comparison runs its cells one after another in one process: start it without torchrun")
    reporter = reporter or Silent()
    for cell in cells:
        if cell.seed == cells[0].seed:
            _of(cell.variant, partial(rehearse, cell.settings, host))
    fresh = not folder.exists()
    _begin(folder, cells)
    finished: list[Finished] = []
    try:
        for cell in cells:
            if not (folder / CELLS / cell.name / rundir.EVALUATION).exists():
                reporter.stage(f"cell {cell.number} of {len(cells)}: {cell.variant}, seed {cell.seed}")
                place = folder / CELLS / cell.name
                run(cell.settings, host, reporter, resume=place if place.exists() else None, folder=place)
            finished.append(_finished(folder, cell))
            must_share_text(finished)
    except UserError:
        if fresh and not (folder / CELLS).exists():  # nothing was trained: leave nothing behind
            (folder / PLAN).unlink()
            folder.rmdir()
        raise
    except (Interrupted, KeyboardInterrupt) as stopped:
        what = str(stopped).partition(". Go on with")[0] or "stopped"
        raise Interrupted(f"{what}. Go on with: ouro compare --resume {folder}") from None
    found = table_of(finished)
    rundir.write_json(folder / COMPARISON, found)
    return found


def cells_of(folder: Path, host: PluginHost) -> list[Cell]:
    """The plan of a comparison that was begun.

    Raises:
        UserError: the folder holds none.
    """
    try:
        planned = [(one["variant"], one["seed"], one["settings"]) for one in json.loads((folder / PLAN).read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no comparison: {error}") from error
    return [Cell(number, variant, seed, resolve(host, [settings]))
            for number, (variant, seed, settings) in enumerate(planned, start=1)]  # fmt: skip


def _begin(folder: Path, cells: Sequence[Cell]) -> None:
    """Write the plan into a new folder, or make sure that the one there holds the same plan."""
    planned = [{"variant": c.variant, "seed": c.seed, "settings": c.settings.tables()} for c in cells]
    if not folder.exists():
        with written_aside(folder) as aside:
            (aside / PLAN).write_text(json.dumps(planned, indent=2))
    elif not (folder / PLAN).exists() or json.loads((folder / PLAN).read_text()) != planned:
        raise UserError(f"{folder} holds something else: give another --name, or --resume a comparison")


def _must_take_effect(name: str, own: Sequence[Layer], layers: Sequence[Layer]) -> None:
    """Refuse what a variant says of itself and a common setting would cover, or the comparison itself."""
    covered = {key for layer in layers for key in _keys(layer)}
    for key in (key for layer in own for key in _keys(layer)):
        if key in covered:
            raise UserError(f"variant '{name}': {key} is set for every variant too, and that wins. Set it in one place")
        if key in OURS:
            raise UserError(f"variant '{name}': {key} is the comparison's to give. Leave it out of --preset")


def _keys(layer: Layer, where: str = "") -> list[str]:
    """`table.key` of everything a layer sets."""
    below = [(f"{where}{key}", value) for key, value in layer.items()]
    return [found for key, value in below
            for found in (_keys(value, f"{key}.") if isinstance(value, Mapping) else [key])]  # fmt: skip


def _of(variant: str, work: Callable[[], Answer]) -> Answer:
    """Do something for a variant; a mistake in it is told with its name."""
    try:
        return work()
    except UserError as error:
        raise UserError(f"variant '{variant}': {error}") from error


def _must_be_comparable(settings: Mapping[str, Settings]) -> None:
    """Refuse what would not be a comparison, before anything is trained."""
    for (name, one), (other, two) in combinations(((name, each.tables()) for name, each in settings.items()), 2):
        if one == two:
            raise UserError(
                f"variants '{name}' and '{other}' come to the same settings. Flags and --set are laid over every "
                "variant: what is to differ belongs into --preset"
            )
        for table, key in JUDGED:
            if one[table].get(key) != two[table].get(key):
                raise UserError(f"variants '{name}' and '{other}' would be judged on different text: {table}.{key}")


def _control(host: PluginHost, given: Sequence[Layer], control: str) -> Settings:
    """One turn of the variant's kept layers, every turn's part null, trained like everybody else."""
    frozen = all(choice.part.null for choice in resolve(host, given).parts[Slot.ADAPTER])
    return control_settings(resolve(host, [*given, *map(_assigned, control.split())] if frozen else given), host)


def _assigned(word: str) -> Layer:
    slot, equals, parts = word.partition("=")
    return {slot: {"use": parts.split(",")}} if equals and slot in list(Slot) else assignment(word)


def _finished(folder: Path, cell: Cell) -> Finished:
    place, train = folder / CELLS / cell.name, cell.settings.train
    found, manifest = rundir.evaluation_of(place), rundir.read_json(place / rundir.MANIFEST)
    assert found is not None, "a finished cell was judged"
    text = {name: manifest["text"][name] for name in found["domains"]}
    return Finished(cell.variant, cell.seed, train.steps * train.batch * cell.settings.data.length, text, found)
