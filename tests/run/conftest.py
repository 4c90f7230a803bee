"""A whole run in seconds: a tiny base, a folder of made-up speeches, and the settings to use them."""

import random
from pathlib import Path

import pytest

from ouroboros_core.resolve import resolve
from ouroboros_core.testing import WORDS, tiny_base


class Listener:
    """A reporter that remembers."""

    def __init__(self):
        self.stages, self.checks, self.steps, self.notes = [], [], [], []

    def stage(self, name):
        self.stages.append(name)

    def check(self, result):
        self.checks.append(result)

    def step(self, progress):
        self.steps.append(progress)

    def read(self, model, domain, rows, total):
        pass

    def note(self, text):
        self.notes.append(text)


def speeches(folder: Path, count: int = 12) -> Path:
    """Documents of words in a fixed random order."""
    folder.mkdir()
    for number in range(count):
        draw = random.Random(number)
        (folder / f"speech-{number:02}.txt").write_text(" ".join(draw.choices(WORDS, k=400)))
    return folder


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The tiny base and the text."""
    folder = tmp_path_factory.mktemp("place")
    tiny_base(folder / "base")
    speeches(folder / "text")
    return folder


@pytest.fixture
def tables(place, tmp_path):
    """Settings of a short run."""
    return {
        "base": {"name": str(place / "base"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(place / "text"), "heldout": ["near"], "length": 32},
        "modulator": {"rank": 4},
        "train": {"steps": 6, "batch": 4, "warmup": 2, "save_every": 2},
        "eval": {"tokens": 512, "validation": 256, "resamples": 200},
        "run": {"folder": str(tmp_path / "runs")},
    }


@pytest.fixture
def settings(host, tables):
    """Resolve those settings, with more tables on top."""
    return lambda **more: resolve(host, [tables, more])


@pytest.fixture
def listener():
    return Listener()
