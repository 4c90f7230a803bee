"""Does every preset learn? Trains each for a few steps and prints the mean loss of the first and the last ten.

    python benchmarks/presets.py [NAME ...]

Presets of a pretrained base take 50 steps, those from scratch 200, each of 256 tokens. `ouroboros-paper` leaks, and is
allowed to here.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run

TEN = 10
SMALL = {"eval": {"tokens": 2048, "validation": 2048}, "train": {"save_every": 1000, "keep": 1}}


def learnt(host: PluginHost, name: str) -> str:
    """A row of the table."""
    settings = host.preset(name).settings
    scratch = "config" in settings.get("base", {})
    steps = {"train": {"steps": 200 if scratch else 50, "warmup": 10}, "run": {"name": name, "allow_leak": True}}
    began = time.perf_counter()
    outcome = run(resolve(host, [settings, SMALL, steps]), host)
    losses = [json.loads(line)["loss"] for line in Path(outcome.folder, "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(ten) / TEN for ten in (losses[:TEN], losses[-TEN:]))
    verdict = "learns" if last < first else "DOES NOT LEARN"
    seconds = time.perf_counter() - began
    split = outcome.evaluation["split"].split("   (")[0]
    return f"| `{name}` | {split} | {len(losses)} | {first:.3f} | {last:.3f} | {verdict} | {seconds:.0f} |"


def main(names: list[str]) -> None:
    """Print a row for each preset."""
    host = PluginHost.installed(third_party=False)
    print("| preset | layers | steps | first ten | last ten | | seconds |\n|---|---|--:|--:|--:|---|--:|")
    for name in names or [preset.name for _, preset in host.presets()]:
        print(learnt(host, name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
