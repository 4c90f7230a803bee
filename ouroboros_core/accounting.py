"""What a model costs: parameters, operations, memory. Works on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ouroboros_core.contracts import Depth, Schedule
from ouroboros_core.kept import StockLM
from ouroboros_core.model import RecursiveLM
from ouroboros_core.trace import Trace


@dataclass(frozen=True)
class Parameters:
    """Counted, each shared tensor once."""

    trainable: int
    unique: int  # everything stored, frozen bases included
    effective: int  # as if every turn had layers of its own


@dataclass(frozen=True)
class Operations:
    """For one token."""

    forward_flops: int
    train_flops: int | None  # forward, loss and backward; None where nothing learns. A teacher is not counted
    kv_bytes: int


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


def operations(model: RecursiveLM | StockLM, length: int, training: MeanDepth | None = None) -> Operations:
    """What a model does for a token of a sequence of this length.

    Args:
        training: what the training steps take on average; evaluation takes the model's own turns. Halting is not
            counted on.
    """
    learns = any(p.requires_grad for p in model.parameters())
    return Operations(
        forward_flops=flops_per_token(model, length),
        train_flops=mean_train_flops(model, length, training) if learns else None,
        kv_bytes=kv_bytes_per_token(model),
    )


@dataclass(frozen=True)
class MeanDepth:
    """The depth of a training run on average: `Depth` with parts of turns."""

    turns: float
    with_gradient: float


def mean_depth(schedule: Schedule, steps: int, seed: int) -> MeanDepth:
    """What a schedule draws over a whole run."""
    drawn = [schedule(step, step / steps, seed) for step in range(steps)]
    return MeanDepth(*(sum(each) / steps for each in zip(*((d.turns, d.with_gradient) for d in drawn), strict=True)))


def mean_train_flops(model: RecursiveLM | StockLM, length: int, depth: MeanDepth | None) -> int:
    """Operations a token of a training step, on average: they are linear in turns, with gradient and without.

    That a trained prelude gets no gradient where turns without one lie between is not counted.
    """
    if depth is None:
        return train_flops_per_token(model, length)
    whole, part = divmod(depth.with_gradient, 1)
    carried = train_flops_per_token(model, length, Depth.full(int(whole)))
    if part:
        carried += round(part * (train_flops_per_token(model, length, Depth.full(int(whole) + 1)) - carried))
    if depth.turns == depth.with_gradient:
        return carried
    one, two = (flops_per_token(model, length, Depth.full(turns)) for turns in (1, 2))
    return carried + round((depth.turns - depth.with_gradient) * (two - one))


def flops_per_token(model: RecursiveLM | StockLM, length: int, depth: Depth | None = None) -> int:
    """Forward operations a token of a sequence of this length, counted by torch on the operations themselves."""
    with _counted(model, learning=False) as counter:  # not under no_grad, where torch's counter asserts
        _trace(model, length, depth).logits()
    return counter.get_total_flops() // length


def train_flops_per_token(model: RecursiveLM | StockLM, length: int, depth: Depth | None = None) -> int:
    """Operations a token of a training step: forward, loss and backward through what learns."""
    with _counted(model, learning=True) as counter:
        labels = _tokens(model, length)
        _trace(model, length, depth).nll(labels).sum().backward()
    model.zero_grad()
    return counter.get_total_flops() // length


def kv_bytes_per_token(model: RecursiveLM | StockLM) -> int:
    """Keys and values of one token, with a cache slot for each layer of each turn, and for what a halter probes."""
    config = model.base.config
    dtype = model.dtype if isinstance(model, RecursiveLM) else model.anatomy.head(model.base).weight.dtype
    runs = config.num_hidden_layers
    if isinstance(model, RecursiveLM):
        runs = len(model.config.slots.layers)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * runs * heads * width * dtype.itemsize)


def _tokens(model: nn.Module, length: int) -> torch.Tensor:
    return torch.zeros(1, length, dtype=torch.long, device=next(model.parameters()).device)


def _trace(model: RecursiveLM | StockLM, length: int, depth: Depth | None) -> Trace:
    ids = _tokens(model, length)
    if isinstance(model, StockLM):
        stock: Trace = model.trace(ids)
        return stock
    trace: Trace = model.trace(ids, depth=replace(depth or Depth.full(model.turns), whole=True))
    return trace


@contextmanager
def _counted(model: nn.Module, *, learning: bool) -> Iterator[FlopCounterMode]:
    """torch's counter, over attention written out: it does not know every fused kernel."""
    was = model.training
    model.train(learning)  # a halter may look at logits in evaluation only
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        model.train(was)


def _bases(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that are saved with the run."""
    persistent = module.state_dict(keep_vars=True)
    return [t for t in persistent.values() if not isinstance(t, nn.Parameter)]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
