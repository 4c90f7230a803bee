"""Held-out loss with bootstrap intervals, and the share of the gap that was recovered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ouroboros_core.data import Domain, align
from ouroboros_core.kept import StockLM
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval.

    An end is None where it has no bound, and both are where there is only one unit to resample.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """One model on one domain: losses and tokens by unit, so that models are compared on the same resamples."""

    nll: np.ndarray  # (units,) summed nats
    tokens: np.ndarray  # (units,)
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens read a second."""
        return float(self.tokens.sum() / self.seconds)


@torch.no_grad()
def score(
    model: RecursiveLM | StockLM,
    domain: Domain,
    batch: int,
    device: torch.device,
    done: Callable[[int], None] = lambda rows: None,
) -> Score:
    """Read a domain once. `done` hears how many rows have been read."""
    units = int(domain.unit.max()) + 1
    nll, tokens = np.zeros(units), np.zeros(units)
    began = time.perf_counter()
    for rows, unit in zip(domain.blocks.split(batch), domain.unit.split(batch), strict=True):
        ids, labels = align(rows.to(device))
        losses = model.trace(ids).nll(labels).double().sum(-1).cpu().numpy()
        np.add.at(nll, unit.numpy(), losses)
        np.add.at(tokens, unit.numpy(), (labels != IGNORE).sum(-1).cpu().numpy())
        done(len(rows))
    return Score(nll, tokens, time.perf_counter() - began)


def resampled(scores: Sequence[Score], resamples: int) -> np.ndarray:
    """Mean loss of each model on the same resamples of units. -> (models, resamples), nats a token."""
    units = len(scores[0].tokens)
    drawn = np.random.default_rng(0).integers(units, size=(resamples, units))
    tokens = scores[0].tokens[drawn].sum(1)
    return np.stack([one.nll[drawn].sum(1) / tokens for one in scores])


def interval(value: float, draws: np.ndarray, units: int) -> Interval:
    """The percentile interval around a value."""
    low = np.percentile(draws, 2.5, method="lower") if units > 1 else None
    high = np.percentile(draws, 97.5, method="higher") if units > 1 else None
    return Interval(value, *(None if end is None or not np.isfinite(end) else float(end) for end in (low, high)))


def compare(scores: Mapping[str, Score], resamples: int, *, intact: str, kept: str) -> dict[str, dict[str, Any]]:
    """Loss of each model, and the share it recovers of what removing layers cost, both with intervals.

    The share is (kept - model) / (kept - intact), paired: numerator and denominator see the same resamples. It is
    None for the two models that define the gap, and where nothing was lost, or nothing is intact. `unit_nats` are the
    summed losses of the units, for comparisons across runs.
    """
    names = list(scores)
    intact = intact if intact in scores else kept  # a base of random weights: there is no gap to recover
    draws = dict(zip(names, resampled(list(scores.values()), resamples), strict=True))
    mean = {name: float(one.nll.sum() / one.tokens.sum()) for name, one in scores.items()}
    lost = mean[kept] - mean[intact]
    found: dict[str, dict[str, Any]] = {}
    for name, one in scores.items():
        share = None
        if name not in (intact, kept) and lost > 0:
            gap = np.where((wide := draws[kept] - draws[intact]) > 0, wide, np.nan)
            shares = np.nan_to_num((draws[kept] - draws[name]) / gap, nan=-np.inf)
            share = asdict(interval((mean[kept] - mean[name]) / lost, shares, len(one.nll)))
        loss = asdict(interval(mean[name], draws[name], len(one.nll)))
        speed = one.tokens_per_second
        found[name] = {"loss": loss, "recovered": share, "tokens_per_second": speed, "unit_nats": one.nll.tolist()}
    return found
