"""The example plugin as its users have it: installed from its folder into an environment of its own."""

import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "plugins" / "example-plugin"
FOUND = """
import importlib.metadata, sys
import ouro_tanh
from ouroboros_core.build import build
from ouroboros_core.contracts import Slot
from ouroboros_core.host import OURS, PluginHost
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_model

assert ouro_tanh.__file__.startswith(sys.prefix), ouro_tanh.__file__
assert "ouro_tanh.py" in map(str, importlib.metadata.files("ouroboros-example"))
assert "test_ouro_tanh.py" not in map(str, importlib.metadata.files("ouroboros-example"))
host = PluginHost.installed()
offers = {part.name: record for record, part in host.parts(Slot.GATE)}
assert (offers["tanh"].distribution, offers["tanh"].version) == ("ouroboros-example", "0.1.0")
assert offers["sigmoid"].distribution == OURS
assert host.find(Slot.GATE, "ouroboros-example:tanh") is host.find(Slot.GATE, "tanh")
small = {"modulator": {"rank": 4}, "gate": {"use": "tanh", "openness": 0.5}}
model = build(resolve(host, [small]), host, tiny_model()).model
gate = model.loops[0].gate
assert type(gate) is ouro_tanh.TanhGate
assert gate.a.shape == (32,) and abs(float(gate.a.detach().tanh()[0]) - 0.5) < 1e-6
assert "tanh" not in {part.name for _, part in PluginHost.installed(third_party=False).parts(Slot.GATE)}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with the example installed; the heavy packages are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    these = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    (own / "these.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in these))
    run(
        python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", EXAMPLE
    )
    return python


def run(*command, **options):
    """Run a command; what it printed is the message if it fails."""
    told = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


@pytest.mark.slow
def test_an_installed_plugin_is_found_and_used(python):
    run(python, "-c", FOUND, cwd=python.parent)


@pytest.mark.slow
def test_the_tests_of_the_example_pass_where_it_is_installed(python, tmp_path):
    shutil.copy(EXAMPLE / "test_ouro_tanh.py", tmp_path)
    told = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert "passed" in told


@pytest.mark.slow
def test_its_preset_runs_by_name(python, tmp_path):
    words = [f"the state of the union is strong in year {n}, and so are its people" for n in range(40)]
    (tmp_path / "text").mkdir()
    for number in range(6):
        (tmp_path / "text" / f"{number}.txt").write_text(" ".join(words[number:] + words[:number]))
    run(python, "-c", "from ouroboros_core.testing import tiny_base; tiny_base('base')", cwd=tmp_path)
    small = {"data.train": "text", "data.heldout": '["near"]', "data.length": 16, "train.warmup": 1,
             "eval.tokens": 256, "eval.validation": 256, "modulator.rank": 4, "base.dtype": "float32"}  # fmt: skip
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    told = run(python, "-m", "ouroboros_cli", "run", "--preset", "gentle", "--base", "base", "--steps", 3, "--device",
               "cpu", "--json", "--quiet", *settings, cwd=tmp_path)  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads(told)["folder"] == str(Path("runs", folder.name))
    resolved = (folder / "resolved.toml").read_text()
    assert 'use = "tanh"' in resolved
    assert "openness = 0.05" in resolved
