"""Export: what is written is loaded by others to the bit, and what cannot be written leaves nothing behind."""

import contextlib
import io
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import ouroboros_core  # noqa: F401 - from here on the Auto classes know our model
from ouroboros_core import export as exporting
from ouroboros_core import hub, pretrained, rundir
from ouroboros_core.build import build
from ouroboros_core.contracts import Depth, Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.export import export
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.options import NoOptions
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_base
from ouroboros_core.weights import save_parts

COUNT = {"trainable": 1, "unique": 2, "effective": 3}
LOSS = {"loss": {"value": 5.0, "low": 4.0, "high": 6.0}, "recovered": None}
FOUND = {
    "domains": {"near": {"tokens": 1, "units": 1, "unit": "documents", "models": {"recursive, trained": LOSS}}},
    "parameters": {"recursive, trained": COUNT},
    "split": "0 | 3 x 4 | 5",
}
LORA = {"modulator": {"use": "lora", "rank": 4, "start": "zero"}, "norm": {"use": "none"}, "gate": {"use": "none"}}
HF = {"README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def finished(host, tmp_path):
    """The folder of a run as training leaves it, and its model."""

    def finished(host=host, **tables):
        base = tiny_base(tmp_path / "base")
        first = {"base": {"name": str(base), "dtype": "float32", "device": "cpu"}, "modulator": {"rank": 4}}
        settings = resolve(host, [first, tables])
        intact = pretrained.load(settings.base)
        model = build(settings, host, intact.model).model.eval()
        model.config.base = intact.told(settings.base)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.loops.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path / "run"
        facts = {"base": {"name": str(base), "fingerprint": intact.fingerprint}, "plugins": host.versions}
        rundir.begin(folder, settings, facts)
        save_parts(model, intact.fingerprint, folder)
        hub.describe(model, folder)
        rundir.write_evaluation(folder, FOUND)
        return folder, model

    return finished


def logits(model, ids, **how):
    with torch.no_grad():
        return model(ids, **how).logits


def loaded_by(lines):
    """What the told lines of Python make."""
    assert len(lines) == 3
    made = {}
    exec("\n".join(lines), made)
    return made["model"].eval()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_the_parts_are_written_without_the_base(finished, host, ids, tmp_path):
    run, model = finished()
    told = export(run, "hf", tmp_path / "out", host=host)
    assert set(told["files"]) == HF | {"parts.safetensors", "parts.sha256"}
    assert told["files"] == contents(tmp_path / "out")
    with safe_open(tmp_path / "out" / "parts.safetensors", framework="pt") as file:
        assert all(name.startswith("loops.") for name in file.keys())  # noqa: SIM118 - it is no mapping
    assert torch.equal(logits(loaded_by(told["load"]), ids), logits(model, ids))
    assert (told["to"], told["merge_base"], told["turns"], told["folder"]) == ("hf", False, 4, str(tmp_path / "out"))


def test_the_whole_needs_no_base(finished, host, ids, tmp_path):
    run, model = finished()
    told = export(run, "hf", tmp_path / "out", merge_base=True, host=host)
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(run)
    assert set(told["files"]) == HF | {"model.safetensors", "model.sha256"}
    assert torch.equal(logits(loaded_by(told["load"]), ids), logits(model, ids))


def test_the_tokenizer_is_that_of_the_base(finished, host, tmp_path):
    run, _ = finished()
    export(run, "hf", tmp_path / "out", host=host)
    mine, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "base"))
    assert mine("the state of our union").input_ids == theirs("the state of our union").input_ids
    assert mine.eos_token_id == theirs.eos_token_id == 0


@pytest.mark.parametrize("merge_base", [False, True])
def test_other_turns_are_those_that_the_exported_model_takes(finished, host, merge_base, ids, tmp_path):
    run, model = finished()
    before = contents(run)
    told = export(run, "hf", tmp_path / "out", merge_base=merge_base, turns=6, host=host)
    exported = loaded_by(told["load"])
    assert told["turns"] == exported.turns == 6
    assert torch.equal(logits(exported, ids), model.trace(ids, depth=Depth.full(6)).logits())
    assert contents(run) == before
    assert "3 x 6" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_is_of_this_run_and_its_python_runs(finished, host, tmp_path, monkeypatch):
    run, _ = finished()
    export(run, "hf", tmp_path / "out", host=host)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| recursive, trained | 5.000 [4.000, 6.000] |  | 1 | 2 | 3 |" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    said = io.StringIO()
    monkeypatch.chdir(tmp_path / "out")
    with contextlib.redirect_stdout(said):
        exec(code, {})
    assert len(said.getvalue().strip()) > len("The state of")


def test_whoever_may_read_one_file_may_read_all(finished, host, tmp_path):
    run, _ = finished()
    export(run, "hf", tmp_path / "out", host=host)
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_a_run_that_was_not_judged_is_exported_without_numbers(finished, host, tmp_path):
    run, _ = finished()
    (run / "evaluation.json").unlink()
    export(run, "hf", tmp_path / "out", host=host)
    assert "was not judged" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("turns", [None, 2])
def test_peft_loads_a_model_and_a_lora_that_say_the_same(finished, host, turns, ids, tmp_path, capfd, recwarn):
    run, model = finished(**LORA)
    capfd.readouterr()
    told = export(run, "peft", tmp_path / "out", turns=turns, host=host)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert told["files"] == contents(tmp_path / "out")
    assert {"base/config.json", "base/model.safetensors", "adapter/adapter_config.json"} < set(told["files"])
    expected = model.trace(ids, depth=Depth.full(turns or 4)).logits()
    torch.testing.assert_close(logits(loaded_by(told["load"]), ids), expected, atol=1e-4, rtol=1e-4)
    assert told["turns"] == (turns or 4)


def test_what_peft_cannot_express_is_refused(finished, host, tmp_path):
    run, _ = finished()
    refused(tmp_path, r"^--to peft: .* use --to hf$", run, "peft", tmp_path / "out", host=host)


# What is refused


def refused(place, words, *asked, **how):
    """One line, and nothing new in this place."""
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match=words) as caught:
        export(*asked, **how)
    assert "\n" not in str(caught.value)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("to", ["hf", "peft"])
def test_a_folder_with_something_in_it_is_left_alone(finished, host, to, tmp_path):
    run, _ = finished(**LORA)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    taken = r"out is there already: name a folder that is not there yet, or an empty one$"
    refused(tmp_path, taken, run, to, tmp_path / "out", host=host)
    refused(tmp_path, r"mine\.txt is there already", run, to, tmp_path / "out" / "mine.txt", host=host)


@pytest.mark.parametrize("to", ["hf", "peft"])
def test_an_empty_folder_is_taken(finished, host, to, ids, tmp_path):
    run, model = finished(**LORA)
    (tmp_path / "out").mkdir()
    told = export(run, to, tmp_path / "out", host=host)
    torch.testing.assert_close(logits(loaded_by(told["load"]), ids), logits(model, ids), atol=1e-4, rtol=1e-4)


def test_the_folder_that_one_works_in_is_not_taken(finished, host, tmp_path, monkeypatch):
    run, _ = finished()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(tmp_path, r"^\. is there already", run, "hf", ".", host=host)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"to": "gguf"}, "^--to gguf: choose hf or peft$"),
        ({"to": "peft", "merge_base": True}, "^--merge-base belongs to --to hf: "),
        ({"to": "hf", "turns": 0}, "^--turns 0: a recursive model takes 1 or more$"),
    ],
)
def test_nonsense_is_refused_before_anything_is_read(host, asked, words, tmp_path):
    refused(tmp_path, words, tmp_path / "no run", out=tmp_path / "out", host=host, **asked)


@pytest.mark.parametrize("error", [UserError("the disk is full"), OSError(28, "No space left on device")], ids=repr)
def test_what_fails_half_way_leaves_nothing(finished, host, error, tmp_path, monkeypatch):
    run, _ = finished()

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(exporting.hub, "describe", failing)  # by then the weights are written
    refused(tmp_path, r"the disk is full|no space left on the disk", run, "hf", tmp_path / "out", host=host)


def test_a_folder_that_somebody_else_makes_meanwhile_stays_theirs(finished, host, tmp_path, monkeypatch):
    run, _ = finished()

    def slow(*_, **__):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs.txt").write_text("theirs")
        return "a card"

    monkeypatch.setattr(exporting, "model_card", slow)
    with pytest.raises(UserError, match=r"out is there already"):
        export(run, "hf", tmp_path / "out", host=host)
    assert list(contents(tmp_path / "out")) == ["theirs.txt"]


# A run that is not whole


def read_back(run, host, ids):
    """All that a run's folder tells whoever loads it, each in its way."""
    loaded, saved = rundir.load_run(run, host), RecursiveLM.from_pretrained(run, host=host)
    settings = {name: table for name, table in loaded.settings.tables().items() if name != "base"}
    models = (loaded.built.model, saved)
    said = settings, rundir.evaluation_of(run), [(model.split, model.turns) for model in models]
    return said, torch.stack([logits(model, ids) for model in models])


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("parts.sha256", lambda text: text.splitlines()[0] + "\n", r"parts\.sha256 says nothing of parts: an older v"),
        ("evaluation.json", lambda text: text.replace('"sha256"', '"sum"'), r"evaluation\.json has no checksum: an ol"),
    ],
)
def test_what_no_longer_says_whether_it_was_changed_is_refused(finished, host, name, keep, words, tmp_path):
    run, _ = finished()
    (run / name).write_text(keep((run / name).read_text()))
    refused(tmp_path, words, run, "hf", tmp_path / "out", host=host)


@pytest.mark.parametrize("bit", [1, 128])
@pytest.mark.parametrize("name", ["config.json", "resolved.toml", "manifest.json", "parts.sha256", "evaluation.json"])
def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(finished, host, ids, name, bit, tmp_path):
    run, _ = finished()
    before, whole = read_back(run, host, ids), (run / name).read_bytes()
    noticed, told = 0, ""
    for place in range(bit % 7, len(whole), max(1, len(whole) // 25)):
        (run / name).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        try:
            said, read = read_back(run, host, ids)
            assert said == before[0]
            assert torch.equal(read, before[1])
        except UserError as error:
            noticed += 1
            told = str(error)
        assert "\n" not in told
    assert noticed > 5


@pytest.mark.parametrize("found", [{}, {"domains": {}}, FOUND | {"parameters": {"another": COUNT}}], ids=str)
def test_an_evaluation_that_is_not_whole_is_refused(finished, host, found, tmp_path):
    run, _ = finished()
    rundir.write_evaluation(run, found)
    refused(tmp_path, r"evaluation\.json is not ", run, "hf", tmp_path / "out", host=host)


@pytest.mark.parametrize("table", ["base", "loop", "gate", "adapter"])
def test_settings_that_lost_a_table_are_refused(finished, host, table, tmp_path):
    run, _ = finished()
    text = (run / "resolved.toml").read_text()
    (run / "resolved.toml").write_text(re.sub(rf"\[{table}\]\n([^\[]|\[\n)*", "", text))
    lost = rf"resolved\.toml is not whole: it has no table \[{table}\]$"
    refused(tmp_path, lost, run, "hf", tmp_path / "out", host=host)


class Half(nn.Module):
    def forward(self, old, new, turn):
        return (old + new) / 2


class Acme:
    @staticmethod
    @hookimpl
    def ouroboros_parts():
        yield Part(Slot.GATE, "half", NoOptions, lambda options, facts: Half(), "The mean of old and new.")


@pytest.fixture
def acme():
    """A host with one more plugin."""
    host = PluginHost.installed(third_party=False)
    host.add("acme", lambda: Acme, distribution="acme-parts", version="1.2")
    return host


def test_a_part_of_a_plugin_is_exported_with_its_name(finished, acme, ids, tmp_path):
    run, model = finished(host=acme, gate={"use": "half"})
    export(run, "hf", tmp_path / "out", host=acme)
    assert "and `acme-parts` 1.2, which brought parts of the model" in (tmp_path / "out" / "README.md").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", host=acme)
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_plugin_that_is_there_and_not_used_is_not_named(finished, acme, tmp_path):
    run, _ = finished(host=acme)
    export(run, "hf", tmp_path / "out", host=acme)
    assert "acme" not in (tmp_path / "out" / "README.md").read_text()


def test_a_run_whose_plugin_is_gone_says_which(finished, acme, host, tmp_path):
    run, _ = finished(host=acme, gate={"use": "half"})
    gone = r"resolved\.toml: no gate is called 'half'\. .* had plugins that are not here now: acme-parts 1\.2$"
    refused(tmp_path, gone, run, "hf", tmp_path / "out", host=host)
