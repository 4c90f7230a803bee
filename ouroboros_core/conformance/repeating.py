"""What a second time must give: the same from the same seed, from a saved model, and nearly so in bfloat16."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch

from ouroboros_core import weights
from ouroboros_core.build import null_parts
from ouroboros_core.conformance.subject import Subject
from ouroboros_core.contracts import Depth
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.model import RecursiveLM
from ouroboros_core.trace import Trace

FEW = 4  # turns at which precision is tried: a random block, looped often, makes much of any rounding
COARSE = 2.0  # times what the kept layers lose to bfloat16 in one turn; over turns, errors add like a random walk


@torch.no_grad()
def seeds(subject: Subject) -> str:
    """The same seed gives the same model and the same answers, to the bit, however often it is asked."""
    one, other = subject.built().model, subject.built().model
    for (name, mine), (_, theirs) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        if not torch.equal(mine, theirs):
            raise CheckFailed(f"two models of one seed differ in {name}: a part draws from a generator of its own")
    first, again = (_answer(one, subject, seed) for seed in (1, 2))
    if not torch.equal(first, again):
        raise CheckFailed("two forwards of one model differ: a part draws without the turn's seed, or keeps a state")
    if not torch.equal(first, _answer(other, subject, 3)):
        raise CheckFailed("two models of one seed, with equal weights, answer otherwise: a part hides what it drew")
    return "two builds and two forwards are equal to the bit"


def _answer(model: RecursiveLM, subject: Subject, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.trace(subject.ids).logits()


@torch.no_grad()
def saving(subject: Subject) -> str:
    """What training left, saved and loaded into a model of another seed, gives the same logits, to the bit."""
    seed = subject.settings.train.seed
    model = subject.stirred()
    model.train().trace(subject.ids)  # whatever a part keeps of what it sees in training
    fresh = subject.built(fill_bases=False, seed=seed + 1).model
    with tempfile.TemporaryDirectory() as place:
        _carry_over(model, fresh, Path(place))
    saved, loaded = (each.trace(subject.ids, seed=seed).logits() for each in (model.eval(), fresh))
    if not torch.equal(saved, loaded):
        raise CheckFailed("a model that was saved and loaded answers otherwise: a part holds a tensor it does not save")
    return "saved and loaded, the logits are equal to the bit"


def _carry_over(model: RecursiveLM, fresh: RecursiveLM, folder: Path) -> None:
    weights.save_parts(model, "small", folder)
    try:
        weights.load_parts(fresh, folder)
    except UserError as error:
        said = str(error).replace(f"{folder}/", "")
        raise CheckFailed(f"what was saved does not fit a fresh model: {said}") from error


@torch.no_grad()
def precision(subject: Subject) -> str:
    """In bfloat16 the model loses little more than its kept layers do, or than rounded weights cost in float32."""
    exact, coarse = subject.stirred(), subject.built(dtype=torch.bfloat16).model
    coarse.loops.load_state_dict(exact.loops.state_dict())  # the bases, computed anew, may differ in sign
    rounded = subject.stirred()  # parts that amplify every small change do so in float32 too
    for weight in rounded.parameters():
        weight.copy_(weight.bfloat16())
    for parts in (*exact.loops, *coarse.loops, *rounded.loops):
        parts.halter.train()  # an exit one turn sooner is no rounding: those that exit at evaluation do not here
    few = Depth.full(min(FEW, exact.turns))
    told = exact.trace(subject.ids, depth=few)
    lost, weights = (_distance(told, model.trace(subject.ids, depth=few)) for model in (coarse, rounded))
    null, once = [null_parts(subject.host, facts) for facts in subject.built().facts], Depth.full(1)
    with exact.with_parts(null), coarse.with_parts(null):
        bound = _distance(exact.trace(subject.ids, depth=once), coarse.trace(subject.ids, depth=once))
    found = f"{lost:.1%}, rounding the weights alone by {weights:.1%}, and the kept layers alone by {bound:.1%}"
    if not lost <= COARSE * max(bound, weights) * math.sqrt(few.turns):  # so that NaN fails too
        raise CheckFailed(f"bfloat16 moves the logits by {found}: a part sums or norms in bfloat16 what needs float32")
    return f"bfloat16 moves the logits by {found}"


def _distance(exact: Trace, coarse: Trace) -> float:
    """The mean difference of logits, as a share of their mean size."""
    difference = (exact.logits() - coarse.logits().float()).abs().mean()
    return float(difference / exact.logits().abs().mean())
