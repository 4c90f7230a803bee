"""Checkpoints: whole or not there, checksummed, never unpickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ouroboros_core.errors import UserError
from ouroboros_core.files import sha256, written_aside

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain facts."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint, keep: int) -> None:
    """Write `folder/step-000123` and drop all but the newest `keep`.

    Raises:
        UserError: the disk is full, or the folder cannot be written; earlier checkpoints are untouched.
    """
    with written_aside(folder / f"step-{step:06d}", replace=True) as aside:
        write(aside, checkpoint)
    for old in stored(folder)[:-keep]:
        shutil.rmtree(old)


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the two files of a checkpoint into a folder."""
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, folder / TENSORS)
    facts = {**checkpoint.facts, "sha256": sha256(folder / TENSORS)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2))


def stored(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first. What was never finished is not among them."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint back.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        facts = json.loads((path / FACTS).read_text())
        if sha256(path / TENSORS) != facts["sha256"]:
            raise UserError(f"{path} is damaged: {TENSORS} is not what was written. {_advice(path)}")
        return Checkpoint(load_file(path / TENSORS), facts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}. {_advice(path)}") from error


def _advice(path: Path) -> str:
    if others := [other.name for other in stored(path.parent) if other != path]:
        return f"Delete it to resume from {others[-1]}"
    return "There is no other checkpoint: start the run anew"
