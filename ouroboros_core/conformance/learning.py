"""What must hold of training: gradients, options, labels, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ouroboros_core.accounting import parameters
from ouroboros_core.build import Built
from ouroboros_core.conformance.subject import Subject
from ouroboros_core.contracts import Depth
from ouroboros_core.errors import CheckFailed
from ouroboros_core.gradients import WATCHED_STEPS, GradientWatch
from ouroboros_core.kept import StockLM
from ouroboros_core.trace import Trace
from ouroboros_core.training import Loss, parameter_groups

SURE = 40.0  # nats by which a certain prediction is ahead of any other


def gradients(subject: Subject) -> str:
    """Every reachable trained row has a gradient within three optimiser steps."""
    made = subject.built()
    if not (groups := parameter_groups(made.model, subject.settings.train.weight_decay, made.rates)):
        return "nothing learns"
    watch, loss = GradientWatch(made.model), _loss(subject, made)
    optimizer = torch.optim.AdamW([group for _, group in groups], lr=1e-3)
    for step in range(WATCHED_STEPS):
        loss(step).backward()
        watch.look()
        optimizer.step()
        optimizer.zero_grad()
    return watch.verdict().detail


def counting(subject: Subject) -> str:
    """Everything that learns is in the optimiser, and counted, once; everything frozen in the loops is a buffer."""
    made = subject.built()
    groups = parameter_groups(made.model, subject.settings.train.weight_decay, made.rates)
    trained = [parameter for _, group in groups for parameter in group["params"]]
    loss = _loss(subject, made)(0)  # what a part makes, or freezes, only when it is used
    counted, mine = parameters(made.model), {id(parameter) for parameter in trained}
    if hidden := [tuple(leaf.shape) for leaf in _leaves(loss) if id(leaf) not in mine]:
        raise CheckFailed(f"a tensor {hidden[0]} learns and the optimiser does not have it: register it when building")
    if frozen := [name for name, p in made.model.loops.named_parameters() if not p.requires_grad]:
        raise CheckFailed(f"loops.{frozen[0]} is a parameter and does not learn: keep what is frozen as a buffer")
    if len(mine) != len(trained) or sum(p.numel() for p in trained) != counted.trainable:
        raise CheckFailed(f"{counted.trainable:,} trainable values are counted, and the optimiser has another number")
    return f"{counted.trainable:,} trainable of {counted.unique:,} values, each once"


def options(subject: Subject) -> str:
    """Every option of every part is read when the model is built."""
    subject.settings.forget_reads()
    subject.built()
    parts = tuple(f"{slot}." for slot in subject.settings.parts)
    if unread := [name for name in subject.settings.unread() if name.startswith(parts)]:
        raise CheckFailed(f"no effect: nothing reads {', '.join(unread)}. The part ignores its option")
    return "every option of every part was read"


def labels(subject: Subject) -> str:
    """Labels are shifted once: a model that is sure of the next token is what every objective likes best."""
    made, ids = subject.built(), subject.ids
    following, others = ids[:, 1:], {"the token after the next one": ids.roll(-2, 1), "the token it has just read": ids}
    read = []
    for name, term in made.objectives.items():
        loss = _told(term, following, following, made)
        wrong = {what: _told(term, sure[:, :-1], following, made) for what, sure in others.items()}
        if liked := [what for what, other in wrong.items() if other < loss]:
            raise CheckFailed(f"objective '{name}' likes a model better that is sure of {liked[0]}")
        read += [name] if min(wrong.values()) > loss else []
    if not read and not made.wants_teacher:
        raise CheckFailed("no objective reads the labels: nothing about text is taught")
    return f"a model that is sure of the next token is liked best by {', '.join(read) or 'the teacher alone'}"


def _told(term: Callable[[Trace, Tensor], Tensor], sure: Tensor, labels: Tensor, made: Built) -> float:
    """What an objective makes of a model that gives some tokens all but certainty, at every turn alike."""
    words = made.model.head.weight.shape[0]
    hidden = SURE * torch.nn.functional.one_hot(sure, words).float()
    once = torch.ones(sure.shape)
    trace = Trace(hidden, torch.eye(words), once, once)
    trace = replace(trace, teacher=trace, turns=[hidden] * 2, shares=[once / 2] * 2)
    return float(term(trace, labels)[:, 1:-2].mean())


def _loss(subject: Subject, made: Built) -> Callable[[int], Tensor]:
    """The loss of a step, in training, at a depth that the schedule can give."""
    loss = Loss(made, StockLM(subject.intact, made.model.anatomy) if made.wants_teacher else None).train()
    depth = Depth.full(min(made.schedule.most, max(2, made.model.turns)))
    ids, following = subject.ids[:, :-1], subject.ids[:, 1:]
    return lambda step: torch.stack(list(loss(ids, following, depth, step).values())).sum()


def _leaves(loss: Tensor) -> list[Tensor]:
    """What a loss can teach: every leaf of its graph."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [earlier for earlier, _ in node.next_functions]
    return [node.variable for node in seen if hasattr(node, "variable")]
