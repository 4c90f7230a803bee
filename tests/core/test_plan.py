"""A measured plan, against the library's own model with the removed layers taken out."""

import random

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from ouroboros_core.data import align
from ouroboros_core.errors import UserError
from ouroboros_core.losses import IGNORE
from ouroboros_core.plan import measured_plan, plan
from ouroboros_core.pretrained import load
from ouroboros_core.resolve import resolve
from ouroboros_core.run import read_text
from ouroboros_core.testing import WORDS, tiny_base


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A tiny base, and speeches of which some are kept apart."""
    folder = tmp_path_factory.mktemp("place")
    text = folder / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number:02}.txt").write_text(" ".join(random.Random(number).choices(WORDS, k=300)))
    return {
        "base": {"name": str(tiny_base(folder / "base")), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(text), "heldout": ["near"], "length": 32, "apart": 0.5, "calibration": 512},
        "modulator": {"use": "none"},
        "train": {"steps": 8, "batch": 4},
        "eval": {"tokens": 512, "validation": 512},
        "splitter": {"use": "angular-distance"},
    }


@pytest.fixture(scope="module")
def settings(host, tables):
    return lambda **more: resolve(host, [tables, more])


@pytest.fixture(scope="module")
def found(host, settings):
    return measured_plan(settings(), host)


def library_loss(settings, kept):
    """Nats a token of validation text, of the library's model with these layers only."""
    model = AutoModelForCausalLM.from_pretrained(settings.base.name, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    model.config.num_hidden_layers = len(kept)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in read_text(settings, load(settings.base)).validation.blocks:
            ids, labels = align(row[None])
            logits = model(input_ids=ids, use_cache=False).logits[0]
            total += F.cross_entropy(logits, labels[0], ignore_index=IGNORE, reduction="sum").item()
            count += int((labels != IGNORE).sum())
    return total / count, count


def test_the_losses_are_those_of_the_librarys_model_with_and_without_the_removed_layers(settings, found):
    told = found["measured"]
    assert len(told["kept"]) == found["kept_layers"] < 6
    kept, tokens = library_loss(settings(), told["kept"])
    intact, _ = library_loss(settings(), range(6))
    losses = {"intact model": intact, "kept layers, untrained": kept}
    assert told["losses"] == pytest.approx(losses, abs=1e-4)
    assert abs(intact - kept) > 1e-3  # or the two could have been mixed up
    assert told["validation_tokens"] == tokens


def test_every_layer_is_told_of_and_the_split_follows_from_what_was_measured(found, host, settings):
    told = found["measured"]
    assert len(told["influence"]) == len(told["angle"]) == 6
    assert told["tokens"] == 512
    assert f" | {told['looped'][0]} x 4" in found["split"]
    other = measured_plan(settings(splitter={"use": "block-influence", "keep": 6}), host)["measured"]
    assert other["influence"] == told["influence"]
    assert other["looped"] == [told["influence"].index(min(told["influence"]))]


def test_where_no_layer_is_removed_no_loss_is_added(host, settings):
    told = measured_plan(settings(splitter={"use": "block-influence", "keep": 6}), host)["measured"]
    assert told["kept"] == [0, 1, 2, 3, 4, 5]
    assert told["losses"]["kept layers, untrained"] == told["losses"]["intact model"]


def test_a_plan_from_the_config_alone_is_the_same_but_for_what_is_measured(host, settings):
    whole = settings(splitter={"use": "prelude-recurrent-coda"})
    found = measured_plan(whole, host)
    assert {key: value for key, value in found.items() if key != "measured"} == plan(whole, host)


def test_without_validation_text_there_is_no_loss(host, settings, tables, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text(" ".join(random.Random(0).choices(WORDS, k=4000)))
    other = tmp_path / "other.txt"
    other.write_text("what they have to do now")
    told = measured_plan(settings(data={"train": str(one), "heldout": [str(other)]}), host)["measured"]
    assert told["losses"] == {"intact model": None, "kept layers, untrained": None}
    assert told["validation_tokens"] == 0
    assert told["tokens"] == 512


def test_random_weights_have_nothing_to_measure(host, settings):
    with pytest.raises(UserError, match=r"^base\.config makes random weights: there is nothing to measure"):
        measured_plan(settings(base={"config": {"model_type": "llama"}}), host)


def test_a_splitter_that_measures_needs_the_weights(host, settings):
    with pytest.raises(UserError, match=r"ouro plan --measure loads the weights$"):
        plan(settings(), host)
