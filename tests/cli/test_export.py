"""`ouro export` as a user calls it: what is printed, and the one line for everything that can be wrong with a run."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import ouroboros_core  # noqa: F401 - from here on the Auto classes know our model
from ouroboros_cli.app import app
from ouroboros_core.rundir import load_run
from ouroboros_core.testing import WORDS, tiny_base, tiny_model

HF = ["README.md", "config.json", "generation_config.json"]
HF += ["parts.safetensors", "parts.sha256", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def ouro():
    """Call `ouro` in this process: exit code, stdout, stderr."""

    def ouro(*arguments):
        told = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return ouro


@pytest.fixture(scope="module")
def trained(ouro, tmp_path_factory):
    """A folder with a tiny base, and a run on it that is finished."""
    place = tmp_path_factory.mktemp("export")
    tiny_base(place / "base")
    (place / "text").mkdir()
    for number in range(6):
        words = random.Random(number).choices(WORDS, k=300)
        (place / "text" / f"{number}.txt").write_text(" ".join(words))
    values = {"data.train": str(place / "text"), "data.heldout": ["near"], "data.length": 32, "modulator.rank": 4}
    values |= {"eval.tokens": 256, "eval.validation": 256, "run.folder": str(place), "train.warmup": 1}
    flags = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    base = ["--base", place / "base", "--dtype", "float32", "--device", "cpu"]
    code, out, _ = ouro("run", *base, "--steps", 2, *flags, "--quiet", "--json")
    assert code == 0
    shutil.move(json.loads(out)["folder"], place / "run")
    return place


@pytest.fixture
def place(trained, tmp_path):
    """Copies of both, to be damaged."""
    for name in ("base", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    for name in ("resolved.toml", "config.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(str(trained / "base"), str(tmp_path / "base")))
    return tmp_path


def test_it_says_what_was_written_and_how_to_load_it(ouro, place):
    code, out, err = ouro("export", place / "run", "--to", "hf", "--out", place / "out")
    assert (code, err) == (0, "")
    assert f"written to {place / 'out'}, to take 4 turns" in out
    rows = dict(re.findall(r"^ *(\S+) +([\d,]+) *$", out, re.MULTILINE))
    sizes = {path.name: f"{path.stat().st_size:,}" for path in (place / "out").iterdir()}
    assert sorted(sizes) == HF
    assert rows == sizes | {"total": f"{sum(int(size.replace(',', '')) for size in sizes.values()):,}"}
    *_, heading, one, two, three = out.splitlines()
    assert heading == "Load it with:"
    made = {}
    exec("\n".join([one, two, three]), made)
    ids = torch.arange(12)[None]
    assert torch.equal(made["model"](ids).logits, load_run(place / "run").built.model(ids).logits)


def test_json_holds_the_same(ouro, place):
    out = place / "out"
    code, told, err = ouro("export", place / "run", "--to", "hf", "--merge-base", "--turns", 2, "--out", out, "--json")
    assert (code, err) == (0, "")
    found = json.loads(told)
    assert found == {
        "folder": str(out), "to": "hf", "merge_base": True, "turns": 2,
        "files": {path.name: path.stat().st_size for path in out.iterdir()},
        "load": ["import ouroboros_core", "from transformers import AutoModelForCausalLM",
                 f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})"],
    }  # fmt: skip
    assert AutoModelForCausalLM.from_pretrained(out).turns == 2


def test_the_card_holds_the_table_of_the_run(ouro, place):
    ouro("export", place / "run", "--to", "hf", "--out", place / "out")
    card = (place / "out" / "README.md").read_text()
    found = json.loads((place / "run" / "evaluation.json").read_text())
    for model, judged in found["domains"]["near"]["models"].items():
        cells = [f"{judged['loss']['value']:.3f} ", *(f"| {n:,} " for n in found["parameters"][model].values())]
        assert re.search(rf"^\| {model} \| " + ".*".join(map(re.escape, cells)), card, re.MULTILINE)
    assert "steps, 64 tokens" in card  # 2 steps of 1 sequence of 32


# Everything that can be wrong


def missing(name):
    return lambda place: (place / "run" / name).unlink()


def written(name, content):
    return lambda place: (place / "run" / name).write_text(content)


def replaced(name, old, new):
    """Other text in the place of some that is there."""

    def replace(place):
        path = place / "run" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return replace


def flipped(name):
    """One bit of the byte in the middle."""

    def flip(place):
        content = bytearray((place / "run" / name).read_bytes())
        content[len(content) // 2] ^= 1
        (place / "run" / name).write_bytes(content)

    return flip


def another_base(place, name="base"):
    model = tiny_model()
    model.model.norm.weight.data += 0.1
    model.save_pretrained(place / name)


def unfinished(place):
    for path in (place / "run").iterdir():
        if path.name not in ("manifest.json", "resolved.toml", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGED = (
    r"(parts\.safetensors is damaged: it is not what parts\.sha256 says was written"
    r"|parts\.sha256 names \w+, which is not there: one of them was changed)$"
)
NO_LIST = r"parts\.sha256 is damaged: it is no list of checksums$"
WRONG = {
    "a byte of the parts": (flipped("parts.safetensors"), DAMAGED),
    "no parts": (missing("parts.safetensors"), r"has no parts\.safetensors: the run did not finish\. Go on with: ouro"),
    "empty parts": (written("parts.safetensors", ""), DAMAGED),
    "no checksum": (missing("parts.sha256"), r"parts\.sha256 cannot be read: No such file or directory\. "),
    "an empty checksum": (written("parts.sha256", ""), DAMAGED),
    "a byte of the checksum": (flipped("parts.sha256"), DAMAGED),
    "a checksum that is none": (written("parts.sha256", "[]"), NO_LIST),
    "no settings": (missing("resolved.toml"), r"run is no run folder: it has no resolved\.toml\."),
    "empty settings": (written("resolved.toml", ""), r"resolved\.toml is not whole: it has no table \[base\]$"),
    "settings that are no TOML": (written("resolved.toml", "{}"), r"resolved\.toml is no TOML: "),
    "no manifest": (missing("manifest.json"), r"run is no run folder: it has no manifest\.json\."),
    "an empty manifest": (written("manifest.json", ""), r"manifest\.json cannot be read: Expecting value"),
    "a manifest that is a list": (written("manifest.json", "[]"), r"manifest\.json cannot be read: it holds no JSON o"),
    "a manifest of nothing": (written("manifest.json", "{}"), r"manifest\.json does not say which base the run had"),
    "an empty evaluation": (written("evaluation.json", ""), r"evaluation\.json cannot be read: Expecting value"),
    "an evaluation that is a list": (written("evaluation.json", "[]"), r"evaluation\.json cannot be read: it holds no"),
    "an evaluation of nothing": (written("evaluation.json", "{}"), r"evaluation\.json is not whole: .* of domains$"),
    "a run that did not finish": (unfinished, r"run has no parts\.safetensors: the run did not finish\. Go on with: "),
    "another base of this name": (another_base, r"run was trained on a base with fingerprint \w+; this one has \w+$"),
    "no base": (
        lambda place: shutil.rmtree(place / "base"),
        r"was trained on a base that is gone \(base \S+ is not there.*\): say where it is with --base$",
    ),
    "a part that is not there": (
        replaced("resolved.toml", '"sigmoid"', '"half"'),
        r"resolved\.toml: no gate is called 'half'\. Known: ",
    ),
    "a plugin that is gone": (
        lambda place: [
            replaced("resolved.toml", '"sigmoid"', '"half"')(place),
            replaced("manifest.json", '"plugins": {', '"plugins": {"acme": "acme-parts 1.2", ')(place),
        ],
        r"resolved\.toml: no gate is called 'half'\. .* had plugins that are not here now: acme-parts 1\.2$",
    ),
    "an option of another version": (
        replaced("resolved.toml", "bias =", "bais ="),
        r"gate\.bais: no such setting\. Di",
    ),
    "parts of another shape": (
        replaced("resolved.toml", "rank = 4", "rank = 3"),
        r"parts\.safetensors is of another model: loops\.0\.\S+ is only on one side, or has two shapes$",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_one_line_and_exit_code_2(ouro, place, wrong):
    damage, words = WRONG[wrong]
    damage(place)
    before = sorted(place.rglob("*"))
    for to in ("hf", "peft"):
        code, out, err = ouro("export", place / "run", "--to", to, "--out", place / "out")
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert re.search(words, err.strip()), err
    assert sorted(place.rglob("*")) == before


COMMANDS = {
    "generate": ("the people", "--max-new-tokens", 2),
    "export": ("--to", "hf", "--out", "out"),
    "eval": ("--only", "depth", "--turns", "1", "--quiet"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_base_that_was_moved_is_found_where_it_is_said_to_be(ouro, place, command, monkeypatch):
    monkeypatch.chdir(place)
    shutil.move(place / "base", place / "elsewhere")
    told = (command, place / "run", *COMMANDS[command])
    code, _, err = ouro(*told)
    assert (code, err.count("\n")) == (2, 1)
    assert "say where it is with --base" in err
    assert ouro(*told, "--base", place / "elsewhere")[0] == 0
    another_base(place, "elsewhere")
    shutil.rmtree(place / "out", ignore_errors=True)
    code, _, err = ouro(*told, "--base", place / "elsewhere")
    assert code == 2
    assert re.search(r"was trained on a base with fingerprint \w+; this one has \w+\n$", err)


def test_a_folder_that_is_no_run(ouro, place):
    for folder in (place / "base", place / "nowhere", Path("/dev/null")):
        code, _, err = ouro("export", folder, "--to", "hf", "--out", place / "out")
        assert code == 2
        assert re.fullmatch(r"error: \S+ is no run folder: it has no resolved\.toml\..*\n", err)


def test_a_run_that_was_not_judged_is_exported_all_the_same(ouro, place):
    missing("evaluation.json")(place)
    assert ouro("export", place / "run", "--to", "hf", "--out", place / "out")[0] == 0
    assert "was not judged" in (place / "out" / "README.md").read_text()


@pytest.mark.parametrize("damage", [missing("config.json"), written("config.json", "")], ids=["missing", "empty"])
def test_a_config_that_is_gone_is_written_anew(ouro, place, damage):
    before = json.loads((place / "run" / "config.json").read_text())
    damage(place)
    assert ouro("export", place / "run", "--to", "hf", "--out", place / "out")[0] == 0
    assert json.loads((place / "out" / "config.json").read_text()) == before
