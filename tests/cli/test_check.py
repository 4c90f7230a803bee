"""`ouro check` as a user calls it: exit codes, and what is printed in each case."""

import json
import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ouroboros_cli.app import app
from ouroboros_core.conformance import CHECKS
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.options import NoOptions
from ouroboros_core.testing import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def check(base):
    """Call `ouro check` on the tiny base: exit code, stdout, stderr."""

    def check(*arguments):
        told = CliRunner().invoke(app, ["check", "--base", str(base), *arguments], env={"COLUMNS": "140"})
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return check


@pytest.fixture
def with_a_mixing_gate(monkeypatch):
    """Every host also offers a gate that mixes the rows of a batch."""

    class Mixing(nn.Module):
        def forward(self, old, new, turn):
            return new - new.mean(0)

    class Plugin:
        @staticmethod
        @hookimpl
        def ouroboros_parts():
            yield Part(Slot.GATE, "mixing", NoOptions, lambda options, facts: Mixing(), "Reads its neighbours.")

    installed = PluginHost.installed

    def more(*, third_party=True):
        host = installed(third_party=third_party)
        host.add("mixing", lambda: Plugin)
        return host

    monkeypatch.setattr(PluginHost, "installed", more)


def test_every_check_has_a_row(check):
    code, out, err = check("--preset", "ouroboros-static")
    assert (code, err) == (0, "")
    rows = [line.split()[:2] for line in out.splitlines() if " ok " in line]
    assert rows == [[name, "ok"] for name in CHECKS]


def test_json_of_some_checks_by_name(check):
    code, out, _ = check("--only", "identity", "--only", "counting", "--json", "--gate", "none")
    assert code == 0
    told = json.loads(out)
    assert [(row["name"], row["passed"]) for row in told] == [("identity", True), ("counting", True)]
    assert set(told[0]) == {"name", "passed", "detail"}


@pytest.mark.usefixtures("with_a_mixing_gate")
def test_a_failure_is_exit_code_1_with_every_result_printed(check):
    code, out, err = check("--gate", "mixing", "--only", "batch", "--only", "seeds", "--json")
    assert (code, err) == (1, "")
    assert [(row["name"], row["passed"]) for row in json.loads(out)] == [("batch", False), ("seeds", True)]
    code, out, _ = check("--gate", "mixing", "--only", "batch")
    assert code == 1
    assert "FAILED" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "padding", "--only", "paddling"], "no check is called 'paddling'. Known: identity, start"),
        (["--gate", "sigmod"], "Did you mean 'sigmoid'?"),
        (["--set", "splitter.prelude=9"], "splitter"),
        (["--set", "modulator.pool=sequence-mean"], "lets a token see later ones"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_line(check, arguments, words):
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


# Combinations


def test_combinations_are_a_row_each_with_what_became_of_them(check):
    code, out, err = check("--pairs", "modulator, gate", "--only", "identity", "--only", "start")
    assert (code, err) == (0, "")
    assert re.search(r"controller +sigmoid +ok", out)
    assert re.search(r"lora +none +refused +the splitter does not say which layers", out)
    assert "28 combinations: 24 ok, 4 refused, 0 failed" in out


def test_json_of_combinations_has_every_check(check):
    code, out, err = check("--product", "entry,gate,schedule", "--only", "options", "--modulator", "none", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert len(told) == 4 * 4 * 4
    assert set(told[0]) == {"parts", "refused", "checks", "verdict"}
    assert told[0]["parts"] == {"entry": "carry", "gate": "sigmoid", "schedule": "fixed"}
    assert [(row["name"], row["passed"]) for row in told[0]["checks"]] == [("options", True)]
    assert {row["verdict"] for row in told} == {"ok"}


@pytest.mark.usefixtures("with_a_mixing_gate")
def test_one_failed_combination_is_exit_code_1_with_every_row_printed(check):
    code, out, err = check("--pairs", "gate,norm", "--only", "batch", "--modulator", "none")
    assert (code, err) == (1, "")
    assert re.search(r"local:mixing +sandwich +FAILED +batch: reading rows one by one moves logits", out)
    assert "25 combinations: 20 ok, 0 refused, 5 failed" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "gate"], "name two slots or more"),
        (["--product", "gate,gait"], "no slot is called 'gait'. Slots: splitter, entry"),
        (["--pairs", "gate,norm", "--product", "gate,norm"], "--pairs and --product: name one of them"),
        (["--pairs", "gate,norm", "--only", "paddling"], "no check is called 'paddling'"),
        (["--pairs", "gate,norm", "--set", "splitter.prelude=9"], "every combination is refused, the first one so: "),
    ],
)
def test_a_mistake_in_combining_is_exit_code_2_and_one_line(check, arguments, words):
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_the_generator_is_not_what_the_answer_depends_on(check):
    torch.manual_seed(1)
    first = check("--only", "precision", "--json")
    torch.manual_seed(2)
    assert check("--only", "precision", "--json") == first
