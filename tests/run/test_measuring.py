"""A splitter that measures the base's layers: the run writes down what it saw, and reloads without the text."""

import json
import shutil

import pytest
import torch

from ouroboros_core import measure, pretrained
from ouroboros_core.build import build, split_of
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.options import NoOptions
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run
from ouroboros_core.rundir import load_run
from ouroboros_core.split import Segment, Split


def least_turning(facts):
    """Loop the one layer, of all but the first and the last, that turns its states least."""
    turns = {i: facts.statistics.angle[i, i + 1].item() for i in range(1, facts.layers - 1)}
    block = min(turns, key=turns.get)
    rest = tuple(i for i in range(1, facts.layers - 1) if i != block)
    return Split(facts.layers, (Segment((0,)), Segment((block,), True), Segment((facts.layers - 1,))), rest)


class Plugin:
    @staticmethod
    @hookimpl
    def ouroboros_parts():
        yield Part(
            Slot.SPLITTER, "least-turning", NoOptions, lambda options, facts: least_turning, "By angle.", measures=True
        )


@pytest.fixture
def host():
    """The built-in parts, and the splitter above."""
    host = PluginHost.installed(third_party=False)
    assert host.add("measuring", Plugin).cause == ""
    return host


@pytest.fixture
def measuring(host, tables):
    """The short run's settings with the splitter above."""
    return lambda **more: resolve(host, [tables, {"splitter": {"use": "least-turning"}}, more])


def test_what_was_measured_is_written_and_the_split_follows_from_it(host, measuring):
    outcome = run(measuring(), host)
    told = json.loads((outcome.folder / "layers.json").read_text())
    assert torch.tensor(told["angle"]).shape == torch.tensor(told["cosine"]).shape == (7, 7)
    turns = {i: told["angle"][i][i + 1] for i in range(1, 5)}
    assert outcome.evaluation["split"].startswith(f"0 | {min(turns, key=turns.get)} x 4 | 5")


def test_a_resumed_run_goes_by_what_it_measured_at_first(host, measuring, monkeypatch):
    settings = measuring(data={"calibration": 256})
    folder = run(settings, host).folder
    told = json.loads((folder / "layers.json").read_text())
    monkeypatch.setattr(measure, "measure", lambda *args: pytest.fail("measured again"))
    again = run(settings, host, resume=folder)
    assert again.evaluation["split"].startswith("0 | ")
    assert json.loads((folder / "layers.json").read_text()) == told


def test_a_run_is_reloaded_without_the_text(host, measuring, place, tmp_path):
    text = shutil.copytree(place / "text", tmp_path / "text")
    outcome = run(measuring(data={"train": str(text)}), host)
    shutil.rmtree(text)
    loaded = load_run(outcome.folder, host)
    assert loaded.built.model.split.drawn(4) == outcome.evaluation["split"]


@pytest.mark.parametrize("name", ["angular-distance", "block-influence"])
def test_the_built_in_splitters_that_measure_run_and_reload_without_the_text(name, host, settings, place, tmp_path):
    text = shutil.copytree(place / "text", tmp_path / "text")
    outcome = run(settings(splitter={"use": name}, data={"train": str(text)}), host)
    shutil.rmtree(text)
    assert (outcome.folder / "layers.json").is_file()
    loaded = load_run(outcome.folder, host)
    assert loaded.built.model.split.drawn(4) == outcome.evaluation["split"]


def test_measurements_from_which_another_split_follows_are_refused(host, measuring):
    outcome = run(measuring(), host)
    layers = outcome.folder / "layers.json"
    told = json.loads(layers.read_text())
    other = next(i for i in range(1, 5) if f"| {i} x" not in outcome.evaluation["split"])
    told["angle"][other][other + 1] = 0.0
    assert load_run(outcome.folder, host).built.model.split.looped != (other,)
    layers.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"(another model|its layers are not those that were trained)"):
        load_run(outcome.folder, host)


@pytest.mark.parametrize("damage", ["gone", "{not this", '{"cosine": [[1]]}'])
def test_a_folder_whose_measurements_are_damaged_says_so(damage, host, measuring):
    folder = run(measuring(), host).folder
    layers = folder / "layers.json"
    layers.unlink() if damage == "gone" else layers.write_text(damage)
    with pytest.raises(UserError, match=r"layers\.json cannot be read: .*The run's folder was changed"):
        load_run(folder, host)


def test_a_splitter_that_does_not_measure_writes_nothing_down(host, settings):
    assert not (run(settings(), host).folder / "layers.json").exists()


def test_without_measurements_the_split_is_refused(host, measuring):
    settings = measuring()
    base = pretrained.load(settings.base).model
    say = r"^splitter 'least-turning' chooses by what the layers do to text, .*: ouro plan --measure loads the weights$"
    with pytest.raises(UserError, match=say):
        build(settings, host, base)


def test_the_measured_text_is_as_long_as_was_asked_for(host, measuring):
    settings = measuring(data={"calibration": 256})
    base = pretrained.load(settings.base).model
    blocks = torch.randint(0, 300, (40, 33), generator=torch.Generator().manual_seed(0))
    anatomy = host.anatomy(base.config)
    statistics = measure.measured(settings, base, anatomy, blocks)
    assert statistics.tokens == 256
    assert split_of(settings, anatomy, base, statistics).kept[0] == 0
