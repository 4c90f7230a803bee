"""Conformance: each check is proved by planted defects that it must catch, and every preset passes them all."""

import re

import pytest

from ouroboros_core.conformance import CHECKS, conformance
from ouroboros_core.contracts import Part
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import assert_conforms, tiny_config
from tests.core.planted import DEFECTS

NONE = {slot: {"use": "none"} for slot in ("modulator", "norm", "gate")}
PLAIN = {**NONE, "adapter": {"use": "coda-lora"}}


def offering(defect):
    """A host that also offers the faulty part, and settings that choose it."""
    part = Part(defect.slot, "faulty", defect.options, lambda options, facts: defect.make(facts), "x", **defect.flags)

    class Plugin:
        @staticmethod
        @hookimpl
        def ouroboros_parts():
            yield part

    host = PluginHost.installed(third_party=False)
    assert host.add("faulty", lambda: Plugin).cause == ""
    return host, resolve(host, [PLAIN, {defect.slot: {"use": "faulty"}}])


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_caught_by_name(defect):
    host, settings = offering(defect)
    found = conformance(settings, host, list(defect.caught), tiny_config())
    for result, (name, words) in zip(found, defect.caught.items(), strict=True):
        assert result.name == name
        assert not result.passed
        assert re.search(words, result.detail), result.detail


def test_every_check_is_proved_by_a_defect():
    assert {name for defect in DEFECTS.values() for name in defect.caught} == set(CHECKS)


def test_the_parts_that_the_defects_are_laid_over_pass(host):
    assert_conforms(host, PLAIN)


# What must pass

SMALL = {
    "splitter": {"prelude": 2, "coda": 2},
    "modulator": {"rank": 4},
}
FITTED = {  # numbers of the published size that do not fit 8 layers, and turns that would take long
    "huginn": {"loop": {"turns": 6}, "schedule": {"with_gradient": 4}},
    "ouroboros": SMALL,
    "ouroboros-paper": {**SMALL, "run": {"allow_leak": True}},
    "ouroboros-static": SMALL,
    "refiner": {"modulator": {"rank": 4}},
    "relaxed": {"modulator": {"rank": 4}},
    "retrofit": {"splitter": {"prelude": 2, "block": 4, "size": 2, "coda": 2}},
    "ringformer": {},
    "thinking-deeper": {},
    "universal": {},
}


@pytest.mark.parametrize("name", FITTED)
def test_a_preset_passes_every_check(host, name):
    preset = host.preset(name)
    layers = preset.settings.get("base", {}).get("config", {}).get("num_hidden_layers", 8)
    assert_conforms(host, preset.settings, FITTED[name], config=tiny_config(layers))


def test_no_preset_is_left_out(host):
    assert {preset.name for _, preset in host.presets()} == set(FITTED)


def test_learned_exits_and_splitters_that_measure_pass(host):
    exits = {"objective": {"use": ["next-token", "ponder-kl"]}}
    assert_conforms(host, NONE, {"halter": {"use": "ponder"}, **exits, "splitter": {"use": "angular-distance"}})
    assert_conforms(host, NONE, {"halter": {"use": "exit-gate"}, **exits, "splitter": {"use": "block-influence"}})


def test_exits_of_several_loops_are_asked_only_what_the_trace_tells(host):
    assert_conforms(host, NONE, {"halter": {"use": "act"}, "splitter": {"use": "sequence"}})


def test_a_mistake_in_the_settings_is_no_failed_check(host):
    settings = resolve(host, [{"splitter": {"prelude": 5, "coda": 5}}])
    with pytest.raises(UserError, match="splitter"):
        conformance(settings, host, config=tiny_config())


def test_plugin_authors_get_every_failure_in_one_error():
    defect = DEFECTS["pooling over later tokens"]
    host, _ = offering(defect)
    with pytest.raises(AssertionError, match=r"(?s)checks failed\ncausality: the model sees the future.*\npadding: "):
        assert_conforms(host, PLAIN, {"gate": {"use": "faulty"}})
