"""`ouro eval` as a user calls it, and how its tables read."""

import json
import random
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ouroboros_cli.app import app
from ouroboros_cli.evaluating import show
from ouroboros_cli.render import interval
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run
from ouroboros_core.testing import WORDS, tiny_base

HEADINGS = {
    "loss": "intact model", "depth": "held-out loss by turns", "residuals": "how far a turn moves the state",
    "halting": "the halter is fixed",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(host, tmp_path_factory):
    """The folder of a short run."""
    place = tmp_path_factory.mktemp("place")
    tiny_base(place / "base")
    (place / "text").mkdir()
    for number in range(12):
        words = random.Random(number).choices(WORDS, k=150)
        (place / "text" / f"{number:02}.txt").write_text(" ".join(words))
    tables = {
        "base": {"name": str(place / "base"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(place / "text"), "heldout": ["near", "moby-dick"], "length": 32},
        "modulator": {"rank": 4}, "train": {"steps": 2, "batch": 2, "warmup": 1},
        "eval": {"tokens": 512, "validation": 256, "resamples": 100},
    }  # fmt: skip
    return run(resolve(host, [tables]), host, folder=place / "run").folder


@pytest.fixture
def ouro(monkeypatch):
    """Call `ouro eval` in this process, 80 columns wide: exit code, stdout, stderr."""

    def ouro(*arguments):
        told = CliRunner().invoke(app, ["eval", *map(str, arguments)], env={"COLUMNS": "80"})
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return ouro


def test_tables_go_to_stdout_and_stages_to_stderr_and_the_result_into_the_folder(ouro, finished):
    code, out, err = ouro(finished)
    *tables, written = out.splitlines()
    assert code == 0
    assert max(map(len, tables)) <= 80
    assert "…" not in out
    assert all(heading in out for heading in HEADINGS.values())
    assert err.split() == list(HEADINGS)
    assert written == f"written to {finished / 'eval.json'}"
    found = json.loads((finished / "eval.json").read_text())
    for row in found["depth"]["domains"]["near"]:
        assert re.search(rf"^ {row['turns']} +{row['where']} .*{row['loss']['value']:.3f} ", out, re.MULTILINE)
    for row in found["residuals"]["turns"]:
        assert re.search(rf"^ {row['turn']} +{re.escape(format(row['mean'], '.4g'))} ", out, re.MULTILINE)


def test_a_quiet_call_prints_json_and_nothing_else(ouro, finished):
    code, out, err = ouro(finished, "--only", "depth", "--turns", "1, 3", "--domain", "near", "--json", "--quiet")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told.pop("folder") == str(finished)
    assert told == json.loads((finished / "eval.json").read_text())
    assert [row["turns"] for row in told["depth"]["domains"]["near"]] == [1, 3]
    assert told.keys() == {"split", "depth"}


def test_tasks_and_policies_go_through_as_lists(ouro, finished, monkeypatch):
    asked = {}

    def evaluate_tasks(model, tokenizer, names, **more):
        asked["tasks"] = (names, more["folder"], more["limit"])
        return []

    monkeypatch.setitem(sys.modules, "ouroboros_core.tasks", SimpleNamespace(evaluate_tasks=evaluate_tasks))
    named = ["--tasks", "arc_easy,piqa", "--tasks-from", finished, "--limit", 5, "--cache", "last,modulo:2"]
    code, out, _ = ouro(finished, *named, "--tokens", 300, "--only", "tasks", "--only", "cache")
    assert code == 0
    assert asked == {"tasks": (["arc_easy", "piqa"], finished, 5)}
    for policy in ("turn", "last", "modulo:2"):
        assert re.search(rf"{policy} +[\d,]+ +\d\.\d+", out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "losses"], "no section is called 'losses'. Known: "),
        (["--only", "tasks"], "section 'tasks' needs names"),
        (["--turns", "0"], "turns = 0: at least 1"),
        (["--turns", "1,two"], "--turns 1,two: give whole numbers, for example --turns 1,2,4"),
        (["--tokens", "8"], "tokens = 8: at least 256"),
        (["--domain", "nearr"], "is called 'nearr'. Known: near, moby-dick, validation"),
        (["--device", "tpu"], "choose auto, cpu, cuda or mps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_exit_code_2(ouro, finished, arguments, said):
    assert said in refused(ouro(finished, *arguments, "--quiet"))


def test_what_is_no_finished_run_gets_one_line(ouro, finished, tmp_path):
    assert "nowhere is no run folder" in refused(ouro(tmp_path / "nowhere"))
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("parts.*", "eval.json"))
    assert "has no parts.safetensors: the run did not finish" in refused(ouro(tmp_path / "run"))
    assert not (tmp_path / "run" / "eval.json").exists()


def refused(told):
    code, out, err = told
    (line,) = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("error: ")
    return line


# How it reads, on made-up results


def loss(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.06}


def curve(names, value=12.345):
    rows = [
        {"turns": 1, "where": "below", "loss": loss(value)},
        {"turns": 32, "where": "at", "loss": {"value": value, "low": None, "high": None}},
        {"turns": 128, "where": "beyond", "loss": None},
    ]
    return {"trained": 32, "evaluated": 32, "cap": True, "domains": dict.fromkeys(names, rows)}


def report(**more):
    took = [(1, 97, 0.97, 3.25), (2, 0, 0.0, None), (3, 3, 0.03, 5.5)]
    return {
        "tokens": 100, "turns": 3, "loops": 1, "mean_turns": 1.06, "at_first": 0.97, "at_last": 0.03, "loss": 3.3175,
        "took": [dict(zip(("turns", "tokens", "share", "loss"), row, strict=True)) for row in took],
        "if_read": [3.5, 3.4, None], "alarm": "collapsed to one turn: 97.0% of the tokens take so many", **more,
    }  # fmt: skip


def moved(value):
    row = {"turn": 1, "mean": value, "median": value, "over_two": None, "norm": 1234.5}
    return {"tokens": 49152, "held_back": True, "turns": [row], "further": {**row, "turn": 2, "over_two": value}}


def share(value):
    return {"value": value, "stderr": 0.03, "low": value - 0.07, "high": value + 0.07}


def printed(width, **found):
    console = Console(width=width, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        show({"split": "0 | 1 x 4 | 2", **found}, console)
    text = capture.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_domains_that_do_not_fit_side_by_side_go_below_and_nothing_is_cut_off(width, count):
    names = ["near", "moby-dick", "texts/of [bold]/some-longer-name-of-a-file.txt", "fineweb-edu", "validation"][:count]
    text = printed(width, depth=curve(names))
    shown = "".join(text.split())
    assert all(name.rpartition("/")[2][:17] in shown for name in names)  # longer ones go on below
    assert text.count("12.345 12.29–12.41") == text.count("12.345 no range") == text.count("no number") == count
    assert "128    beyond" in text
    assert re.search(r"^ 32 +at +\* ", text, re.MULTILINE)
    assert "at most 32 were trained" in text
    assert "turns are a cap" in text


def test_a_halting_report_shows_what_tokens_took_and_its_alarm():
    text = printed(80, halting={"near": report(), "[odd] name": report(alarm=None)})
    assert re.search(r"^ 1 +97\.0% +3\.250 +3\.500 *$", text, re.MULTILINE)
    assert re.search(r"^ 2 +3\.400 *$", text, re.MULTILINE)
    assert re.search(r"^ 3 +3\.0% +5\.500 *$", text, re.MULTILINE)
    assert "halting on [odd] name" in text
    assert "mean 1.06 turns; 97.0% of 100 tokens stop" in text
    assert text.count("ALARM") == 1
    assert "ALARM near: collapsed to one turn" in text


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.011, 0.049, "0.01–0.05"),
        (-0.04, 0.03, "-0.04 to 0.03"),
        (-0.4, -0.3, "-0.40 to -0.30"),
        (None, 1, "no range"),
    ],
)
def test_an_interval_can_be_read_on_either_side_of_zero(low, high, shown):
    assert interval({"low": low, "high": high}) == shown


@pytest.mark.parametrize("value", [0.123456, 1e-7, 12345.678, None])
def test_residuals_of_any_size_fit(value):
    text = printed(80, residuals=moved(value))
    assert "2 (further)" in text
    assert "49,152 tokens of all domains" in text
    assert "held back" in text
    if value is not None:
        assert text.count(f"{value:.4g}") == 5


def test_tasks_show_models_by_row():
    result = {"task": "arc_easy", "items": 200, "acc": share(0.415), "acc_norm": None, "other": {"brier": 0.5}}
    text = printed(80, tasks={"intact model": [result], "kept layers, untrained": [{**result, "acc": share(0.31)}]})
    assert "task arc_easy, 200 items" in text
    assert re.search(r"^ intact model +41\.5% 34–48 +0\.5 *$", text, re.MULTILINE)
    assert re.search(r"^ kept layers, untrained +31\.0% 24–38 ", text, re.MULTILINE)
