"""Conformance: each check is proved by planted defects that it must catch, and every preset passes them all."""

import re

import pytest

from ouroboros_core import accounting
from ouroboros_core.conformance import CHECKS, conformance
from ouroboros_core.conformance.start import SLOTS, promises
from ouroboros_core.contracts import Part
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import assert_conforms, tiny_config
from tests.core.planted import DEFECTS, MISCOUNTED

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


@pytest.mark.parametrize(("name", "faulty", "what"), MISCOUNTED.values(), ids=MISCOUNTED)
def test_a_wrong_count_is_caught(host, monkeypatch, name, faulty, what):
    monkeypatch.setattr(accounting, name, faulty(getattr(accounting, name)))
    settings = resolve(host, [PLAIN, {"schedule": {"with_gradient": 2}}])
    (found,) = conformance(settings, host, ["operations"], tiny_config())
    assert not found.passed
    assert re.search(rf"^\d+ {what} a token are counted, and there are \d+: ", found.detail), found.detail


def test_every_check_is_proved_by_a_defect():
    elsewhere = {"operations", "cached", "gathered"}  # by miscounts, and in test_decoding_checks
    assert {name for defect in DEFECTS.values() for name in defect.caught} | elsewhere == set(CHECKS)


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


STARTS = [  # every part that promises to start as nothing, some beside others
    {"modulator": {"use": "controller"}},
    {"modulator": {"use": "static"}, "adapter": {"use": "coda-lora"}},
    {"modulator": {"use": "lora", "start": "zero"}, "norm": {"use": "per-level"}},
    {"modulator": {"use": ["level-signal", "step-scale"]},
     "adapter": {"use": ["coda-lora", "unfreeze"], "unfreeze": {"layers": 1}}},
    {"modulator": {"use": "step-embedding", "kind": "learned"}, "adapter": {"use": "unfreeze", "layers": 1}},
    {"modulator": {"use": "step-scale", "on": "output"}, "adapter": {"use": "full"}},
]  # fmt: skip


@pytest.mark.parametrize("layer", STARTS, ids=str)
def test_what_promises_to_start_as_nothing_does(host, layer):
    settings = resolve(host, [{"gate": {"use": "highway"}, "entry": {"use": "noise-concat"}}, layer])
    (found,) = conformance(settings, host, ["start"], tiny_config())
    assert found.passed, found.detail
    told = [f"{slot} {name}" for slot, values in layer.items() for name in named(values["use"])]
    assert sorted(found.detail.removesuffix(": as if it were not there").split(", ")) == sorted(told)


def named(use):
    return use if isinstance(use, list) else [use]


def test_every_part_that_promises_it_is_among_them(host):
    offered = {(slot, part.name) for slot in SLOTS for _, part in host.parts(slot) if part.starts_null}
    assert offered == {
        (slot, name) for layer in STARTS for slot, values in layer.items() for name in named(values["use"])
    }


def test_a_promise_may_depend_on_the_options(host):
    for options, promised in (({"start": "svd"}, False), ({"start": "zero"}, True)):
        settings = resolve(host, [{"modulator": {"use": "lora", **options}}])
        assert promises(settings.one("modulator")) is promised
    waves = resolve(host, [{"modulator": {"use": "step-embedding", "kind": "learned", "positions": True}}])
    assert not promises(waves.one("modulator"))


def test_a_mistake_in_the_settings_is_no_failed_check(host):
    settings = resolve(host, [{"splitter": {"prelude": 5, "coda": 5}}])
    with pytest.raises(UserError, match="splitter"):
        conformance(settings, host, config=tiny_config())


def test_plugin_authors_get_every_failure_in_one_error():
    defect = DEFECTS["pooling over later tokens"]
    host, _ = offering(defect)
    with pytest.raises(AssertionError, match=r"(?s)checks failed\ncausality: the model sees the future.*\npadding: "):
        assert_conforms(host, PLAIN, {"gate": {"use": "faulty"}})
