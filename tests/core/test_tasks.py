"""Benchmark tasks: the harness's answers against a plain scoring of the same questions, and what it leaves behind."""

import copy
import json
import logging
import random
import sys

import datasets
import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from ouroboros_core.errors import UserError
from ouroboros_core.tasks import Share, evaluate_tasks
from ouroboros_core.testing import WORDS, tiny_model, tiny_tokenizer


def questions(count, seed=0):
    """Questions of random words, with two to four choices of one to twelve words."""
    draw = random.Random(seed)
    phrase = lambda most: " ".join(draw.choices(WORDS, k=draw.randint(1, most)))  # noqa: E731
    rows = [{"query": phrase(9), "choices": [phrase(12) for _ in range(draw.randint(2, 4))]} for _ in range(count)]
    return [{**row, "gold": draw.randrange(len(row["choices"]))} for row in rows]


def long_questions(count):
    """Questions whose choices are thirty words that differ in the last one."""
    rows = questions(count)
    return [
        {**row, "choices": [f"{' '.join(WORDS)} {' '.join(WORDS[:9])} {last}" for last in WORDS[9:13]]} for row in rows
    ]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path.parent


@torch.no_grad()
def answers(model, tokenizer, row, dtype=torch.float32):
    """The choice of the highest summed log-probability, and that of the highest a character, one forward a choice."""
    sums = []
    for choice in row["choices"]:
        asked = len(tokenizer(row["query"])["input_ids"])
        ids = torch.tensor(tokenizer(row["query"] + " " + choice)["input_ids"])
        logits = model(input_ids=ids[None]).logits[0].to(dtype)
        each = [logits[t - 1].log_softmax(-1)[ids[t]] for t in range(asked, len(ids))]
        sums.append(torch.stack(each).sum().item())
    a_character = [total / len(choice) for total, choice in zip(sums, row["choices"], strict=True)]
    return sums.index(max(sums)), a_character.index(max(a_character))


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=2)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "mine_test.jsonl", questions(10))


# What is scored


def test_each_answer_is_that_of_a_plain_scoring(model, tokenizer, tmp_path):
    rows = questions(24)
    for number, row in enumerate(rows):
        write(tmp_path / f"q{number}.jsonl", [row])
    results = evaluate_tasks(model, tokenizer, [f"q{n}" for n in range(24)], folder=tmp_path)
    found = [(result.acc.value, result.acc_norm.value) for result in results]
    wanted = [tuple(answer == row["gold"] for answer in answers(model, tokenizer, row)) for row in rows]
    assert found == wanted
    assert {(True, False), (False, True)} <= set(wanted)  # so that the two cannot be confused


@pytest.mark.parametrize("halter", ["fixed", "act"])
def test_a_recursive_model_is_driven_as_any_other(make, randomise, tokenizer, tmp_path, halter):
    model = randomise(make(halter={"use": halter}).model)
    rows = questions(12)
    for number, row in enumerate(rows):
        write(tmp_path / f"q{number}.jsonl", [row])
    results = evaluate_tasks(model, tokenizer, [f"q{n}" for n in range(12)], folder=tmp_path, batch=5)
    wanted = [tuple(answer == row["gold"] for answer in answers(model, tokenizer, row)) for row in rows]
    assert [(result.acc.value, result.acc_norm.value) for result in results] == wanted


def test_a_task_has_the_share_of_right_answers(model, tokenizer, folder):
    (result,) = evaluate_tasks(model, tokenizer, ["mine"], folder=folder)
    right = np.array([[a == row["gold"] for a in answers(model, tokenizer, row)] for row in questions(10)], dtype=float)
    assert (result.task, result.items, result.other) == ("mine", 10, {})
    assert [result.acc.value, result.acc_norm.value] == pytest.approx(right.mean(0))
    assert [result.acc.stderr, result.acc_norm.stderr] == pytest.approx(right.std(0, ddof=1) / 10**0.5)


def test_log_probabilities_of_a_bfloat16_model_are_taken_in_float32(tokenizer, tmp_path):
    model = tiny_model(layers=2).bfloat16()
    rows = [row for row in long_questions(20) if differ(model, tokenizer, row)]
    assert rows  # there, bfloat16 cannot tell the choices apart
    for number, row in enumerate(rows):
        write(tmp_path / f"q{number}.jsonl", [row])
    results = evaluate_tasks(model, tokenizer, [f"q{n}" for n in range(len(rows))], folder=tmp_path, batch=1)
    wanted = [answers(model, tokenizer, row)[0] == row["gold"] for row in rows]
    assert [result.acc.value for result in results] == wanted


def differ(model, tokenizer, row):
    """Whether the right answer would be told otherwise in the model's own dtype."""
    exact, coarse = (answers(model, tokenizer, row, dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    return (exact == row["gold"]) != (coarse == row["gold"])


def test_the_batch_changes_nothing(model, tokenizer, folder):
    assert evaluate_tasks(model, tokenizer, ["mine"], folder=folder, batch=1) == evaluate_tasks(
        model, tokenizer, ["mine"], folder=folder, batch=7
    )


def test_a_limit_takes_the_first_items(model, tokenizer, folder, tmp_path):
    write(tmp_path / "first.jsonl", questions(10)[:4])
    limited, first = evaluate_tasks(model, tokenizer, ["mine", "first"], folder=folder, limit=4)
    assert limited.items == 4
    assert (limited.acc, limited.acc_norm) == (first.acc, first.acc_norm)


@pytest.mark.parametrize("file", ["mine.jsonl", "mine_test.jsonl", "mine_val.jsonl", "mine_validation.jsonl"])
def test_a_file_is_found_by_the_name_of_its_task(model, tokenizer, tmp_path, file):
    write(tmp_path / file, questions(2))
    assert evaluate_tasks(model, tokenizer, ["mine"], folder=tmp_path)[0].items == 2


def test_the_file_of_just_that_name_comes_first(model, tokenizer, folder):
    write(folder / "mine.jsonl", questions(3))
    write(folder / "mine_val.jsonl", questions(5))
    results = evaluate_tasks(model, tokenizer, ["mine", "mine_val", "mine_test"], folder=folder)
    assert [(result.task, result.items) for result in results] == [("mine", 3), ("mine_val", 5), ("mine_test", 10)]


@pytest.mark.parametrize(("right", "items"), [(0, 1), (1, 1), (0, 20), (13, 20), (20, 20), (1117, 2376)])
def test_the_interval_is_wilsons(right, items):
    share, wanted = Share.of(right / items, items), binomtest(right, items).proportion_ci(0.95, method="wilson")
    assert (share.low, share.high) == pytest.approx((wanted.low, wanted.high))
    assert (share.stderr is None) == (items == 1)


# The harness's own files

YAML = """
task: shuffled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
process_docs: !function shuffling.shuffled
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
SHUFFLING = """
import random

def shuffled(rows):
    return rows.map(lambda row: {"gold": random.randrange(len(row["choices"]))}, load_from_cache_file=False)
"""


@pytest.fixture
def yaml_folder(tmp_path, monkeypatch):
    """A folder with one task whose right answers are drawn at random when it is loaded, as some of the harness's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "rows.jsonl", questions(20))
    (tmp_path / "shuffled.yaml").write_text(YAML.format(data=tmp_path / "rows.jsonl"))
    (tmp_path / "shuffling.py").write_text(SHUFFLING)
    return tmp_path


def test_a_yaml_task_scores_as_in_the_harness_itself(model, tokenizer, yaml_folder):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=yaml_folder, include_defaults=False)
    driver = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=8)
    wanted = simple_evaluate(driver, tasks=["shuffled"], task_manager=manager, log_samples=False)["results"]["shuffled"]
    random.seed(7)  # the caller's
    (result,) = evaluate_tasks(model, tokenizer, ["shuffled"], folder=yaml_folder)
    assert (result.items, result.acc_norm) == (20, None)
    assert (result.acc.value, result.acc.stderr) == pytest.approx((wanted["acc,none"], wanted["acc_stderr,none"]))


def test_yaml_tasks_and_plain_files_go_together(model, tokenizer, yaml_folder):
    results = evaluate_tasks(model, tokenizer, ["rows", "shuffled"], folder=yaml_folder, limit=3)
    assert [(result.task, result.items) for result in results] == [("rows", 3), ("shuffled", 3)]


def test_other_metrics_are_handed_on(model, tokenizer, yaml_folder):
    text = YAML.format(data=yaml_folder / "rows.jsonl")
    start = text.index("process_docs")
    (yaml_folder / "reading.yaml").write_text(
        text[:start].replace("shuffled", "reading")
        + "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: query\n"
        + "metric_list:\n  - {metric: bits_per_byte}\n"
    )
    (result,) = evaluate_tasks(model, tokenizer, ["reading"], folder=yaml_folder)
    nats = sum(text_nats(model, tokenizer, row["query"]) for row in questions(20))
    count = sum(len(row["query"].encode()) for row in questions(20))
    assert (result.acc, result.acc_norm) == (None, None)
    assert result.other == {"bits_per_byte": pytest.approx(nats / count / np.log(2), rel=1e-5)}


@torch.no_grad()
def text_nats(model, tokenizer, text):
    """The summed loss of a text behind the token that ends a document."""
    ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    return torch.nn.functional.cross_entropy(model(input_ids=ids[None, :-1]).logits[0], ids[1:], reduction="sum").item()


# What it leaves behind


def test_the_model_and_the_tokenizer_are_left_as_they_were(tokenizer, folder):
    model = tiny_model(layers=2)
    model.model.layers[1].train()
    modes, weights = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    evaluate_tasks(model, tokenizer, ["mine"], folder=folder)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert tokenizer.pad_token is None


def surroundings():
    """What is shared with the rest of the process: generators, the harness's log, and bars."""
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return *draws, logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("bars", [True, False])
def test_the_surroundings_are_left_as_they_were(model, tokenizer, folder, bars, monkeypatch):
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(11)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.WARNING)
    (datasets.enable_progress_bars if bars else datasets.disable_progress_bars)()
    before = surroundings()
    evaluate_tasks(model, tokenizer, ["mine"], folder=folder)
    assert surroundings() == before
    datasets.enable_progress_bars()


def test_layers_drop_nothing_while_they_are_asked(tokenizer, folder):
    model = tiny_model(layers=2)
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    evaluate_tasks(model.train(), tokenizer, ["mine"], folder=folder)
    assert set(modes) == {False}
    assert model.training


def test_nothing_is_printed_or_logged(model, tokenizer, yaml_folder, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    evaluate_tasks(model, tokenizer, ["rows", "shuffled"], folder=yaml_folder, limit=3)
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.name.startswith("lm_eval")] == []


def test_progress_is_told_answer_by_answer(model, tokenizer, folder):
    told = []
    evaluate_tasks(model, tokenizer, ["mine"], folder=folder, limit=5, done=lambda *news: told.append(news))
    requests = sum(len(row["choices"]) for row in questions(10)[:5])
    assert told == [("mine", 1, requests)] * requests


# What is refused

REFUSED = {
    "typo": (
        {"names": ["mien"]},
        r"^task mien: .* has none of that name\. Did you mean 'mine'\? It has: mine, mine_test$",
    ),
    "nothing near": ({"names": ["xyz"]}, r"^task xyz: .* has none of that name\. It has: mine, mine_test$"),
    "no name": ({"names": []}, r"^no task is named: give for example arc_easy,hellaswag$"),
    "no folder": (
        {"folder": "not-there"},
        r"^not-there is no folder: tasks are read from a folder of \.yaml or \.jsonl",
    ),
    "limit": ({"limit": 0}, r"^limit=0: expected 1 or more$"),
    "share": ({"limit": 0.5}, r"^limit=0\.5: expected 1 or more$"),
    "batch": ({"batch": 0}, r"^batch=0: expected 1 or more$"),
}


@pytest.mark.parametrize(("given", "line"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line(model, tokenizer, folder, given, line):
    with pytest.raises(UserError, match=line) as refused:
        evaluate_tasks(model, tokenizer, **{"names": ["mine"], "folder": folder, **given})
    assert "\n" not in str(refused.value)


GOOD = {"query": "our union is", "choices": ["strong", "now"], "gold": 1}
WRONG_ROWS = {
    "no query": (
        {"question": "what", "answer": "this"},
        r"query: Field required\. A row has a query, choices, and as gold",
    ),
    "no choices": ({"query": "what", "gold": 0}, "choices: Field required"),
    "one choice": ({**GOOD, "choices": ["strong"]}, "choices: List should have at least 2 items"),
    "empty choice": ({**GOOD, "choices": ["strong", ""]}, "choices: String should have at least 1 character"),
    "gold in words": ({**GOOD, "gold": "now"}, "gold: Input should be a valid integer"),
    "gold beyond": ({**GOOD, "gold": 2}, "gold 2 is none of the 2 choices, counted from 0"),
    "gold below": ({**GOOD, "gold": -1}, "gold: Input should be greater than or equal to 0"),
    "no object": ("text", "Input should be an object"),
}


@pytest.mark.parametrize(("row", "line"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_a_wrong_row_is_named_by_file_and_line(model, tokenizer, tmp_path, row, line):
    write(tmp_path / "mine.jsonl", [GOOD, row])
    with pytest.raises(UserError, match=rf"mine\.jsonl:2: .*{line}") as refused:
        evaluate_tasks(model, tokenizer, ["mine"], folder=tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_is_refused(model, tokenizer, tmp_path, text):
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"mine\.jsonl has no rows$"):
        evaluate_tasks(model, tokenizer, ["mine"], folder=tmp_path)


def test_a_torn_line_is_named(model, tokenizer, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD)[:-9])
    with pytest.raises(UserError, match=r"mine\.jsonl:3: Invalid JSON"):
        evaluate_tasks(model, tokenizer, ["mine"], folder=tmp_path)


def test_a_folder_without_tasks_says_so(model, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"It has: no task files$"):
        evaluate_tasks(model, tokenizer, ["mine"], folder=tmp_path)


def test_data_that_cannot_be_had_are_one_line_and_nothing_is_asked_before(model, tokenizer, folder):
    text = YAML.format(data="nowhere.jsonl").replace("process_docs: !function shuffling.shuffled\n", "")
    (folder / "shuffled.yaml").write_text(text)
    told = []
    with pytest.raises(UserError, match=r"^task shuffled cannot be loaded: .*nowhere\.jsonl") as refused:
        evaluate_tasks(model, tokenizer, ["mine", "shuffled"], folder=folder, done=lambda *news: told.append(news))
    assert "\n" not in str(refused.value)
    assert told == []


def test_a_task_that_runs_what_the_model_writes_is_refused(model, tokenizer, yaml_folder):
    path = yaml_folder / "shuffled.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    with pytest.raises(UserError, match=r"^task shuffled wants pictures or runs code that the model writes"):
        evaluate_tasks(model, tokenizer, ["shuffled"], folder=yaml_folder)


def test_a_missing_harness_says_how_to_get_it(model, tokenizer, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'ouroboros-core\[eval\]'$"):
        evaluate_tasks(model, tokenizer, ["mine"], folder=folder)


@pytest.mark.slow
def test_without_a_folder_names_are_those_of_the_harness(model, tokenizer):
    line = r"^task arc_esay: the harness has none of that name\. Did you mean 'arc_easy'\? Its list: lm-eval ls tasks$"
    with pytest.raises(UserError, match=line):
        evaluate_tasks(model, tokenizer, ["arc_esay"])
