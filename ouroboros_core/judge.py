"""The judgement: every model reads the held-out text, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ouroboros_core.data import Domain, Text
from ouroboros_core.evaluation import Score, compare, score
from ouroboros_core.kept import StockLM
from ouroboros_core.model import RecursiveLM
from ouroboros_core.reporting import Reporter
from ouroboros_core.settings import EvalSettings

INTACT, KEPT, TRAINED, CONTROL = (
    "intact model",
    "kept layers, untrained",
    "recursive, trained",
    "control, trained",
)


class Judge:
    """Reads the held-out text with each model, once."""

    def __init__(self, settings: EvalSettings, text: Text, device: torch.device, reporter: Reporter) -> None:
        self.batch, self.resamples = settings.batch, settings.resamples
        self.domains = [*text.heldout, *([text.validation] if text.validation else [])]
        self.device, self.reporter = device, reporter
        self.scores: dict[str, dict[str, Score]] = {domain.name: {} for domain in self.domains}

    def hear(self, name: str, model: RecursiveLM | StockLM) -> None:
        """Score a model on every domain."""
        model.eval()
        for domain in self.domains:
            self.scores[domain.name][name] = score(model, domain, self.batch, self.device, self._teller(name, domain))

    def verdict(self) -> dict[str, Any]:
        """Losses and recovered shares by domain and model."""
        return {
            domain.name: {
                "tokens": domain.tokens,
                "documents": domain.documents,
                "units": int(domain.unit.max()) + 1,
                "unit": domain.units,
                "unit_tokens": self._any_score(domain).tokens.astype(int).tolist(),
                "models": compare(self.scores[domain.name], self.resamples, intact=INTACT, kept=KEPT),
            }
            for domain in self.domains
        }

    def _any_score(self, domain: Domain) -> Score:
        return next(iter(self.scores[domain.name].values()))

    def _teller(self, name: str, domain: Domain) -> Callable[[int], None]:
        return lambda rows: self.reporter.read(name, domain.name, rows, len(domain.blocks))
