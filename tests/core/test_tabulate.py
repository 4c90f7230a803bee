"""The table of a comparison, against plain loops over resamples, and on planted losses."""

import math

import numpy as np
import pytest

from ouroboros_core.errors import UserError
from ouroboros_core.judge import INTACT, KEPT, TRAINED
from ouroboros_core.tabulate import RESAMPLES, Finished, table_of

TRIALS = 200

TOKENS = [10, 20, 30, 40, 50]  # of the units of the only domain
COSTS = {"forward_flops": 1000, "train_flops": 3000, "kv_bytes": 64}


def cell(variant, losses, seed=0, *, tokens=TOKENS, trained=768, text="abc", random=False, share=0.5, speed=100.0,
         costs=COSTS, trainable=50):  # fmt: skip
    """A finished cell with these losses a token, by unit."""

    def model(losses, share=None):
        nats = [loss * count for loss, count in zip(losses, tokens, strict=True)]
        value = sum(nats) / sum(tokens)
        return {"loss": {"value": value, "low": None, "high": None}, "recovered": share and {"value": share},
                "tokens_per_second": speed, "unit_nats": nats}  # fmt: skip

    models = {KEPT: model([9.0] * len(tokens)), TRAINED: model(losses, share)}
    if not random:
        models = {INTACT: model([1.0] * len(tokens)), **models}
    counted = {"trainable": trainable, "unique": 200, "effective": 300}
    found = {
        "split": "0 | 1 x 2 | 2",
        "parameters": {name: counted | ({} if name == TRAINED else {"trainable": 0}) for name in models},
        "per_token": dict.fromkeys(models, costs),
        "domains": {"near": {"unit": "documents", "unit_tokens": tokens, "models": models}},
    }
    return Finished(variant, seed, trained, {"near": text}, found)


def near(cells):
    """What the table says of the domain, by variant."""
    return table_of(cells)["domains"]["near"]["variants"]


def plain_interval(losses_by_seed):
    """Units resampled with plain loops; seeds by Student's t; both put together like independent errors."""
    picks = np.random.default_rng(0).integers(len(TOKENS), size=(RESAMPLES, len(TOKENS)))
    by_seed = [mean(losses, range(len(TOKENS))) for losses in losses_by_seed]
    centre = sum(by_seed) / len(by_seed)
    means = sorted(sum(mean(losses, drawn) for losses in losses_by_seed) / len(by_seed) for drawn in picks)
    low, high = means[math.floor(0.025 * (RESAMPLES - 1))], means[math.ceil(0.975 * (RESAMPLES - 1))]
    spread = math.sqrt(sum((one - centre) ** 2 for one in by_seed) / (len(by_seed) - 1))
    seeds = {2: 12.706, 3: 4.303}[len(by_seed)] * spread / math.sqrt(len(by_seed))
    return centre - math.sqrt((centre - low) ** 2 + seeds**2), centre + math.sqrt((high - centre) ** 2 + seeds**2)


def mean(losses, units):
    """Nats a token over some units."""
    return sum(losses[unit] * TOKENS[unit] for unit in units) / sum(TOKENS[unit] for unit in units)


@pytest.mark.parametrize("third", [[], [[3.1, 3.6, 3.0, 3.3, 3.4]]])
def test_a_loss_is_the_mean_over_seeds_with_an_interval_over_text_and_seeds(third):
    trained = [[3.0, 3.4, 2.9, 3.1, 3.6], [3.3, 3.5, 3.0, 3.2, 3.5], *third]
    found = near([cell("other", [4.0] * 5), *(cell("two", losses, seed=n) for n, losses in enumerate(trained))])["two"]
    means = [mean(losses, range(5)) for losses in trained]
    assert found["by_seed"] == pytest.approx(means)
    assert found["loss"]["value"] == pytest.approx(sum(means) / len(means))
    assert (found["loss"]["low"], found["loss"]["high"]) == pytest.approx(plain_interval(trained))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_that_differ_by_chance_alone_are_called_different_in_few_cases(seeds):
    """At 95 % one row of two may be: a bootstrap over two seeds would call a third of them different."""
    generator, called = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        drawn = 3 + 0.01 * generator.standard_normal((2, seeds))
        cells = [
            cell(name, [loss] * 5, seed=n) for name, row in zip("ab", drawn, strict=True) for n, loss in enumerate(row)
        ]
        called += not all(noise for _, noise in marks(cells).values())
    assert called / TRIALS < 0.1


def test_units_are_resampled_alike_in_every_row():
    losses = [3.0, 3.4, 2.9, 3.1, 3.6]
    found = near([cell("a", losses), cell("b", [loss + 0.5 for loss in losses])])
    for end in ("low", "high", "value"):
        assert found["b"]["loss"][end] - found["a"]["loss"][end] == pytest.approx(0.5)


def test_seeds_that_disagree_widen_the_interval():
    losses = [3.0] * 5
    (alone,) = near([cell("a", losses), cell("a", losses, seed=1)]).values()
    (apart,) = near([cell("a", [2.8] * 5), cell("a", [3.2] * 5, seed=1)]).values()
    assert (alone["loss"]["low"], alone["loss"]["high"]) == pytest.approx((3.0, 3.0))
    assert (apart["loss"]["low"], apart["loss"]["high"]) == pytest.approx((3.0 - 12.706 * 0.2, 3.0 + 12.706 * 0.2))


def marks(cells):
    """(the lowest loss, within noise of it) by variant."""
    return {variant: (one["best"], one["within_noise"]) for variant, one in near(cells).items()}


def test_a_difference_of_one_sign_in_every_unit_is_not_noise():
    losses = [3.0, 3.4, 2.9, 3.1, 3.6]
    worse = [loss + little for loss, little in zip(losses, (0.01, 0.02, 0.01, 0.03, 0.01), strict=True)]
    assert marks([cell("worse", worse), cell("best", losses)])["worse"] == (False, False)


def test_a_difference_that_changes_its_sign_between_units_is_noise():
    losses = [3.0, 3.4, 2.9, 3.1, 3.6]
    mixed = [loss + little for loss, little in zip(losses, (0.2, -0.1, 0.2, -0.1, 0.05), strict=True)]
    assert marks([cell("best", losses), cell("mixed", mixed)]) == {"best": (True, True), "mixed": (False, True)}


def test_a_difference_that_changes_its_sign_between_seeds_is_noise():
    cells = [cell("a", [3.0] * 5), cell("a", [3.3] * 5, seed=1), cell("b", [3.1] * 5), cell("b", [3.25] * 5, seed=1)]
    assert marks(cells) == {"a": (True, True), "b": (False, True)}


def test_one_unit_of_text_tells_no_difference():
    cells = [cell("a", [3.0], tokens=[10]), cell("b", [4.0], tokens=[10])]
    assert marks(cells) == {"a": (True, True), "b": (False, True)}
    assert near(cells)["a"]["loss"] == {"value": 3.0, "low": None, "high": None}


def test_the_recovered_share_is_the_mean_over_seeds_if_every_seed_has_one():
    losses = [3.0] * 5
    found = near([cell("a", losses, share=0.2), cell("a", losses, seed=1, share=0.6), cell("b", losses, share=None)])
    assert (found["a"]["recovered"], found["b"]["recovered"]) == (pytest.approx(0.4), None)


def test_costs_are_those_of_the_trained_model_and_the_speed_is_the_median():
    losses = [3.0] * 5
    found = table_of([cell("a", losses, seed, speed=speed) for seed, speed in ((3, 1.0), (1, 5.0), (2, 90.0))])
    assert found["seeds"] == [1, 2, 3]
    assert found["variants"]["a"] == {
        "split": "0 | 1 x 2 | 2", "trainable": 50, "unique": 200, "effective": 300, "trained_tokens": 768,
        "train_flops": 3000, "decode_flops": 1000, "kv_bytes": 64, "tokens_per_second": 5.0,
    }  # fmt: skip
    assert found["intact"]["trainable"] == 0
    assert found["unequal"] == {}


def test_unequal_budgets_are_named_with_both_ends():
    losses = [3.0] * 5
    cells = [
        cell("a", losses, trained=1000),
        cell("b", losses, trained=1040, costs=COSTS | {"train_flops": 9000}),  # 4 % more tokens are not worth a word
        cell("c", losses, trainable=49),
        cell("d", losses, trainable=500),
    ]
    assert table_of(cells[:2])["unequal"] == {"train_flops": {"least": "a", "most": "b"}}
    assert table_of(cells[2:])["unequal"] == {"trainable": {"least": "c", "most": "d"}}


def test_the_intact_model_is_told_of_if_any_variant_has_one():
    losses = [3.0] * 5
    random, pretrained = cell("random", losses, random=True), cell("pretrained", losses)
    assert table_of([random, pretrained])["domains"]["near"]["intact"]["value"] == pytest.approx(1.0)
    alone = table_of([random])
    assert alone["intact"] is None
    assert alone["domains"]["near"]["intact"] is None


@pytest.mark.parametrize(
    "other",
    [
        cell("b", [3.0] * 5, seed=7, text="xyz"),
        cell("b", [3.0] * 5, seed=7, tokens=[10, 20, 30, 40, 51]),
        cell("b", [3.0] * 4, seed=7, tokens=TOKENS[:4]),
        Finished("b", 7, 768, {"far": "abc"}, cell("b", [3.0] * 5).found),
    ],
    ids=["other documents", "other tokens", "fewer units", "another domain"],
)
def test_losses_on_different_text_are_refused(other):
    with pytest.raises(UserError, match=r"'b', seed 7, was judged on other text than 'a': near\."):
        table_of([cell("a", [3.0] * 5), other])
