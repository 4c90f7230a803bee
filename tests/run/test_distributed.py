"""Two processes train the same model as one, with the same global batch."""

import os
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


def torchrun(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`ouro` in two processes on gloo."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, "-m", "ouroboros_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_what_one_does(accumulate, tables, tmp_path, host):
    tables["train"] |= {"accumulate": accumulate, "batch": 4, "steps": 6}
    tables["schedule"] = {"use": "choice", "turns": [1, 2, 3]}
    file = tmp_path / "settings.toml"
    file.write_text(tomli_w.dumps(tables))
    done = torchrun(["run", str(file), "--quiet"])
    assert done.returncode == 0, done.stderr
    (together,) = (tmp_path / "runs").iterdir()
    alone = run(settings_of(together, host), host).folder
    one, two = load_file(alone / "parts.safetensors"), load_file(together / "parts.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert len((together / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out_is_refused_in_one_line(tables, tmp_path):
    tables["train"] |= {"batch": 3}
    file = tmp_path / "settings.toml"
    file.write_text(tomli_w.dumps(tables))
    done = torchrun(["run", str(file), "--quiet"])
    assert done.returncode != 0
    assert "train.batch=3 cannot be shared out by 2 process(es)" in done.stderr
    assert not Path(tables["run"]["folder"]).exists()


def test_a_checkpoint_of_two_processes_is_not_resumed_by_one(host, settings):
    import json

    outcome = run(settings(), host)
    (outcome.folder / "parts.safetensors").unlink()
    newest = sorted((outcome.folder / "checkpoints").iterdir())[-1] / "state.json"
    newest.write_text(json.dumps({**json.loads(newest.read_text()), "processes": 2}))
    with pytest.raises(UserError, match=r"written by 2 process\(es\), and these are 1"):
        run(settings_of(outcome.folder, host), host, resume=outcome.folder)
