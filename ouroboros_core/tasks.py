"""Benchmark tasks, by EleutherAI's lm-evaluation-harness: its own, its YAML files, or plain files of questions."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Annotated, Any, Self
from unittest.mock import patch

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers.utils.logging import EmptyTqdm

from ouroboros_core.errors import UserError

ENDINGS = ("", "_test", "_val", "_validation")  # of a file's name behind the task's; earlier ones win
METRICS = ("acc", "acc_norm")
QUESTIONS = {  # as the harness's own arc_easy asks and scores them
    "output_type": "multiple_choice", "test_split": "test", "target_delimiter": " ",
    "doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
}  # fmt: skip
PYTHON_SEED, OTHER_SEED = 0, 1234  # the harness's own: some of its tasks shuffle choices while they load
DRAWS_BARS = ("lm_eval.api.model", "lm_eval.api.task", "lm_eval.models.huggingface")
Done = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Share:
    """The share of items answered right, its standard error (None of one item) and its 95 % Wilson interval."""

    value: float
    stderr: float | None
    low: float
    high: float

    @classmethod
    def of(cls, value: float, items: int) -> Self:
        """From the share and how many items it is of."""
        spread, square = value * (1 - value), NormalDist().inv_cdf(0.975) ** 2
        centre = (value + square / items / 2) / (1 + square / items)
        half = sqrt(square * (spread / items + square / items**2 / 4)) / (1 + square / items)
        stderr = sqrt(spread / (items - 1)) if items > 1 else None
        return cls(value, stderr, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class TaskResult:
    """What a model scored on a task, or on a group of the harness's as if all its items were one task.

    `acc` takes the choice of the highest log-probability, `acc_norm` that of the highest log-probability a character.
    `other` are the task's other metrics, as the harness names them.
    """

    task: str
    items: int
    acc: Share | None
    acc_norm: Share | None
    other: Mapping[str, float]


class _Question(BaseModel):
    model_config = ConfigDict(strict=True)

    query: str
    choices: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)
    gold: int = Field(ge=0)

    @model_validator(mode="after")
    def _gold_is_a_choice(self) -> Self:
        if self.gold >= len(self.choices):
            raise ValueError(f"gold {self.gold} is none of the {len(self.choices)} choices, counted from 0")
        return self


def evaluate_tasks(
    model: Any, tokenizer: Any, names: Sequence[str], *, folder: Path | str | None = None, limit: int | None = None,
    batch: int = 8, done: Done = lambda task, answered, requests: None,
) -> list[TaskResult]:  # fmt: skip
    """Let the harness ask a model, where it is and in its own dtype; log-probabilities are taken in float32.

    Few-shot examples are those that a task's definition asks for: none in a .jsonl file. Of a prompt longer than the
    model's context the harness drops the beginning.

    Args:
        model: a causal language model, a transformers `PreTrainedModel`.
        tokenizer: its fast tokenizer.
        names: of tasks; without a folder, also of the harness's groups and tags.
        folder: of task files: the harness's YAML files, whose Python functions are run, so that it has to be trusted;
            and .jsonl files with rows of `query`, `choices` and `gold`, called after the task, as `arc_easy.jsonl`,
            `arc_easy_test.jsonl`, `arc_easy_val.jsonl` or `arc_easy_validation.jsonl`. Without one, the harness's own
            tasks, whose data come from the Hugging Face hub (that was not run).
        limit: ask the first so many items of each task only.
        batch: requests read at once; a request is one choice of one item.
        done: hears of each answer: the name, how many more requests have been answered, and of how many.

    Raises:
        UserError: the harness is not installed, or nothing has such a name, or a task's data cannot be read.
    """
    _refuse(names, folder, limit, batch)
    from lm_eval import evaluate  # type: ignore[import-untyped]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

    with _quiet(), _as_it_was(model):
        loaded = _load(list(dict.fromkeys(names)), None if folder is None else Path(folder))
        copied = copy.deepcopy(tokenizer)  # the harness gives it a padding token
        # below -64 nats, bfloat16 has steps of half a nat
        driver = HFLM(model, "causal", tokenizer=copied, batch_size=batch, softmax_dtype="float32")
        results: list[TaskResult] = []
        for name, found in loaded.items():
            driver.set_cache_hook(_told(name, found["tasks"].values(), done))
            results += _results(evaluate(driver, found, limit=limit, bootstrap_iters=0, log_samples=False))
    return results


def _refuse(names: Sequence[str], folder: Path | str | None, limit: int | None, batch: int) -> None:
    if not names:
        raise UserError("no task is named: give for example arc_easy,hellaswag")
    for what, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise UserError(f"{what}={value}: expected 1 or more")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder: tasks are read from a folder of .yaml or .jsonl files")
    if find_spec("lm_eval") is None:
        raise UserError("tasks need the lm-evaluation-harness: pip install 'ouroboros-core[eval]'")


def _load(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Each name's tasks and groups, in the harness's form. All are loaded before any is asked."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    files = {} if folder is None else _files(folder)
    known = [*manager.all_tasks, *files]
    for name in names:
        if name not in known:
            raise UserError(_unknown(name, folder, known))
    return {name: _loaded(manager, name, files) for name in names}


def _files(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob("*.jsonl"))
    return {path.stem.removesuffix(e): path for e in reversed(ENDINGS) for path in paths if path.stem.endswith(e)}


def _unknown(name: str, folder: Path | None, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    has = f"It has: {', '.join(sorted(known)) or 'no task files'}" if folder else "Its list: lm-eval ls tasks"
    return f"task {name}: {folder or 'the harness'} has none of that name.{meant} {has}"


def _loaded(manager: Any, name: str, files: Mapping[str, Path]) -> Any:
    spec: Any = name
    if name not in manager.all_tasks:
        spec = {"task": name, "custom_dataset": _dataset(files[name]), **QUESTIONS}
    try:
        found = manager.load([spec])
    except Exception as error:  # a definition may run any code, and fail in any way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"task {name} cannot be loaded: {first[:200]}") from error
    tasks = found["tasks"].values()
    if any(getattr(task, mark, False) for task in tasks for mark in ("UNSAFE_CODE", "MULTIMODAL")):
        raise UserError(f"task {name} wants pictures or runs code that the model writes: use the harness itself")
    for task in tasks:  # what its own front end does
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(OTHER_SEED)
    return found


def _dataset(path: Path) -> Callable[..., Any]:
    """What makes a data set of a file, in memory: nothing is cached, and no hub is asked."""
    from datasets import Dataset

    lines = enumerate(path.read_bytes().splitlines(), 1)
    rows = [_question(path, number, line) for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{path} has no rows")
    return lambda **metadata: {"test": Dataset.from_list(rows)}


def _question(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return _Question.model_validate_json(line).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        wanted = "A row has a query, choices, and as gold the number of the right one, from 0"
        raise UserError(f"{path}:{number}: {where}{first['msg']}. {wanted}") from error


def _told(name: str, tasks: Any, done: Done) -> SimpleNamespace:
    """Hears of every answer, in the place of the harness's cache."""
    return SimpleNamespace(add_partial=lambda *answer: done(name, 1, sum(len(task.instances) for task in tasks)))


def _results(found: Any) -> Iterator[TaskResult]:
    for name, row in found["results"].items():
        metrics = {key.removesuffix(",none"): value for key, value in row.items() if "," in key and value != "N/A"}
        if metrics:  # a group may have none of its own
            shares = {key: Share.of(metrics.pop(key), row["sample_len"]) for key in METRICS if key in metrics}
            yield TaskResult(name, row["sample_len"], shares.get("acc"), shares.get("acc_norm"), metrics)


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Leaves the modules' modes and the random number generators as they were; within, the harness's seeds."""
    training = [module for module in model.modules() if module.training]
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(OTHER_SEED)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for module in training:
                module.training = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and bars: `done` says what happens."""
    import datasets

    log, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with ExitStack() as at_the_end:
        at_the_end.callback(log.setLevel, level)
        at_the_end.callback(datasets.disable_progress_bars if bars else datasets.enable_progress_bars)
        for module in DRAWS_BARS:
            at_the_end.enter_context(patch(f"{module}.tqdm", EmptyTqdm))
        yield
