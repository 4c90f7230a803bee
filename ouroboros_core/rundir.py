"""The run folder: what a run leaves behind, and how a trained model is loaded back."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ouroboros_core import measure, pretrained
from ouroboros_core.build import Built, build
from ouroboros_core.contracts import LayerStatistics, Slot
from ouroboros_core.devices import package_versions
from ouroboros_core.errors import UserError
from ouroboros_core.files import sha256, write, written_aside
from ouroboros_core.host import PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.pretrained import Pretrained
from ouroboros_core.resolve import read_file, resolve
from ouroboros_core.settings import Settings

RESOLVED, MANIFEST, EVALUATION, LAYERS = "resolved.toml", "manifest.json", "evaluation.json", "layers.json"
PARTS, CHECKSUM = "parts.safetensors", "parts.sha256"


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
        UserError: this is no run folder, or a part of it is not installed.
    """
    for name in (RESOLVED, MANIFEST):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no run folder: it has no {name}. Runs are listed in the folder `runs`")
    return resolve(host, [read_file(folder / RESOLVED)])


def save_parts(model: RecursiveLM, base: Pretrained, folder: Path) -> None:
    """Write every weight that the base does not have: trained parts, adapted layers, means, and the frozen bases."""
    with written_aside(folder / ".parts", replace=True) as aside:
        tensors = {name: t.detach().contiguous().cpu() for name, t in own_tensors(model).items()}
        save_file(tensors, aside / PARTS, metadata={"base": base.fingerprint})
        (aside / CHECKSUM).write_text(f"{sha256(aside / PARTS)}  {PARTS}\n")
    for name in (CHECKSUM, PARTS):
        (folder / ".parts" / name).replace(folder / name)
    (folder / ".parts").rmdir()


def own_tensors(model: RecursiveLM) -> dict[str, torch.Tensor]:
    """What is saved: trainable tensors, layers that started as means, and everything of the loops, frozen bases too.

    Tied ones once.
    """
    averaged = [model.layer(index) for index in model.split.kept if index in model.split.averaged]
    own = {id(t) for part in (model.loops, *averaged) for t in part.state_dict(keep_vars=True).values()}
    state = {id(t): (name, t) for name, t in reversed(model.state_dict(keep_vars=True).items())}
    return {name: t for name, t in reversed(state.values()) if t.requires_grad or id(t) in own}


def load_parts(model: RecursiveLM, folder: Path) -> None:
    """Put saved weights in place.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    path = folder / PARTS
    try:
        whole = (folder / CHECKSUM).read_text().split()[0] == sha256(path)
        tensors = load_file(path) if whole else None
    except (OSError, IndexError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}. The run did not finish, or its folder was changed") from error
    if tensors is None:
        raise UserError(f"{path} is damaged: it is not what {CHECKSUM} says was written")
    if strange := sorted(tensors.keys() ^ own_tensors(model).keys()):
        raise UserError(f"{path} is of another model: {strange[0]} is only on one side")
    model.load_state_dict(tensors, strict=False)


def load_run(folder: Path | str, host: PluginHost | None = None) -> Loaded:
    """A trained model, from its folder and its base. Nothing of the removed layers is in it but what was saved.

    Raises:
        UserError: the folder or the base is not what it was, or a plugin is not there.
    """
    folder, host = Path(folder), host or PluginHost.installed()
    settings = settings_of(folder, host)
    base = pretrained.load(settings.base, settings.train.seed)
    must_be_base_of(folder, base)
    statistics = measure.loads(folder / LAYERS) if settings.one(Slot.SPLITTER).part.measures else None
    built = build(settings, host, base.model, statistics, fill_bases=False)
    load_parts(built.model, folder)
    built.model.eval()
    return Loaded(built, base, settings)


def must_be_base_of(folder: Path, base: Pretrained) -> None:
    """Refuse a base that is not the one the run was trained on.

    Raises:
        UserError: it is another, or the manifest is missing.
    """
    try:
        then = json.loads((folder / MANIFEST).read_text())["base"]["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if then != base.fingerprint:
        raise UserError(f"{folder} was trained on a base with fingerprint {then}; this one has {base.fingerprint}")


def write_json(path: Path, facts: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write(path, json.dumps(facts, indent=2))


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
