"""The commands as a user calls them."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ouroboros_cli.app import app
from ouroboros_cli.flags import Layers, takes_settings
from ouroboros_core.contracts import Slot
from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import resolve

QWEN = Path(__file__).parent.parent / "data" / "qwen2.5-3b" / "config.json"


@pytest.fixture
def ouro():
    """Call `ouro` in this process: exit code, stdout, stderr."""

    def ouro(*arguments):
        told = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return ouro


def refused(told):
    """The one line of a refusal, after the names of the stages that went well."""
    code, out, err = told
    assert code == 2
    assert out == ""
    *stages, line = err.strip().splitlines()
    assert line.startswith("error: ")
    assert not any("error" in stage or "Traceback" in stage for stage in stages)
    return line.removeprefix("error: ")


def test_help_needs_neither_torch_nor_half_a_second():
    code = "import sys, ouroboros_cli.app; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ouroboros_cli", "--help"], check=True, capture_output=True)
        spent.append(time.perf_counter() - began)
    assert min(spent) < 1.0  # loose, on purpose: it is timed in benchmarks; importing torch alone takes longer


def test_list_plugins_names_every_part_and_default(ouro):
    code, out, _ = ouro("list-plugins")
    assert code == 0
    for slot in Slot:
        for _, part in PluginHost.installed(third_party=False).parts(slot):
            assert part.name in out
    assert "controller *" in out


def test_list_plugins_as_json_of_one_slot(ouro):
    _, out, _ = ouro("list-plugins", "--slot", "gate", "--json")
    builtin = json.loads(out)[0]
    offered = {part.name for _, part in PluginHost.installed(third_party=False).parts(Slot.GATE)}
    assert {part["name"] for part in builtin["parts"]} == offered > {"sigmoid", "none"}
    assert builtin["error"] is None


def test_a_plugin_that_cannot_be_imported_is_listed_with_its_cause(ouro, monkeypatch):
    installed = PluginHost.installed

    def with_a_broken_one(*, third_party=True):
        host = installed(third_party=third_party)
        host.add("broken", lambda: __import__("not_there"), distribution="acme", version="1.0")
        return host

    monkeypatch.setattr(PluginHost, "installed", with_a_broken_one)
    code, out, _ = ouro("list-plugins")
    assert code == 0
    assert "broken: broken (acme 1.0): ModuleNotFoundError: No module named 'not_there'" in out
    assert "controller" in out
    line = refused(ouro("describe", "gate", "sigmod"))
    assert "Did you mean 'sigmoid'?" in line
    assert "1 plugin(s) failed to load: broken" in line


def test_describe_shows_options_source_and_schema(ouro):
    _, out, _ = ouro("describe", "modulator", "controller")
    for word in ("rank", "32", "alpha", "16.0", "prefix-mean", "eq. 2"):
        assert word in out
    _, out, _ = ouro("describe", "modulator", "controller", "--json")
    assert json.loads(out)["options"]["properties"]["rank"]["default"] == 32


def test_list_presets_names_each_with_its_source(ouro):
    code, out, _ = ouro("list-presets")
    told = json.loads(ouro("list-presets", "--json")[1])
    assert code == 0
    ours = [preset for _, preset in PluginHost.installed(third_party=False).presets()]
    assert {"ouroboros", "relaxed"} < {preset.name for preset in ours}
    for preset in ours:
        assert f" {preset.name} " in out
        row = {"name": preset.name, "summary": preset.summary, "source": preset.source, "plugin": "builtin"}
        assert row in told


def test_describe_tells_a_presets_parts_what_it_changes_and_how_faithful_it_is(ouro):
    code, out, _ = ouro("describe", "preset", "relaxed")
    assert code == 0
    for line in (r"splitter +cycle", r"modulator +lora", r"objective +next-token, distill", r"adapter +full"):
        assert re.search(rf"^ *{line} *$", out, re.MULTILINE), line
    for line in (r"loop\.turns +2 +4", r"train\.lr +0\.0003 +0\.003"):
        assert re.search(rf"^ *{line} *$", out, re.MULTILINE), line
    for heading in ("preset relaxed", "Source: Bae 2024", "Faithful: ", "Open: "):
        assert heading in out


@pytest.mark.parametrize("name", ["ouroboros", "relaxed", "huginn"])
def test_describe_preset_as_json_holds_every_option_that_is_not_at_its_default(ouro, name):
    told = json.loads(ouro("describe", "preset", name, "--json")[1])
    preset = PluginHost.installed(third_party=False).preset(name)
    assert {word: told[word] for word in ("name", "summary", "source", "faithful", "open")} == {
        "name": name, "summary": preset.summary, "source": preset.source, "faithful": preset.faithful,
        "open": preset.open,
    }  # fmt: skip
    assert all(change["value"] != change["default"] for change in told["settings"].values())
    for table, values in preset.settings.items():
        if "use" in values:
            assert told["parts"][table] == ([values["use"]] if isinstance(values["use"], str) else values["use"])
        else:  # every option of these tables has another value than the default in the presets above
            assert {key.partition(".")[2].partition(".")[0] for key in told["settings"] if key.startswith(table)} == {
                *values
            }


def test_the_default_preset_changes_nothing(ouro):
    assert "Every option is at its default." in ouro("describe", "preset", "ouroboros")[1]


@pytest.mark.parametrize("arguments", [["describe", "preset", "relaxd"], ["run", "--preset", "relaxd"]])
def test_an_unknown_preset_gets_one_line_with_the_nearest_name(ouro, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(ouro(*arguments)).startswith("no preset is called 'relaxd'. Did you mean 'relaxed'? Known: ")


@pytest.fixture
def resolved(tmp_path):
    """The settings that the shared flags come to, with a file of settings if there is one."""

    def resolved(*flags, file=""):
        caught = []
        catching = typer.Typer()

        @catching.command()
        @takes_settings
        def catch(layers: Layers) -> None:
            caught.append(layers)

        (tmp_path / "settings.toml").write_text(file)
        told = CliRunner().invoke(catching, [*([str(tmp_path / "settings.toml")] if file else []), *flags])
        assert told.exit_code == 0, told.output
        host = PluginHost.installed(third_party=False)
        return resolve(host, caught[0].read(host))

    return resolved


def test_a_value_is_laid_over_in_order_default_preset_file_flag_set(resolved):
    preset, file, flag, set_ = ["--preset", "relaxed"], "loop.turns = 5", ["--turns", "6"], ["--set", "loop.turns=7"]
    assert resolved().loop.turns == 4
    assert resolved(*preset).loop.turns == 2
    assert resolved(*preset, file=file).loop.turns == 5
    assert resolved(*flag, *preset, file=file).loop.turns == 6
    assert resolved(*set_, *flag, *preset, file=file).loop.turns == 7


def test_a_part_is_named_over_in_order_default_preset_file_flag_set(resolved):
    preset, file, flag = ["--preset", "relaxed"], "gate.use = 'residual'", ["--gate", "highway"]

    def gate(*flags, file=""):
        return resolved(*flags, file=file).one(Slot.GATE).name

    found = [gate(), gate(*preset), gate(*preset, file=file), gate(*flag, *preset, file=file)]
    assert found == ["sigmoid", "none", "residual", "highway"]
    assert gate("--set", "gate.use=sigmoid", *flag, *preset, file=file) == "sigmoid"


def test_another_part_on_a_flag_drops_the_presets_options_of_the_old_one(resolved):
    relaxed = resolved("--preset", "relaxed").one(Slot.MODULATOR)
    assert (relaxed.name, relaxed.options.rank, relaxed.options.start) == ("lora", 16, "svd")
    other = resolved("--preset", "relaxed", "--modulator", "controller").one(Slot.MODULATOR)
    assert other.options == resolved().one(Slot.MODULATOR).options  # neither rank 16 nor an unknown `start`
    same = resolved("--preset", "relaxed", "--modulator", "lora", "--set", "modulator.rank=3").one(Slot.MODULATOR)
    assert (same.options.rank, same.options.start) == (3, "svd")


def test_plan_reproduces_the_papers_budget_from_a_config_alone(ouro):
    _, out, _ = ouro("plan", "--base", QWEN, "--json")
    plan = json.loads(out)
    trained = {row["component"]: row["trainable"] for row in plan["components"] if row["trainable"]}
    assert trained == {"modulator": 692_864, "gate": 8_390_656, "norm": 131_072}
    assert plan["parameters"]["trainable"] == 9_214_592
    stored = {row["component"]: row["stored"] for row in plan["components"]}
    assert stored["recurrent block"] == 77_076_992
    assert stored["modulator bases (frozen)"] == 1_662_976
    assert stored["embeddings and head"] == 311_164_928
    assert plan["split"] == "0-7 | 18 x 4 | 28-35   (removed: 8-17, 19-27)"
    assert sum(stored.values()) == plan["parameters"]["unique"]


def test_plan_draws_the_split_and_the_table(ouro):
    code, out, _ = ouro("plan", "--base", QWEN, "--turns", 8)
    assert code == 0
    assert "0-7 | 18 x 8 | 28-35" in out
    assert "9,214,592" in out
    assert "GFLOP" in out


def test_more_turns_cost_more_operations_and_keys_but_no_parameters(ouro):
    few, many = (json.loads(ouro("plan", "--base", QWEN, "--turns", n, "--json")[1]) for n in (1, 8))
    assert few["parameters"]["unique"] == many["parameters"]["unique"]
    assert many["kv_bytes_per_token"] - few["kv_bytes_per_token"] == 7 * 2 * 2 * 128 * 2
    assert many["flops_per_token"]["forward"] > few["flops_per_token"]["forward"]


def test_plan_measure_draws_a_row_a_layer_the_split_and_the_losses_before_training(ouro, tiny, tmp_path):
    given = [*short(tiny, tmp_path), "--splitter", "angular-distance", "--measure"]
    code, out, _ = ouro("plan", *given)
    told = json.loads(ouro("plan", *given, "--json")[1])
    assert code == 0
    measured = told["measured"]
    fates = {layer: "looped" if layer in measured["looped"] else "kept" for layer in measured["kept"]}
    rows = re.findall(r"^ *(\d+) +(\d\.\d{4}) +(\d\.\d{4}) +█+ +(looped|kept|removed) *$", out, re.MULTILINE)
    numbers = zip(measured["influence"], measured["angle"], strict=True)
    assert rows == [(str(layer), f"{influence:.4f}", f"{angle:.4f}", fates.get(layer, "removed"))
                    for layer, (influence, angle) in enumerate(numbers)]  # fmt: skip
    assert len(rows) == 6
    assert f"layers {told['split']}" in out
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in measured["losses"].items())
    assert re.search(
        rf"validation loss in nats, {measured['validation_tokens']} tokens.*: {losses}$", out, re.MULTILINE
    )
    assert list(measured["losses"]) == ["intact model", "kept layers, untrained"]
    assert f"on {measured['tokens']:,} tokens of training text" in out


def test_plan_without_measure_refuses_a_splitter_that_measures(ouro):
    line = refused(ouro("plan", "--base", QWEN, "--splitter", "angular-distance"))
    assert line.endswith("which a config does not tell: ouro plan --measure loads the weights")


def test_plan_measure_needs_weights_not_a_config(ouro):
    assert str(QWEN) in refused(ouro("plan", "--base", QWEN, "--measure"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gate", "sigmod"], "no gate is called 'sigmod'. Did you mean 'sigmoid'?"),
        (["--set", "gate.bais=1"], "gate.bais: no such setting. Did you mean 'bias'?"),
        (["--set", "gat.bias=1"], "gat: no such table of settings. Did you mean 'gate'?"),
        (["--set", "gate.bias=abc"], "gate.bias = 'abc': "),
        (["--set", "gate.bias"], "expected slot.key=value"),
        (["--set", "train.steps=0"], "train.steps = 0: "),
        (["missing.toml"], "missing.toml: No such file"),
        (["--base", "missing.gguf"], "base missing.gguf: no such file"),
        (["--device", "tpu"], "base.device = 'tpu': choose auto, cpu, cuda or mps"),
        (["--dtype", "int8"], "base.dtype = 'int8': "),
        (["--set", "modulator.pool=sequence-mean"], "lets a token see later ones"),
        (["--set", "modulator.pool=prompt"], "go together"),
        (["--resume", "nowhere"], "nowhere is no run folder"),
        (["--resume", "nowhere", "--gate", "none"], "leave out the other settings"),
        (["--objective", "next-token,ponder", "--set", "objective.weight=2"], "say whose option it is"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_exit_code_2(ouro, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(ouro("run", *arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"train": "missing.txt"}, "data missing.txt: no such file"),
        ({"train": "sotuu"}, "data sotuu: no such file or corpus"),
        ({"train": "empty.txt"}, "data empty.txt holds no text"),
        ({"train": "short.txt", "heldout": ["moby-dick"]}, "tokens to train on: one sequence takes"),
        ({"train": "short.txt"}, "too few to keep some apart"),
    ],
    ids=str,
)
def test_bad_text_gets_one_line(ouro, data, said, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("the state of our union is strong")
    settings = [f"--set=data.{key}={json.dumps(value)}" for key, value in data.items()]
    assert said in refused(ouro("run", "--base", tiny, "--device", "cpu", "--quiet", *settings))
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "short.txt"}


def test_a_run_prints_the_table_on_stdout_and_the_checks_on_stderr(ouro, tiny, tmp_path):
    code, out, err = ouro("run", *short(tiny, tmp_path), "--control", "--adapter", "coda-lora")
    assert code == 0
    for words in ("intact model", "kept layers", "recursive, trained", "control, trained", "moby-dick", "tokens"):
        assert words in re.sub(r"\s+", " ", out)
    for check in ("causality", "labels", "identity", "settings", "dead parameters"):
        assert f"ok  {check}: " in err


def test_a_quiet_run_prints_json_and_nothing_else(ouro, tiny, tmp_path):
    _, out, err = ouro("run", *short(tiny, tmp_path), "--quiet", "--json")
    found = json.loads(out)
    assert err == ""
    assert (Path(found["folder"]) / "evaluation.json").exists()
    assert found["domains"]["moby-dick"]["models"]["recursive, trained"]["loss"]["value"] > 0


def short(tiny, tmp_path):
    """A run of seconds."""
    train = tmp_path / "text"
    train.mkdir()
    for number in range(6):
        (train / f"{number}.txt").write_text(f"the state of our union is strong {number} " * 60)
    values = {"data.train": str(train), "data.length": 32, "modulator.rank": 4, "train.steps": 4, "train.warmup": 1}
    values |= {"eval.tokens": 2048, "eval.validation": 256, "run.folder": str(tmp_path / "runs")}
    return ["--base", tiny, "--dtype", "float32", *(f"--set={key}={json.dumps(v)}" for key, v in values.items())]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a tiny base."""
    from ouroboros_core.testing import tiny_base

    return tiny_base(tmp_path_factory.mktemp("tiny") / "base")
