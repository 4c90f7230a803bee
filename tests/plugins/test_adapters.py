"""What of the base may learn."""

import pytest
import torch
from pydantic import ValidationError

from ouroboros_core.errors import UserError
from ouroboros_core.testing import tiny_model
from ouroboros_plugins.adapters.full import FullOptions


def learning(model):
    return {name for name, parameter in model.base.named_parameters() if parameter.requires_grad}


def test_by_default_nothing_of_the_base_learns(make):
    assert learning(make().model) == set()


def test_lora_is_nothing_at_the_start_and_can_learn(make, ids):
    plain, adapted = make().model, make(adapter={"use": "coda-lora", "rank": 2}).model
    assert torch.equal(adapted.trace(ids).logits(), plain.trace(ids).logits())
    adapted.trace(ids).nll(ids).mean().backward()
    assert any(p.grad.any() for name, p in adapted.base.named_parameters() if "lora_B" in name)


def test_lora_alone_learns_and_in_the_coda_alone(make):
    model = make(adapter={"use": "coda-lora", "rank": 2}).model
    names = learning(model)
    assert len(names) == 2 * 7
    assert all("lora_" in name and ".layers.5." in name for name in names)


def test_lora_adds_its_product_scaled_by_alpha_over_rank(make, ids):
    model = make(adapter={"use": "coda-lora", "rank": 2, "alpha": 6.0}).model
    linear = model.layer(5).mlp.down_proj
    torch.nn.init.normal_(linear.lora_B["default"].weight)
    x = torch.randn(3, 48)
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    torch.testing.assert_close(linear(x), x @ (tiny_model().model.layers[5].mlp.down_proj.weight + 3 * b @ a).T)


def test_lora_needs_a_coda(make):
    with pytest.raises(UserError, match="adapter 'coda-lora': the split has no coda to adapt"):
        make(splitter={"use": "refine-last"}, adapter={"use": "coda-lora"})


def test_dropout_acts_in_training_only(make, ids):
    model = make(adapter={"use": "coda-lora", "rank": 2, "dropout": 0.5}).model
    for name, parameter in model.base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model.eval().trace(ids).logits(), model.trace(ids).logits())
    assert not torch.equal(model.train().trace(ids).logits(), model.trace(ids).logits())


def test_unfrozen_layers_are_the_last_of_the_coda_in_float32(make, ids):
    intact = tiny_model(layers=9).bfloat16()
    model = make(intact, adapter={"use": "unfreeze", "layers": 1}).model
    assert learning(model) == {name for name, _ in model.base.named_parameters() if ".layers.8." in name}
    assert {p.dtype for p in model.layer(8).parameters()} == {torch.float32}
    assert {p.dtype for p in model.layer(7).parameters()} == {torch.bfloat16}
    model.trace(ids).nll(ids).mean().backward()
    assert all(p.grad.any() for p in model.layer(8).parameters())


def test_unfreezing_changes_no_logit(make, ids):
    plain, unfrozen = make().model, make(adapter={"use": "unfreeze", "layers": 1}).model
    assert torch.equal(unfrozen.trace(ids).logits(), plain.trace(ids).logits())


def test_more_layers_than_the_coda_has_are_refused(make):
    with pytest.raises(UserError, match=r"adapter\.layers=2: the coda has 1 layer"):
        make(adapter={"use": "unfreeze", "layers": 2})


def test_no_tensor_of_an_adapted_model_is_shared_with_the_intact_one(make):
    intact = tiny_model()
    theirs = {p.data_ptr() for p in intact.parameters()}
    model = make(intact, adapter={"use": "unfreeze", "layers": 1}).model
    assert not theirs & {p.data_ptr() for p in model.base.parameters()}


def test_with_full_every_weight_of_the_base_learns_in_float32(make, ids):
    model = make(tiny_model().bfloat16(), adapter={"use": "full"}).model
    assert learning(model) == {name for name, _ in model.base.named_parameters()}
    assert {p.dtype for p in model.base.parameters()} == {torch.float32}
    model.trace(ids).nll(ids).mean().backward()
    assert all(p.grad.any() for p in model.base.parameters())


def test_making_every_weight_learn_changes_no_logit(make, ids):
    plain, full = make().model, make(adapter={"use": "full"}).model
    assert torch.equal(full.trace(ids).logits(), plain.trace(ids).logits())


def test_a_rate_of_its_own_goes_to_the_weights_of_the_base_alone(make):
    built = make(adapter={"use": "full", "rate": 3e-5})
    assert built.rates == {f"base.{name}": 3e-5 for name, _ in built.model.base.named_parameters()}
    assert any(p.requires_grad for p in built.model.loops.parameters())


def test_without_a_rate_the_weights_learn_at_the_rate_of_the_run(make):
    assert make(adapter={"use": "full"}).rates == {}


@pytest.mark.parametrize("rate", [0.0, -1e-4])
def test_a_rate_that_teaches_nothing_is_refused(rate):
    with pytest.raises(ValidationError, match="rate"):
        FullOptions(rate=rate)


EARLIER = {"full": {}, "unfreeze": {"layers": 1}}


@pytest.mark.parametrize("first", EARLIER)
def test_lora_leaves_what_an_adapter_before_it_made_learn(first, make, ids):
    before = learning(make(adapter={"use": [first], first: EARLIER[first]}).model)
    tables = {first: EARLIER[first], "coda-lora": {"rank": 2}}
    model = make(adapter={"use": [first, "coda-lora"], **tables}).model
    after = {name.replace(".base_layer", "") for name in learning(model)}
    assert before < after
    assert {name for name in after - before if "lora_" not in name} == set()
    model.trace(ids).nll(ids).mean().backward()
    assert all(p.grad.any() for name, p in model.base.named_parameters() if "base_layer" in name)


def test_a_rate_of_its_own_stays_with_weights_that_lora_gives_other_names(make):
    use = {"use": ["full", "coda-lora"], "full": {"rate": 3e-5}, "coda-lora": {"rank": 2}}
    built = make(adapter=use)
    names = {name for name, _ in built.model.named_parameters() if name.startswith("base.") and "lora_" not in name}
    assert any("base_layer" in name for name in names)
    assert built.rates == dict.fromkeys(names, 3e-5)
