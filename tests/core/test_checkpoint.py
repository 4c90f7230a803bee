"""Checkpoints: what is read is what was written, or a line that says what to do."""

import json
import resource

import pytest
import torch

from ouroboros_core import checkpoint
from ouroboros_core.checkpoint import FACTS, TENSORS, Checkpoint, load, save, stored
from ouroboros_core.errors import UserError
from ouroboros_core.files import written_aside


def of(step):
    """A checkpoint that knows its step."""
    tensors = {"model.a": torch.full((2, 3), float(step)), "model.b": torch.arange(4).to(torch.bfloat16)}
    return Checkpoint(tensors, {"step": step, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}})


def saved(folder, *steps, keep=10):
    for step in steps:
        save(folder, step, of(step), keep)
    return [path.name for path in stored(folder)]


def without_file(path):
    (path / TENSORS).unlink()


def without_facts(path):
    (path / FACTS).unlink()


def flipped(path):
    content = bytearray((path / TENSORS).read_bytes())
    content[-1] ^= 1
    (path / TENSORS).write_bytes(content)


def cut(path):
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-7])


def truncated_facts(path):
    (path / FACTS).write_text((path / FACTS).read_text()[:-9])


def without_checksum(path):
    (path / FACTS).write_text('{"step": 3}')


def no_text(path):
    (path / FACTS).write_bytes(b"\xff\xfe")


DAMAGE = [flipped, cut, without_file, without_facts, truncated_facts, without_checksum, no_text]


def test_what_was_saved_is_loaded(tmp_path):
    saved(tmp_path, 7)
    loaded = load(tmp_path / "step-000007")
    assert loaded.tensors.keys() == of(7).tensors.keys()
    for name, tensor in of(7).tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert {**loaded.facts, "sha256": None} == {**of(7).facts, "sha256": None}


def test_a_view_is_saved_as_what_it_shows(tmp_path):
    view = torch.arange(12.0).view(3, 4).T[1:]
    save(tmp_path, 1, Checkpoint({"view": view}, {}), keep=1)
    assert torch.equal(load(tmp_path / "step-000001").tensors["view"], view)


def test_only_the_newest_are_kept(tmp_path):
    assert saved(tmp_path, 1, 2, 3, 4, keep=2) == ["step-000003", "step-000004"]
    assert saved(tmp_path, 5, keep=1) == ["step-000005"]


@pytest.mark.parametrize("steps", [(9, 10, 100), (999_999, 1_000_000)])
def test_the_newest_is_the_one_of_the_latest_step(tmp_path, steps):
    saved(tmp_path, *steps, keep=1)
    assert [load(path).facts["step"] for path in stored(tmp_path)] == [steps[-1]]


def test_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, 3)
    save(tmp_path, 3, of(30), keep=2)
    assert load(tmp_path / "step-000003").facts["step"] == 30


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_another_is_named(tmp_path, damage):
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path / "step-000003")
    with pytest.raises(
        UserError, match=r"step-000003 is damaged: .*\. Delete it to resume from step-000002$"
    ) as caught:
        load(tmp_path / "step-000003")
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "step-000002").facts["step"] == 2


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_without_another_says_to_start_anew(tmp_path, damage):
    saved(tmp_path, 3)
    damage(tmp_path / "step-000003")
    with pytest.raises(UserError, match=r"is damaged: .* There is no other checkpoint: start the run anew$"):
        load(tmp_path / "step-000003")


def test_tensors_that_are_none_are_refused_though_the_checksum_is_right(tmp_path):
    saved(tmp_path, 3)
    (tmp_path / "step-000003" / TENSORS).write_text("these are no tensors")
    facts = {"sha256": checkpoint.sha256(tmp_path / "step-000003" / TENSORS)}
    (tmp_path / "step-000003" / FACTS).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is damaged: SafetensorError"):
        load(tmp_path / "step-000003")


def test_what_was_never_finished_is_not_seen(tmp_path):
    saved(tmp_path, 1)
    with written_aside(tmp_path / "step-000002") as aside:
        checkpoint.write(aside, of(2))
        assert [path.name for path in stored(tmp_path)] == ["step-000001"]
    assert [path.name for path in stored(tmp_path)] == ["step-000001", "step-000002"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert stored(tmp_path / "nowhere") == []


def test_a_disk_that_cannot_hold_the_tensors_is_one_clear_line_and_earlier_ones_stay(tmp_path):
    saved(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match="step-000002: cannot be written: "):
            save(tmp_path, 2, Checkpoint({"large": torch.zeros(10_000)}, {}), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert load(tmp_path / "step-000001").facts["step"] == 1
