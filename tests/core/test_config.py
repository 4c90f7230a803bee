"""The config of a recursive model: to JSON and back, and the model that a cache sees in it."""

import copy
import json

import pytest
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ouroboros_core.config import RecursiveConfig, config_of
from ouroboros_core.errors import UserError
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_config

ONE = Split(6, (Segment((0,)), Segment((2, 3), True, ((1, 3), (2, 4))), Segment((5,))), (1, 4), {2: (1, 2)})
TWICE = Split(6, (Segment((0, 1), True), Segment((2,)), Segment((3,), True), Segment((4, 5))), ())
KINDS = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def mixed():
    """Layers 0, 2 and 4 see everything, 1, 3 and 5 look back four tokens."""
    config = tiny_config(family="qwen2")
    config.layer_types, config.sliding_window = [*KINDS, "sliding_attention"], 4
    config.use_sliding_window = True
    return config


def windowed():
    config = tiny_config(family="mistral")
    config.sliding_window = 4
    return config


def made(base=None, split=ONE, turns=3, probed=False, causal=True):
    return config_of(base or tiny_config(), split, turns, probed=probed, causal=causal)


def through_json(config):
    return RecursiveConfig.from_dict(json.loads(config.to_json_string()))


@pytest.mark.parametrize("base", [tiny_config(), tiny_config(family="qwen3"), mixed(), windowed()])
@pytest.mark.parametrize(("split", "probed", "causal"), [(ONE, True, True), (TWICE, False, False)])
@pytest.mark.parametrize("shared", [None, 2])
def test_a_config_goes_to_json_and_back(base, split, probed, causal, shared):
    config = made(base, split, probed=probed, causal=causal)
    config.lay_out(5, shared)
    config.tables = {"loop": {"turns": 3}, "gate": {"use": "sigmoid"}}
    config.base = {"name": "some/model", "revision": None}
    back = through_json(config)
    assert json.loads(back.to_json_string()) == json.loads(config.to_json_string())
    assert Split.from_dict(back.split) == split
    assert back.slots == config.slots
    assert type(back.base_config) is type(base)
    assert back.base_config.to_dict() == base.to_dict()
    assert (back.turns, back.shared_slots, back.probed, back.causal) == (5, shared, probed, causal)
    assert (back.tables, back.base) == (config.tables, config.base)


def test_what_is_written_names_its_own_kind_and_the_bases():
    told = json.loads(made().to_json_string())
    assert told["model_type"] == "ouroboros"
    assert told["base_config"]["model_type"] == "llama"


@pytest.mark.parametrize("base", [tiny_config(), tiny_config(family="qwen3"), mixed(), windowed()])
def test_what_a_cache_and_decoding_ask_for_is_the_bases(base):
    config = made(base)
    for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "eos_token_id"):
        assert getattr(config, name, None) == getattr(base, name, None)
    assert config.max_position_embeddings == base.max_position_embeddings
    assert getattr(config, "sliding_window", None) == getattr(base, "sliding_window", None)


def test_the_base_keeps_its_own_number_of_layers_and_is_not_touched():
    base = mixed()
    before = copy.deepcopy(base.to_dict())
    config = made(base)
    config.lay_out(7, None)
    config.base_config.layer_types.pop()
    assert base.to_dict() == before
    assert config.base_config.num_hidden_layers == 6


@pytest.mark.parametrize(
    ("split", "turns", "shared", "probed", "layers"),
    [
        (ONE, 3, None, False, [0, 2, 3, 2, 3, 2, 3, 5]),
        (ONE, 3, None, True, [0, 2, 3, 2, 3, 2, 3, 5, 5, 5]),
        (ONE, 3, 1, True, [0, 2, 3, 5, 5]),
        (ONE, 1, None, True, [0, 2, 3, 5]),
        (TWICE, 2, None, False, [0, 1, 0, 1, 2, 3, 3, 4, 5]),
        (TWICE, 5, 2, False, [0, 1, 0, 1, 2, 3, 3, 4, 5]),
    ],
)
def test_it_reports_a_layer_for_each_slot_of_the_cache(split, turns, shared, probed, layers):
    for base in (tiny_config(), mixed(), windowed()):
        config = made(base, split, probed=probed)
        config.lay_out(turns, shared)
        assert config.num_hidden_layers == len(layers)
        assert len(DynamicCache(config=config).layers) == len(layers)
        assert len(StaticCache(config=config, max_cache_len=8).layers) == len(layers)
        if types := getattr(base, "layer_types", None):
            assert config.layer_types == [types[i] for i in layers]


@pytest.mark.parametrize(
    ("base", "sliding"),
    [(tiny_config(), []), (mixed(), [1, 3, 5]), (windowed(), range(6))],
    ids=["full", "mixed", "windowed"],
)
def test_each_slot_is_of_the_kind_of_its_layer(base, sliding):
    config = made(base, TWICE, turns=2)
    for slot, layer in zip(DynamicCache(config=config).layers, config.slots.layers, strict=True):
        assert type(slot) is (DynamicSlidingWindowLayer if layer in sliding else DynamicLayer)
        assert layer not in sliding or slot.sliding_window == 4


def test_laying_out_again_and_back_leaves_the_config_as_it_was():
    config = made(mixed(), probed=True)
    before = config.to_dict()
    config.lay_out(9, 4)
    assert config.to_dict() != before
    config.lay_out(3, None)
    assert config.to_dict() == before


def test_the_base_ties_its_own_embeddings():
    base = tiny_config()
    base.tie_word_embeddings = True
    assert not made(base).tie_word_embeddings
    assert made(base).base_config.tie_word_embeddings


@pytest.mark.parametrize(
    "damage",
    [
        {"base_config": {"model_type": "no-such-kind"}},
        {"base_config": {}},
        {"split": {"total": 6}},
        {"turns": "many"},
    ],
    ids=str,
)
def test_what_is_no_config_of_a_recursive_model_is_refused_in_one_line(damage):
    told = json.loads(made().to_json_string()) | damage
    with pytest.raises(UserError, match=r"config\.json is damaged") as caught:
        RecursiveConfig.from_dict(told)
    assert "\n" not in str(caught.value)


def test_a_split_that_does_not_fit_is_refused_for_what_is_wrong_with_it():
    told = json.loads(made().to_json_string())
    told["split"]["segments"][1]["looped"] = False
    with pytest.raises(UserError, match="no layer is looped"):
        RecursiveConfig.from_dict(told)
