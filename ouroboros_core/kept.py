"""The library's own model, and which of its layers are kept: as they are, in order, and as a copy to be looped."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import Anatomy, HFModel, numbered, with_layers
from ouroboros_core.split import Split
from ouroboros_core.trace import Trace


class StockLM(nn.Module):
    """The library's own model, untouched or with fewer layers, seen through the same window as `RecursiveLM`."""

    def __init__(self, base: HFModel, anatomy: Anatomy) -> None:
        super().__init__()
        self.base, self.anatomy = base, anatomy

    def trace(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Trace:
        """Run the library's forward. (B, T) -> Trace."""
        inner = self.anatomy.inner(self.base)
        hidden = inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        once = torch.ones_like(input_ids, dtype=torch.float32)
        return Trace(hidden, self.anatomy.head(self.base).weight, once, once)


def kept_layers(intact: HFModel, anatomy: Anatomy, split: Split) -> HFModel:
    """A frozen copy of the base without the removed layers; the others keep their names and numbers."""
    layers = started(intact, anatomy, split, split.kept)
    kept = nn.ModuleDict({str(index): layer for index, layer in zip(split.kept, layers, strict=True)})
    base = copy.deepcopy(with_layers(anatomy, intact, kept, intact.config))
    return base.requires_grad_(False).train(False)


def kept_once(intact: HFModel, anatomy: Anatomy, split: Split) -> nn.Module:
    """The library's own model with the kept layers in order, as they start, one turn each.

    It is what "the kept layers, untrained" means, and shares no code with our own loop.
    """
    layers = enumerate(started(intact, anatomy, split, split.order))
    stack = nn.ModuleList([numbered(layer, index) for index, layer in layers])
    return with_layers(anatomy, intact, stack, anatomy.config_for(intact.config, split.order))


@torch.no_grad()
def started(intact: HFModel, anatomy: Anatomy, split: Split, wanted: Sequence[int]) -> list[nn.Module]:
    """These layers as the split starts them: the intact model's own, or the mean of several (Bae 2024)."""
    layers = anatomy.inner(intact).layers
    return [_mean([layers[i] for i in split.averaged[n]]) if n in split.averaged else layers[n] for n in wanted]


def _mean(layers: Sequence[nn.Module]) -> nn.Module:
    mean = copy.deepcopy(layers[0])
    for name, parameter in mean.named_parameters():
        each = torch.stack([layer.get_parameter(name).float() for layer in layers])
        parameter.copy_(each.mean(0))
    return mean
