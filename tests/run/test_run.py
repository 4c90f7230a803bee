"""The main job, whole, on a tiny base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ouroboros_core.build import control_settings
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.evaluation import score
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.options import NoOptions
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run
from ouroboros_core.rundir import load_run, settings_of
from ouroboros_core.split import Segment, Split
from ouroboros_core.training import parameter_groups

GRID = [(m, g) for m in ("controller", "static", "none") for g in ("sigmoid", "none")]


def test_a_run_leaves_a_folder_that_tells_everything(host, settings, listener):
    outcome = run(settings(), host, listener)
    names = {path.name for path in outcome.folder.iterdir()}
    assert {"resolved.toml", "manifest.json", "metrics.jsonl", "parts.safetensors", "evaluation.json"} <= names
    assert [json.loads(line)["step"] for line in (outcome.folder / "metrics.jsonl").open()] == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["base"]["fingerprint"]
    assert manifest["text"].keys() == {"train", "validation", "near"}
    assert manifest["plugins"]["builtin"].startswith("ouroboros-core")


def test_a_warm_up_that_no_step_follows_is_told_before_anything_is_loaded(host, settings, listener):
    with pytest.raises(UserError, match=r"^train\.warmup=6 is not less than train\.steps=6: lower it"):
        run(settings(train={"warmup": 6}), host, listener)
    assert listener.stages == []


def test_every_row_has_its_cost(host, settings):
    found = run(settings(), host).evaluation["per_token"]
    intact, kept, trained = (found[name] for name in ("intact model", "kept layers, untrained", "recursive, trained"))
    assert kept["forward_flops"] < trained["forward_flops"]
    assert intact["kv_bytes"] == 6 * 2 * 16 * 4
    assert (kept["kv_bytes"], trained["kv_bytes"]) == (3 * 2 * 16 * 4, (2 + 4) * 2 * 16 * 4)
    assert trained["train_flops"] > trained["forward_flops"]
    assert kept["train_flops"] is None


def test_the_checks_are_told_before_training_and_after_the_third_step(host, settings, listener):
    run(settings(), host, listener)
    names = [check.name for check in listener.checks]
    assert names == ["causality", "labels", "identity", "settings", "dead parameters"]
    assert all(check.passed for check in listener.checks)


def test_it_learns_and_the_share_says_so(host, settings, listener):
    found = run(settings(train={"steps": 60, "lr": 0.01, "save_every": 60}), host, listener).evaluation
    losses = [step.loss for step in listener.steps]
    assert sum(losses[-10:]) < sum(losses[:10])
    models = found["domains"]["near"]["models"]
    assert models["recursive, trained"]["loss"]["value"] < models["kept layers, untrained"]["loss"]["value"]


def test_the_resolved_file_repeats_the_run_to_the_bit(host, settings):
    first = run(settings(), host)
    again = run(settings_of(first.folder, host), host)
    one, two = load_file(first.folder / "parts.safetensors"), load_file(again.folder / "parts.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert first.evaluation["domains"]["near"]["models"].keys() == again.evaluation["domains"]["near"]["models"].keys()


@pytest.mark.parametrize(("modulator", "gate"), GRID)
def test_every_modulator_and_gate_is_one_flag_away(host, settings, modulator, gate):
    options = {} if modulator == "none" else {"rank": 4}
    outcome = run(settings(modulator={"use": modulator, **options}, gate={"use": gate}), host)
    assert outcome.evaluation["domains"]["near"]["models"]["recursive, trained"]["recovered"] is not None


@pytest.mark.parametrize(
    "chosen",
    [
        {"splitter": {"use": "refine-last"}},
        {"splitter": {"use": "sequence", "layers": 2}, "loop": {"turns": 3}, "modulator": {"use": "none"}},
        {"splitter": {"prelude": 1, "block": 2, "size": 2, "coda": 1}},
        {"halter": {"use": "act"}, "objective": {"use": ["next-token", "ponder"]}},
        {"objective": {"use": ["next-token", "distill"], "distill": {"weight": 0.5, "temperature": 2.0}}},
        {"schedule": {"use": "choice", "turns": [1, 2, 3], "with_gradient": 2}},
        {"adapter": {"use": "coda-lora", "rank": 2}},
        {"adapter": {"use": ["coda-lora", "unfreeze"], "unfreeze": {"layers": 1}}},
        {"adapter": {"use": "full", "rate": 1e-4}},
        {"adapter": {"use": "full"}, "base": {"dtype": "bfloat16"}},
        {"modulator": {"use": ["controller", "static"], "controller": {"rank": 4}, "static": {"rank": 2}}},
        {"modulator": {"pool": "prompt", "prompt": 4}},
        {"loop": {"recompute": True}},
        {"train": {"accumulate": 2}},
        {"base": {"dtype": "bfloat16"}},
    ],
    ids=str,
)
def test_every_part_runs(host, settings, chosen):
    outcome = run(settings(**chosen), host)
    loaded = load_run(outcome.folder, host)
    trained = load_file(outcome.folder / "parts.safetensors")
    state = loaded.built.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


def two_loops(facts):
    """A loop of two layers and a loop of one; layer 2 is removed."""
    return Split(facts.layers, (Segment((0, 1), True), Segment((3,)), Segment((4,), True), Segment((5,))), (2,))


class TwoLoops:
    @staticmethod
    @hookimpl
    def ouroboros_parts():
        yield Part(Slot.SPLITTER, "two-loops", NoOptions, lambda options, facts: two_loops, "For these tests.")


@pytest.mark.parametrize("more", [{}, {"halter": {"use": "act"}}, {"modulator": {"use": "none"}}], ids=str)
def test_a_split_with_several_loops_runs_with_parts_of_their_own(more, settings, listener):
    host = PluginHost.installed(third_party=False)
    host.add("two-loops", TwoLoops)
    outcome = run(resolve(host, [settings(**more).tables(), {"splitter": {"use": "two-loops"}}]), host, listener)
    assert outcome.evaluation["split"] == "0-1 x 4 | 3 | 4 x 4 | 5   (removed: 2)"
    assert all(check.passed for check in listener.checks)
    trained = load_file(outcome.folder / "parts.safetensors")
    assert {name.split(".")[1] for name in trained} == {"0", "1"}
    state = load_run(outcome.folder, host).built.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


def test_the_control_has_the_adapter_and_nothing_else(host, settings):
    outcome = run(settings(eval={"control": True}, adapter={"use": "coda-lora"}), host)
    assert (outcome.folder / "control" / "parts.safetensors").exists()
    names = load_file(outcome.folder / "control" / "parts.safetensors").keys()
    assert names
    assert all("lora" in name for name in names)
    shares = outcome.evaluation["domains"]["near"]["models"]
    assert shares["control, trained"]["recovered"] is not None


def test_a_control_with_nothing_to_train_is_refused_and_not_called_trained(host, settings, tmp_path):
    with pytest.raises(UserError, match=r"the control has nothing to train.*--adapter coda-lora"):
        run(settings(eval={"control": True}), host)
    assert not (tmp_path / "runs").exists()


def test_the_control_has_the_objectives_that_do_not_read_shares(host, settings):
    halting = {"halter": {"use": "act"}, "loop": {"turns": 3}}
    both = {"use": ["next-token", "ponder"], "next-token": {"weight": 2.0}}
    control = control_settings(settings(**halting, objective=both), host)
    assert [(choice.name, choice.options.weight) for choice in control.parts[Slot.OBJECTIVE]] == [("next-token", 2.0)]
    assert (control.one(Slot.HALTER).name, control.loop.turns) == ("fixed", 1)


def test_a_control_that_would_have_no_objective_has_the_default_one(host, settings):
    control = control_settings(settings(halter={"use": "act"}, objective={"use": "ponder"}), host)
    assert [choice.name for choice in control.parts[Slot.OBJECTIVE]] == ["next-token"]


def test_a_run_that_halts_has_a_control_that_does_not(host, settings):
    halting = {"halter": {"use": "act"}, "objective": {"use": ["next-token", "ponder"]}}
    outcome = run(settings(eval={"control": True}, adapter={"use": "coda-lora"}, **halting), host)
    told = json.loads((outcome.folder / "control" / "metrics.jsonl").read_text().splitlines()[0])
    assert told["terms"].keys() == {"next-token"}


def test_a_control_beside_it_does_not_change_the_model(host, settings):
    lora = {"use": "coda-lora", "rank": 2, "dropout": 0.3}
    alone, beside = (run(settings(adapter=lora, eval={"control": control}), host).folder for control in (False, True))
    one, two = (load_file(folder / "parts.safetensors") for folder in (alone, beside))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_runs_of_one_second_have_folders_of_their_own(host, settings, monkeypatch):
    monkeypatch.setattr(
        "ouroboros_core.rundir.new_name", lambda settings, folder: Path(settings.run.folder) / settings.run.name
    )
    one, two = (run(settings(), host).folder for _ in range(2))
    assert (one.name, two.name) == ("run", "run-2")
    assert (one / "metrics.jsonl").exists()


@pytest.mark.parametrize("adapter", ["coda-lora", "unfreeze", "full"])
def test_whatever_learns_is_a_float32_master(host, settings, adapter):
    options = {"layers": 1} if adapter == "unfreeze" else {}
    folder = run(settings(adapter={"use": adapter, **options}, base={"dtype": "bfloat16"}), host).folder
    for name, parameter in load_run(folder, host).built.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


def test_halting_before_the_turns_with_gradient_is_found_out(host, settings):
    tables = {"halter": {"use": "act", "bias": 5.0}, "schedule": {"turns": 3, "with_gradient": 1}}
    with pytest.raises(CheckFailed, match=r"dead parameters: no gradient .*loops\.0\.modulator"):
        run(settings(**tables), host)


def test_a_loaded_run_judges_as_the_run_did(host, settings):
    outcome = run(settings(), host)
    loaded = load_run(outcome.folder, host)
    from ouroboros_core.run import read_text

    near = read_text(loaded.settings, loaded.base).heldout[0]
    again = score(loaded.built.model, near, 8, torch.device("cpu"))
    told = outcome.evaluation["domains"]["near"]["models"]["recursive, trained"]["loss"]["value"]
    assert again.nll.sum() / again.tokens.sum() == pytest.approx(told, abs=1e-9)


def test_a_run_that_needs_more_disk_than_there_is_writes_nothing(host, settings, monkeypatch, tmp_path):
    monkeypatch.setattr("ouroboros_core.files.shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"the run needs .* MB of disk and 0 MB are free"):
        run(settings(), host)
    assert not (tmp_path / "runs").exists()


def test_a_mistake_leaves_no_folder(host, settings, tmp_path):
    with pytest.raises(UserError, match="do not fit into 6 layers"):
        run(settings(splitter={"prelude": 5, "coda": 5}), host)
    with pytest.raises(UserError, match=r"make it a multiple of 3"):
        run(settings(train={"accumulate": 3}), host)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(host, settings, monkeypatch, tmp_path):
    from ouroboros_plugins.objectives.next_token import NextToken

    plain, calls = NextToken.__call__, []

    def breaks_late(self, trace, labels):
        calls.append(1)
        loss = plain(self, trace, labels)
        return loss * float("nan") if len(calls) > 5 else loss

    monkeypatch.setattr(NextToken, "__call__", breaks_late)
    with pytest.raises(CheckFailed, match=r"step \d: the loss or its gradient is not finite .* on blocks \[\["):
        run(settings(), host)
    (folder,) = (tmp_path / "runs").iterdir()
    assert list((folder / "checkpoints").glob("step-*"))
    assert not (folder / "parts.safetensors").exists()


def test_dropout_is_on_in_training_and_off_in_judgement(host, settings, listener):
    lora = {"use": "coda-lora", "rank": 2}
    dropped = run(settings(adapter={**lora, "dropout": 0.5}), host, listener)
    plain = run(settings(adapter=lora), host)
    losses = [[json.loads(line)["loss"] for line in (o.folder / "metrics.jsonl").open()] for o in (dropped, plain)]
    assert losses[0][0] == losses[1][0]  # the update starts as nothing, dropped or not
    assert losses[0][1:] != losses[1][1:]
    assert not load_run(dropped.folder, host).built.model.training


def test_only_matrices_are_decayed(host, settings, make):
    model = make().model
    (_, decayed), (_, spared) = parameter_groups(model, 0.05, {})
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert {names[id(p)].split(".")[-1] for p in decayed["params"]} == {"weight"}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert "loops.0.norm.scale.weight" in spared_names
    assert "loops.0.modulator.step.weight" in spared_names
    assert "loops.0.gate.open.bias" in spared_names
