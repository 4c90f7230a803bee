"""Cache policies: how many cache slots the turns of a looped layer share, and what sharing them costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ouroboros_core.data import Domain, align
from ouroboros_core.errors import UserError
from ouroboros_core.evaluation import Interval, interval
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM

EACH, LAST, MODULO = "turn", "last", "modulo:"
MOST = 2048  # tokens of a domain, by default: they are read one after another


def parse_policy(text: str) -> int | None:
    """What `RecursiveLM.generate` takes as `shared_slots`.

    Args:
        text: `turn`, a slot for each turn; `last`, one slot, which the last turn is left in; `modulo:N`, N slots, turn
            t in slot t modulo N.

    Raises:
        UserError: it is none of these.
    """
    named = {EACH: None, LAST: 1}
    if text in named:
        return named[text]
    count = text.removeprefix(MODULO)
    if not (text.startswith(MODULO) and count.isascii() and count.isdigit() and int(count)):
        raise UserError(f"cache policy '{text}': expected {EACH}, {LAST} or {MODULO}N with N of 1 or more")
    return int(count)


@dataclass(frozen=True)
class PolicyLoss:
    """What a policy does to the loss of decoding, token by token, on held-out text."""

    policy: str
    kv_bytes: int  # of keys and values, a token
    tokens: int
    loss: float  # nats a token
    costs: Interval  # more than a slot for each turn, on the same tokens; resampled by sequence


def policy_losses(
    model: RecursiveLM, domains: Sequence[Domain], policies: Sequence[str], *, tokens: int = MOST, batch: int = 8,
    resamples: int = 2000, done: Callable[[str, int, int], None] = lambda domain, rows, total: None,
) -> dict[str, list[PolicyLoss]]:  # fmt: skip
    """The loss of each domain with each policy; with a slot for each turn, which is exact, first.

    Each token is read by itself, as in decoding: only then do later tokens find what earlier ones have left.

    Args:
        tokens: most of a domain's tokens that are read, in whole sequences.
        done: hears that so many more of so many sequences of a domain have been read.

    Raises:
        UserError: a policy that is none, or that the base's attention does not allow; or tokens see later ones.
    """
    if not model.config.causal:
        raise UserError("a part lets tokens see later ones: nothing can be decoded, and no cache is of use")
    named = {name: parse_policy(name) for name in (EACH, *policies)}
    found: dict[str, list[PolicyLoss]] = {}
    for domain in domains:
        rows = domain.blocks[: max(1, tokens // (domain.blocks.shape[1] - 1))]  # a block's last token is a label only
        tell = partial(_tell, done, domain.name, len(rows) * len(named))
        read = {name: _read(model, rows, shared, batch, tell) for name, shared in named.items()}
        found[domain.name] = [_compared(name, one, read[EACH], resamples) for name, one in read.items()]
    return found


@dataclass(frozen=True)
class _Read:
    nll: np.ndarray  # (rows,) summed nats
    tokens: np.ndarray  # (rows,)
    kv_bytes: int


def _tell(done: Callable[[str, int, int], None], domain: str, total: int, rows: int) -> None:
    done(domain, rows, total)


def _read(model: RecursiveLM, rows: Tensor, shared: int | None, batch: int, done: Callable[[int], None]) -> _Read:
    each = [_decoded(model, some, shared, done) for some in rows.split(batch)]
    nll, tokens = (np.concatenate([getattr(one, name) for one in each]) for name in ("nll", "tokens"))
    return _Read(nll, tokens, each[0].kv_bytes)


@torch.no_grad()
def _decoded(model: RecursiveLM, rows: Tensor, shared: int | None, done: Callable[[int], None]) -> _Read:
    """Read one token after another, of all rows at once."""
    ids, labels = align(rows.to(model.device))
    with model.laid_out(model.turns, shared):
        cache = DynamicCache(config=model.config)
        steps = zip(ids.split(1, dim=1), labels.split(1, dim=1), strict=True)
        losses = torch.cat([model.trace(each, cache=cache).nll(label) for each, label in steps], dim=1)
    done(len(rows))
    kept = [side for layer in cache.layers if layer.keys is not None for side in (layer.keys, layer.values)]
    counted = (labels != IGNORE).sum(1).cpu().numpy()
    return _Read(losses.double().sum(1).cpu().numpy(), counted, sum(side.nbytes for side in kept) // ids.numel())


def _compared(name: str, read: _Read, exact: _Read, resamples: int) -> PolicyLoss:
    more, total = read.nll - exact.nll, read.tokens.sum()
    drawn = np.random.default_rng(0).integers(len(more), size=(resamples, len(more)))
    draws = more[drawn].sum(1) / read.tokens[drawn].sum(1)
    costs = interval(float(more.sum() / total), draws, len(more))
    return PolicyLoss(name, read.kv_bytes, int(total), float(read.nll.sum() / total), costs)
