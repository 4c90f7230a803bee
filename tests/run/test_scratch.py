"""A base of random weights: trained whole, judged without an intact model, and loaded back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ouroboros_core import pretrained
from ouroboros_core.errors import UserError
from ouroboros_core.judge import Judge
from ouroboros_core.resolve import resolve
from ouroboros_core.run import Job, run
from ouroboros_core.rundir import evaluation_of, load_run, settings_of
from ouroboros_core.testing import tiny_model
from ouroboros_core.weights import load_parts, own_tensors, save_parts

TINY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def scratch(settings):
    """Settings of a short run from random weights, all of which learn."""

    def scratch(config=(), **more):
        tables = {"base": {"config": {**TINY, **dict(config)}}, "adapter": {"use": "full"}, **more}
        return settings(**tables)

    return scratch


def logits(model):
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval().trace(ids).logits()


def test_nothing_is_intact_and_nothing_recovered(host, scratch, listener):
    outcome = run(scratch(), host, listener)
    assert evaluation_of(outcome.folder) == outcome.evaluation
    names = {"kept layers, untrained", "recursive, trained"}
    assert outcome.evaluation["parameters"].keys() == outcome.evaluation["per_token"].keys() == names
    for domain in outcome.evaluation["domains"].values():
        assert domain["models"].keys() == names
        assert {row["recovered"] for row in domain["models"].values()} == {None}
    assert [check.name for check in listener.checks] == [
        "causality",
        "labels",
        "identity",
        "settings",
        "dead parameters",
    ]


def test_it_learns_from_nothing(host, scratch):
    found = run(scratch(train={"steps": 60, "lr": 0.01, "save_every": 60}), host).evaluation
    losses = {name: row["loss"]["value"] for name, row in found["domains"]["near"]["models"].items()}
    assert losses["recursive, trained"] < losses["kept layers, untrained"] - 0.5


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"base": {"dtype": "bfloat16", "config": TINY}},
        {"config": {"tie_word_embeddings": True}},
        {"splitter": {"prelude": 0, "block": 0, "size": 6, "coda": 0}, "modulator": {"use": "none"}},
    ],
    ids=str,
)
def test_the_folder_holds_every_weight_and_gives_the_same_logits(more, host, scratch, monkeypatch):
    judged, hear = {}, Judge.hear

    def heard(self, name, model):
        judged[name] = logits(model)
        hear(self, name, model)

    monkeypatch.setattr(Judge, "hear", heard)
    outcome = run(scratch(**more), host)
    loaded = load_run(outcome.folder, host)
    assert torch.equal(logits(loaded.built.model), judged["recursive, trained"])
    assert loaded.base.random


def test_the_same_seed_begins_the_same_and_another_does_not(host, scratch, listener):
    run(scratch(train={"seed": 3}), host, listener)
    run(scratch(train={"seed": 3}), host, listener)
    run(scratch(train={"seed": 4}), host, listener)
    first, again, other = (listener.steps[start].loss for start in (0, 6, 12))
    assert first == again
    assert first != other


def test_the_control_is_trained_from_the_same_random_weights(host, scratch):
    outcome = run(scratch(eval={"control": True}), host)
    models = outcome.evaluation["domains"]["near"]["models"]
    assert models.keys() == {"kept layers, untrained", "recursive, trained", "control, trained"}
    assert models["control, trained"]["recovered"] is None


@pytest.mark.parametrize(
    "adapter", [{"use": "none"}, {"use": "coda-lora", "rank": 2}, {"use": "unfreeze", "layers": 1}], ids=str
)
def test_weights_that_would_stay_random_are_refused(adapter, host, scratch, tmp_path):
    say = r"^base\.config makes random weights, and \S+ would stay random: add --adapter full$"
    with pytest.raises(UserError, match=say):
        run(scratch(adapter=adapter), host)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_knows_nothing_is_refused(host, scratch, tmp_path):
    with pytest.raises(UserError, match=r"^base\.config makes random weights, and objective 'distill'"):
        run(scratch(objective={"use": ["next-token", "distill"]}), host)
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_resumed_on_another_config(host, scratch):
    folder = run(scratch(), host).folder
    (folder / "parts.safetensors").unlink()
    resolved = folder / "resolved.toml"
    resolved.write_text(resolved.read_text().replace("intermediate_size = 48", "intermediate_size = 64"))
    with pytest.raises(UserError, match="began with another base"):
        run(settings_of(folder, host), host, resume=folder)


def test_a_finished_run_is_judged_again_as_it_was(host, scratch):
    outcome = run(scratch(), host)
    again = run(settings_of(outcome.folder, host), host, resume=outcome.folder)
    told = [one.evaluation["domains"]["near"]["models"]["recursive, trained"]["loss"] for one in (outcome, again)]
    assert told[0] == told[1]


@pytest.mark.parametrize("tied", [False, True])
def test_a_run_that_is_resumed_ends_with_the_same_bits(tied, host, scratch):
    folder = run(scratch(config={"tie_word_embeddings": tied}), host).folder
    whole = load_file(folder / "parts.safetensors")
    (folder / "parts.safetensors").unlink()
    shutil.rmtree(max((folder / "checkpoints").iterdir()))  # only the one of step 4 is left
    run(settings_of(folder, host), host, resume=folder)
    resumed = load_file(folder / "parts.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_it_is_said_that_the_named_base_gives_its_tokenizer_only(host, scratch, listener, place):
    run(scratch(), host, listener)
    assert f"base: random weights of this config, tokenizer of {place / 'base'}" in listener.notes


def test_an_empty_config_brings_the_pretrained_base_back_and_nothing_is_said_of_it(host, scratch, listener):
    settings = scratch()
    cleared = resolve(host, [settings.tables(), {"base": {"config": {}}}])
    job = Job(cleared, host, listener, None)
    assert not job.base.random
    assert not [note for note in listener.notes if "random" in note]


def test_a_pretrained_base_that_learns_whole_keeps_its_intact_row(host, settings, place):
    outcome = run(settings(adapter={"use": "full", "rate": 1e-4}), host)
    models = outcome.evaluation["domains"]["near"]["models"]
    assert models["recursive, trained"]["recovered"] is not None
    intact = pretrained.load(settings().base).fingerprint
    assert json.loads((outcome.folder / "manifest.json").read_text())["base"]["fingerprint"] == intact


SHARED = {"splitter": {"use": "cycle", "layers": 2}, "modulator": {"use": "none"}}


@pytest.mark.parametrize("adapter", [{}, {"use": "full"}], ids=str)
def test_layers_that_start_as_means_are_saved_and_need_the_removed_ones_no_more(adapter, make, tmp_path):
    intact = tiny_model()
    built = make(intact, adapter=adapter, **SHARED)
    split, names = built.model.split, own_tensors(built.model)
    assert split.averaged
    means = {name for name in built.model.state_dict() if any(f".layers.{i}." in name for i in split.averaged)}
    assert means <= names.keys()
    base = pretrained.Pretrained(intact, None, "of this base")
    save_parts(built.model, base.fingerprint, tmp_path)
    for index in split.removed:
        for parameter in intact.model.layers[index].parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(index))
    again = make(intact, adapter=adapter, **SHARED).model
    assert not torch.equal(logits(again), logits(built.model))
    load_parts(again, tmp_path)
    assert torch.equal(logits(again), logits(built.model))


def test_frozen_layers_that_start_as_themselves_are_not_saved(make):
    model = make(**{**SHARED, "splitter": {"use": "cycle", "layers": 2, "start": "first"}}).model
    assert all(name.startswith("loops.") for name in own_tensors(model))
