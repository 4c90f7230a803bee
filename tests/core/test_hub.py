"""Saving and loading as the library does it: the same to the bit, or one line that says why not."""

import json
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import decoders
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import ouroboros_core  # noqa: F401 - from here on the Auto classes know our model
from ouroboros_core import hub, pretrained
from ouroboros_core.build import build
from ouroboros_core.config import RecursiveConfig
from ouroboros_core.contracts import Depth, Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.measure import measure
from ouroboros_core.model import RecursiveLM
from ouroboros_core.options import NoOptions
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_base, tiny_config, tiny_model, tiny_tokenizer
from ouroboros_core.weights import seal

MODELS = {
    "parts by turn": {},
    "layers that start as means": {"splitter": {"use": "cycle", "start": "average"}, "gate": {"use": "none"}},
    "a full adapter": {"adapter": {"use": "full"}},
    "coda-lora": {"adapter": {"use": "coda-lora"}},
    "two loops": {"splitter": {"use": "sequence", "layers": 2}},
    "measured layers": {"splitter": {"use": "angular-distance"}},
}
RANDOM = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8}
RANDOM |= {"num_attention_heads": 4, "vocab_size": 320}
FORMS = pytest.mark.parametrize("whole", [False, True], ids=["parts", "whole"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny bases, by what is special about them."""
    folder = tmp_path_factory.mktemp("bases")
    config = tiny_config()
    config.tie_word_embeddings = True
    other = tiny_model()
    other.model.norm.weight.data += 0.1
    for name, model in {"tied": AutoModelForCausalLM.from_config(config), "other": other}.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return {"untied": tiny_base(folder / "untied"), "tied": folder / "tied", "other": folder / "other"}


@pytest.fixture(scope="module")
def trained(host, bases):
    """A model on a tiny base, of which everything that learns has moved."""

    def trained(base="untied", dtype="float32", host=host, config=None, **tables):
        first = {"base": {"name": str(bases.get(base, base)), "dtype": dtype}, "modulator": {"rank": 4}}
        settings = resolve(host, [first, {"base": {"config": config}} if config else {}, tables])
        intact = pretrained.load(settings.base)
        measures = settings.one(Slot.SPLITTER).part.measures
        anatomy, text = host.anatomy(intact.model.config), torch.arange(24).view(2, 12)
        statistics = measure(intact.model, anatomy, text) if measures else None
        model = build(settings, host, intact.model, statistics).model.eval()
        model.config.base = intact.told(settings.base)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    return trained


@pytest.fixture(scope="module")
def originals(trained, tmp_path_factory):
    """A model, saved in both ways."""
    folder = tmp_path_factory.mktemp("originals")
    for whole in (False, True):
        trained().save_pretrained(folder / str(whole), merge_base=whole)
    return folder


@pytest.fixture
def saved(originals, tmp_path):
    """A folder with the parts of a model."""
    return shutil.copytree(originals / "False", tmp_path / "saved")


@pytest.fixture
def form(originals, whole, tmp_path):
    """A folder with the parts of a model, or with the whole."""
    return shutil.copytree(originals / str(whole), tmp_path / "form")


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def must_be_equal(one, other, ids):
    """Every weight, its type and whether it learns; the config; and what is said of a text."""
    mine, theirs = one.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (tensor.dtype, tensor.requires_grad) == (theirs[name].dtype, theirs[name].requires_grad), name
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(logits(one, ids), logits(other, ids))
    assert one.config.to_dict() == other.config.to_dict()


def refused(folder, words, load=AutoModelForCausalLM.from_pretrained, **how):
    """No model comes of it, but one line."""
    with pytest.raises(UserError, match=words) as caught:
        load(folder, **how)
    assert "\n" not in str(caught.value)


@FORMS
@pytest.mark.parametrize(("base", "dtype"), [("untied", "float32"), ("tied", "bfloat16")])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_as_it_was_saved_to_the_bit(trained, name, base, dtype, whole, ids, tmp_path):
    model = trained(base, dtype, **MODELS[name])
    model.save_pretrained(tmp_path / "saved", merge_base=whole)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model, ids), logits(loaded, ids))
    assert torch.equal(model.trace(ids).logits(), logits(loaded, ids))
    assert not loaded.training
    tied = loaded.head.weight is loaded.get_input_embeddings().weight
    assert tied == (base == "tied")
    loaded.save_pretrained(tmp_path / "again", merge_base=whole)
    must_be_equal(loaded, RecursiveLM.from_pretrained(tmp_path / "again"), ids)


@FORMS
def test_on_random_weights_too(trained, whole, ids, tmp_path):
    model = trained(config=RANDOM)
    model.save_pretrained(tmp_path, merge_base=whole)
    must_be_equal(AutoModelForCausalLM.from_pretrained(tmp_path), RecursiveLM.from_pretrained(tmp_path), ids)
    assert torch.equal(logits(model, ids), logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids))


def test_a_model_goes_from_parts_to_the_whole_and_back(trained, ids, tmp_path):
    model, (a, b, c) = trained(adapter={"use": "coda-lora"}), (tmp_path / name for name in "abc")
    model.save_pretrained(a)
    RecursiveLM.from_pretrained(a).save_pretrained(b, merge_base=True)
    RecursiveLM.from_pretrained(b).save_pretrained(c)
    assert torch.equal(logits(model, ids), logits(RecursiveLM.from_pretrained(c), ids))
    first, last = (load_file(folder / hub.PARTS) for folder in (a, c))
    assert list(first) == list(last)
    assert all(torch.equal(first[name], last[name]) for name in first)


@FORMS
def test_a_folder_holds_json_and_safetensors_and_nothing_else(form, whole):
    stem = "model" if whole else "parts"
    names = {path.name for path in form.iterdir()}
    assert names == {"config.json", "generation_config.json", f"{stem}.safetensors", f"{stem}.sha256"}
    for name in ("config.json", "generation_config.json"):
        assert isinstance(json.loads((form / name).read_text()), dict)
    with safe_open(form / f"{stem}.safetensors", framework="pt") as file:
        assert any(name.startswith("base.") for name in file.keys()) == whole  # noqa: SIM118 - it is no mapping
        assert any(name.startswith("loops.") for name in file.keys())  # noqa: SIM118


@FORMS
def test_what_was_saved_last_is_what_is_loaded(trained, whole, ids, tmp_path):
    first, second = trained(), trained(modulator={"rank": 3})
    first.save_pretrained(tmp_path, merge_base=not whole)
    second.save_pretrained(tmp_path, merge_base=whole)
    assert torch.equal(logits(second, ids), logits(RecursiveLM.from_pretrained(tmp_path), ids))


@FORMS
@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, RecursiveLM.from_pretrained])
def test_turns_change_how_deep_it_is(trained, whole, load, ids, tmp_path):
    model = trained()
    model.save_pretrained(tmp_path, merge_base=whole)
    deeper = load(tmp_path, turns=7)
    once = len(model.split.order) - len(model.split.looped)
    assert deeper.config.num_hidden_layers == once + 7 * len(model.split.looped)
    assert torch.equal(logits(deeper, ids), model.trace(ids, depth=Depth.full(7)).logits())
    assert not torch.equal(logits(deeper, ids), logits(model, ids))
    deeper.save_pretrained(tmp_path / "deeper", merge_base=whole)
    must_be_equal(deeper, load(tmp_path / "deeper"), ids)


@pytest.mark.parametrize("turns", [0, -1, 1.5, "many"])
def test_turns_that_cannot_be_taken(saved, turns):
    refused(saved, r"^turns = .*: a recursive model takes 1 or more", turns=turns)


@FORMS
@pytest.mark.parametrize(("then", "now"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_it_computes_in_another_type_than_it_was_trained_in(trained, whole, then, now, ids, tmp_path):
    model = trained(dtype=then)
    model.save_pretrained(tmp_path, merge_base=whole)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=now)
    assert str(loaded.dtype) == str(loaded.head.weight.dtype) == f"torch.{now}"
    assert all(p.dtype == torch.float32 for p in loaded.loops.parameters())  # what learns keeps its precision
    assert torch.equal(loaded.head.weight, model.head.weight.to(loaded.dtype))
    torch.testing.assert_close(logits(loaded, ids).float(), logits(model, ids).float(), atol=0.1, rtol=0.1)
    loaded.save_pretrained(tmp_path / "again", merge_base=whole)
    must_be_equal(loaded, AutoModelForCausalLM.from_pretrained(tmp_path / "again"), ids)
    refused(tmp_path, r"base\.dtype = 'float16'", dtype=torch.float16)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu"), None])
def test_it_goes_on_one_device(saved, device_map, ids):
    loaded = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
    assert logits(loaded, ids).device.type == loaded.device.type


def test_it_goes_on_no_two_devices(saved):
    refused(saved, "a recursive model goes on one device", device_map={"base": "cpu", "loops": "cpu"})


def test_the_library_is_told_what_it_asks_for(saved):
    loaded, told = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True, torch_dtype="auto")
    assert isinstance(loaded, RecursiveLM)
    assert not any(told.values())
    with pytest.raises(TypeError, match=r"takes no quantisation$"):
        RecursiveLM.from_pretrained(saved, quantisation=4)
    config = AutoConfig.from_pretrained(saved)
    assert type(config) is RecursiveConfig
    assert (config.turns, config.num_hidden_layers, config.vocab_size) == (4, 6, 320)
    assert config.num_hidden_layers == loaded.config.num_hidden_layers


@FORMS
def test_how_it_writes_is_saved_with_it(trained, whole, tmp_path):
    model = trained()
    model.generation_config.update(do_sample=True, temperature=0.5, eos_token_id=[0, 7])
    model.save_pretrained(tmp_path, merge_base=whole)
    told = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (told.do_sample, told.temperature, told.eos_token_id) == (True, 0.5, [0, 7])


@FORMS
def test_loading_draws_no_random_numbers_of_the_users(form):
    before = torch.get_rng_state()
    RecursiveLM.from_pretrained(form)
    assert torch.equal(torch.get_rng_state(), before)


# A whole model in several files


@pytest.fixture
def shards(trained, monkeypatch, tmp_path):
    """A folder with a whole model in several files, and the model."""
    model = trained("tied", "bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "save_torch_state_dict", partial(hub.save_torch_state_dict, max_shard_size="40KB"))
        model.save_pretrained(tmp_path, merge_base=True)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path, model


def test_a_model_in_several_files_is_loaded_to_the_bit(shards, ids):
    folder, model = shards
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder), ids), logits(model, ids))


def test_one_file_takes_the_place_of_several(shards, trained, ids):
    folder, _ = shards
    model = trained()
    model.save_pretrained(folder, merge_base=True)
    assert [path.name for path in folder.glob("model*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder), ids), logits(model, ids))


@pytest.mark.parametrize("name", ["model-00002-of-*.safetensors", "model.safetensors.index.json", "model.sha256"])
def test_one_of_several_files_that_is_lost(shards, name):
    folder, _ = shards
    (path,) = folder.glob(name)
    path.unlink()
    refused(
        folder, rf"{path.name}(, which is not there: one of them| cannot be read: No such .* its folder) was changed"
    )


@pytest.mark.parametrize("name", ["model-00002-of-*.safetensors", "model.safetensors.index.json"])
def test_one_of_several_files_that_is_damaged(shards, name):
    folder, _ = shards
    (path,) = folder.glob(name)
    flip(path)
    refused(folder, rf"{path.name} is damaged: it is not what model\.sha256 says was written")


# Where the base is


def test_a_base_that_was_moved_is_loaded_from_where_it_is(trained, bases, ids, tmp_path):
    place = shutil.copytree(bases["untied"], tmp_path / "base")
    model = trained(place)
    model.save_pretrained(tmp_path / "saved")
    shutil.move(place, tmp_path / "moved")
    refused(tmp_path / "saved", rf"base {place} is not there: .* say where it is with base_model=\.\.\.$")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", base_model=tmp_path / "moved")
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    loaded.save_pretrained(tmp_path / "again")
    must_be_equal(loaded, AutoModelForCausalLM.from_pretrained(tmp_path / "again"), ids)


def test_another_base_under_the_name_of_the_first(trained, bases, tmp_path):
    place = shutil.copytree(bases["untied"], tmp_path / "base")
    trained(place).save_pretrained(tmp_path / "saved")
    shutil.rmtree(place)
    shutil.copytree(bases["other"], place)
    words = r"was trained on a base with fingerprint \w+, and .* has \w+: give the right one with base_model=\.\.\."
    refused(tmp_path / "saved", words)
    refused(tmp_path / "saved", words, base_model=bases["other"])
    assert RecursiveLM.from_pretrained(tmp_path / "saved", base_model=bases["untied"])


def test_parts_that_were_trained_on_another_base(trained, saved, tmp_path):
    trained("other").save_pretrained(tmp_path / "others")
    for name in (hub.PARTS, "parts.sha256"):  # of the same shapes, and whole
        shutil.copy(tmp_path / "others" / name, saved / name)
    refused(saved, r"parts\.safetensors was trained on a base with fingerprint \w+; this one has \w+")


def test_a_model_whose_base_has_no_name_is_saved_whole_or_not_at_all(make, ids, tmp_path):
    model = make().model.eval()
    with pytest.raises(UserError, match=r"does not know the name of its base: .* merge_base=True"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    model.save_pretrained(tmp_path / "saved", merge_base=True)
    assert torch.equal(logits(RecursiveLM.from_pretrained(tmp_path / "saved"), ids), logits(model, ids))


@pytest.mark.parametrize(("what", "change"), [
    ("parts", lambda told: told["tables"]["modulator"].update(alpha=96.0)),
    ("parts", lambda told: told["tables"]["gate"].update(bias=-1.0)),
    ("layers", lambda told: told["split"]["segments"][1].update(layers=[4])),
    ("settings", lambda told: told["tables"]["train"].update(seed=1)),
    ("turns", lambda told: told.update(turns=3)),
    ("dimensions", lambda told: told["base_config"].update(rms_norm_eps=0.1)),
])  # fmt: skip
@pytest.mark.parametrize("whole", [False, True])
def test_a_config_that_says_something_else_than_was_trained_is_refused(what, change, whole, trained, tmp_path):
    trained("untied").save_pretrained(tmp_path / "saved", merge_base=whole)
    config = tmp_path / "saved" / "config.json"
    told = json.loads(config.read_text())
    change(told)
    config.write_text(json.dumps(told))
    refused(tmp_path / "saved", rf"its {what} are not those that were trained")


def test_a_folder_with_a_model_of_another_kind_is_left_alone(trained, bases, tmp_path):
    shutil.copytree(bases["untied"], tmp_path / "base")
    before = sorted(path.name for path in (tmp_path / "base").iterdir())
    with pytest.raises(UserError, match="holds another model, perhaps the base: save into a folder of its own"):
        trained("untied").save_pretrained(tmp_path / "base")
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == before


# What is damaged or missing


def flip(path):
    """Change one byte, which stays a printable character if it was one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@FORMS
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_text(""), lambda path: path.write_text("[]")])
@pytest.mark.parametrize("name", ["{}.safetensors", "{}.sha256"])
def test_damaged_weights_are_no_model(form, whole, damage, name):
    stem = "model" if whole else "parts"
    damage(form / name.format(stem))
    refused(form, rf"{stem}\.(safetensors|sha256) is damaged: |its \w+ are not those that were|names \w+, which")


@FORMS
def test_checksums_that_are_no_text(form):
    (path,) = form.glob("*.sha256")
    path.write_bytes(b"\xff\xfe\xff")
    refused(form, rf"{path.name} is damaged: it is no list of checksums")


@FORMS
def test_missing_weights_are_no_model(form):
    (checksums,) = form.glob("*.sha256")
    checksums.unlink()
    refused(form, rf"{checksums.name} cannot be read: No such file or directory")
    (weights,) = form.glob("*.safetensors")
    weights.unlink()
    refused(form, r"has no weights, neither parts\.safetensors nor model\*\.safetensors")


def test_a_config_alone_is_no_model(saved, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(saved / "config.json", tmp_path / "alone")
    refused(tmp_path / "alone", r"has no weights, neither parts\.safetensors nor model\*\.safetensors")
    with pytest.raises(TypeError, match="missing"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved))


def test_weights_of_other_shapes_are_another_model(saved):
    tables = json.loads((saved / "config.json").read_text())["tables"]
    tables["modulator"]["controller"]["rank"] = 3
    edit(saved / "config.json", tables=tables)
    refused(saved, r"parts\.safetensors is of another model: loops\.0\.modulator\S+ is only on one side, or has two")


def test_a_whole_of_other_shapes_is_another_model(trained, tmp_path):
    trained().save_pretrained(tmp_path, merge_base=True)
    base = json.loads((tmp_path / "config.json").read_text())["base_config"]
    edit(tmp_path / "config.json", base_config=base | {"intermediate_size": 40})
    seal(tmp_path, "model.sha256", json.loads((tmp_path / "config.json").read_text()))
    refused(tmp_path, r"cannot be read: .* size mismatch for ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tables": None}, r"config\.json does not say which parts and layers the model has"),
        ({"split": None}, r"config\.json does not say which parts and layers the model has"),
        ({"split": {"total": 6}}, r"^config\.json is damaged: .* \(KeyError: 'segments'\)$"),
        ({"turns": "many"}, r"^config\.json is damaged: this is no config of a recursive model"),
        ({"turns": 0}, r"turns = 0: "),
        ({"base_config": {"model_type": "unheard-of"}}, r"^config\.json is damaged: .*unheard-of"),
        ({"base_config": {"hidden_size": 32}}, r"^config\.json is damaged: .*model_type"),
        ({"tables": {"gate": {"use": "sigmod"}}}, r"config\.json: no gate is called 'sigmod'\. Did you mean 'sigmoid'"),
        ({"tables": {"gate": {"bais": 1}}}, r"config\.json: gate\.bais: no such setting"),
        ({"base": None}, r"was trained on a base with fingerprint None, and .* has \w+: "),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_says_too_little_or_something_else(saved, changes, words):
    edit(saved / "config.json", **changes)
    refused(saved, words)
    refused(saved, words, RecursiveLM.from_pretrained)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_file_that_is_no_json(saved, name, content):
    (saved / name).write_text(content)
    refused(saved, rf"{name} cannot be read: ", RecursiveLM.from_pretrained)


def test_a_config_of_another_kind_of_model(saved):
    edit(saved / "config.json", model_type="llama")
    words = r"config\.json is not of a recursive model: its model_type is llama"
    refused(saved, words, RecursiveLM.from_pretrained)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):  # the library, which reads the config first
        AutoModelForCausalLM.from_pretrained(saved)


def test_a_folder_where_nothing_was_saved(saved, tmp_path):
    (saved / "config.json").unlink()
    refused(saved, r"has no config\.json: no model was saved there, or its run did not", RecursiveLM.from_pretrained)
    missing = r"^acme/not-there is no folder, and cannot be had from the Hugging Face hub: "
    refused("acme/not-there", missing, RecursiveLM.from_pretrained, local_files_only=True)
    refused(str(tmp_path / "none"), "is no folder, and cannot be had", RecursiveLM.from_pretrained)


class Half(nn.Module):
    def forward(self, old, new, turn):
        return (old + new) / 2


class Acme:
    @staticmethod
    @hookimpl
    def ouroboros_parts():
        yield Part(Slot.GATE, "half", NoOptions, lambda options, facts: Half(), "The mean of old and new.")


@FORMS
def test_a_part_whose_plugin_is_not_installed(trained, whole, ids, tmp_path):
    acme = PluginHost.installed(third_party=False)
    acme.add("acme", lambda: Acme, distribution="acme-parts", version="1.2")
    model = trained(host=acme, gate={"use": "half"})
    model.save_pretrained(tmp_path, merge_base=whole)
    refused(tmp_path, r"config\.json: no gate is called 'half'\. Known: .* Is the plugin there .* ouro list-plugins$")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, host=acme)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


# In a process of its own

KNOWN = "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline\n"
OURS = "import ouroboros_core\n"
USED = """
import json, sys, torch
folder, ids = sys.argv[1], torch.arange(12)[None]
words = AutoTokenizer.from_pretrained(folder)("the state of our union", return_tensors="pt")
model = AutoModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    logits = model(ids).logits.tolist()
said = pipeline("text-generation", model=folder)("the state of our union", max_new_tokens=4, do_sample=False)
print(json.dumps({
    "config": type(AutoConfig.from_pretrained(folder)).__name__, "logits": logits,
    "greedy": AutoTokenizer.from_pretrained(folder).decode(model.generate(**words, max_new_tokens=4)[0]),
    "said": said[0]["generated_text"],
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("imports", [OURS + KNOWN, KNOWN + OURS], ids=["before transformers", "after transformers"])
def test_a_fresh_process_needs_one_import(imports, trained, tmp_path):
    model = trained()
    model.save_pretrained(tmp_path, merge_base=True)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save_pretrained(tmp_path)
    told = subprocess.run([sys.executable, "-c", imports + USED, tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert found["config"] == "RecursiveConfig"
    assert found["logits"] == logits(model, torch.arange(12)[None]).tolist()
    assert found["said"] == found["greedy"]
    assert len(found["said"]) > len("the state of our union")


def test_importing_us_imports_neither_torch_nor_transformers():
    code = "import sys, ouroboros_core; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
