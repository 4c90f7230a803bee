"""Parts of different slots, two by two: every pair of built-in ones meets, and is put to every check."""

import re
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch import nn

from ouroboros_core.conformance import CHECKS
from ouroboros_core.conformance.pairs import accompanied, covering, rows, tried
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.options import NoOptions
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_config

SLOTS = ("modulator", "gate", "norm", "halter")
HOST = PluginHost.installed(third_party=False)
SETTINGS = resolve(HOST, [{"splitter": {"use": "middle-cycle", "layers": 1}}])  # of which every part can be made
STOPPING = {"act": {"bias": 0.0}, "kl": {"threshold": 5e-3}, "latent-diff": {"threshold": 0.15}}  # random states too


def with_exits(row):
    """The row, its halter so configured that tokens of a random model stop, and not all at the same turn."""
    halter = row[Slot.HALTER]
    return {**row, Slot.HALTER: replace(halter, options=halter.part.options(**STOPPING.get(halter.name, {})))}


ROWS = [with_exits(row) for row in rows(SETTINGS, HOST, SLOTS, every=False)]


def names(row):
    return [choice.name for choice in row.values()]


@pytest.mark.parametrize("row", ROWS, ids=["-".join(names(row)) for row in ROWS])
def test_two_parts_that_pass_alone_pass_together(row):
    outcome = tried(SETTINGS, HOST, row, config=tiny_config())
    assert outcome.refused == ""
    assert [check.name for check in outcome.checks] == list(CHECKS)
    assert [f"{check.name}: {check.detail}" for check in outcome.failed] == []


@pytest.mark.parametrize("halter", ["act", "kl", "latent-diff", "exit-gate", "ponder"])
def test_in_these_rows_tokens_stop_at_different_turns(halter):
    mine = [row for row in ROWS if row[Slot.HALTER].name == halter]
    told = (tried(SETTINGS, HOST, row, ["exits"], tiny_config()).checks[0].detail for row in mine)
    assert any(re.search(r"between [123] and [234] turns, [123]\.", detail) for detail in told)


def test_every_two_parts_of_different_slots_meet_in_a_row():
    met = {pair for row in ROWS for pair in combinations([(slot, choice.name) for slot, choice in row.items()], 2)}
    offers = {slot: [part.name for _, part in HOST.parts(Slot(slot))] for slot in SLOTS}
    wanted = {((a, one), (b, other)) for a, b in combinations(SLOTS, 2) for one, other in product(offers[a], offers[b])}
    assert met == wanted


@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 2), 4), ((3, 2, 4), 14), ((7, 4, 5, 6), 50), ((3,) * 8, 20), ((1, 5, 1), 5)], ids=str
)
def test_a_covering_array_holds_every_pair_in_few_rows(sizes, most):
    array = covering(sizes)
    for a, b in combinations(range(len(sizes)), 2):
        assert {(row[a], row[b]) for row in array} == set(product(range(sizes[a]), range(sizes[b])))
    assert len(array) <= most
    assert len(set(array)) == len(array)
    assert covering(sizes) == array


def test_a_product_holds_every_combination_once():
    every = [tuple(names(row)) for row in rows(SETTINGS, HOST, ("gate", "norm", "halter"), every=True)]
    offers = [[part.name for _, part in HOST.parts(Slot(slot))] for slot in ("gate", "norm", "halter")]
    assert sorted(every) == sorted(product(*offers))


def test_a_part_that_the_settings_choose_keeps_its_options():
    settings = resolve(HOST, [{"modulator": {"use": "lora", "start": "zero", "rank": 2}}])
    chosen = [row[Slot.MODULATOR].options for row in rows(settings, HOST, ("modulator", "gate"), every=True)]
    assert {(options.start, options.rank) for options in chosen if hasattr(options, "start")} == {("zero", 2)}
    assert {options.rank for options in chosen if hasattr(options, "pool")} == {32}


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        (["gate"], "name two slots or more"),
        (["gate", "gate"], "each once"),
        (["gate", "norms"], "no slot is called 'norms'"),
    ],
)
def test_slots_that_cannot_be_combined_are_refused(slots, words):
    with pytest.raises(UserError, match=words):
        rows(SETTINGS, HOST, slots, every=False)


# Companions


def row(**chosen):
    settings = resolve(HOST, [{slot: {"use": name} for slot, name in chosen.items()}])
    return {Slot(slot): settings.one(Slot(slot)) for slot in chosen}


def accompanying(slot, **chosen):
    return [choice.part for choice in accompanied(SETTINGS, HOST, row(**chosen)).parts[slot]]


def test_a_halter_that_only_an_objective_teaches_gets_one():
    first, second = accompanying(Slot.OBJECTIVE, halter="ponder")
    assert first.default
    assert second.needs_shares
    assert [part.default for part in accompanying(Slot.OBJECTIVE, halter="act")] == [True]


def test_an_objective_that_reads_shares_gets_a_halter_that_gives_them_and_one_that_reads_the_text():
    assert [part.gives_shares for part in accompanying(Slot.HALTER, objective="ponder-kl")] == [True]
    assert [part.name for part in accompanying(Slot.OBJECTIVE, objective="ponder-kl")] == ["next-token", "ponder-kl"]
    assert tried(SETTINGS, HOST, row(objective="ponder-kl", gate="none"), ["labels"], tiny_config()).verdict == "ok"


def test_slots_that_are_combined_get_no_companion():
    outcome = tried(SETTINGS, HOST, row(halter="ponder", objective="next-token"), ["labels"], tiny_config())
    assert outcome.verdict == "refused"
    assert "learns from an objective that reads its shares" in outcome.refused


def test_companions_are_told():
    outcome = tried(SETTINGS, HOST, row(halter="exit-gate", gate="none"), ["exits"], tiny_config())
    assert outcome.parts == {"gate": "none", "halter": "exit-gate", "objective": "next-token, ponder"}
    assert outcome.verdict == "ok"


def test_what_cannot_be_built_is_refused_with_its_reason():
    settings = resolve(HOST, [])  # whose splitter does not say what the turns stand for
    outcome = tried(settings, HOST, row(modulator="lora", gate="none"), ["identity"], tiny_config())
    assert (outcome.verdict, outcome.failed) == ("refused", [])
    assert "the splitter does not say which layers the turns stand for" in outcome.refused


# Defects that only a pair has


class Marks(nn.Module):
    """A norm that keeps the mean of each row's states, over the whole row, for whoever reads it."""

    def forward(self, state, turn):
        Marks.mean = state.mean(1, keepdim=True).detach()
        return state


class Reads(nn.Module):
    """A gate that is causal by itself, and not behind that norm."""

    def forward(self, old, new, turn):
        return new + getattr(Marks, "mean", torch.zeros(()))


class Plugin:
    @staticmethod
    @hookimpl
    def ouroboros_parts():
        yield Part(Slot.NORM, "marks", NoOptions, lambda options, facts: Marks(), "Leaves a mean behind.")
        yield Part(Slot.GATE, "reads", NoOptions, lambda options, facts: Reads(), "Reads a mean.")


def test_what_two_parts_do_to_each_other_is_found_in_their_row_alone():
    host = PluginHost.installed(third_party=False)
    host.add("two", lambda: Plugin)
    settings = resolve(host, [{"modulator": {"use": "none"}}])
    verdicts = {}
    for row in rows(settings, host, ("gate", "norm"), every=False):
        Marks.mean = torch.zeros(())
        verdicts[tuple(names(row))] = tried(settings, host, row, ["causality"], tiny_config()).verdict
    failed = [pair for pair, verdict in verdicts.items() if verdict == "failed"]
    assert failed == [("local:reads", "local:marks")]
