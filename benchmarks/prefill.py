"""Early exit: the time that the loop takes for 8 x 256 tokens when tokens stop by themselves, next to a fixed 8 turns.

    python benchmarks/prefill.py [ROWS TOKENS]

Parts are moved off their initial values by noise, so that tokens differ, and the halter is tuned on the same text so
that they take 2 of 8 turns on average. Both are timed in turn, in one process: read the ratio. Logits with and without
gathering are compared too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
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
NOISE = {"latent-diff": 0.1, "act": 0.15}
KNOBS: dict[str, Callable[[RecursiveLM, float], None]] = {
    "latent-diff": lambda model, value: setattr(model.loops[0].halter, "threshold", 10**value),
    "act": lambda model, value: model.loops[0].halter.unit[-1].bias.data.fill_(value),
}


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


def tuned(model: RecursiveLM, knob: Callable[[RecursiveLM, float], None], ids: torch.Tensor) -> None:
    """Turn the knob until tokens take `MEAN` turns on average: the more, the sooner they stop."""
    low, high = -10.0, 5.0
    for _ in range(14):
        knob(model, middle := (low + high) / 2)
        if model.trace(ids).taken.mean() > MEAN:
            low = middle
        else:
            high = middle


@torch.no_grad()
def main(rows: int = 8, length: int = 256, rounds: int = 5) -> None:
    """Print a line for each halter."""
    host = PluginHost.installed(third_party=False)
    plain = resolve(host, [{"loop": {"turns": TURNS}}])
    base = pretrained.load(plain.base)
    text = prepare(plain.data, base.tokenizer, train_tokens=rows * length, heldout_tokens=256, validation_tokens=256)
    ids = text.train[:rows, :length]
    fixed = build(plain, host, base.model).model.eval()
    for name, knob in KNOBS.items():
        unit = {"unit": "linear"} if name == "act" else {}
        settings = resolve(host, [{"loop": {"turns": TURNS}, "halter": {"use": name, **unit}}])
        model = build(settings, host, base.model).model.eval()
        torch.manual_seed(0)
        moved = model.loops[0].halter if name == "act" else model.loops[0].modulator
        for parameter in moved.parameters():
            parameter.data += NOISE[name] * torch.randn_like(parameter)
        tuned(model, knob, ids)
        taken = model.trace(ids).taken
        print(f"{name}: tokens by turns", torch.bincount(taken.long().flatten(), minlength=TURNS + 1)[1:].tolist())
        seconds: dict[str, list[float]] = {"fixed": [], name: []}
        for _ in range(rounds + 1):
            for which, one in (("fixed", fixed), (name, model)):
                with timed_loop() as spent:
                    one.trace(ids)
                seconds[which] += spent
        few = model.trace(ids).logits()
        model.gather = False
        apart = (few - model.trace(ids).logits()).float().abs().max() / few.abs().max()
        slow, fast = (statistics.median(times[1:]) for times in seconds.values())
        reach = int((taken == TURNS).any(1).sum())
        print(
            f"{name:12} {taken.mean():.2f} turns on average, {reach} of {rows} rows reach {TURNS}: loop {fast:.3f} s, "
            f"fixed {slow:.3f} s: {slow / fast:.2f} x faster; logits differ from those of all tokens by {apart:.1e}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
