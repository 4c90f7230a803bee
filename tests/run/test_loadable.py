"""The folder of a finished run is a model of the library: what is loaded from it is what the run trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ouroboros_core  # noqa: F401 - from here on the Auto classes know our model
from ouroboros_core.errors import Interrupted, UserError
from ouroboros_core.run import run
from ouroboros_core.rundir import load_run

TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
RUNS = {
    "the defaults": {},
    "bfloat16": {"base": {"dtype": "bfloat16"}},
    "a control and a coda": {"adapter": {"use": "coda-lora"}, "eval": {"control": True}},
    "layers that start as means": {"splitter": {"use": "cycle", "start": "average"}, "adapter": {"use": "full"}},
    "measured layers": {"splitter": {"use": "angular-distance"}},
    "random weights": {"base": {"config": TINY}, "adapter": {"use": "full"}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_loaded_by_the_library(name, host, settings, ids):
    folder = run(settings(**RUNS[name]), host).folder
    loaded, theirs = load_run(folder, host), AutoModelForCausalLM.from_pretrained(folder)
    ours, ids = loaded.built.model, ids % theirs.config.vocab_size
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    with torch.no_grad():
        assert torch.equal(ours.trace(ids).logits(), theirs(ids).logits)
    assert theirs.turns == ours.turns == 4
    read, text = AutoTokenizer.from_pretrained(folder), "the state of our union"
    assert read(text).input_ids == loaded.base.tokenizer(text).input_ids


def test_a_run_that_was_stopped_is_no_model(host, settings, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ouroboros_core.training.Training.run", stopped)
    with pytest.raises(Interrupted, match="Go on with"):
        run(settings(), host)
    (folder,) = (tmp_path / "runs").iterdir()
    with pytest.raises(UserError, match=r"the run did not finish\. Go on with: ouro run --resume "):
        load_run(folder, host)
    with pytest.raises(ValueError, match=r"Should have a `model_type` key in its config\.json"):
        AutoModelForCausalLM.from_pretrained(folder)  # the library's own words: nothing there says what it is
