"""What must hold of the costs that are printed: they are those of a formula that knows only matrices and turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from ouroboros_core import accounting
from ouroboros_core.build import Built, null_parts
from ouroboros_core.conformance.subject import TOKENS, Subject
from ouroboros_core.contracts import Depth, Slot
from ouroboros_core.errors import CheckFailed
from ouroboros_core.model import RecursiveLM

BACKWARD = 2  # matrix products for each one forward: by the input and by the weight
STEPS = 7  # of training, for which depths are drawn
SLACK = 2  # operations: a mean over steps is rounded
CAUSE = "turns, layers or the head are counted wrongly, or something is counted that is not the model's"


def operations(subject: Subject) -> str:
    """Null parts, and all weights learning: operations and cache bytes are those of a formula."""
    made = _plain(subject)
    model, schedule, seed = made.model, made.schedule, subject.settings.train.seed
    with model.with_parts([null_parts(subject.host, facts) for facts in made.facts]):
        counted = accounting.operations(model, TOKENS, accounting.mean_depth(schedule, STEPS, seed))
    drawn = [schedule(step, step / STEPS, seed) for step in range(STEPS)]
    for what, said, right in (
        ("forward operations", counted.forward_flops, forward(model, model.turns)),
        ("training operations", counted.train_flops, round(sum(training(model, depth) for depth in drawn) / STEPS)),
        ("bytes of keys and values", counted.kv_bytes, kept_bytes(subject, model)),
    ):
        if said is None or abs(said - right) > SLACK:
            raise CheckFailed(f"{said} {what} a token are counted, and there are {right}: {CAUSE}")
    return f"{counted.forward_flops:,} operations and {counted.kv_bytes:,} bytes a token, as by the formula"


def _plain(subject: Subject) -> Built:
    """The model, all of whose base learns and which stores what the backward pass needs."""
    loop = subject.settings.loop.model_copy(update={"recompute": False})
    made = replace(subject, settings=subject.settings.with_tables(loop=loop)).built()
    made.model.base.requires_grad_(True)
    return made


def forward(model: RecursiveLM, turns: int) -> int:
    """Operations a token: 2 for each weight of a matrix; scores and their values over the whole sequence."""
    once, looped = ([i for s in model.split.segments if s.looped == loop for i in s.layers] for loop in (False, True))
    return _products(model.head.parameters()) + _layers(model, once) + turns * _layers(model, looped)


def training(model: RecursiveLM, depth: Depth) -> int:
    """Forward and backward through the turns that carry gradient, and forward through the others."""
    carried = forward(model, depth.with_gradient)
    return (1 + BACKWARD) * carried + forward(model, depth.turns) - carried


def kept_bytes(subject: Subject, model: RecursiveLM) -> int:
    """Bytes that the library's own cache holds for a token, of every kept layer at each of its turns, and of probes."""
    cache = DynamicCache()
    with torch.no_grad():
        subject.intact(subject.ids, past_key_values=cache, use_cache=True)
    each = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
    turns = [(i, model.turns if segment.looped else 1) for segment in model.split.segments for i in segment.layers]
    if subject.settings.one(Slot.HALTER).part.reads_logits:  # after every turn but the last
        turns += [(i, model.turns - 1) for i in model.split.coda]
    return sum(each[i] * times for i, times in turns) // subject.ids.numel()


def _layers(model: RecursiveLM, layers: Sequence[int]) -> int:
    config = model.base.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * 2 * TOKENS * config.num_attention_heads * width
    return sum(_products(model.layer(i).parameters()) + attention for i in layers)


def _products(weights: Iterable[Tensor]) -> int:
    return sum(2 * weight.numel() for weight in weights if weight.ndim == 2)
