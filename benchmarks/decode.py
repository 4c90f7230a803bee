"""Decoding: what a token costs, next to what its layers cost in the library's own model.

    python benchmarks/decode.py [--compile] [slot.key=value ...]

A model of L layers takes t(L) = rest + L x layer for a token; both are fitted on the library's model with the kept
layers (15 of SmolLM2's 30) and with all, in the same run. A recursive model of 7 + 1 x 4 + 7 layers runs 18 layers a
token, so rest + 18 x layer is what it would take if its parts and its loop cost nothing. All are timed in turn, in one
process: read the ratio. With --compile all three are compiled, by the library's `generate` and in the same way.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import pairwise
from typing import Any

import torch

from ouroboros_core import pretrained
from ouroboros_core.build import build
from ouroboros_core.host import PluginHost
from ouroboros_core.kept import kept_once
from ouroboros_core.resolve import assignment, resolve
from ouroboros_core.writing import compiling

PROMPT, NEW = 32, 32  # tokens


def seconds_a_token(model: Any, ids: torch.Tensor, how: dict[str, Any]) -> float:
    """Greedy decoding by the library's `generate`, with its own cache."""
    ends = []
    model.generate(
        ids, max_new_tokens=NEW + 1, min_new_tokens=NEW + 1, do_sample=False, pad_token_id=0,
        streamer=_Clock(ends), **how,
    )  # fmt: skip
    return statistics.median(later - sooner for sooner, later in pairwise(ends[1:]))


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self, ends: list[float]) -> None:
        self.ends = ends

    def put(self, value: torch.Tensor) -> None:
        """A token, or first the prompt."""
        self.ends.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more."""


@torch.no_grad()
def main(told: list[str], rounds: int = 7) -> None:
    """Print medians and the ratio."""
    layers = [text for text in told if text != "--compile"]
    how = compiling() if "--compile" in told else {}
    host = PluginHost.installed(third_party=False)
    settings = resolve(host, [assignment(text) for text in layers])
    base = pretrained.load(settings.base)
    model = build(settings, host, base.model).model.eval()
    short = kept_once(base.model, model.anatomy, model.split)
    ids = torch.randint(1, base.model.config.vocab_size, (1, PROMPT))
    models = {"kept": short, "intact": base.model, "recursive": model}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, one in models.items():
            taken[name].append(seconds_a_token(one, ids, how))
    kept, intact, ours = (statistics.median(times[1:]) for times in taken.values())
    few, all_ = len(model.split.order), model.split.total
    layer = (intact - kept) / (all_ - few)
    rest, run = kept - few * layer, model.config.num_hidden_layers
    bound = rest + run * layer
    print(f"layers {model.split.drawn(model.turns)}: {run} run for a token")
    shown = {
        "kept": kept,
        "intact": intact,
        "layer": layer,
        "rest": rest,
        f"rest + {run} x layer": bound,
        "recursive": ours,
    }
    print(", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in shown.items()))
    print(f"recursive / (rest + {run} x layer) = {ours / bound:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
