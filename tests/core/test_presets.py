"""Presets: what a TOML file must say to be one."""

import pytest

from ouroboros_core.errors import UserError
from ouroboros_core.presets import Preset
from ouroboros_core.resolve import resolve

TEXT = """
[preset]
summary = "Two turns of a gate."
source = "A paper"
faithful = "the gate, eq. 3"
open = "the optimiser"

[loop]
turns = 2

[gate]
use = "sigmoid"
bias = -1
"""


@pytest.fixture
def read(tmp_path):
    """A preset from a text."""

    def read(text, name="two-turns.toml"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Preset.read(tmp_path / name)

    return read


def test_a_preset_is_named_by_its_file_and_told_about_by_its_own_table(read):
    preset = read(TEXT)
    assert (preset.name, preset.summary, preset.source) == ("two-turns", "Two turns of a gate.", "A paper")
    assert (preset.faithful, preset.open) == ("the gate, eq. 3", "the optimiser")


def test_every_other_table_is_settings(read, host):
    preset = read(TEXT)
    assert preset.settings == {"loop": {"turns": 2}, "gate": {"use": "sigmoid", "bias": -1}}
    settings = resolve(host, [preset.settings, {"gate": {"bias": -3}}])
    assert (settings.loop.turns, settings.parts["gate"][0].options.bias) == (2, -3.0)


def test_a_summary_is_enough(read):
    preset = read("preset.summary = 'Nothing.'")
    assert (preset.settings, preset.source, preset.faithful, preset.open) == ({}, "", "", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[loop]\nturns = 2",
        "preset.source = 'A paper'",
        "[preset]\nsummary = 'S'\nauthor = 'somebody'",
        "[preset]\nsummary = 'S'\nname = 'another'",
        "[preset]\nsummary = 'S'\nsettings = {}",
        "preset = 'S'",
    ],
)
def test_a_table_that_tells_too_little_or_something_else_is_refused(text, read):
    with pytest.raises(ValueError, match=r"^two-turns\.toml: \[preset\] takes summary, source, faithful and open: "):
        read(text)


@pytest.mark.parametrize("text", ["[preset\nsummary = 1", "preset.summary = 'S'\npreset.summary = 'T'", b"\xff\xfe"])
def test_what_is_no_toml_is_refused(text, read):
    with pytest.raises(ValueError, match=r"^two-turns\.toml is no TOML: "):
        read(text)


def test_settings_that_nobody_knows_are_refused_when_the_preset_is_used(read, host):
    preset = read("preset.summary = 'S'\ngaet.bias = 1")
    with pytest.raises(UserError, match=r"gaet: no such table of settings\. Did you mean 'gate'\?"):
        resolve(host, [preset.settings])


def test_every_built_in_preset_tells_about_itself_and_resolves(host):
    ours = [preset for _, preset in host.presets()]
    assert ours
    for preset in ours:
        assert preset.summary, preset.name
        assert preset.source, preset.name
        assert resolve(host, [preset.settings]).tables()["loop"]
