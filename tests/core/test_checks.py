"""Every trust check catches the defect it is for, in its own words, and lets sound models pass."""

import copy

import pytest
import torch
from torch import nn

from ouroboros_core import checks
from ouroboros_core.build import null_parts
from ouroboros_core.contracts import Halt
from ouroboros_core.errors import CheckFailed
from ouroboros_core.kept import StockLM
from ouroboros_core.losses import IGNORE
from ouroboros_core.model import RecursiveLM
from ouroboros_core.ops import STATE, Add
from ouroboros_core.resolve import resolve
from ouroboros_core.split import Segment, Split
from ouroboros_core.testing import tiny_model
from ouroboros_plugins.objectives.distill import Distill
from ouroboros_plugins.objectives.next_token import NextToken
from ouroboros_plugins.objectives.ponder import Ponder


class Context(nn.Module):
    """A modulator that calls itself harmless, and adds the mean of the whole sequence."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.zeros(()))  # nothing at the start: an honest-looking model at first sight

    def forward(self, state, turn):
        return {STATE: [Add(self.size * state.mean(1, keepdim=True))]}


class ByTheEnd(nn.Module):
    """A halter whose first state is read, and which stops a token by the last token's state."""

    adaptive, weighted = True, True

    def forward(self, old, new, turn):
        stop = new[:, -1:, 0].sign().gt(0).expand(new.shape[:2])
        return Halt(stop, torch.full(new.shape[:2], float(turn.index == 0)))


def with_part(built, name, part):
    setattr(built.model.loops[0], name, part)
    return built.model


@pytest.mark.parametrize("halter", ["fixed", "act"])
@pytest.mark.parametrize("pool", ["prefix-mean", "token"])
def test_causal_parts_pass(pool, halter, make, ids):
    result = checks.causality(make(modulator={"pool": pool}, halter={"use": halter}).model, ids)
    assert result.passed
    assert "tokens after 6 changed" in result.detail


def test_the_papers_pool_is_caught_though_it_starts_as_nothing(make, ids):
    model = make(modulator={"pool": "sequence-mean"}).model
    with pytest.raises(CheckFailed, match=r"sees the future: logits up to position 6 moved by .* when later tokens"):
        checks.causality(model, ids)


def test_a_modulator_that_pools_over_the_future_under_another_name_is_caught(make, ids):
    model = with_part(make(), "modulator", Context())
    with pytest.raises(CheckFailed, match=r"sees the future: logits .* pools over, or routes by, tokens that come"):
        checks.causality(model, ids)


def test_a_halter_that_stops_by_later_tokens_is_caught_by_its_turns(make, ids):
    model = with_part(make(), "halter", ByTheEnd())
    with pytest.raises(CheckFailed, match=r"a token up to position 6 took \d turns more or fewer when later tokens"):
        checks.causality(model, ids)


def test_an_allowed_leak_is_said_loudly(make, ids):
    model = make(modulator={"pool": "sequence-mean"}).model
    result = checks.causality(model, ids, allowed=True)
    assert result.detail.startswith("LEAKS, as allowed: logits up to position 6 moved")
    assert result.detail.endswith("not a language model's loss")


def test_a_sound_model_does_not_leak_because_leaks_are_allowed(make, ids):
    assert "LEAKS" not in checks.causality(make().model, ids, allowed=True).detail


def test_stirring_moves_every_parameter_and_puts_it_back_to_the_bit(make):
    loops = make().model.loops
    before = copy.deepcopy(loops.state_dict())
    with checks.stirred(loops):
        assert all(not torch.equal(p, before[name]) for name, p in loops.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in loops.state_dict().items())


def test_stirring_is_undone_after_an_error_and_in_bfloat16(make):
    loops = make().model.loops.bfloat16()
    before = copy.deepcopy(loops.state_dict())
    with pytest.raises(ZeroDivisionError), checks.stirred(loops):
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in loops.state_dict().items())


def test_stirring_is_the_same_each_time_and_draws_nothing_from_the_caller(make):
    loops, seen, state = make().model.loops, [], torch.random.get_rng_state()
    for _ in range(2):
        with checks.stirred(loops):
            seen.append(copy.deepcopy(loops.state_dict()))
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def batch():
    """Packed blocks, aligned once."""
    blocks = torch.randint(0, 320, (2, 13), generator=torch.Generator().manual_seed(0))
    return blocks[:, :-1], blocks[:, 1:].clone()


def check_labels(built, batches, teacher=None, **objectives):
    return checks.labels(built.model, objectives, batches, teacher)


def test_aligned_labels_pass_and_the_readers_are_named(make, batch):
    result = check_labels(make(), [batch], text=NextToken(), price=Ponder())
    assert result.passed
    assert result.detail.endswith("read in place by text, evaluation")


def test_ignored_labels_are_not_wrong(make, batch):
    inputs, labels = batch
    labels[:, 9:] = IGNORE
    assert check_labels(make(), [(inputs, labels)], text=NextToken()).passed


def test_labels_shifted_twice_in_the_batches_are_caught(make, batch):
    inputs, labels = batch
    twice = labels.roll(-1, 1)
    twice[:, -1] = IGNORE
    with pytest.raises(CheckFailed, match=r"labels are not the next token at \d+ of 22 positions"):
        check_labels(make(), [(inputs, twice)], text=NextToken())


def test_labels_not_shifted_at_all_are_caught(make, batch):
    inputs, _ = batch
    with pytest.raises(CheckFailed, match="shifted twice, or not at all"):
        check_labels(make(), [(inputs, inputs)], text=NextToken())


def test_a_wrong_batch_is_caught_behind_a_sound_one(make, batch):
    inputs, _ = batch
    with pytest.raises(CheckFailed, match="labels are not the next token"):
        check_labels(make(), [batch, (inputs, inputs)], text=NextToken())


def shifts_again(trace, labels):
    """What a model of the library does with labels: the defect that trains on the token after the next."""
    later = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)], dim=1)
    return trace.nll(later)


shifts_again.wants_teacher = shifts_again.wants_turns = False


def spreads(trace, labels):
    return trace.nll(labels).mean().expand(labels.shape)


spreads.wants_teacher = spreads.wants_turns = False


def test_an_objective_that_shifts_again_is_caught(make, batch):
    with pytest.raises(CheckFailed, match=r"objective 'mine' shifts .* label of position 6 moves its loss at \[5\]"):
        check_labels(make(), [batch], mine=shifts_again)


def by_turn(trace, labels):
    return torch.stack(trace.nll_by_turn(labels)).mean(0)


by_turn.wants_teacher, by_turn.wants_turns = False, True


def shifts_by_turn(trace, labels):
    return by_turn(trace, labels.roll(-1, 1))


shifts_by_turn.wants_teacher, shifts_by_turn.wants_turns = False, True


def test_an_objective_that_reads_every_turn_is_given_them(make, batch):
    assert check_labels(make(), [batch], turns=by_turn).detail.endswith("read in place by turns, evaluation")
    with pytest.raises(CheckFailed, match=r"objective 'turns' shifts .* label of position 6 moves its loss at \[5\]"):
        check_labels(make(), [batch], turns=shifts_by_turn)


class AtOnce(nn.Module):
    """A halter that stops every token at its first turn."""

    adaptive, weighted = True, False

    def forward(self, old, new, turn):
        return Halt(torch.ones(new.shape[:2], dtype=torch.bool))


def shifts_in_the_second_turn(trace, labels):
    first, *later = trace.nll_by_turn(labels)
    shifted = trace.nll_by_turn(labels.roll(-1, 1))[1:]
    assert len(later) == len(shifted) == 1, "the trace has two turns"
    return torch.stack([first, *shifted]).mean(0)


shifts_in_the_second_turn.wants_teacher, shifts_in_the_second_turn.wants_turns = False, True


@pytest.mark.parametrize("halter", [None, AtOnce()])
def test_an_objective_that_shifts_in_its_second_turn_only_is_caught(halter, make, batch):
    built = make()
    if halter is not None:
        with_part(built, "halter", halter)
    with pytest.raises(
        CheckFailed, match=r"objective 'turns' shifts .* label of position 6 moves its loss at \[5, 6\]"
    ):
        check_labels(built, [batch], turns=shifts_in_the_second_turn)


def test_an_objective_that_is_no_loss_by_token_is_caught(make, batch):
    with pytest.raises(CheckFailed, match=r"objective 'mean' .* moves its loss at \[0, 1, 2"):
        check_labels(make(), [batch], mean=spreads)


def test_training_without_text_is_caught_unless_a_teacher_knows_the_text(make, host, batch):
    built, intact = make(), tiny_model()
    with pytest.raises(CheckFailed, match="no objective reads the labels: price alone teaches nothing about text"):
        check_labels(built, [batch], price=Ponder())
    teacher = StockLM(intact, host.anatomy(intact.config))
    assert check_labels(built, [batch], teacher, copy=Distill()).passed


def check_identity(built, host, ids, null=None, intact=None):
    null = null or [null_parts(host, facts) for facts in built.facts]
    return checks.identity(built.model, null, intact or tiny_model(), ids)


@pytest.mark.parametrize("splitter", ["prelude-recurrent-coda", "refine-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neutral_parts_give_the_kept_layers(dtype, splitter, make, host, ids):
    intact = tiny_model().to(dtype)
    built = make(intact, splitter={"use": splitter}, adapter={"use": "none"})
    assert check_identity(built, host, ids, intact=intact).passed


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "adapter", [{"use": "coda-lora", "rank": 2}, {"use": "unfreeze", "layers": 1}, {"use": "full"}], ids=str
)
def test_fresh_adapters_pass(adapter, dtype, family, make, host, ids):
    intact = tiny_model(family=family).to(dtype)
    assert check_identity(make(intact, adapter=adapter), host, ids, intact=intact).passed


def two_loops(host, make):
    """A model with two loops of two layers, and parts of its own in each."""
    intact, facts = tiny_model(), make(splitter={"prelude": 1, "block": 2, "size": 2, "coda": 1}).facts[0]
    split = Split(6, (Segment((0, 1), True), Segment((2,)), Segment((3, 4), True), Segment((5,))), ())
    parts = [null_parts(host, facts) for _ in range(2)]
    return RecursiveLM(intact, host.anatomy(intact.config), split, parts, turns=3)


def test_a_model_of_several_loops_passes(make, host, ids):
    model = two_loops(host, make)
    assert checks.causality(model, ids).passed
    assert checks.identity(model, list(model.loops), tiny_model(), ids).passed


def test_a_leak_in_the_first_of_several_loops_is_caught(make, host, ids):
    model = two_loops(host, make)
    model.loops[0].modulator = Context()
    with pytest.raises(CheckFailed, match=r"sees the future"):
        checks.causality(model, ids)


class Peeking(nn.Module):
    """A norm that acts inside the block, by the state of the last token."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.zeros(()))

    def forward(self, state, turn):
        self.seen = state[:, -1:]
        return state

    def inside(self, turn):
        return {"0.ffn-sum": [Add(self.size * self.seen)]} if turn.index else {}


def test_a_norm_that_leaks_inside_the_block_is_caught(make, ids):
    with pytest.raises(CheckFailed, match=r"sees the future"):
        checks.causality(with_part(make(), "norm", Peeking()), ids)


def test_the_models_own_parts_are_back_after_the_check(make, host, ids):
    built = make()
    mine = built.model.loops[0]
    check_identity(built, host, ids)
    assert built.model.loops[0] is mine


NOT_THE_KEPT_LAYERS = "with neutral parts the model is not its kept layers: logits differ by"


def test_layers_in_the_wrong_order_are_caught(make, host, ids):
    built = make()
    layers = built.model.base.model.layers
    layers["0"], layers["5"] = layers["5"], layers["0"]
    with pytest.raises(CheckFailed, match=NOT_THE_KEPT_LAYERS):
        check_identity(built, host, ids)


class Louder:
    """An anatomy that scales the embeddings, as some families do and this one does not."""

    def __init__(self, anatomy, factor):
        self.anatomy, self.factor = anatomy, factor

    def __getattr__(self, name):
        return getattr(self.anatomy, name)

    def embed(self, base, ids):
        return self.anatomy.embed(base, ids) * self.factor


@pytest.mark.parametrize("factor", [1.01, torch.inf])
def test_an_anatomy_that_changes_the_base_is_caught(factor, make, host, ids):
    built = make()
    built.model.anatomy = Louder(built.model.anatomy, factor)
    with pytest.raises(CheckFailed, match=NOT_THE_KEPT_LAYERS):
        check_identity(built, host, ids)


def test_an_adapter_that_changes_the_base_is_caught(make, host, ids):
    built = make()
    built.model.layer(5).mlp.down_proj.weight.data *= 1.01
    with pytest.raises(CheckFailed, match="The split, the adapter or the anatomy changes the base"):
        check_identity(built, host, ids)


def test_null_parts_that_are_not_null_are_caught(make, host, ids):
    built = make()
    null = null_parts(host, built.facts[0])
    null.norm = built.model.loops[0].norm
    with pytest.raises(CheckFailed, match=NOT_THE_KEPT_LAYERS):
        check_identity(built, host, ids, null=[null])


def test_a_setting_that_nobody_reads_is_named(host):
    settings = resolve(host, [{"gate": {"bias": -1.0}}])
    settings.forget_reads()
    for choices in settings.parts.values():
        for choice in choices:
            if choice.part.name != "sigmoid":
                read_all(choice.options)
    for name in ("base", "data", "loop", "train", "eval", "run"):
        read_all(getattr(settings, name))
    with pytest.raises(CheckFailed, match=r"no effect: nothing reads gate\.bias\. Drop the setting"):
        checks.settings_took_effect(settings)
    read_all(settings.parts["gate"][0].options)
    assert checks.settings_took_effect(settings).passed


def read_all(options):
    for name in type(options).model_fields:
        getattr(options, name)
