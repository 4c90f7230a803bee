"""A comparison: its plan of cells, and that one which was stopped goes on to the same table."""

import json
import shutil
from pathlib import Path

import pytest

from ouroboros_core.build import control_settings
from ouroboros_core.compare import Cell, cells_of, compare, plan_cells, variant_layers
from ouroboros_core.contracts import Slot
from ouroboros_core.errors import Interrupted, UserError
from ouroboros_core.reporting import Silent
from ouroboros_core.resolve import resolve

VARIANTS = ["ouroboros-static modulator.rank=4", "ouroboros modulator=none gate.bias=-1"]
CONTROL = f"control of {VARIANTS[0]}"


@pytest.fixture(scope="module")
def budget(place):
    """What is laid over every variant: a tiny base, text of three held-out documents, few steps."""
    return {
        "base": {"name": str(place / "base"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(place / "text"), "heldout": ["near"], "length": 32, "apart": 0.5},
        "loop": {"turns": 2},
        "train": {"steps": 4, "batch": 4, "warmup": 1, "save_every": 2, "lr": 0.01},
        "eval": {"tokens": 384, "validation": 256, "resamples": 200},
    }


@pytest.fixture(scope="module")
def planned(host, budget):
    """Two variants and the control, one seed."""
    return plan_cells(host, VARIANTS, [budget], seeds=1)


@pytest.fixture(scope="module")
def whole(host, planned, tmp_path_factory):
    """Folder and table of that comparison, never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "comparison"
    return folder, compare(planned, host, folder)


class Stopping(Silent):
    """Presses Ctrl-C when a stage begins, or at a step of it."""

    def __init__(self, stage, step=None):
        self.wanted, self.at, self.stages = stage, step, []

    def stage(self, name):
        self.stages.append(name)
        if self.at is None and name.startswith(self.wanted):
            raise KeyboardInterrupt

    def step(self, progress):
        if progress.step == self.at and any(name.startswith(self.wanted) for name in self.stages):
            raise KeyboardInterrupt


# The plan


def test_a_variant_is_a_preset_and_what_differs(host):
    preset, *rest = variant_layers(host, "ouroboros modulator=none gate.bias=-1 objective=next-token,ponder")
    assert preset == host.preset("ouroboros").settings
    assert rest == [
        {"modulator": {"use": ["none"]}}, {"gate": {"bias": -1}}, {"objective": {"use": ["next-token", "ponder"]}}
    ]  # fmt: skip
    assert variant_layers(host, "gate=none") == [{"gate": {"use": ["none"]}}]  # the defaults, and what differs


def test_every_variant_is_trained_with_every_seed_and_so_is_the_control(host, budget):
    cells = plan_cells(host, VARIANTS, [budget, {"train": {"seed": 5}}], seeds=2)
    assert [(cell.variant, cell.seed) for cell in cells] == [
        (name, seed) for seed in (5, 6) for name in (*VARIANTS, CONTROL)
    ]  # fmt: skip
    assert all(cell.settings.train.seed == cell.seed for cell in cells)
    assert [cell.number for cell in cells] == [1, 2, 3, 4, 5, 6]


def test_what_all_share_is_laid_over_every_variant(host, budget):
    cells = plan_cells(host, ["relaxed", "ringformer"], [budget, {"gate": {"use": "highway"}}, {"train": {"lr": 0.5}}])
    assert {cell.settings.train.lr for cell in cells} == {0.5}  # over the presets' own rates
    assert {cell.settings.one(Slot.GATE).name for cell in cells if "control" not in cell.variant} == {"highway"}


def test_the_control_of_a_frozen_variant_takes_one_turn_of_null_parts_and_learns_with_what_was_said(host, planned):
    control = planned[-1].settings
    assert control.loop.turns == 1
    for slot in (Slot.ENTRY, Slot.MODULATOR, Slot.GATE, Slot.NORM, Slot.HALTER, Slot.SCHEDULE):
        assert control.one(slot).part is host.null(slot), slot
    (adapter,) = control.parts[Slot.ADAPTER]
    assert (adapter.name, adapter.options.rate) == ("full", 1e-4)
    assert control.train == planned[0].settings.train
    assert control.one(Slot.SPLITTER) == planned[0].settings.one(Slot.SPLITTER)


def test_the_control_of_a_variant_with_an_adapter_keeps_it(host, budget):
    coda = "ouroboros adapter=coda-lora adapter.rank=2"
    *_, control = plan_cells(host, [coda], [budget], seeds=1, control="adapter=full")
    assert control.settings.tables() == control_settings(
        resolve(host, [*variant_layers(host, coda), budget]), host
    ).tables()  # fmt: skip
    (adapter,) = control.settings.parts[Slot.ADAPTER]
    assert (adapter.name, adapter.options.rank) == ("coda-lora", 2)


def test_without_a_control_there_is_none(host, budget):
    assert [cell.variant for cell in plan_cells(host, VARIANTS, [budget], seeds=1, control=None)] == VARIANTS


def test_no_two_cells_share_a_folder(host, budget):
    signs = ["ouroboros gate.bias=1", "ouroboros gate.bias=-1", "ouroboros gate.bias=0.1"]
    cells = plan_cells(host, signs, [budget], seeds=2)
    assert len({cell.name for cell in cells}) == len(cells) == 8
    assert cells[1].name == "02-ouroboros-gate-bias-1-seed0"
    assert len(Cell(1, "word " * 100, 0, cells[0].settings).name) < 80


@pytest.mark.parametrize(
    ("variants", "say"),
    [
        ([], r"^nothing to compare: give --preset"),
        (["ouroboros", "ouroborus"], r"^no preset is called 'ouroborus'\. Did you mean 'ouroboros'\?"),
        (["ouroboros", "relaxed", "ouroboros"], "a variant is given twice$"),
        (["ouroboros loop.turns=3", " ouroboros  loop.turns=3"], "a variant is given twice$"),
        (
            ["ouroboros", "ouroboros gate=sigmoid"],
            "^variants 'ouroboros' and 'ouroboros gate=sigmoid' come to the same",
        ),
        (["ouroboros", "ouroboros loop.turns=7"], "loop.turns is set for every variant too, and that wins"),
        (["ouroboros", "relaxed data.length=64"], r"would be judged on different text: data\.length$"),
        (["ouroboros", "relaxed eval.tokens=999"], r"would be judged on different text: eval\.tokens$"),
        (["ouroboros gate.bais=1"], r"gate\.bais: no such setting\. Did you mean 'bias'\?"),
        (["ouroboros relaxed"], "expected slot.key=value"),
    ],
    ids=lambda value: "; ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_comparison_is_refused_before_anything_is_trained(host, variants, say):
    with pytest.raises(UserError, match=say):
        plan_cells(host, variants, [{"loop": {"turns": 2}}])


# Its cells


def test_each_cell_is_a_run_folder(whole, planned):
    folder, _ = whole
    assert {place.name for place in (folder / "cells").iterdir()} == {cell.name for cell in planned}
    for cell in planned:
        there = {path.name for path in (folder / "cells" / cell.name).iterdir()}
        assert there >= {"resolved.toml", "manifest.json", "metrics.jsonl", "parts.safetensors", "evaluation.json"}


def test_the_table_holds_what_the_cells_found(whole, planned):
    folder, found = whole
    assert json.loads((folder / "comparison.json").read_text()) == found
    assert list(found["variants"]) == [*VARIANTS, CONTROL]
    assert found["domains"]["near"]["units"] == 3
    for cell in planned:
        alone = json.loads((folder / "cells" / cell.name / "evaluation.json").read_text())
        (loss,) = found["domains"]["near"]["variants"][cell.variant]["by_seed"]
        assert loss == alone["domains"]["near"]["models"]["recursive, trained"]["loss"]["value"]
    assert found["variants"][CONTROL]["trained_tokens"] == 4 * 4 * 32
    assert found["variants"][CONTROL]["kv_bytes"] < found["variants"][VARIANTS[0]]["kv_bytes"]


def test_the_plan_is_read_back_as_it_was_written(whole, planned, host):
    again = cells_of(whole[0], host)
    assert [(c.name, c.variant, c.seed, c.settings.tables()) for c in again] == [
        (c.name, c.variant, c.seed, c.settings.tables()) for c in planned
    ]  # fmt: skip


# Going on


def timeless(found):
    """A table without what a clock said."""
    return {**found, "intact": None, "variants": {
        name: {key: value for key, value in row.items() if key != "tokens_per_second"}
        for name, row in found["variants"].items()
    }}  # fmt: skip


def written(folder: Path) -> dict[Path, int]:
    """When each file was last written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_stopped_comparison_goes_on_to_the_same_table_and_trains_no_finished_cell_again(
    whole, planned, host, tmp_path
):
    folder = tmp_path / "comparison"
    say = rf"^stopped\. Go on with: ouro compare --resume {folder}$"
    with pytest.raises(Interrupted, match=say):
        compare(planned, host, folder, Stopping("cell 2 of 3"))
    first, second = (folder / "cells" / cell.name for cell in planned[:2])
    finished = written(first)
    assert finished
    assert not second.exists()
    with pytest.raises(Interrupted, match=rf"\. Go on with: ouro compare --resume {folder}$"):
        compare(cells_of(folder, host), host, folder, Stopping("cell 2 of 3", step=3))
    assert second.exists()
    assert not (second / "evaluation.json").exists()
    found = compare(cells_of(folder, host), host, folder)
    assert written(first) == finished
    assert timeless(found) == timeless(whole[1])
    assert [json.loads(line)["step"] for line in (second / "metrics.jsonl").open()] == [1, 2, 3, 4]


def test_a_finished_comparison_is_told_again_and_nothing_is_trained(whole, host):
    folder, found = whole
    before = written(folder / "cells")
    listening = Stopping("never")
    assert compare(cells_of(folder, host), host, folder, listening) == found
    assert listening.stages == []
    assert written(folder / "cells") == before


@pytest.mark.parametrize("other", ["settings", "seeds", "variants"])
def test_a_folder_with_another_plan_is_refused(whole, host, budget, other):
    folder, _ = whole
    before = written(folder)
    cells = {
        "settings": lambda: plan_cells(host, VARIANTS, [budget, {"train": {"lr": 0.02}}], seeds=1),
        "seeds": lambda: plan_cells(host, VARIANTS, [budget], seeds=2),
        "variants": lambda: plan_cells(host, VARIANTS[:1], [budget], seeds=1),
    }[other]()
    with pytest.raises(UserError, match=r"holds something else: give another --name, or --resume a comparison$"):
        compare(cells, host, folder)
    assert written(folder) == before


@pytest.mark.parametrize("plan", [None, "{", "[]]", '[{"variant": "a"}]', '{"a": 1}'])
def test_a_folder_that_is_no_comparison_is_said_to_be_none(plan, host, planned, tmp_path):
    if plan:
        (tmp_path / "plan.json").write_text(plan)
    else:
        with pytest.raises(UserError, match="holds something else"):
            compare(planned, host, tmp_path)
    with pytest.raises(UserError, match="is no comparison: "):
        cells_of(tmp_path, host)


def test_a_cell_judged_on_text_that_was_changed_meanwhile_is_refused(whole, planned, host, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "comparison")
    manifest = folder / "cells" / planned[1].name / "manifest.json"
    told = json.loads(manifest.read_text())
    told["text"]["near"] = "0" * 16
    manifest.write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"^'ouroboros modulator=none gate\.bias=-1', seed 0, was judged on other text"):
        compare(planned, host, folder)


@pytest.mark.parametrize(
    "wrong", ["ouroboros-paper modulator.rank=4", "ouroboros modulator.rank=4 splitter.prelude=99"]
)
def test_a_mistake_in_a_later_variant_is_told_before_anything_is_trained(wrong, host, budget, tmp_path):
    cells = plan_cells(host, [VARIANTS[0], wrong], [budget], seeds=1)
    with pytest.raises(UserError, match=r"lets a token see later ones|do not fit into 6 layers"):
        compare(cells, host, tmp_path / "comparison")
    assert not (tmp_path / "comparison").exists()


def test_a_comparison_under_torchrun_is_refused(host, planned, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        compare(planned, host, tmp_path / "comparison")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["train.seed=4", "run.name=z", "eval.control=true"])
def test_a_variant_may_not_set_what_the_comparison_gives_its_cells(setting, host, budget):
    with pytest.raises(UserError, match=rf"^variant '{VARIANTS[0]} {setting}': .* is the comparison's to give"):
        plan_cells(host, [VARIANTS[0], f"{VARIANTS[0]} {setting}"], [budget], seeds=1)


def test_what_a_variant_says_must_not_be_covered_by_a_common_setting(host, budget):
    with pytest.raises(UserError, match=r"loop\.turns is set for every variant too, and that wins"):
        plan_cells(host, [VARIANTS[0], "ouroboros modulator=none loop.turns=3"], [budget], seeds=1)


def test_a_control_that_learns_nothing_is_told_before_anything_is_trained(host, budget, tmp_path):
    cells = plan_cells(host, [VARIANTS[0]], [budget], seeds=1, control="adapter=none")
    with pytest.raises(UserError, match=rf"^variant '{CONTROL}': nothing learns"):
        compare(cells, host, tmp_path / "comparison")
