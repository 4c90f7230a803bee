"""The manual says what the code does: its examples run, its tables and quotations are those of the code."""

import inspect
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from ouroboros_cli.flags import SHORT
from ouroboros_core import accounting, loop, pretrained
from ouroboros_core.build import build
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.hooks import Hooks
from ouroboros_core.host import PluginHost
from ouroboros_core.presets import Preset
from ouroboros_core.resolve import resolve
from ouroboros_core.settings import TABLES, BaseSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
QWEN = ROOT / "tests" / "data" / "qwen2.5-3b" / "config.json"


def text(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    """The cells of every table row, without backticks."""
    lines = [line for line in text(page).splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def shown(value: object) -> str:
    """A default, as the tables write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", '"')


def stripped(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def run_in_order(page: str) -> dict:
    names: dict = {}
    for number, code in enumerate(blocks(page)):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


def test_the_python_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_in_order("python.md")
    assert names["loss"].isfinite()


def test_the_plugin_page_is_a_plugin_that_loads():
    names = run_in_order("write-a-plugin.md")
    host = PluginHost.installed(third_party=False)
    record = host.add("from-the-page", lambda: SimpleNamespace(**names))
    assert record.cause == ""
    assert resolve(host, [host.preset("half-open").settings]).one(Slot.GATE).options.share == 0.5
    assert host.find(Slot.GATE, "skip").build(names["SkipGateOptions"](), names["loop_facts"]()).share[0] == 0.1
    names["test_the_gate_moves_by_its_share"]()


def test_every_key_of_every_table_is_listed_with_its_default():
    expected = {(f"{name}.{key}", shown(field.default)) for name, kind in TABLES.items()
                for key, field in kind.model_fields.items()}  # fmt: skip
    listed = {(row[0], row[1]) for row in rows("settings.md") if len(row) == 3 and row[0].split(".")[0] in TABLES}
    assert listed == expected


def test_every_option_of_every_built_in_part_is_listed_with_its_default():
    host = PluginHost.installed(third_party=False)
    expected = {
        (slot.value, part.name, f"{slot}.{part.name}.{key}" if slot.takes_many else f"{slot}.{key}", shown(f.default))
        for slot in Slot
        for _, part in host.parts(slot)
        for key, f in part.options.model_fields.items()
    }
    assert {tuple(row[:4]) for row in rows("settings.md") if len(row) == 5 and row[0] in list(Slot)} == expected


def test_every_flag_for_a_setting_is_listed_with_its_key():
    listed = {row[0]: row[1] for row in rows("settings.md") if re.match(r"--\w", row[0])}
    assert listed == {f"--{name}": path for name, (path, _, _) in SHORT.items()}
    assert all(f"`--{slot}`" in text("settings.md") for slot in Slot)


def test_every_built_in_preset_is_on_its_page_with_its_kind_of_base():
    presets = [preset for _, preset in PluginHost.installed(third_party=False).presets()]
    bases = {one.name: "from scratch" if "config" in one.settings.get("base", {}) else "pretrained" for one in presets}
    listed = [row for row in rows("presets.md") if len(row) == 5 and row[2] in bases.values()]
    assert {row[0]: row[2] for row in listed} == bases
    assert len(listed) == len(bases)


def test_the_preset_written_on_the_page_is_one(tmp_path):
    (written,) = re.findall(r"^```toml\n(.*?)^```$", text("presets.md"), re.DOTALL | re.MULTILINE)
    (tmp_path / "gentle.toml").write_text(written)
    preset = Preset.read(tmp_path / "gentle.toml")
    settings = resolve(PluginHost.installed(third_party=False), [preset.settings])
    assert preset.name == "gentle"
    assert settings.one(Slot.MODULATOR).options.rank == 8


def test_every_built_in_part_with_a_source_is_on_the_papers_page():
    host = PluginHost.installed(third_party=False)
    expected = {f"{slot} {part.name}" for slot in Slot for _, part in host.parts(slot) if part.source}
    assert expected - {row[1] for row in rows("papers.md")} == set()


@pytest.mark.parametrize("name", [name for name in vars(Hooks) if name.startswith("ouroboros_")])
def test_every_hook_is_on_the_plugin_page_with_its_signature(name):
    signature = re.search(r"def .*?:(?=\s*(#|$))", inspect.getsource(getattr(Hooks, name)), re.MULTILINE).group()
    assert re.sub(r"self(, )?", "", signature) in text("write-a-plugin.md").splitlines()


def test_every_field_of_a_part_is_on_the_plugin_page():
    listed = [row[0] for row in rows("write-a-plugin.md")]
    assert all(field.name in listed for field in fields(Part))


def test_every_slot_is_on_the_plugin_page():
    assert {row[0] for row in rows("write-a-plugin.md")} >= set(Slot)


def test_what_the_page_of_the_turn_quotes_is_in_the_loop_and_in_its_order():
    code = stripped(Path(loop.__file__).read_text())
    places = [code.find(stripped(quoted)) for quoted in blocks("one-turn.md")]
    assert len(places) > 5
    assert -1 not in places
    assert all(earlier < later for earlier, later in pairwise(places))


def test_the_page_of_the_turn_quotes_all_of_it():
    quoted = stripped("\n".join(blocks("one-turn.md"))).splitlines()
    body = stripped(inspect.getsource(loop.turn)).splitlines()
    assert [line for line in body if line not in quoted and not line.startswith('"""')] == []


def test_the_counts_of_the_papers_page_are_those_of_the_model():
    host = PluginHost.installed(third_party=False)
    settings = resolve(host, [])
    config = pretrained.load_config(BaseSettings(name=str(QWEN)))
    model = build(settings, host, pretrained.empty(config, "bfloat16"), fill_bases=False).model
    counts = {name: stored for name, stored, _ in accounting.by_component(model)}
    parts = [counts["modulator"], counts["gate"], counts["norm"]]
    frozen = [counts["recurrent block"], counts["modulator bases (frozen)"], counts["embeddings and head"]]
    kept = accounting.parameters(model).unique - sum(parts) - frozen[1]
    assert sum(parts) == accounting.parameters(model).trainable == 9_214_592
    for number in [*parts, *frozen, counts["prelude"], sum(parts), kept]:
        assert f"{number:,}" in text("papers.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
