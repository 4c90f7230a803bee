"""What is written for PEFT, loaded by PEFT and transformers alone, against the model it was written from."""

import copy
from dataclasses import replace
from itertools import count, cycle

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, inject_adapter_in_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.ops import Add, LowRank
from ouroboros_core.peft_export import to_peft
from ouroboros_core.testing import tiny_model, tiny_tokenizer
from ouroboros_plugins.entries.carry import Carry
from ouroboros_plugins.halters.fixed import FixedHalter
from ouroboros_plugins.norms.none import NoNorm

STATIC = {"use": "static", "rank": 4}
LORA = {"use": "lora", "rank": 3, "start": "zero"}
CODA = {"use": "coda-lora", "rank": 2, "alpha": 5.0}
PLAIN = {"modulator": STATIC, "norm": {"use": "none"}, "gate": {"use": "none"}, "halter": {"use": "fixed"}}
TWO_LOOPS = {"use": "sequence", "layers": 2}
EXPRESSIBLE = {
    "static": {},
    "lora": {"modulator": LORA},
    "a lora of q and v": {"modulator": {**LORA, "linears": ["q", "v"]}},
    "coda-lora": {"modulator": {"use": "none"}, "adapter": CODA},
    "static and coda-lora": {"adapter": CODA},
    "static and lora": {"modulator": {"use": ["static", "lora"], "static": {"rank": 4}, "lora": {"start": "zero"}}},
    "static and unfrozen layers": {"adapter": {"use": "unfreeze", "layers": 1}},
    "two loops": {"splitter": TWO_LOOPS},
    "a block of two layers": {"splitter": {"size": 2, "block": 2}},
    "a block of means": {"splitter": {"use": "cycle", "layers": 3}, "modulator": LORA},
}


@pytest.fixture
def trained(make):
    """Build an expressible model, changed by tables of settings, whose trained parameters have moved."""

    def trained(intact=None, **tables):
        model = make(intact, **{**PLAIN, **tables}).model.eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    return trained


@pytest.fixture
def exported(tmp_path):
    """Write a model, and load it with the library and PEFT."""

    def exported(model, turns=None):
        folder = tmp_path / f"{turns} turns"
        to_peft(model, tiny_tokenizer(), folder, turns)
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        return PeftModel.from_pretrained(base, folder / "adapter").eval()

    return exported


def traced(model, ids, turns=None):
    with torch.no_grad():
        return model.trace(ids, depth=Depth.full(turns or model.turns)).logits()


def said(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_peft_says_what_the_model_says(trained, exported, ids, name):
    model = trained(**EXPRESSIBLE[name])
    for turns in (1, 3):
        torch.testing.assert_close(said(exported(model, turns), ids), traced(model, ids, turns), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_every_family_can_be_written(trained, exported, ids, family):
    model = trained(tiny_model(family=family), adapter=CODA)
    torch.testing.assert_close(said(exported(model), ids), traced(model, ids), atol=1e-4, rtol=1e-4)


def test_without_its_adapter_the_base_repeats_the_looped_layers(trained, exported, ids):
    model = trained()
    other = exported(model, 3)
    plain = trained(modulator={"use": "none"})
    with other.disable_adapter():
        torch.testing.assert_close(said(other, ids), traced(plain, ids, 3), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(traced(plain, ids, 3), traced(model, ids, 3), atol=1e-2)  # or nothing was compared


def test_repeated_layers_keep_their_attention_types(trained, exported):
    config = copy.deepcopy(tiny_model(family="qwen2").config)
    full, windowed = ["full_attention"], ["sliding_attention"]
    config.use_sliding_window, config.sliding_window = True, 4
    config.layer_types = [*full, *windowed * 3, *full * 2]
    intact = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    intact.load_state_dict(tiny_model(family="qwen2").state_dict())
    model, ids = trained(intact), torch.arange(20)[None]
    other = exported(model, 2)
    assert other.config.layer_types == [*full, *windowed * 2, *full]
    torch.testing.assert_close(said(other, ids), traced(model, ids, 2), atol=1e-4, rtol=1e-4)


def test_cached_decoding_gives_what_the_model_would(trained, exported, ids):
    model = trained(splitter=TWO_LOOPS)
    other = exported(model, 3)
    decoded = other.generate(input_ids=ids, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=True)
    for _ in range(8):
        ids = torch.cat([ids, traced(model, ids, 3)[:, -1:].argmax(-1)], dim=1)
    assert decoded.tolist() == ids.tolist()


def test_settings_of_decoding_are_written_too(trained, exported):
    model = trained()
    model.generation_config.repetition_penalty = 1.5
    assert exported(model, 1).generation_config.repetition_penalty == 1.5


def test_the_coda_keeps_its_own_rank_and_scaling(trained, exported):
    config = exported(trained(adapter=CODA), 3).peft_config["default"]
    coda = [name for name, rank in config.rank_pattern.items() if rank == 2]
    assert len(coda) == 7
    assert all(name.startswith("model.layers.4.") for name in coda)  # behind one prelude layer and three turns
    assert {config.alpha_pattern[name] for name in coda} == {5.0}


def test_a_lora_inside_the_loop_joins_that_of_every_turn(trained, exported, ids):
    model = trained()
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model.base)
    torch.testing.assert_close(said(exported(model, 3), ids), traced(model, ids, 3), atol=1e-4, rtol=1e-4)


def test_trained_weights_stay_in_float32_beside_a_bfloat16_base(trained, exported, tmp_path, ids):
    model = trained(tiny_model().to(torch.bfloat16), modulator=LORA, adapter=CODA)
    other = exported(model, 3)
    with safe_open(tmp_path / "3 turns" / "adapter" / "adapter_model.safetensors", "pt") as file:
        factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert {factor.dtype for factor in factors.values()} == {torch.float32}
    first = model.loops[0].modulator.up[0].weight[0]
    assert torch.equal(factors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"], first)
    assert other.get_base_model().dtype == torch.bfloat16
    wanted = traced(model, ids, 3).float()
    assert (said(other, ids).float() - wanted).abs().mean() < 0.02 * wanted.std()


def test_the_model_is_left_as_it_was(trained, exported, ids):
    model = trained(adapter=CODA).train()
    before, state = traced(model, ids), {name: t.clone() for name, t in model.state_dict().items()}
    exported(model)
    assert model.training
    assert torch.equal(traced(model, ids), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_the_adapter_finds_its_base_from_the_working_directory(trained, tmp_path, monkeypatch, ids):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = trained(), tiny_tokenizer()
    to_peft(model, tokenizer, "out")
    other = AutoPeftModelForCausalLM.from_pretrained("out/adapter").eval()
    torch.testing.assert_close(said(other, ids), traced(model, ids), atol=1e-4, rtol=1e-4)
    text = "the state of our union"
    assert AutoTokenizer.from_pretrained("out/base")(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"modulator": {"use": "controller", "rank": 4}}, "modulator Controller depends on the text"),
        (
            {"modulator": {"use": ["static", "controller"], "static": {"rank": 4}, "controller": {"rank": 4}}},
            "modulator Controller depends on the text",
        ),
        ({"modulator": {"use": "step-scale"}}, "modulator StepScale changes states"),
        ({"modulator": {"use": "level-signal"}}, "modulator TurnLowRank changes states"),
        ({"gate": {"use": "sigmoid"}}, "gate SigmoidGate changes states"),
        ({"gate": {"use": "residual"}}, "gate Residual changes states"),
        ({"norm": {"use": "per-step-rms"}}, "norm .* changes states"),
        ({"norm": {"use": "sandwich"}}, "norm .* changes states"),
        ({"norm": {"use": "step-final"}}, "norm .* changes states"),
        ({"entry": {"use": "add"}}, "entry AddPrelude changes states"),
        ({"entry": {"use": "zeros"}}, "entry FromZeros changes states"),
        ({"halter": {"use": "act"}}, "halter .* depends on the text"),
        ({"modulator": {"use": "none"}}, "nothing changes a weight"),
    ],
)
def test_what_no_lora_can_do_is_refused(make, tmp_path, tables, line):
    model = make(**{**PLAIN, **tables}).model
    with pytest.raises(UserError, match=f"--to peft: {line}.* use --to hf") as refusal:
        to_peft(model, tiny_tokenizer(), tmp_path / "out", 2)
    assert "\n" not in str(refusal.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("training", [False, True])
def test_a_halter_is_judged_by_what_it_does_when_training_is_over(trained, tmp_path, training):
    model = trained(halter={"use": "kl"}).train(training)
    with pytest.raises(UserError, match="halter KLHalter depends on the text"):
        to_peft(model, tiny_tokenizer(), tmp_path / "out")


class Planted(nn.Module):
    """A modulator that answers with what it is told."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, state, turn):
        return self.answer(state)


DELTA = LowRank(torch.ones(1, 32), torch.ones(32, 1))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda s: {"0.q": [replace(DELTA, core=torch.ones(1, 1, 1))]}, "depends on the text"),
        (lambda s: {"0.q": [replace(DELTA, core=s[0, 0, :1])]}, "depends on the text"),
        (lambda s: {"0.q": [replace(DELTA, down=s[0, :1])]}, "depends on the text"),
        (lambda s, times=count(1): {"0.q": [DELTA] * next(times)}, "depends on the text"),
        (lambda s, taps=cycle(["0.q", "0.o"]): {next(taps): [DELTA]}, "depends on the text"),
        (lambda s: {"0.q": [Add(torch.ones(32))]}, "changes states"),
        (lambda s: {"0.attention-in": [DELTA]}, "changes states"),
    ],
)
def test_a_modulator_is_judged_by_its_answers(trained, tmp_path, answer, line):
    model = trained()
    model.loops[0].modulator = Planted(answer)
    with pytest.raises(UserError, match=f"modulator Planted {line}"):
        to_peft(model, tiny_tokenizer(), tmp_path / "out", turns=1)


class StartsFromNothing(Carry):
    """An entry that differs from the null one in what the loop starts from."""

    def start(self, prelude, turn):
        return 0 * prelude


class ReadsTwice(NoNorm):
    """A norm that leaves the turns alone and acts on what the coda gets."""

    def read(self, state):
        return 2 * state


class Weighs(FixedHalter):
    """A halter that ends nothing early and reads a sum of states."""

    weighted = True


@pytest.mark.parametrize(
    ("slot", "part", "line"),
    [
        ("entry", StartsFromNothing(), "entry StartsFromNothing changes states"),
        ("norm", ReadsTwice(), "norm ReadsTwice changes states"),
        ("halter", Weighs(), "halter Weighs depends on the text"),
    ],
)
def test_a_part_that_does_one_thing_more_than_the_null_part_is_refused(trained, tmp_path, slot, part, line):
    model = trained()
    setattr(model.loops[0], slot, part)
    with pytest.raises(UserError, match=line):
        to_peft(model, tiny_tokenizer(), tmp_path / "out")


def test_an_adapter_that_is_no_plain_lora_is_refused(trained, tmp_path):
    model = trained()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), model.base)
    with pytest.raises(UserError, match=r"no plain LoRA, for it made .*lora_magnitude_vector.*: use --to hf"):
        to_peft(model, tiny_tokenizer(), tmp_path / "out")


def test_a_folder_that_is_there_stays_as_it_is(trained, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UserError, match="is there already"):
        to_peft(trained(), tiny_tokenizer(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_no_turns_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="0 turns cannot be unrolled"):
        to_peft(trained(), tiny_tokenizer(), tmp_path / "out", 0)


def test_nothing_is_left_where_the_writing_fails(trained, tmp_path, monkeypatch):
    def full(self, *given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    with pytest.raises(UserError, match="no space left"):
        to_peft(trained(), tiny_tokenizer(), tmp_path / "out")
    assert not any(tmp_path.iterdir())
