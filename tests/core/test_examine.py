"""The examination of a run folder, against the run's own verdict and plain calls."""

import json
import random
import shutil
import sys
from types import SimpleNamespace

import pytest

from ouroboros_core import policies
from ouroboros_core.contracts import Depth
from ouroboros_core.data import align
from ouroboros_core.errors import UserError
from ouroboros_core.examine import Asked, examine
from ouroboros_core.judge import CONTROL, INTACT, KEPT, TRAINED
from ouroboros_core.losses import IGNORE
from ouroboros_core.resolve import resolve
from ouroboros_core.run import read_text, run
from ouroboros_core.rundir import load_run
from ouroboros_core.testing import WORDS, tiny_base

DEFAULT = ["loss", "depth", "residuals", "halting"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny base, and two kinds of made-up speeches."""
    folder = tmp_path_factory.mktemp("place")
    tiny_base(folder / "base")
    for kind, count in (("text", 12), ("other", 3)):
        (folder / kind).mkdir()
        for number in range(count):
            words = random.Random(f"{kind}{number}").choices(WORDS, k=150)
            (folder / kind / f"{number:02}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def trained(host, place):
    """Train a run of three steps, once for each name."""
    runs = {}

    def trained(name, **more):
        if name not in runs:
            tables = {
                "base": {"name": str(place / "base"), "dtype": "float32", "device": "cpu"},
                "data": {"train": str(place / "text"), "heldout": ["near", str(place / "other")], "length": 32},
                "loop": {"turns": 3}, "modulator": {"rank": 4}, "train": {"steps": 3, "batch": 2, "warmup": 1},
                "eval": {"tokens": 512, "validation": 256, "resamples": 100, "batch": 4},
            }  # fmt: skip
            runs[name] = run(resolve(host, [tables, more]), host, folder=place / name).folder
        return runs[name]

    return trained


@pytest.fixture(scope="module")
def plain(trained):
    """A run with a fixed halter and a control."""
    return trained("plain", adapter={"use": "coda-lora"}, eval={"control": True})


@pytest.fixture(scope="module")
def loaded(plain, host):
    """Its model."""
    return load_run(plain, host)


@pytest.fixture(scope="module")
def found(loaded, plain, host):
    """All of it, and what was told meanwhile."""
    told = Watching()
    return examine(loaded, plain, reporter=told, host=host), told


class Watching:
    """A reporter that remembers stages, and how many rows of how many were read of what."""

    def __init__(self):
        self.stages, self.rows, self.totals = [], {}, {}

    def stage(self, name):
        self.stages.append(name)

    def read(self, what, domain, rows, total):
        self.rows[what, domain] = self.rows.get((what, domain), 0) + rows
        self.totals[what, domain] = total

    def check(self, result):
        pass

    def step(self, progress):
        pass

    def note(self, text):
        pass


def judged(evaluation):
    """Losses, intervals and shares of a verdict; speed is another one at every reading."""
    return {
        name: {model: {key: told[key] for key in ("loss", "recovered", "unit_nats")}
               for model, told in domain["models"].items()}
        for name, domain in evaluation["domains"].items()
    }  # fmt: skip


def test_the_losses_are_those_that_the_run_wrote_down_control_and_all(found, plain):
    evaluation = json.loads((plain / "evaluation.json").read_text())
    assert list(evaluation["domains"]["near"]["models"]) == [INTACT, KEPT, TRAINED, CONTROL]
    assert judged(found[0]["loss"]) == judged(evaluation)
    assert found[0]["loss"]["parameters"] == evaluation["parameters"]
    assert found[0]["split"] == evaluation["split"]


def test_the_curve_passes_through_the_runs_own_loss_and_goes_to_twice_its_depth(found, plain):
    evaluation, curve = json.loads((plain / "evaluation.json").read_text()), found[0]["depth"]
    assert (curve["trained"], curve["evaluated"], curve["cap"]) == (3, 3, False)
    assert curve["domains"].keys() == evaluation["domains"].keys()
    for name, rows in curve["domains"].items():
        assert [(row["turns"], row["where"]) for row in rows] == [
            (1, "below"), (2, "below"), (3, "at"), (4, "beyond")
        ]  # fmt: skip
        assert rows[2]["loss"] == evaluation["domains"][name]["models"][TRAINED]["loss"]


def test_the_curve_is_that_of_the_loaded_model_at_other_depths(loaded, found, plain, host):
    (domain, *_) = read_text(loaded.settings, loaded.base).heldout
    ids, labels = align(domain.blocks)
    for row in found[0]["depth"]["domains"]["near"]:
        nll = loaded.built.model.trace(ids, depth=Depth.full(row["turns"])).nll(labels).detach()
        assert row["loss"]["value"] == pytest.approx(float(nll.sum() / (labels != IGNORE).sum()), rel=1e-5)


def test_the_residuals_go_as_far_as_the_curve_and_one_turn_on(found):
    told = found[0]["residuals"]
    assert [row["turn"] for row in told["turns"]] == [1, 2, 3, 4]
    assert told["further"]["turn"] == 5
    assert told["tokens"] == sum(domain["tokens"] for domain in found[0]["loss"]["domains"].values())


def test_a_fixed_halter_has_no_report(found):
    assert found[0]["halting"] is None


def test_what_is_found_is_json_and_every_section_and_row_is_told(found):
    told, watched = found
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert set(watched.stages) == set(DEFAULT)
    assert list(told) == ["split", *watched.stages]
    assert watched.rows == watched.totals
    assert ("depth curve", "held-out text") in watched.rows


def test_nothing_is_written(loaded, plain, host):
    before = {path: path.stat().st_mtime_ns for path in plain.rglob("*")}
    examine(loaded, plain, Asked(only=["halting"]), host=host)
    assert {path: path.stat().st_mtime_ns for path in plain.rglob("*")} == before


def test_an_adaptive_halter_is_reported_by_domain_and_its_depth_is_a_cap(trained, host):
    folder = trained("stopping", halter={"use": "latent-diff", "threshold": 1e6})
    found = examine(load_run(folder, host), folder, Asked(only=DEFAULT), host=host)
    assert found["depth"]["cap"]
    assert found["residuals"]["held_back"]
    assert found["halting"].keys() == found["loss"]["domains"].keys()
    for name, report in found["halting"].items():
        losses = found["loss"]["domains"][name]["models"][TRAINED]["loss"]["value"]
        assert report["alarm"].startswith("collapsed to 2 turns")
        assert report["took"][1]["loss"] == pytest.approx(losses, rel=1e-6)
        assert report["tokens"] == found["loss"]["domains"][name]["tokens"]


def test_what_is_asked_for_is_what_is_examined(loaded, plain, host):
    asked = Asked(only=["residuals", "depth"], turns=[4, 2, 2], domains=["near"], tokens=256, batch=3)
    found = examine(loaded, plain, asked, host=host)
    assert set(found) == {"split", "depth", "residuals"}
    assert {name: [row["turns"] for row in rows] for name, rows in found["depth"]["domains"].items()} == {
        "near": [2, 4]
    }
    assert found["residuals"]["tokens"] <= 256
    assert found["residuals"]["further"]["turn"] == 5


def test_validation_text_can_be_asked_for_alone(loaded, plain, host):
    found = examine(loaded, plain, Asked(only=["depth"], turns=[1], domains=["validation"]))
    assert list(found["depth"]["domains"]) == ["validation"]


def test_tasks_are_asked_of_every_model_as_transformers_has_it(loaded, plain, host, monkeypatch):
    asked = []

    def evaluate_tasks(model, tokenizer, names, *, folder, limit, batch, done):
        asked.append((model, tokenizer, names, folder, limit, batch))
        done("arc_easy", 2, 4)
        return []

    monkeypatch.setitem(sys.modules, "ouroboros_core.tasks", SimpleNamespace(evaluate_tasks=evaluate_tasks))
    told = Watching()
    wanted = Asked(only=["tasks"], tasks=["arc_easy"], tasks_from=plain, limit=7, batch=2)
    found = examine(loaded, plain, wanted, told, host=host)
    assert found["tasks"] == {INTACT: [], KEPT: [], TRAINED: [], CONTROL: []}
    assert [model.config.num_hidden_layers for model, *_ in asked[:2]] == [6, 3]
    assert asked[0][0] is loaded.base.model
    assert asked[2][0] is loaded.built.model
    assert {call[1:] for call in [(m, t, tuple(n), *r) for m, t, n, *r in asked]} == {
        (loaded.base.tokenizer, ("arc_easy",), plain, 7, 2)
    }
    assert told.rows[TRAINED, "arc_easy"] == 2


def test_cache_policies_are_asked_for_with_the_models_text(loaded, plain, host, monkeypatch):
    asked, plainly = [], policies.policy_losses

    def watched(model, domains, names, **others):
        asked.append((model, [domain.name for domain in domains], names, others["tokens"]))
        return plainly(model, domains, names, **others)

    monkeypatch.setattr(policies, "policy_losses", watched)
    wanted = Asked(only=["cache"], cache=["last"], domains=["near"], tokens=300)
    each, last = examine(loaded, plain, wanted, host=host)["cache"]["near"]
    assert asked == [(loaded.built.model, ["near"], ["last"], 300)]
    assert (each["policy"], each["costs"]["value"], last["policy"]) == ("turn", 0, "last")
    assert last["kv_bytes"] < each["kv_bytes"]
    assert last["loss"] - each["loss"] == pytest.approx(last["costs"]["value"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(only=["losses"]), "no section is called 'losses'. Known: tasks, cache, loss, depth, residuals, halting"),
        (Asked(only=["tasks"]), "section 'tasks' needs names: say which tasks"),
        (Asked(only=["cache"]), "section 'cache' needs names: say which policies"),
        (Asked(turns=[2, 0]), "turns = 0: at least 1"),
        (Asked(tokens=10), "tokens = 10: at least 256"),
        (Asked(batch=0), "batch = 0: at least 1"),
        (Asked(tasks=["a"], limit=0), "limit = 0: at least 1"),
        (Asked(domains=["nearr"]), r"no held-out domain of .* is called 'nearr'. Known: near, .*other, validation"),
        (Asked(device="tpu"), "choose auto, cpu, cuda or mps"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(loaded, plain, host, asked, said):
    with pytest.raises(UserError, match=said):
        examine(loaded, plain, asked, host=host)


def test_a_run_that_is_not_finished_is_refused_and_told_how_to_go_on(plain, host, tmp_path):
    shutil.copytree(plain, tmp_path / "run")
    (tmp_path / "run" / "parts.safetensors").unlink()
    with pytest.raises(UserError, match=r"the run did not finish. Go on with: ouro run --resume .*run"):
        load_run(tmp_path / "run", host)
    with pytest.raises(UserError, match="is no run folder"):
        load_run(tmp_path, host)


def test_a_training_source_that_has_changed_is_refused(loaded, plain, place, host):
    new = place / "text" / "new.txt"
    new.write_text("the state of our union is strong " * 30)
    try:
        with pytest.raises(UserError, match=r"is not what .* was trained on \(train.* differ\): held-out"):
            examine(loaded, plain, Asked(only=["depth"]), host=host)
    finally:
        new.unlink()


def test_held_out_text_of_another_source_may_change(trained, place, host):
    folder = trained("plain-too")
    loaded, new = load_run(folder, host), place / "other" / "new.txt"
    new.write_text("the people of this nation know what they have to do now " * 10)
    try:
        assert examine(loaded, folder, Asked(only=["depth"], turns=[1]), host=host)["depth"]
    finally:
        new.unlink()


def test_a_base_of_random_weights_has_no_intact_model_to_compare_with(trained, host):
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    folder = trained("random", base={"config": config}, adapter={"use": "full"})
    found = examine(load_run(folder, host), folder, Asked(only=["loss"]), host=host)
    assert list(found["loss"]["domains"]["near"]["models"]) == [KEPT, TRAINED]
