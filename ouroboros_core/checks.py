"""Trust checks: made before every run, one line each. A failure stops the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import HFModel
from ouroboros_core.contracts import Depth, Objective
from ouroboros_core.errors import CheckFailed
from ouroboros_core.kept import StockLM, kept_once
from ouroboros_core.loop import Parts
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM
from ouroboros_core.reporting import CheckResult
from ouroboros_core.settings import Settings
from ouroboros_core.trace import Trace

LEAK = 1e-4  # of the largest move that a change of tokens makes anywhere
SPREADS = 0.1, 0.01, 0.001  # of the noise on trained parts; without norms, turn upon turn, the first may overflow
ROUNDING = 2  # times the dtype's resolution: what two orders of the same sums may differ by


@torch.no_grad()
def causality(model: RecursiveLM, ids: Tensor, *, allowed: bool = False) -> CheckResult:
    """Change the tokens after a position: no logit, and no number of turns, up to it may move. ids (B, T).

    Trained parts are moved off their initial values for the moment, since a part that starts as nothing hides a leak.

    Raises:
        CheckFailed: something moved, and that is not allowed; or the logits are not finite.
    """
    last = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, last + 1 :] = ids[:, last + 1 :].roll(1, -1).add(1) % model.head.weight.shape[0]
    for spread in SPREADS:
        with stirred(model.loops, spread):
            before, after = model.trace(ids), model.trace(changed)
        moved = (after.logits().float() - before.logits().float()).abs()
        if moved.isfinite().all():
            break
    else:
        raise CheckFailed("the model's logits are not finite, whatever the tokens: a part or the base is broken")
    turned = (after.taken - before.taken).abs()[:, : last + 1].max().item()
    leak, most = moved[:, : last + 1].max().item(), moved.max().item()
    if leak <= LEAK * most and not turned:
        return CheckResult(
            "causality",
            True,
            f"tokens after {last} changed: logits up to {last} moved by {leak:.1e} of {most:.1e}",
        )
    what = f"logits up to position {last} moved by {leak:.2e} when later tokens changed" if leak > LEAK * most else (
        f"a token up to position {last} took {turned:g} turns more or fewer when later tokens changed"
    )  # fmt: skip
    if allowed:
        return CheckResult("causality", True, f"LEAKS, as allowed: {what}. This is not a language model's loss")
    raise CheckFailed(f"the model sees the future: {what}. A part pools over, or routes by, tokens that come later")


@torch.no_grad()
def labels(
    model: RecursiveLM,
    objectives: Mapping[str, Objective],
    batches: Sequence[tuple[Tensor, Tensor]],
    teacher: StockLM | None,
) -> CheckResult:
    """Labels are shifted once: in the batches, and by nobody after that.

    The label of a position must be the next input; and another label at one position must move each objective, and
    the loss of evaluation, at that position only.

    Args:
        batches: ids and labels (B, T) just as training and evaluation get them.

    Raises:
        CheckFailed: a label is not the next token.
    """
    for ids, aligned in batches:
        real = aligned[:, :-1] != IGNORE
        if wrong := ((aligned[:, :-1] != ids[:, 1:]) & real).sum().item():
            raise CheckFailed(
                f"labels are not the next token at {wrong} of {real.numel()} positions: "
                "they are shifted twice, or not at all"
            )
    ids, aligned = batches[0]
    by_turn = any(objective.wants_turns for objective in objectives.values())
    turns = 2 if by_turn else 1  # the first turn may be read well and a later one not
    trace = model.trace(ids, depth=Depth(turns, turns, whole=True), keep_turns=by_turn)
    trace = trace if teacher is None else replace(trace, teacher=teacher.trace(ids))
    terms: dict[str, Callable[[Trace, Tensor], Tensor]] = {**objectives, "evaluation": Trace.nll}
    read = [name for name, term in terms.items() if _reads_its_own_label(name, term, trace, aligned)]
    if read == ["evaluation"] and not any(objective.wants_teacher for objective in objectives.values()):
        raise CheckFailed(f"no objective reads the labels: {', '.join(objectives)} alone teaches nothing about text")
    return CheckResult(
        "labels", True, f"each label is the next token, shifted once; read in place by {', '.join(read)}"
    )


def _reads_its_own_label(name: str, term: Callable[[Trace, Tensor], Tensor], trace: Trace, aligned: Tensor) -> bool:
    spot = aligned.shape[1] // 2
    other = aligned.clone()
    other[:, spot] = (aligned[:, spot] + 1) % trace.head.shape[0]
    moved = (term(trace, other) != term(trace, aligned)).any(0).nonzero().flatten().tolist()
    if moved not in ([], [spot]):
        raise CheckFailed(
            f"objective '{name}' shifts labels that are aligned already: the label of position {spot} moves "
            f"its loss at {moved}"
        )
    return bool(moved)


@torch.no_grad()
def identity(model: RecursiveLM, null: Sequence[Parts], intact: HFModel, ids: Tensor) -> CheckResult:
    """With parts that change nothing, one turn is the library's own forward over the kept layers. ids (B, T).

    Raises:
        CheckFailed: the logits differ by more than rounding.
    """
    with model.with_parts(null):
        ours = model.trace(ids, depth=Depth.full(1)).logits().float()
    stock = StockLM(kept_once(intact, model.anatomy, model.split), model.anatomy).trace(ids).logits().float()
    difference = (ours - stock).abs().max().item()
    bound = ROUNDING * torch.finfo(model.dtype).eps * stock.abs().max().item()
    if not difference <= bound:  # so that NaN fails too
        raise CheckFailed(
            f"with neutral parts the model is not its kept layers: logits differ by {difference:.2e}, and rounding "
            f"explains {bound:.1e}. The split, the adapter or the anatomy changes the base"
        )
    return CheckResult("identity", True, f"neutral parts give the kept layers: logits differ by {difference:.1e}")


def settings_took_effect(settings: Settings) -> CheckResult:
    """Every resolved setting was read by what it is meant for.

    Raises:
        CheckFailed: one was not.
    """
    if unread := settings.unread():
        raise CheckFailed(
            f"no effect: nothing reads {', '.join(unread)}. Drop the setting, or mend the part that ignores it"
        )
    return CheckResult("settings", True, "every setting was read by what it is meant for")


@contextmanager
def stirred(module: nn.Module, spread: float = SPREADS[0]) -> Iterator[None]:
    """Within this scope every parameter is moved by seeded noise; afterwards they are as they were, to the bit."""
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * spread
        parameter.data += noise.to(parameter)
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.data.copy_(before[name])
