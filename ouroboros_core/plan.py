"""A plan: what a run would be, from the base's config alone; or measured, with its weights and text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ouroboros_core import pretrained
from ouroboros_core.accounting import (
    by_component,
    flops_per_token,
    kv_bytes_per_token,
    mean_depth,
    mean_train_flops,
    parameters,
)
from ouroboros_core.build import build, split_of
from ouroboros_core.contracts import LayerStatistics, Slot
from ouroboros_core.data import Domain
from ouroboros_core.errors import UserError
from ouroboros_core.evaluation import score
from ouroboros_core.host import PluginHost
from ouroboros_core.judge import INTACT, KEPT
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.measure import calibration_rows, measure
from ouroboros_core.refusals import refuse_idle, refuse_nonsense, refuse_untaught
from ouroboros_core.run import read_text
from ouroboros_core.settings import Settings
from ouroboros_core.weights import own_tensors


def plan(settings: Settings, host: PluginHost, statistics: LayerStatistics | None = None) -> dict[str, Any]:
    """The split, the parameters by component, operations, memory and keys and values a token.

    Args:
        statistics: of the layers, where the splitter measures.

    Raises:
        UserError: a mistake in the settings, or no config of that name.
    """
    refuse_nonsense(settings)
    config = pretrained.load_config(settings.base)
    built = build(settings, host, pretrained.empty(config, settings.base.dtype), statistics)
    refuse_untaught(settings, built)
    model, count = built.model, parameters(built.model)
    training = mean_depth(built.schedule, settings.train.steps, settings.train.seed)
    rows = by_component(model)
    itemsize = getattr(torch, settings.base.dtype).itemsize
    return {
        "base": settings.base.name,
        "model_type": config.model_type,
        "split": model.split.drawn(settings.loop.turns),
        "kept_layers": len(model.split.kept),
        "layers": model.split.total,
        "components": [{"component": name, "stored": stored, "trainable": learnt} for name, stored, learnt in rows],
        "parameters": asdict(count),
        "turns": {
            "evaluation": settings.loop.turns,
            "training, at most": built.schedule.most,
            "training, on average": round(training.turns, 2),
        },
        "flops_per_token": {
            "length": settings.data.length,
            "forward": flops_per_token(model, settings.data.length),
            "train step": mean_train_flops(model, settings.data.length, training),
        },
        "kv_bytes_per_token": kv_bytes_per_token(model),
        "memory_bytes": {
            "weights of the recursive model": (count.unique - count.trainable) * itemsize + 4 * count.trainable,
            "gradients and optimiser": 12 * count.trainable,
            "saved with the run": sum(t.numel() * t.element_size() for t in own_tensors(model).values()),
        },
    }


def rehearse(settings: Settings, host: PluginHost) -> None:
    """Build the model without weights, to hear of a mistake before anything is trained.

    Raises:
        UserError: there is one. What a splitter measures is not rehearsed.
    """
    refuse_nonsense(settings)
    if settings.one(Slot.SPLITTER).part.measures:
        return
    built = build(settings, host, pretrained.empty(pretrained.load_config(settings.base), settings.base.dtype))
    refuse_untaught(settings, built)
    refuse_idle(built)


def measured_plan(settings: Settings, host: PluginHost) -> dict[str, Any]:
    """The plan, and what the weights tell before any training: the layers' picture, and what removing some costs.

    The losses are on validation text, so that held-out text stays unread.

    Raises:
        UserError: as for a run; and a base whose weights are random, which has nothing to measure.
    """
    if settings.base.config is not None:
        raise UserError("base.config makes random weights: there is nothing to measure. Leave out --measure")
    base = pretrained.load(settings.base)
    text = read_text(settings, base)
    anatomy = host.anatomy(base.model.config)
    rows = calibration_rows(settings)
    statistics = measure(base.model, anatomy, text.train[:rows])
    split = split_of(settings, anatomy, base.model, statistics)
    models = {INTACT: base.model, KEPT: kept_once(base.model, anatomy, split)}
    losses = {name: _loss(StockLM(model, anatomy), text.validation) for name, model in models.items()}
    return {
        **plan(settings, host, statistics),
        "measured": {
            "tokens": statistics.tokens,
            "influence": (1 - statistics.cosine.diagonal(1)).tolist(),  # of each layer: Men 2024
            "angle": statistics.angle.diagonal(1).tolist(),  # that each layer turns the state by: Gromov 2024
            "kept": list(split.kept),
            "looped": list(split.looped),
            "validation_tokens": text.validation.tokens if text.validation else 0,
            "losses": losses,
        },
    }


def _loss(model: StockLM, domain: Domain | None) -> float | None:
    if domain is None:
        return None
    heard = score(model, domain, 8, torch.device("cpu"))
    return float(heard.nll.sum() / heard.tokens.sum())
