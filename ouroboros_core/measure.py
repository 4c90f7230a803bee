"""Measuring a model's layers: how far the hidden states of a calibration text turn from layer to layer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ouroboros_core.anatomy import Anatomy, HFModel
from ouroboros_core.contracts import LayerStatistics, Slot
from ouroboros_core.data import align
from ouroboros_core.errors import UserError
from ouroboros_core.settings import Settings

CALIBRATION = 4096  # tokens, where `data.calibration` says nothing


def measured(
    settings: Settings, base: HFModel, anatomy: Anatomy, blocks: Tensor, stored: Path | None = None
) -> LayerStatistics | None:
    """The statistics, where the chosen splitter wants them.

    Args:
        blocks: (N, T + 1) of training text.
        stored: where a run that is resumed wrote them down: another machine might measure a little otherwise.
    """
    if not settings.one(Slot.SPLITTER).part.measures:
        return None
    rows = calibration_rows(settings)
    return loads(stored) if stored and stored.exists() else measure(base, anatomy, blocks[:rows])


def calibration_rows(settings: Settings) -> int:
    """How many blocks of training text are read."""
    return math.ceil((settings.data.calibration or CALIBRATION) / settings.data.length)


@torch.no_grad()
def measure(base: HFModel, anatomy: Anatomy, blocks: Tensor) -> LayerStatistics:
    """Let the intact model read these blocks, one at a time. blocks: (N, T + 1)."""
    layers = len(anatomy.inner(base).layers)
    cosine, angle = torch.zeros(2, layers + 1, layers + 1, dtype=torch.float64)
    ids, _ = align(blocks.to(anatomy.head(base).weight.device))
    for row in ids:
        between = _between(states(base, anatomy, row[None]))
        cosine += between.mean(-1).double().cpu()
        angle += (between.clamp(-1, 1).acos() / math.pi).mean(-1).double().cpu()
    return LayerStatistics(cosine / len(ids), angle / len(ids), ids.numel())


def states(base: HFModel, anatomy: Anatomy, ids: Tensor) -> Tensor:
    """The states before each layer, and behind the last one. ids (B, T) -> (L + 1, B T, D), float32."""
    h = anatomy.embed(base, ids)
    calls = anatomy.calls(base, h, torch.arange(ids.shape[1], device=ids.device).expand_as(ids), None)
    found = [h]
    for index, layer in enumerate(anatomy.inner(base).layers):
        found.append(calls(layer, index)(found[-1]))
    return torch.stack(found).flatten(1, 2).float()


def _between(h: Tensor) -> Tensor:
    """(L + 1, N, D) -> the cosine of each pair of states of a token, (L + 1, L + 1, N)."""
    unit = F.normalize(h, dim=-1)
    return torch.einsum("and,bnd->abn", unit, unit)


def dumps(statistics: LayerStatistics) -> str:
    """As JSON."""
    tables = {"cosine": statistics.cosine.tolist(), "angle": statistics.angle.tolist()}
    return json.dumps({"tokens": statistics.tokens, **tables})


def loads(path: Path) -> LayerStatistics:
    """From a JSON file.

    Raises:
        UserError: it is not there, or is damaged.
    """
    try:
        found = json.loads(path.read_text())
        cosine, angle = (torch.tensor(found[name], dtype=torch.float64) for name in ("cosine", "angle"))
        return LayerStatistics(cosine, angle, int(found["tokens"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}. The run's folder was changed") from error
