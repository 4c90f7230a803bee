"""The faults that went unnoticed elsewhere, planted one by one: the run refuses each in its own words."""

import pytest
import torch
from pydantic import Field
from torch import nn

from ouroboros_core import data, training
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.hooks import hookimpl
from ouroboros_core.host import PluginHost
from ouroboros_core.options import NoOptions, Options
from ouroboros_core.refusals import refuse_nonsense
from ouroboros_core.resolve import resolve
from ouroboros_core.run import run
from ouroboros_plugins.objectives.next_token import NextToken


@pytest.fixture
def refused(tables, tmp_path):
    """Run with a part of our own in a slot, and expect a refusal in these words, with no result written."""

    def refused(part, words, kind=CheckFailed):
        class Plugin:
            @staticmethod
            @hookimpl
            def ouroboros_parts():
                yield part

        host = PluginHost.installed(third_party=False)
        assert host.add("faulty", Plugin).cause == ""
        with pytest.raises(kind, match=words):
            run(resolve(host, [tables, {part.slot: {"use": part.name}}]), host)
        assert not list(tmp_path.glob("runs/*/parts.safetensors"))

    return refused


def test_labels_shifted_twice_in_the_data(host, settings, monkeypatch):
    def twice(blocks):
        ids, labels = data.align(blocks)
        return ids[:, :-1], labels[:, 1:]

    monkeypatch.setattr(training, "align", twice)
    with pytest.raises(CheckFailed, match=r"labels are not the next token .* shifted twice"):
        run(settings(), host)


def test_labels_shifted_twice_in_an_objective(refused):
    class Shifting(NextToken):
        def __call__(self, trace, labels):
            return super().__call__(trace, torch.cat([labels[:, 1:], labels[:, -1:]], dim=1))

    part = Part(Slot.OBJECTIVE, "shifting", NoOptions, lambda options, facts: Shifting(), "A second shift.")
    refused(part, "objective 'shifting' shifts labels that are aligned already")


def test_pooling_over_the_future(refused):
    class Peeking(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.mix = nn.Linear(width, width)

        def forward(self, old, new, turn):
            return new + self.mix(new.mean(1, keepdim=True))

    part = Part(Slot.GATE, "peeking", NoOptions, lambda options, facts: Peeking(facts.width), "Looks ahead.")
    refused(part, r"the model sees the future: logits up to position \d+ moved")


def test_pooling_over_the_future_by_option_is_refused_by_name(host, settings):
    with pytest.raises(UserError, match=r"modulator 'controller'.* lets a token see later ones.*--allow-leak"):
        run(settings(modulator={"pool": "sequence-mean"}), host)


def test_an_allowed_leak_is_said_loudly(host, settings, listener):
    run(settings(modulator={"pool": "sequence-mean"}, run={"allow_leak": True}), host, listener)
    (causality,) = (check for check in listener.checks if check.name == "causality")
    assert causality.detail.startswith("LEAKS, as allowed")


def test_a_price_of_thinking_where_nobody_may_stop(host, settings, tmp_path):
    with pytest.raises(
        UserError, match=r"objective 'ponder' is about when tokens halt, and halter 'fixed' tells nothing"
    ):
        run(settings(objective={"use": ["next-token", "ponder"]}), host)
    assert not (tmp_path / "runs").exists()


def test_a_price_of_thinking_is_let_pass_where_tokens_halt(settings):
    refuse_nonsense(settings(objective={"use": ["next-token", "ponder"]}, halter={"use": "act"}))


@pytest.mark.parametrize("halter", ["exit-gate", "ponder"])
def test_a_learned_exit_that_no_objective_teaches(halter, host, settings, tmp_path):
    say = rf"halter '{halter}' learns from an objective that reads its shares.*--objective exit-gate or ponder-kl$"
    with pytest.raises(UserError, match=say):
        run(settings(halter={"use": halter}), host)
    assert not (tmp_path / "runs").exists()
    for objective in ("exit-gate", "ponder-kl"):
        refuse_nonsense(settings(halter={"use": halter}, objective={"use": objective}))
    refuse_nonsense(settings(halter={"use": "act"}))  # its read-out is the sum that its shares weigh


@pytest.mark.parametrize("halter", ["exit-gate", "ponder"])
def test_a_learned_exit_in_several_loops_of_which_only_the_last_is_taught(halter, make):
    parts = {"halter": {"use": halter}, "objective": {"use": "ponder-kl"}, "modulator": {"use": "none"}}
    with pytest.raises(UserError, match=rf"^halter '{halter}' .* the last loop's alone, and this split has 2 loops"):
        make(splitter={"use": "sequence", "layers": 2}, **parts)
    assert len(make(splitter={"use": "sequence", "layers": 1}, **parts).facts) == 1
    act = {**parts, "halter": {"use": "act"}, "objective": {"use": "ponder"}}
    assert len(make(splitter={"use": "sequence", "layers": 2}, **act).facts) == 2


@pytest.mark.parametrize("splitter", ["angular-distance", "block-influence"])
def test_measuring_what_random_weights_do(splitter, host, settings, tmp_path):
    tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    tables = {"base": {"config": {**tiny, "num_attention_heads": 4}}, "adapter": {"use": "full"}}
    with pytest.raises(UserError, match=rf"^splitter '{splitter}' .* base\.config makes random weights") as caught:
        run(settings(splitter={"use": splitter}, **tables), host)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
    refuse_nonsense(settings(splitter={"use": splitter}))


class Dead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.unused = nn.Parameter(torch.ones(7))

    def forward(self, state, turn):
        return state * self.scale


def test_a_dead_parameter(refused):
    part = Part(Slot.NORM, "dead", NoOptions, lambda options, facts: Dead(facts.width), "Half of it is unused.")
    refused(part, r"dead parameters: .*loops\.0\.norm\.unused: all rows")


class Ignored(Options):
    scale: float = Field(1.0, description="nobody asks")


def test_a_setting_nobody_reads(refused):
    part = Part(Slot.NORM, "ignoring", Ignored, lambda options, facts: nn.RMSNorm(facts.width), "Ignores its option.")

    def build(options, facts):
        options.model_dump()  # dumping a setting is not reading it
        return Plain(facts.width)

    refused(Part(Slot.NORM, part.name, Ignored, build, part.summary), r"no effect: nothing reads norm\.scale")


class Plain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)

    def forward(self, state, turn):
        return self.norm(state)


def test_a_setting_that_does_not_apply_here(host, settings, place):
    with pytest.raises(CheckFailed, match=r"no effect: nothing reads data\.column"):
        run(settings(data={"column": "body"}), host)


def test_a_schedule_that_ignores_the_turns_it_was_given(refused):
    class Turns(Options):
        turns: int = Field(8, description="ignored")

    class Always:
        most = 2

        def __call__(self, step, progress, seed):
            from ouroboros_core.contracts import Depth

            return Depth.full(2)

    part = Part(Slot.SCHEDULE, "always", Turns, lambda options, facts: Always(), "Two turns, whatever is said.")
    refused(part, r"no effect: nothing reads schedule\.turns")
