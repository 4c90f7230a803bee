"""Killed, interrupted, resumed: nothing is lost and the parts are the same to the bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from ouroboros_core.errors import UserError
from ouroboros_core.run import run
from ouroboros_core.rundir import settings_of

OURO = [sys.executable, "-m", "ouroboros_cli"]


@pytest.fixture
def file(tables, tmp_path):
    """The short run's settings, made longer, as a file."""
    tables["train"] |= {"steps": 40, "save_every": 5}
    tables["adapter"] = {"use": ["coda-lora"], "coda-lora": {"dropout": 0.1}}  # so that random states matter
    path = tmp_path / "settings.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def parts(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "parts.safetensors")


def started(command: list[str], runs: Path, steps: int) -> subprocess.Popen[str]:
    """A process that has trained at least so many steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None:
        told = [path for path in runs.glob("*/metrics.jsonl") if len(path.read_text().splitlines()) >= steps]
        if told:
            return process
        os.sched_yield()
    raise AssertionError(f"it ended by itself: {process.communicate()}")


@pytest.mark.slow
def test_a_run_killed_in_mid_training_ends_with_the_same_bits(file, host, tmp_path, settings):
    runs = tmp_path / "runs"
    process = started([*OURO, "run", str(file)], runs, steps=12)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = runs.iterdir()
    assert not (folder / "parts.safetensors").exists()
    subprocess.run([*OURO, "run", "--resume", str(folder), "--quiet"], check=True, capture_output=True)
    whole = run(settings_of(folder, host), host)
    resumed, never_stopped = parts(folder), parts(whole.folder)
    assert resumed.keys() == never_stopped.keys()
    assert all(torch.equal(resumed[name], never_stopped[name]) for name in resumed)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert steps == list(range(1, 41))


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(file, tmp_path):
    process = started([*OURO, "run", str(file)], tmp_path / "runs", steps=7)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    last = told.strip().splitlines()[-1]
    assert re.match(r"stopped: stopped after step \d+ of 40; its state is saved. Go on with: ouro run --resume ", last)
    again = subprocess.run([*OURO, "run", "--resume", last.split()[-1], "--json"], capture_output=True, text=True)
    assert again.returncode == 0
    assert json.loads(again.stdout)["domains"]["near"]


def test_a_finished_run_is_judged_again_not_trained_again(host, settings, listener):
    outcome = run(settings(), host)
    again = run(settings_of(outcome.folder, host), host, listener, resume=outcome.folder)
    assert not listener.steps
    told = [one.evaluation["domains"]["near"]["models"]["recursive, trained"]["loss"] for one in (outcome, again)]
    assert told[0] == told[1]


def unfinished(host, settings):
    """A run folder whose training is not over."""
    outcome = run(settings(), host)
    (outcome.folder / "parts.safetensors").unlink()
    return outcome.folder


def test_a_run_stopped_before_its_first_checkpoint_begins_again(host, settings):
    folder = unfinished(host, settings)
    shutil.rmtree(folder / "checkpoints")
    run(settings_of(folder, host), host, resume=folder)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_too(host, settings):
    folder = unfinished(host, settings)
    newest = sorted((folder / "checkpoints").iterdir())[-1] / "state.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    with pytest.raises(UserError, match=r"step-000006 is damaged.*Delete it to resume from step-000004"):
        run(settings_of(folder, host), host, resume=folder)


def test_a_run_is_not_resumed_on_other_text(host, settings, place):
    folder = unfinished(host, settings)
    extra = place / "text" / "late.txt"
    extra.write_text("a speech that was not there before")
    try:
        with pytest.raises(UserError, match="began with another text"):
            run(settings_of(folder, host), host, resume=folder)
    finally:
        extra.unlink()


def test_a_folder_that_is_no_run_is_said_to_be_none(host, tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        settings_of(tmp_path, host)
