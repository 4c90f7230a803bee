"""A training step of the default recursive model, part by part, as a ratio to the intact model's forward.

Both are timed in turn in one process, so that a busy machine slows both: read the ratios, not the seconds.
"""

import statistics
import time
from collections.abc import Callable

import torch

from ouroboros_core import pretrained
from ouroboros_core.build import build
from ouroboros_core.host import PluginHost
from ouroboros_core.kept import StockLM
from ouroboros_core.resolve import resolve


def main(rounds: int = 9) -> None:
    """Print medians and ratios for the default settings."""
    host = PluginHost.installed(third_party=False)
    settings = resolve(host, [])
    base = pretrained.load(settings.base)
    built = build(settings, host, base.model)
    stock = StockLM(base.model, built.model.anatomy)
    ids = torch.randint(0, base.model.config.vocab_size, (settings.train.batch, settings.data.length))

    def step() -> None:
        built.model.trace(ids).nll(ids).sum().backward()

    jobs: dict[str, Callable[[], object]] = {
        "intact forward": torch.no_grad()(lambda: stock.trace(ids).nll(ids)),
        "recursive forward": torch.no_grad()(lambda: built.model.trace(ids).nll(ids)),
        "recursive step": step,
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            taken[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
    for name, seconds in medians.items():
        print(f"{name:18} {seconds:.3f} s   {seconds / medians['intact forward']:.2f} x the intact forward")


if __name__ == "__main__":
    main()
