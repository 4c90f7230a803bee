"""What a model costs: parameters, operations, memory. Works on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ouroboros_core.contracts import Depth
from ouroboros_core.model import RecursiveLM


@dataclass(frozen=True)
class Parameters:
    """Counted, each shared tensor once."""

    trainable: int
    unique: int  # everything stored, frozen bases included
    effective: int  # as if every turn had layers of its own


def parameters(model: nn.Module) -> Parameters:
    """Count a model's parameters and frozen bases."""
    stored = {id(t): t.numel() for t in [*model.parameters(), *_bases(model)]}
    unique = sum(stored.values())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    again = sum(_count(model.layer(i)) for i in model.split.looped) if isinstance(model, RecursiveLM) else 0
    turns = model.turns if isinstance(model, RecursiveLM) else 1
    return Parameters(trainable, unique, unique + (turns - 1) * again)


def by_component(model: RecursiveLM) -> list[tuple[str, int, int]]:
    """(component, stored, trainable) in the order of the forward pass; components without parameters left out."""
    inner = model.anatomy.inner(model.base)
    embedding = {id(p): p for p in [*inner.get_input_embeddings().parameters(), *model.head.parameters()]}
    rows: list[tuple[str, list[torch.Tensor]]] = [("embeddings and head", list(embedding.values()))]
    names = iter(("prelude", "coda") if len(model.split.segments) == 3 else [])
    for segment in model.split.segments:
        name = "recurrent block" if segment.looped else next(names, "layers")
        rows.append((name, [p for i in segment.layers for p in model.layer(i).parameters()]))
    rows.append(("final norm", [p for n, p in inner.named_parameters() if not n.startswith(("layers.", "embed"))]))
    for parts in model.loops:
        for slot, part in parts.named_children():
            rows.append((slot, list(part.parameters())))
            rows.append((f"{slot} bases (frozen)", list(_bases(part))))
    return [
        (name, sum(t.numel() for t in tensors), sum(t.numel() for t in tensors if t.requires_grad))
        for name, tensors in rows
        if tensors
    ]


def flops_per_token(model: RecursiveLM, turns: int, length: int) -> int:
    """Forward operations a token of a sequence of this length, counted by torch on the operations themselves."""
    ids = torch.zeros(1, length, dtype=torch.long, device=next(model.parameters()).device)
    with _counted() as counter:  # not under no_grad, where torch's counter asserts
        model(ids, depth=Depth.full(turns)).logits()
    return counter.get_total_flops() // length


def train_flops_per_token(model: RecursiveLM, depth: Depth, length: int) -> int:
    """Operations a token of a training step: forward, loss and backward through what learns."""
    ids = torch.zeros(1, length, dtype=torch.long, device=next(model.parameters()).device)
    with _counted() as counter:
        loss = model(ids, depth=depth).nll(ids).sum()
        if loss.requires_grad:
            loss.backward()
    model.zero_grad()
    return counter.get_total_flops() // length


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """torch's counter, over attention written out: it does not know every fused kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def kv_bytes_per_token(model: RecursiveLM) -> int:
    """Keys and values of one token, with a cache slot for each layer of each turn."""
    runs = sum(len(s.layers) * (model.turns if s.looped else 1) for s in model.split.segments)
    config = model.base.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * runs * heads * width * model.dtype.itemsize)


def _bases(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that are saved with the run."""
    persistent = module.state_dict(keep_vars=True)
    return [t for t in persistent.values() if not isinstance(t, nn.Parameter)]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
