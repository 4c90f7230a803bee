"""The weights that a recursive model has and its base has not: one file, with its checksum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ouroboros_core.errors import UserError
from ouroboros_core.files import digest, sha256, write, written_aside
from ouroboros_core.model import RecursiveLM
from ouroboros_core.slots import Slot

PARTS, CHECKSUM = "parts.safetensors", "parts.sha256"
SEALED = ("parts", "settings", "layers", "turns", "dimensions")  # what weights are for: lines that are of no file


def save_parts(model: RecursiveLM, fingerprint: str, folder: Path) -> None:
    """Write every weight that the base does not have: trained parts, adapted layers, means, and the frozen bases.

    Args:
        fingerprint: of the base.
    """
    with written_aside(folder / ".parts", replace=True) as aside:
        tensors = {name: t.detach().contiguous().cpu() for name, t in own_tensors(model).items()}
        save_file(tensors, aside / PARTS, metadata={"base": fingerprint, "format": "pt"})
        (aside / CHECKSUM).write_text(f"{sha256(aside / PARTS)}  {PARTS}\n")
        (aside / PARTS).chmod((aside / CHECKSUM).stat().st_mode)  # safetensors lets nobody else read what it writes
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
        UserError: the file is missing, damaged, of another model, or was trained on another base.
    """
    path = folder / PARTS
    must_be_as_written(folder, CHECKSUM, [PARTS])
    try:
        with safe_open(path, framework="pt") as file:
            then = (file.metadata() or {}).get("base")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if model.config.base and model.config.base["fingerprint"] != then:
        now = model.config.base["fingerprint"]
        raise UserError(f"{path} was trained on a base with fingerprint {then}; this one has {now}")
    if strange := sorted(_shapes(tensors) ^ _shapes(own_tensors(model))):
        raise UserError(f"{path} is of another model: {strange[0][0]} is only on one side, or has two shapes")
    model.load_state_dict(tensors, strict=False)


def seal(folder: Path, checksums: str, config: Mapping[str, Any]) -> None:
    """Note beside the checksums what the weights are for, as `config.json` says it. Where the base is may change."""
    if not (folder / checksums).is_file():
        return
    kept = [line for line in (folder / checksums).read_text().splitlines() if line.split()[-1] not in SEALED]
    sealed = [f"{digest(what)}  {name}" for name, what in _sealed(config).items()]
    write(folder / checksums, "\n".join([*kept, *sealed]) + "\n")


def must_be_for(folder: Path, checksums: str, config: Mapping[str, Any]) -> None:
    """Refuse weights that are for something else. `config` is as it was read, or some of its entries: those asked.

    Raises:
        UserError: they are for something else.
    """
    told = dict(line.split()[::-1] for line in (folder / checksums).read_text().splitlines())
    for name, what in _sealed(config).items():
        if name not in told:
            raise UserError(
                f"{folder / checksums} says nothing of {name}: an older version wrote it, or it was changed"
            )
        if told[name] != digest(what):
            raise UserError(f"{folder}: its {name} are not those that were trained: a file that says them was changed")


def _sealed(config: Mapping[str, Any]) -> dict[str, Any]:
    tables = config["tables"] or {}
    rest = {name: table for name, table in tables.items() if name not in (*Slot, "base")}
    named = {"layers": "split", "turns": "turns", "dimensions": "base_config"}
    asked = {name: config[key] for name, key in named.items() if key in config}
    return {"parts": {slot: tables[slot] for slot in Slot if slot in tables}, "settings": rest, **asked}


def must_be_as_written(folder: Path, checksums: str, names: Sequence[str]) -> None:
    """Refuse files that are not what was written.

    Args:
        checksums: a file of the folder, with a line for each of the others.
        names: of files that must be in it.

    Raises:
        UserError: a file or the checksums are missing or damaged.
    """
    try:
        lines = (folder / checksums).read_text().splitlines()
        told = {name: told for told, name in (line.split() for line in lines)}
        wanted = [*names, *(name for name in told if name not in SEALED)]
        if gone := [name for name in wanted if name in told and not (folder / name).exists()]:
            raise UserError(f"{folder / checksums} names {gone[0]}, which is not there: one of them was changed")
        damaged = [name for name in wanted if told.get(name) != sha256(folder / name)]
    except OSError as error:
        lost = f"{error.filename or folder} cannot be read: {error.strerror or error}"
        raise UserError(f"{lost}. The run did not finish, or its folder was changed") from error
    except ValueError as error:
        raise UserError(f"{folder / checksums} is damaged: it is no list of checksums") from error
    if damaged:
        raise UserError(f"{folder / damaged[0]} is damaged: it is not what {checksums} says was written")


def _shapes(tensors: Mapping[str, torch.Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}
