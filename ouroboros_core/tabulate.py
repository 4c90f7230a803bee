"""The table of a comparison: means over seeds, intervals over text and seeds, and which differences are noise.

Two things make a loss uncertain: the text it is taken on, and the seed it was trained with. Text is resampled; of
seeds there are too few for that (a bootstrap over two calls a third of all chance differences real), so that they count
by Student's t. Both are put together as errors that know nothing of each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ouroboros_core.errors import UserError
from ouroboros_core.evaluation import Interval, interval
from ouroboros_core.judge import INTACT, KEPT, TRAINED

RESAMPLES = 2000
# Student's t at 97.5 %, for 1, 2, ... degrees of freedom; the last one serves for more
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
BUDGETS = ("trained_tokens", "train_flops", "decode_flops", "trainable")
UNEQUAL = 1.05  # budgets that differ by more than this factor are named


@dataclass(frozen=True)
class Finished:
    """A cell that was run."""

    variant: str
    seed: int
    tokens: int  # trained on
    text: Mapping[str, str]  # judged on: hash of its documents by domain
    found: Mapping[str, Any]  # what `evaluation.json` holds


def must_share_text(cells: Sequence[Finished]) -> None:
    """Refuse losses on different text, or on the same text cut into other units or tokens.

    Raises:
        UserError: a cell was judged on other text than the first one.
    """
    for cell in cells:
        for name in {**cells[0].text, **cell.text}:
            if _read(cell, name) != _read(cells[0], name):
                raise UserError(
                    f"'{cell.variant}', seed {cell.seed}, was judged on other text than '{cells[0].variant}': {name}. "
                    "Was a file changed, or do their tokenizers differ? Such losses do not compare"
                )


def table_of(cells: Sequence[Finished]) -> dict[str, Any]:
    """The rows of a comparison, by variant, and what they do not show.

    A loss is the mean over seeds, with its interval over text and seeds; units of text are resampled alike in every
    row. A row is within noise of the best of a domain if the interval of their difference, seed by seed, includes zero.

    Raises:
        UserError: the cells were judged on different text.
    """
    must_share_text(cells)
    variants = {name: [c for c in cells if c.variant == name] for name in dict.fromkeys(c.variant for c in cells)}
    rows = {name: _costs(several, TRAINED) for name, several in variants.items()}
    pretrained = [cell for cell in cells if INTACT in cell.found["parameters"]][:1]
    return {
        "seeds": sorted({cell.seed for cell in cells}),
        "variants": rows,
        "intact": _costs(pretrained, INTACT) if pretrained else None,
        "domains": {name: _domain(variants, name, pretrained) for name in cells[0].text},
        "unequal": _unequal(rows),
    }


def _read(cell: Finished, domain: str) -> tuple[str | None, Sequence[int] | None]:
    """Which text, and how many tokens of each unit."""
    return cell.text.get(domain), cell.found["domains"].get(domain, {}).get("unit_tokens")


def _costs(cells: Sequence[Finished], model: str) -> dict[str, Any]:
    """What a model costs: the same for every seed, but for the speed."""
    first = cells[0].found
    per_token = first["per_token"][model]
    speeds = [domain["models"][model]["tokens_per_second"] for c in cells for domain in c.found["domains"].values()]
    return {
        "split": first["split"],
        **first["parameters"][model],
        "trained_tokens": cells[0].tokens,
        "train_flops": per_token["train_flops"],
        "decode_flops": per_token["forward_flops"],
        "kv_bytes": per_token["kv_bytes"],
        "tokens_per_second": float(np.median(speeds)),
    }


def _domain(variants: Mapping[str, Sequence[Finished]], name: str, pretrained: Sequence[Finished]) -> dict[str, Any]:
    """Losses of a domain: of the intact model, of every variant's kept layers, and of what was trained."""
    heard = {variant: [cell.found["domains"][name] for cell in cells] for variant, cells in variants.items()}
    first = next(iter(heard.values()))[0]
    tokens = np.array(first["unit_tokens"])
    nats = {variant: np.stack([_nats(one) for one in several]) for variant, several in heard.items()}
    best = min(nats, key=lambda variant: nats[variant].sum())
    return {
        "units": len(tokens),
        "unit": first["unit"],
        "intact": pretrained[0].found["domains"][name]["models"][INTACT]["loss"] if pretrained else None,
        "variants": {
            variant: {
                "loss": asdict(mean_of(nats[variant], tokens)),
                "by_seed": [one["models"][TRAINED]["loss"]["value"] for one in several],
                "recovered": _mean_share(several),
                "kept": several[0]["models"][KEPT]["loss"]["value"],
                "best": variant == best,
                "within_noise": _includes_zero(mean_of(nats[variant] - nats[best], tokens)),
            }
            for variant, several in heard.items()
        },
    }


def mean_of(nats: np.ndarray, tokens: np.ndarray) -> Interval:
    """The mean over seeds of a loss, or of a difference of losses, with its 95 % interval over text and seeds.

    Args:
        nats: (seeds, units), summed over the tokens of each unit.
        tokens: (units,).
    """
    drawn = np.random.default_rng(0).integers(len(tokens), size=(RESAMPLES, len(tokens)))
    draws = nats.mean(0)[drawn].sum(1) / tokens[drawn].sum(1)
    by_seed = nats.sum(1) / tokens.sum()
    text = interval(float(by_seed.mean()), draws, len(tokens))
    if text.low is None or text.high is None or len(by_seed) == 1:
        return text
    quantile = T_QUANTILES[min(len(by_seed) - 1, len(T_QUANTILES)) - 1]
    seeds = quantile * float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed))
    ends = (math.hypot(end - text.value, seeds) for end in (text.low, text.high))
    return Interval(text.value, *(text.value + sign * width for sign, width in zip((-1, 1), ends, strict=True)))


def _includes_zero(difference: Interval) -> bool:
    """Whether it may be nothing. One unit of text tells no noise from none."""
    return difference.low is None or difference.low <= 0


def _nats(domain: Mapping[str, Any]) -> np.ndarray:
    return np.array(domain["models"][TRAINED]["unit_nats"])


def _mean_share(several: Sequence[Mapping[str, Any]]) -> float | None:
    shares = [one["models"][TRAINED]["recovered"] for one in several]
    return None if None in shares else float(np.mean([share["value"] for share in shares]))


def _unequal(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Costs that are not the same: which variant has the least, and which the most."""
    ends = {cost: {end: pick(rows, key=lambda name: rows[name][cost]) for end, pick in (("least", min), ("most", max))}
            for cost in BUDGETS}  # fmt: skip
    return {cost: two for cost, two in ends.items() if rows[two["most"]][cost] > UNEQUAL * rows[two["least"]][cost]}
