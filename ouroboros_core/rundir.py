"""The run folder: what a run leaves behind, and how a trained model is loaded back."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
import torch

from ouroboros_core import measure, pretrained
from ouroboros_core.build import Built, build
from ouroboros_core.contracts import LayerStatistics, Slot
from ouroboros_core.devices import package_versions
from ouroboros_core.errors import UserError
from ouroboros_core.files import digest, write, written_aside
from ouroboros_core.host import PluginHost
from ouroboros_core.pretrained import Pretrained
from ouroboros_core.resolve import read_file, resolve
from ouroboros_core.settings import TABLES, Settings
from ouroboros_core.weights import CHECKSUM, PARTS, load_parts, must_be_for

RESOLVED, MANIFEST, EVALUATION, LAYERS = "resolved.toml", "manifest.json", "evaluation.json", "layers.json"


@dataclass(frozen=True)
class Loaded:
    """A trained run, ready to use."""

    built: Built
    base: Pretrained
    settings: Settings


def new_name(settings: Settings, folder: Path | None = None) -> Path:
    """`folder`, or `runs/20261122-101500-run`. It is made by `begin`."""
    stamped = f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{settings.run.name}"
    named = Path(settings.run.folder) / stamped  # read in any case: a cell of a comparison has these settings too
    return folder or named


def begin(folder: Path, settings: Settings, facts: dict[str, Any], statistics: LayerStatistics | None = None) -> Path:
    """Make a run folder with its settings and manifest, and what was measured of the layers: whole, or not at all.

    Returns `folder`, or `folder-2` if that one is taken.

    Raises:
        UserError: the place cannot be written.
    """
    for name in (folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000))):
        try:
            with written_aside(name) as aside:
                (aside / RESOLVED).write_text(tomli_w.dumps(settings.tables()))
                (aside / MANIFEST).write_text(json.dumps({**facts, **_circumstances()}, indent=2))
                if statistics:
                    (aside / LAYERS).write_text(measure.dumps(statistics))
            return name
        except FileExistsError:
            continue
    raise UserError(f"{folder} and 998 more names like it are taken: set run.name")


def settings_of(folder: Path, host: PluginHost) -> Settings:
    """The settings of a run.

    Raises:
        UserError: this is no run folder, a file of it is cut short, or a part of it is not installed.
    """
    for name in (RESOLVED, MANIFEST):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no run folder: it has no {name}. Runs are listed in the folder `runs`")
    tables = read_file(folder / RESOLVED)
    if lost := [name for name in (*TABLES, *Slot) if name not in tables]:
        raise UserError(f"{folder / RESOLVED} is not whole: it has no table [{lost[0]}]")
    try:
        return resolve(host, [tables])
    except UserError as error:
        raise UserError(f"{folder / RESOLVED}: {error}{_gone(folder, host)}") from error


def load_run(folder: Path | str, host: PluginHost | None = None, base: str | None = None) -> Loaded:
    """A trained model, from its folder and its base. Nothing of the removed layers is in it but what was saved.

    Args:
        base: where the base is now; None: where it was.

    Raises:
        UserError: the run did not finish, the folder or the base is not what it was, or a plugin is not there.
    """
    folder, host = Path(folder), host or PluginHost.installed()
    settings = settings_of(folder, host)
    if base:
        settings = settings.with_tables(base=settings.base.model_copy(update={"name": base, "revision": None}))
    if not (folder / PARTS).is_file():
        raise UserError(f"{folder} has no {PARTS}: the run did not finish. Go on with: ouro run --resume {folder}")
    try:
        intact = pretrained.load(settings.base, settings.train.seed)
    except UserError as error:
        gone = f"{folder} was trained on a base that is gone ({error}): say where it is with --base"
        raise UserError(f"this is not the base of {folder}: {error}" if base else gone) from error
    must_be_base_of(folder, intact)
    statistics = measure.loads(folder / LAYERS) if settings.one(Slot.SPLITTER).part.measures else None
    built = build(settings, host, intact.model, statistics, fill_bases=False)
    built.model.config.base = intact.told(settings.base)
    load_parts(built.model, folder)
    must_be_for(folder, CHECKSUM, {"tables": read_file(folder / RESOLVED), "split": asdict(built.model.split)})
    built.model.eval()
    return Loaded(built, intact, settings)


def must_be_base_of(folder: Path, base: Pretrained) -> None:
    """Refuse a base that is not the one the run was trained on.

    Raises:
        UserError: it is another, or the manifest is missing.
    """
    try:
        then = read_json(folder / MANIFEST)["base"]["fingerprint"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} does not say which base the run had: its folder was changed") from error
    if then != base.fingerprint:
        raise UserError(f"{folder} was trained on a base with fingerprint {then}; this one has {base.fingerprint}")


def write_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Write what a run found, with a checksum: these are the numbers that are believed."""
    write_json(folder / EVALUATION, {**evaluation, "sha256": digest(evaluation)})


def write_json(path: Path, facts: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write(path, json.dumps(facts, indent=2))


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        UserError: it is not there, or holds no JSON object.
    """
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(told, dict):
        raise UserError(f"{path} cannot be read: it holds no JSON object")
    return told


def evaluation_of(folder: Path) -> dict[str, Any] | None:
    """What a run found; None: it was not judged yet.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / EVALUATION
    if not path.exists():
        return None
    told = read_json(path)
    then = told.pop("sha256", None)
    if lost := [name for name in ("domains", "parameters", "split") if not told.get(name)]:
        raise UserError(f"{path} is not whole: it says nothing of {lost[0]}")
    if then is None:
        raise UserError(
            f"{path} has no checksum: an older version wrote it, or somebody. Without it, no results are told"
        )
    if then != digest(told):
        raise UserError(f"{path} is damaged: what it says is not what the run wrote")
    return told


def _gone(folder: Path, host: PluginHost) -> str:
    """Which plugins the run had and this host has not."""
    then = read_json(folder / MANIFEST).get("plugins") or {}
    lost = sorted({then[name] for name in then.keys() - host.versions.keys()})
    return f" The run had plugins that are not here now: {', '.join(lost)}" if lost else ""


def _circumstances() -> dict[str, Any]:
    return {"packages": package_versions(), "machine": _machine(), "git": _git_state()}


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> str | None:
    """The commit of the folder that the command was run in, marked where there are uncommitted changes."""
    try:
        told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None
