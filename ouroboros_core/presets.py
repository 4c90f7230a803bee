"""Presets: published systems, and other combinations worth a name, as settings in a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

import tomli

ABOUT = "preset"  # the table that tells about the preset; every other one is settings


@dataclass(frozen=True)
class Preset:
    """Named settings: what a plugin's `ouroboros_presets` hook returns."""

    name: str  # kebab-case, what the user types
    settings: Mapping[str, Any]  # nested tables, as `resolve` takes them
    summary: str
    source: str = ""  # the paper
    faithful: str = ""  # what agrees with the source, and how it is known
    open: str = ""  # what differs, or is not known

    def check(self) -> None:
        """What a type checker would say, had it been asked.

        Raises:
            ValueError: a word about it is missing or no text, or the settings are not in tables.
        """
        if not _is_text(self.name):
            raise ValueError(f"the name of a preset must be text, and is {self.name!r}")
        about = {word: getattr(self, word) for word in ("summary", "source", "faithful", "open")}
        for word, said in about.items():
            if not _is_text(said) and (said != "" or word == "summary"):
                raise ValueError(f"preset '{self.name}': {word} must be text, and is {said!r}")
        if not isinstance(self.settings, Mapping):
            kind = type(self.settings).__name__
            raise ValueError(f"preset '{self.name}': settings must be a mapping of tables, and are {kind}")
        if loose := [key for key, table in self.settings.items() if not isinstance(table, Mapping)]:
            raise ValueError(f"preset '{self.name}': the setting '{loose[0]}' is no table")

    @classmethod
    def read(cls, file: Traversable) -> Preset:
        """From a TOML file: its name is the file's, its table `preset` tells about it, the others are settings.

        Raises:
            ValueError: the file is no TOML, or `preset` has no summary, or something that a preset has not.
        """
        try:
            tables = tomli.loads(file.read_text())
        except ValueError as error:  # of tomli, or of the text's encoding
            raise ValueError(f"{file.name} is no TOML: {error}") from error
        about = tables.pop(ABOUT, {})
        try:
            return cls(file.name.removesuffix(".toml"), tables, **about)
        except TypeError as error:
            raise ValueError(f"{file.name}: [{ABOUT}] takes summary, source, faithful and open: {error}") from error


def _is_text(said: object) -> bool:
    return isinstance(said, str) and bool(said.strip())
