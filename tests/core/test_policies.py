"""What sharing cache slots costs: the losses of decoding token by token, against plain restatements."""

import math

import pytest
import torch
from transformers import DynamicCache

from ouroboros_core.data import Domain, align
from ouroboros_core.errors import UserError
from ouroboros_core.policies import policy_losses
from ouroboros_core.testing import tiny_model

ROWS, LENGTH = 5, 17


@pytest.fixture
def domain():
    blocks = torch.randint(1, 300, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return Domain("near", blocks, torch.arange(ROWS), ROWS, "documents")


@pytest.fixture
def model(make):
    model = make(modulator={"use": "static", "rank": 4}, loop={"turns": 3}).model.eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.loops.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def test_a_slot_for_each_turn_is_exact_and_the_others_cost_the_difference(model, domain):
    found = {one.policy: one for one in policy_losses(model, [domain], ["last", "modulo:2", "modulo:9"])["near"]}
    assert list(found) == ["turn", "last", "modulo:2", "modulo:9"]
    ids, labels = align(domain.blocks)
    plain = model.trace(ids).nll(labels).sum().item() / labels.numel()
    assert found["turn"].loss == pytest.approx(plain, abs=1e-5)
    assert found["turn"].tokens == labels.numel()
    for one in found.values():
        assert one.costs.value == pytest.approx(one.loss - found["turn"].loss, abs=1e-6)
        assert one.costs.low <= one.costs.value <= one.costs.high
    assert found["last"].costs.value != 0
    assert found["modulo:9"].costs.value == pytest.approx(0, abs=1e-6)  # three turns have nothing to share


@torch.no_grad()
def test_bytes_are_those_of_the_slots(model, domain):
    found = {one.policy: one.kv_bytes for one in policy_losses(model, [domain], ["last", "modulo:2"])["near"]}
    config = tiny_model().config
    slot = 2 * 4 * config.num_key_value_heads * config.head_dim
    once = sum(len(segment.layers) for segment in model.split.segments if not segment.looped)
    looped = len(model.split.looped)
    assert found == {
        "turn": slot * (once + 3 * looped), "last": slot * (once + looped), "modulo:2": slot * (once + 2 * looped)
    }  # fmt: skip


@torch.no_grad()
def test_only_so_many_tokens_are_read_and_each_batch_is_told(model, domain):
    heard = []
    tokens = 4 * (LENGTH - 1) - 1
    (one, _) = policy_losses(
        model, [domain], ["last"], tokens=tokens, batch=2, done=lambda *told: heard.append(told)
    )["near"]  # fmt: skip
    assert one.tokens == 3 * (LENGTH - 1)
    assert heard == [("near", 2, 6), ("near", 1, 6)] * 2
    ids, labels = align(domain.blocks[:3])
    expected = model.trace(ids).nll(labels).mean().item()
    assert one.loss == pytest.approx(expected, abs=1e-5)


def test_the_layout_is_as_it_was_afterwards(model, domain):
    before = model.config.num_hidden_layers
    policy_losses(model, [domain], ["last"])
    assert (model.config.num_hidden_layers, model.config.shared_slots) == (before, None)
    assert len(DynamicCache(config=model.config).layers) == before


def test_what_cannot_be_decoded_or_is_no_policy_is_told_in_one_line(make, model, domain):
    with pytest.raises(UserError, match="cache policy 'lst': expected turn, last or modulo:N"):
        policy_losses(model, [domain], ["lst"])
    leaky = make(modulator={"use": "controller", "rank": 4, "pool": "sequence-mean"}, run={"allow_leak": True}).model
    with pytest.raises(UserError, match="tokens see later ones"):
        policy_losses(leaky, [domain], ["last"])


def test_one_sequence_has_no_interval(model, domain):
    alone = Domain("near", domain.blocks[:1], torch.zeros(1, dtype=torch.long), 1, "documents")
    one = policy_losses(model, [alone], ["last"])["near"][1]
    assert (one.costs.low, one.costs.high) == (None, None)
    assert math.isfinite(one.costs.value)
