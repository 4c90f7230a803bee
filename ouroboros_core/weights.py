"""The weights that a recursive model has and its base has not: one file, with its checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ouroboros_core.errors import UserError
from ouroboros_core.files import sha256, write, written_aside
from ouroboros_core.model import RecursiveLM
from ouroboros_core.slots import Slot

PARTS, CHECKSUM = "parts.safetensors", "parts.sha256"
SEALED = ("parts", "layers")  # what weights are for: lines that are of no file


def save_parts(model: RecursiveLM, fingerprint: str, folder: Path) -> None:
    """Write every weight that the base does not have: trained parts, adapted layers, means, and the frozen bases.

    Args:
        fingerprint: of the base.
    """
    with written_aside(folder / ".parts", replace=True) as aside:
        tensors = {name: t.detach().contiguous().cpu() for name, t in own_tensors(model).items()}
        save_file(tensors, aside / PARTS, metadata={"base": fingerprint, "format": "pt"})
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


def seal(folder: Path, checksums: str, tables: Mapping[str, Any], split: Mapping[str, Any]) -> None:
    """Note beside the checksums which parts and layers the weights are for. Where the base is may change."""
    if not (folder / checksums).is_file():
        return
    kept = [line for line in (folder / checksums).read_text().splitlines() if line.split()[-1] not in SEALED]
    write(folder / checksums, "\n".join([*kept, *(f"{told}  {name}" for name, told in _digests(tables, split))]) + "\n")


def must_be_for(folder: Path, checksums: str, tables: Mapping[str, Any], split: Mapping[str, Any]) -> None:
    """Refuse weights of other parts or layers than these. `tables` and `split` are as they were read; {}: not asked.

    Raises:
        UserError: they are for others.
    """
    told = dict(line.split()[::-1] for line in (folder / checksums).read_text().splitlines())
    for name, now in _digests(tables, split):
        if told.get(name, now) != now:
            raise UserError(f"{folder}: its {name} are not those that were trained: a file that says them was changed")


def _digests(tables: Mapping[str, Any], split: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts = {slot: tables[slot] for slot in Slot if slot in tables}
    both = zip(SEALED, (parts, split), strict=True)
    return [
        (name, hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()) for name, what in both if what
    ]


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
