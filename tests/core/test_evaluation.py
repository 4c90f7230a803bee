"""Held-out losses, bootstrap intervals and recovered shares against plain restatements."""

import json

import numpy as np
import pytest
import torch

from ouroboros_core.data import Domain
from ouroboros_core.evaluation import Score, compare, interval, resampled, score
from ouroboros_core.kept import StockLM
from ouroboros_core.losses import IGNORE
from ouroboros_core.testing import tiny_model


def scores(seed=0, units=40, **means):
    """A score for each name: nats a token scattered around its mean, the same units for all."""
    draw = np.random.default_rng(seed)
    tokens, hardness = draw.integers(20, 200, units).astype(float), draw.normal(0, 0.5, units)
    return {
        name: Score((mean + hardness + draw.normal(0, 0.02, units)) * tokens, tokens, seconds=2.0)
        for name, mean in means.items()
    }


def plain_draws(some, resamples):
    """Mean loss of each model over units drawn with replacement, one resample and one unit at a time."""
    units = len(some[0].tokens)
    drawn = np.random.default_rng(0).integers(units, size=(resamples, units))
    return [[sum(one.nll[u] for u in row) / sum(one.tokens[u] for u in row) for row in drawn.tolist()] for one in some]


def test_the_resampled_losses_are_those_of_a_plain_bootstrap():
    some = list(scores(a=3.0, b=4.0).values())
    np.testing.assert_allclose(resampled(some, 50), plain_draws(some, 50))


def test_the_interval_leaves_a_fortieth_on_either_side():
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    found = interval(500.0, draws, units=40)
    assert (found.value, found.low, found.high) == (500.0, 25.0, 975.0)


def test_one_unit_cannot_be_resampled_and_has_no_interval():
    some = compare(scores(units=1, intact=3.0, kept=5.0, model=4.0), 100, intact="intact", kept="kept")["model"]
    assert (some["loss"]["low"], some["loss"]["high"]) == (None, None)
    assert (some["recovered"]["low"], some["recovered"]["high"]) == (None, None)


def test_intervals_cover_the_true_mean_about_nineteen_times_in_twenty():
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(1000 + seed)
        one = Score(draw.normal(3.0, 1.0, 60), np.ones(60), 1.0)
        found = interval(0.0, resampled([one], 400)[0], units=60)
        covered += found.low <= 3.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_loss_is_nats_over_tokens_and_its_interval_contains_it():
    some = scores(intact=3.0, kept=5.0, model=4.0)
    loss = compare(some, 300, intact="intact", kept="kept")["model"]["loss"]
    assert loss["value"] == pytest.approx(some["model"].nll.sum() / some["model"].tokens.sum())
    assert loss["low"] < loss["value"] < loss["high"]


def test_a_model_as_good_as_the_intact_one_recovers_everything_and_one_like_the_kept_layers_nothing():
    some = scores(intact=3.0, kept=5.0)
    some |= {"whole": some["intact"], "nothing": some["kept"]}
    found = compare(some, 300, intact="intact", kept="kept")
    assert found["whole"]["recovered"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert found["nothing"]["recovered"] == pytest.approx({"value": 0, "low": 0, "high": 0})


def test_a_share_is_the_part_of_the_gap_that_was_closed_with_a_paired_interval():
    some = scores(intact=3.0, kept=5.0, model=4.5)
    found = compare(some, 300, intact="intact", kept="kept")["model"]["recovered"]
    intact, kept, model = (one.nll.sum() / one.tokens.sum() for one in some.values())
    assert found["value"] == pytest.approx((kept - model) / (kept - intact))
    i, k, m = (np.array(draws) for draws in plain_draws(list(some.values()), 300))
    shares = sorted((k - m) / (k - i))
    low, high = shares[int(0.025 * 299)], shares[int(0.975 * 299) + 1]
    assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_pairing_makes_the_share_surer_than_its_losses():
    found = compare(scores(intact=3.0, kept=5.0, model=4.0), 300, intact="intact", kept="kept")["model"]
    loss, share = found["loss"], found["recovered"]
    assert (share["high"] - share["low"]) * 2 < (loss["high"] - loss["low"]) / 2


def test_a_model_worse_than_the_kept_layers_recovers_less_than_nothing():
    found = compare(scores(intact=3.0, kept=5.0, model=6.0), 300, intact="intact", kept="kept")
    assert found["model"]["recovered"]["high"] < 0


def test_the_two_ends_of_the_gap_have_no_share_and_neither_has_anyone_where_nothing_was_lost():
    found = compare(scores(intact=3.0, kept=5.0, model=4.0), 100, intact="intact", kept="kept")
    assert found["intact"]["recovered"] is found["kept"]["recovered"] is None
    found = compare(scores(intact=5.0, kept=3.0, model=4.0), 100, intact="intact", kept="kept")
    assert found["model"]["recovered"] is None


def test_without_an_intact_model_there_is_no_gap_and_nobody_has_a_share():
    found = compare(scores(kept=5.0, model=4.0), 100, intact="intact", kept="kept")
    assert found.keys() == {"kept", "model"}
    assert found["kept"]["recovered"] is found["model"]["recovered"] is None
    assert found["model"]["loss"]["value"] < found["kept"]["loss"]["value"]


def test_an_interval_is_numbers_even_where_some_resamples_lost_nothing():
    tokens = np.full(4, 50.0)
    nll = {"intact": [120, 100, 110, 51], "kept": [100, 200, 90, 50], "model": [110, 150, 95, 50]}
    some = {name: Score(np.array(values, float), tokens, 1.0) for name, values in nll.items()}
    share = compare(some, 500, intact="intact", kept="kept")["model"]["recovered"]
    json.dumps(share, allow_nan=False)  # unbounded is written as null, never as NaN or Infinity
    assert share["value"] == pytest.approx(35 / 59)


class Fixed:
    """Every token costs as many nats as its label's number; ignored ones cost nothing."""

    def trace(self, ids):
        return self

    def nll(self, labels):
        return labels.clamp(min=0).float()


def domain():
    blocks = torch.tensor([[9, 1, 2, 3], [9, 4, 5, IGNORE], [9, 6, IGNORE, IGNORE]])
    return Domain("d", blocks, torch.tensor([0, 0, 1]), documents=2, units="documents")


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_nats_and_tokens_are_gathered_by_unit_whatever_the_batch(batch):
    heard = []
    found = score(Fixed(), domain(), batch, torch.device("cpu"), heard.append)
    assert found.nll.tolist() == [15, 6]
    assert found.tokens.tolist() == [5, 1]
    assert sum(heard) == 3


def test_a_model_is_scored_on_the_tokens_that_follow(host, ids):
    intact = tiny_model()
    seen = StockLM(intact, host.anatomy(intact.config))
    found = score(seen, Domain("d", ids, torch.tensor([0, 1]), 2, "documents"), 2, torch.device("cpu"))
    log_p = torch.log_softmax(intact(input_ids=ids[:, :-1]).logits, -1)
    plain = [-sum(float(log_p[b, t, ids[b, t + 1]]) for t in range(11)) for b in range(2)]
    np.testing.assert_allclose(found.nll, plain, rtol=1e-5)
