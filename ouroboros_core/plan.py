"""A plan: what a run would be, from the base's config alone. Nothing has weights here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ouroboros_core import pretrained
from ouroboros_core.accounting import (
    by_component,
    flops_per_token,
    kv_bytes_per_token,
    parameters,
    train_flops_per_token,
)
from ouroboros_core.build import build, refuse_leaks
from ouroboros_core.contracts import Depth
from ouroboros_core.host import PluginHost
from ouroboros_core.rundir import own_tensors
from ouroboros_core.settings import Settings


def plan(settings: Settings, host: PluginHost) -> dict[str, Any]:
    """The split, the parameters by component, operations, memory and keys and values a token.

    Raises:
        UserError: a mistake in the settings, or no config of that name.
    """
    refuse_leaks(settings)
    config = pretrained.load_config(settings.base)
    built = build(settings, host, pretrained.empty(config, settings.base.dtype))
    model, count = built.model, parameters(built.model)
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
        "turns": {"evaluation": settings.loop.turns, "training, at most": built.schedule.most},
        "flops_per_token": {
            "length": settings.data.length,
            "forward": flops_per_token(model, settings.data.length),
            "train step": train_flops_per_token(model, settings.data.length, Depth.full(built.schedule.most)),
        },
        "kv_bytes_per_token": kv_bytes_per_token(model),
        "memory_bytes": {
            "weights of the recursive model": (count.unique - count.trainable) * itemsize + 4 * count.trainable,
            "gradients and optimiser": 12 * count.trainable,
            "saved with the run": sum(t.numel() * t.element_size() for t in own_tensors(model).values()),
        },
    }
