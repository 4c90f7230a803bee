"""The host: every way in which a plugin may break, and that nobody else is touched by it."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import ouroboros_plugins
from ouroboros_core import NoOptions, hookimpl
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.host import OURS, PluginHost
from ouroboros_core.presets import Preset

FAKES = Path(__file__).parents[1] / "data" / "plugins"
GATE = Part(Slot.GATE, "theirs", NoOptions, lambda options, facts: "their gate", "A gate.")
SYSTEM = Preset("their-system", {"gate": {"use": "theirs"}}, "A system with their gate.")
LLAMA = SimpleNamespace(model_type="llama")


@pytest.fixture
def host():
    """The built-in parts, and a sound third party."""
    host = PluginHost()
    host.add("builtin", lambda: ouroboros_plugins, distribution=OURS, version="1")
    host.add("sound", lambda: offering(GATE), distribution="sound-parts", version="1")
    return host


@pytest.fixture
def installed(monkeypatch):
    """A host made with the two fake distributions of tests/data on the path."""
    monkeypatch.syspath_prepend(FAKES)
    return PluginHost.installed()


def module(**hooks):
    """A plugin with these hooks."""
    plugin = ModuleType("a_plugin")
    for name, function in hooks.items():
        setattr(plugin, name, hookimpl(function))
    return plugin


def offering(*offered):
    return module(ouroboros_parts=lambda: list(offered))


def presenting(*presets):
    return module(ouroboros_presets=lambda: iter(presets))


def exits():
    raise SystemExit("not today")


def raises():
    raise RuntimeError("first line\nsecond line")


def raises_late():
    yield GATE
    raise RuntimeError("after the first part")


BROKEN = {
    "import error": (lambda: import_module("a_module_that_nobody_has"), r"ModuleNotFoundError: .*nobody_has"),
    "exit at import": (exits, "SystemExit: not today"),
    "unknown hook": (lambda: module(ouroboros_prats=raises), "PluginValidationError: .*ouroboros_prats"),
    "bad signature": (lambda: module(ouroboros_parts=lambda slot: []), "PluginValidationError: .*slot"),
    "raising hook": (lambda: module(ouroboros_parts=raises), "RuntimeError: first line second line"),
    "exit in the hook": (lambda: module(ouroboros_parts=exits), "SystemExit: not today"),
    "late raise": (lambda: module(ouroboros_parts=raises_late), "RuntimeError: after the first part"),
    "no iterable": (lambda: module(ouroboros_parts=lambda: 3), "TypeError: ouroboros_parts returned int"),
    "nothing returned": (lambda: module(ouroboros_parts=lambda: None), "TypeError: .*returned NoneType"),
    "no part": (lambda: offering("gate"), "TypeError: ouroboros_parts yielded str, not a Part"),
    "foreign options": (lambda: offering(replace(GATE, options=dict)), "TypeError: the options of gate 'theirs'"),
    "options no class": (lambda: offering(replace(GATE, options=NoOptions())), "TypeError: the options of gate"),
    "one name twice": (lambda: offering(GATE, GATE), "ValueError: two parts with one name: gate 'theirs'"),
    "raising presets": (lambda: module(ouroboros_presets=raises), "RuntimeError: first line second line"),
    "no iterable of presets": (
        lambda: module(ouroboros_presets=lambda: SYSTEM),
        "TypeError: ouroboros_presets returned Preset, not an iterable of Preset",
    ),
    "no preset": (lambda: presenting({"gate": {}}), "TypeError: ouroboros_presets yielded dict, not a Preset"),
    "part for preset": (lambda: presenting(SYSTEM, GATE), "TypeError: ouroboros_presets yielded Part, not a Preset"),
    "one preset twice": (lambda: presenting(SYSTEM, SYSTEM), "ValueError: two presets with one name: their-system"),
    "raising presets behind sound parts": (
        lambda: module(ouroboros_parts=lambda: [replace(GATE, name="half")], ouroboros_presets=raises),
        "RuntimeError: first line second line",
    ),
    "preset without a name": (
        lambda: presenting(replace(SYSTEM, name=" ")),
        "ValueError: the name of a preset must be text, and is ' '",
    ),
    "preset with a strange name": (
        lambda: presenting(replace(SYSTEM, name=["a"])),
        r"ValueError: the name of a preset must be text, and is \['a'\]",
    ),
    "preset without a summary": (
        lambda: presenting(replace(SYSTEM, summary="")),
        "ValueError: preset 'their-system': summary must be text, and is ''",
    ),
    "preset with a strange source": (
        lambda: presenting(replace(SYSTEM, source=2025)),
        "ValueError: preset 'their-system': source must be text, and is 2025",
    ),
    "preset without tables": (
        lambda: presenting(replace(SYSTEM, settings=[("gate", {})])),
        "ValueError: preset 'their-system': settings must be a mapping of tables, and are list",
    ),
    "setting outside a table": (
        lambda: presenting(replace(SYSTEM, settings={"gate": {"use": "theirs"}, "turns": 2})),
        "ValueError: preset 'their-system': the setting 'turns' is no table",
    ),
    "presets with arguments": (
        lambda: module(ouroboros_presets=lambda folder: []),
        "PluginValidationError: .*folder",
    ),
}


@pytest.mark.parametrize(("load", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_recorded_and_nobody_else_is_touched(host, load, cause):
    before = gates(host)
    record = host.add("broken", load, distribution="broken-parts", version="2.1")
    host.add("later", lambda: offering(replace(GATE, name="later")))
    assert (record.name, record.distribution, record.version) == ("broken", "broken-parts", "2.1")
    assert record.parts == record.presets == []
    assert re.match(cause, record.cause)
    assert "\n" not in record.cause
    assert gates(host) == [*before, "later"]
    assert host.find(Slot.GATE, "theirs").build(None, None) == "their gate"
    assert host.versions == {"builtin": f"{OURS} 1", "sound": "sound-parts 1", "later": "local 0"}


def test_a_sound_plugin_has_no_cause(host):
    assert [record.cause for record in host.records] == ["", ""]


def test_a_keyboard_interrupt_while_a_plugin_loads_is_not_swallowed(host):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.add("slow", interrupted)


def test_a_preset_file_that_is_no_toml_breaks_the_plugin_and_says_why(host, tmp_path):
    (tmp_path / "bad.toml").write_text("[preset\nsummary = 1")
    read = module(ouroboros_presets=lambda: [Preset.read(file) for file in tmp_path.iterdir()])
    record = host.add("broken", lambda: read)
    assert record.presets == []
    assert record.cause.startswith("ValueError: bad.toml is no TOML: ")


def test_a_setting_outside_a_table_of_a_preset_file_breaks_the_plugin_and_says_why(host, tmp_path):
    (tmp_path / "bad.toml").write_text("turns = 2\npreset.summary = 'S'")
    record = host.add("broken", lambda: presenting(Preset.read(tmp_path / "bad.toml")))
    assert record.presets == []
    assert record.cause == "ValueError: preset 'bad': the setting 'turns' is no table"


def test_nothing_is_offered_by_a_plugin_of_which_the_presets_are_broken(host):
    theirs = SimpleNamespace(name="theirs")
    parts = [replace(GATE, name="half")]
    record = host.add(
        "half",
        lambda: module(
            ouroboros_parts=lambda: parts, ouroboros_presets=raises, ouroboros_anatomy=lambda config: theirs
        ),
    )
    assert record.cause.startswith("RuntimeError")
    with pytest.raises(UserError, match="no gate is called 'half'"):
        host.find(Slot.GATE, "half")
    assert host.anatomy(LLAMA).name == "llama"
    assert "half" not in host.versions


def test_presets_are_listed_with_the_plugin_that_offers_them(host):
    before = [preset.name for record, preset in host.presets() if record.builtin]
    record = host.add("systems", lambda: presenting(SYSTEM, replace(SYSTEM, name="another")))
    assert [preset.name for preset in record.presets] == ["their-system", "another"]
    listed = [(found.name, preset.name) for found, preset in host.presets() if not found.builtin]
    assert listed == [("systems", "their-system"), ("systems", "another")]
    assert [preset.name for found, preset in host.presets() if found.builtin] == before


def test_a_preset_is_found_by_its_name_and_by_its_qualified_name(host):
    host.add("systems", lambda: presenting(SYSTEM), distribution="their-systems")
    assert host.preset("their-system") is host.preset("their-systems:their-system") is SYSTEM


def test_two_third_parties_with_one_preset_must_be_told_apart(host):
    other = replace(SYSTEM, summary="Another system.")
    host.add("one", lambda: presenting(SYSTEM), distribution="one")
    host.add("other", lambda: presenting(other), distribution="other")
    say = r"several plugins offer a preset called 'their-system'\. Say which: one:their-system, other:their-system"
    with pytest.raises(UserError, match=say):
        host.preset("their-system")
    assert host.preset("other:their-system") is other


def test_a_built_in_preset_cannot_be_redirected():
    host, ours = PluginHost(), replace(SYSTEM, name="ours")
    host.add("builtin", lambda: presenting(ours), distribution=OURS)
    thief = replace(ours, summary="Not ours.")
    host.add("thief", lambda: presenting(thief), distribution="thief-parts")
    assert host.preset("ours") is ours
    assert host.preset("thief-parts:ours") is thief


def test_a_failed_look_up_of_a_preset_says_what_is_near_and_which_plugins_failed(host):
    host.add("systems", lambda: presenting(SYSTEM))
    host.add("broken", exits)
    with pytest.raises(UserError, match=r"no preset is called 'their-systm'\. Did you mean 'their-system'\?") as caught:
        host.preset("their-systm")
    assert re.search(r"Known: .*their-system.*1 plugin\(s\) failed to load: broken", str(caught.value))


def test_a_part_is_no_preset_and_a_preset_no_part(host):
    host.add("systems", lambda: presenting(SYSTEM))
    with pytest.raises(UserError, match="no preset is called 'theirs'"):
        host.preset("theirs")
    with pytest.raises(UserError, match="no gate is called 'their-system'"):
        host.find(Slot.GATE, "their-system")


def test_a_raising_anatomy_is_recorded_and_the_next_is_asked(host):
    def ouroboros_anatomy(config):
        raise RuntimeError(f"no idea of {config.model_type}")

    record = host.add("broken", lambda: module(ouroboros_anatomy=ouroboros_anatomy))
    assert host.anatomy(LLAMA).name == "llama"
    assert record.cause == "RuntimeError: no idea of llama"


def test_a_plugin_whose_anatomy_raises_later_keeps_its_parts_and_its_version_is_told(host):
    gate = replace(GATE, name="whole")
    host.add("whole", lambda: module(ouroboros_parts=lambda: [gate], ouroboros_anatomy=lambda config: raises()))
    host.anatomy(LLAMA)
    assert host.find(Slot.GATE, "whole") is gate
    assert host.versions == {"builtin": f"{OURS} 1", "sound": "sound-parts 1", "whole": "local 0"}


def test_our_parts_are_still_defaults_where_our_anatomy_raises():
    host = PluginHost()
    hooks = {"ouroboros_parts": lambda: [replace(GATE, default=True)], "ouroboros_anatomy": lambda config: raises()}
    host.add("builtin", lambda: module(**hooks), distribution=OURS)
    with pytest.raises(UserError, match="no plugin knows the anatomy"):
        host.anatomy(LLAMA)
    assert host.default(Slot.GATE).name == "theirs"


def test_versions_tell_two_plugins_of_one_name_apart(host):
    host.add("sound", lambda: offering(replace(GATE, name="other")), distribution="other-parts", version="2")
    assert host.versions == {"builtin": f"{OURS} 1", "sound": "sound-parts 1", "other-parts:sound": "other-parts 2"}


def test_a_third_party_anatomy_is_asked_before_ours(host):
    theirs = SimpleNamespace(name="theirs")
    host.add("specific", lambda: module(ouroboros_anatomy=lambda config: theirs))
    assert host.anatomy(LLAMA) is theirs


def test_an_anatomy_hook_need_not_name_the_config(host):
    host.add("indifferent", lambda: module(ouroboros_anatomy=lambda: None))
    assert host.anatomy(LLAMA).name == "llama"


def test_a_model_nobody_knows_is_refused_by_its_type(host):
    host.add("broken", exits)
    with pytest.raises(UserError, match=r"anatomy of a 'mamba' model\..*1 plugin\(s\) failed to load: broken"):
        host.anatomy(SimpleNamespace(model_type="mamba"))


def test_a_built_in_name_cannot_be_redirected(host):
    thief = replace(GATE, name="sigmoid", null=True, default=True)
    host.add("thief", lambda: offering(thief), distribution="thief-parts")
    ours = our_gate("sigmoid")
    assert host.find(Slot.GATE, "sigmoid") is ours
    assert host.find(Slot.GATE, f"{OURS}:sigmoid") is ours
    assert host.default(Slot.GATE) is ours
    assert host.null(Slot.GATE).name == "none"
    assert host.find(Slot.GATE, "thief-parts:sigmoid") is thief


def test_two_third_parties_with_one_name_must_be_told_apart(host):
    other = replace(GATE, summary="Another gate.")
    host.add("other", lambda: offering(other), distribution="other-parts")
    with pytest.raises(UserError, match=r"several plugins .* 'theirs'.*: sound-parts:theirs, other-parts:theirs"):
        host.find(Slot.GATE, "theirs")
    assert host.find(Slot.GATE, "sound-parts:theirs") is GATE
    assert host.find(Slot.GATE, "other-parts:theirs") is other


def test_a_failed_look_up_says_what_is_near_and_what_is_known(host):
    with pytest.raises(UserError, match=r"no gate is called 'sigmod'\. Did you mean 'sigmoid'\? Known: ") as caught:
        host.find(Slot.GATE, "sigmod")
    known = str(caught.value).split("Known: ")[1].rstrip(".").split(", ")
    assert known == sorted(gates(host))


def test_a_part_of_another_slot_is_not_found(host):
    with pytest.raises(UserError, match="no norm is called 'theirs'"):
        host.find(Slot.NORM, "theirs")


def test_a_failed_look_up_mentions_the_plugins_that_failed(host):
    host.add("broken", exits)
    with pytest.raises(UserError, match=r"1 plugin\(s\) failed to load: broken\. Why: ouro list-plugins"):
        host.find(Slot.GATE, "tanh")


def test_without_failures_a_failed_look_up_mentions_none(host):
    with pytest.raises(UserError) as caught:
        host.find(Slot.GATE, "tanh")
    assert "failed to load" not in str(caught.value)


def test_a_broken_built_in_plugin_says_why_where_a_default_is_wanted():
    host = PluginHost()
    host.add("builtin", BROKEN["import error"][0], distribution=OURS)
    with pytest.raises(UserError, match="nobody_has"):
        host.default(Slot.GATE)


def test_two_hosts_share_nothing(host):
    assert gates(PluginHost()) == []
    other = PluginHost()
    other.add("other", lambda: offering(replace(GATE, name="others")))
    assert gates(other) == ["others"]
    assert "others" not in gates(host)


@pytest.mark.parametrize("slot", Slot)
def test_every_slot_has_one_default_and_at_most_one_null_part(slot, host):
    assert host.default(slot).slot == slot
    assert sum(part.null for _, part in host.parts(slot)) <= 1


def test_installed_plugins_come_ours_first_then_by_name(installed):
    ours, *others = [(record.name, record.distribution) for record in installed.records]
    assert ours == ("builtin", OURS)
    assert others == sorted(others)
    fakes = [name for name, distribution in others if distribution in ("acme-parts", "zenith")]
    assert fakes == [
        "acme-exit", "acme-good", "acme-importerror", "acme-missing", "acme-raising", "builtin", "zenith"
    ]  # fmt: skip


def test_broken_installed_plugins_are_recorded_with_version_and_cause(installed):
    broken = {record.name: record for record in installed.records if record.distribution == "acme-parts"}
    causes = {name: record.cause.split(":")[0] for name, record in broken.items()}
    assert causes == {
        "acme-exit": "SystemExit",
        "acme-good": "",
        "acme-importerror": "ModuleNotFoundError",
        "acme-missing": "ModuleNotFoundError",
        "acme-raising": "RuntimeError",
        "builtin": "",
    }
    assert {record.version for record in broken.values()} == {"1.2"}


def test_an_installed_name_shared_by_two_works_in_its_qualified_form(installed):
    with pytest.raises(UserError, match="acme-parts:shared, zenith:shared"):
        installed.find(Slot.GATE, "shared")
    assert installed.find(Slot.GATE, "zenith:shared").build(None, None) == "zenith's gate"


def test_installed_presets_are_listed_and_a_name_shared_by_two_works_in_its_qualified_form(installed):
    offered = {(record.name, preset.name) for record, preset in installed.presets()}
    assert {("acme-good", "shared-system"), ("zenith", "shared-system")} <= offered
    with pytest.raises(UserError, match="acme-parts:shared-system, zenith:shared-system"):
        installed.preset("shared-system")
    assert installed.preset("acme-parts:shared-system").summary == "Acme's system."


def test_an_entry_point_that_calls_itself_built_in_is_not(installed):
    assert installed.null(Slot.GATE) is our_gate("none")
    assert installed.find(Slot.GATE, "none") is installed.null(Slot.GATE)


def test_without_third_parties_only_ours_is_loaded(installed):
    assert [record.distribution for record in PluginHost.installed(third_party=False).records] == [OURS]


def test_importing_the_core_loads_no_plugin():
    code = "import sys, ouroboros_core.host, ouroboros_core.resolve; sys.exit('ouroboros_plugins' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def our_gate(name):
    (part,) = (part for part in ouroboros_plugins.gates.PARTS if part.name == name)
    return part


def gates(host):
    """The names of all gates, in order."""
    return [part.name for _, part in host.parts(Slot.GATE)]
