"""Early exit: the time that the loop takes for 8 x 256 tokens when tokens stop by themselves, next to a fixed 8 turns.

    python benchmarks/prefill.py [ROWS TOKENS]

The halting unit of `act` is moved off its initial values by noise, so that tokens differ, and its bias tuned on the
same text so that they take 2 of 8 turns on average. All are timed in turn, in one process: read the ratio. That
gathering changes no answer is for the tests: in bfloat16 the rounding of another shape may move a last turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ouroboros_core import passing, pretrained
from ouroboros_core.build import build
from ouroboros_core.data import prepare
from ouroboros_core.host import PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.resolve import resolve

TURNS, MEAN = 8, 2.0
NOISE = 0.01


@contextmanager
def timed_loop() -> Iterator[list[float]]:
    """The seconds of each loop within this scope."""
    spent: list[float] = []
    plain = passing.loop

    def loop(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        visit = plain(*args, **kwargs)
        spent.append(time.perf_counter() - began)
        return visit

    passing.loop = loop
    try:
        yield spent
    finally:
        passing.loop = plain


def tune(model: RecursiveLM, ids: torch.Tensor) -> None:
    """Find a bias of the halting unit with which tokens take `MEAN` turns on average: the higher, the sooner."""
    low, high = -10.0, 10.0
    for _ in range(14):
        middle = (low + high) / 2
        model.loops[0].halter.unit[-1].bias.data.fill_(middle)
        if model.trace(ids).taken.mean() > MEAN:
            low = middle
        else:
            high = middle


@torch.no_grad()
def main(rows: int = 8, length: int = 256, rounds: int = 7) -> None:
    """Print what tokens took, and the ratio."""
    host = PluginHost.installed(third_party=False)
    settings = resolve(host, [{"loop": {"turns": TURNS}, "halter": {"use": "act", "unit": "linear"}}])
    base = pretrained.load(settings.base)
    wanted = {"train_tokens": rows * length, "heldout_tokens": 256, "validation_tokens": 256}
    ids = prepare(settings.data, base.tokenizer, **wanted).train[:rows, :length]
    model = build(settings, host, base.model).model.eval()
    fixed = build(resolve(host, [{"loop": {"turns": TURNS}}]), host, base.model).model.eval()
    torch.manual_seed(0)
    for parameter in model.loops[0].halter.parameters():  # so that tokens differ
        parameter.data += NOISE * torch.randn_like(parameter)
    tune(model, ids)
    taken = model.trace(ids).taken
    print("tokens by turns:", torch.bincount(taken.long().flatten(), minlength=TURNS + 1)[1:].tolist())
    print(f"mean {taken.mean():.2f} turns; {int((taken == TURNS).any(1).sum())} of {rows} rows reach {TURNS}")
    seconds: dict[str, list[float]] = {"fixed": [], "gathered": [], "all computed": []}
    for _ in range(rounds + 1):
        for name, one in (("fixed", fixed), ("gathered", model), ("all computed", model)):
            model.gather = name == "gathered"
            with timed_loop() as spent:
                one.trace(ids)
            seconds[name] += spent
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:13} {median:.3f} s in the loop: {medians['fixed'] / median:.2f} x as fast as fixed {TURNS} turns")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
