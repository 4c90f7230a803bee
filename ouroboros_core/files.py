"""Files and folders that are whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ouroboros_core.errors import UserError


@contextmanager
def written_aside(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to write into; it becomes `target` when the scope ends well, and vanishes when it does not.

    Args:
        replace: whether a `target` that is there already is replaced.

    Raises:
        FileExistsError: there is a `target`, and it is not to be replaced.
        UserError: the disk is full, or the place cannot be written.
    """
    aside = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _sync(path)
        if replace and target.exists():
            shutil.rmtree(target)
        aside.rename(target)  # fails if somebody else has made it meanwhile
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(target) from error
        raise _explained(error, target) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write(target: Path, text: str) -> None:
    """Write a file that is whole or not there.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    aside = target.with_name(f".{target.name}.aside")
    try:
        aside.write_text(text)
        _sync(aside)
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _explained(error, target) from error


def need_room(folder: Path, size: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        UserError: fewer than `size` bytes are free where `folder` is or will be.
    """
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise UserError(f"{folder}: the run needs {size / 1e6:,.0f} MB of disk and {free / 1e6:,.0f} MB are free")


def digest(what: Any) -> str:
    """The SHA-256 of what JSON makes of something, whatever the order of its keys."""
    plain = json.loads(json.dumps(what))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explained(error: OSError | SafetensorError, target: Path) -> UserError:
    if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error):
        return UserError(f"{target}: no space left on the disk. What was saved before is whole; free some and resume")
    return UserError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}")
