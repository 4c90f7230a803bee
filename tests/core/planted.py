"""Faulty parts, planted one by one, and what each check that must catch them has to say."""

import random
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import nn

from ouroboros_core import accounting
from ouroboros_core.accounting import MeanDepth
from ouroboros_core.contracts import Depth, Halt, Slot
from ouroboros_core.ops import Add, LowRank
from ouroboros_core.options import NoOptions, Options
from ouroboros_plugins.halters.act import ACTHalter
from ouroboros_plugins.objectives.next_token import NextToken


@dataclass(frozen=True)
class Defect:
    """A faulty part, and what each check that must catch it has to say."""

    slot: Slot
    make: object  # LoopFacts -> part
    caught: dict[str, str]
    flags: dict = field(default_factory=dict)  # of the Part
    options: type[Options] = NoOptions


def gate(forward):
    """A gate without parameters."""
    return lambda facts: type("Gate", (nn.Module,), {"forward": lambda self, old, new, turn: forward(old, new, turn)})()


def norm(forward):
    """A norm or modulator without parameters."""
    return lambda facts: type("Norm", (nn.Module,), {"forward": lambda self, state, turn: forward(state, turn)})()


def halter(stop, share=lambda new, turn: None, weighted=False, adaptive=True):
    """A halter without parameters, that may stop early."""

    class Halter(nn.Module):
        def forward(self, old, new, turn):
            return Halt(stop(old, new, turn), share(new, turn))

    Halter.weighted, Halter.adaptive = weighted, adaptive
    return lambda facts: Halter()


def never(old, new, turn):
    return torch.zeros_like(turn.mask)


class PoolOptions(Options):
    pool: str = Field("everything", description="what is averaged")


class Counting(nn.Module):
    """Remembers how often it was called."""

    def __init__(self, facts):
        super().__init__()
        self.calls = 0

    def forward(self, old, new, turn):
        self.calls += 1
        return new * (1 + 0.1 * (self.calls % 7))


class Drawn(nn.Module):
    """A fixed random scale, which is not saved."""

    def __init__(self, facts):
        super().__init__()
        self.register_buffer("scale", 1 + torch.rand(facts.width), persistent=False)

    def forward(self, state, turn):
        return state * self.scale


class Running(nn.Module):
    """A mean over what training has shown, which is not saved."""

    def __init__(self, facts):
        super().__init__()
        self.register_buffer("mean", torch.zeros(facts.width), persistent=False)

    def forward(self, state, turn):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * state.detach().float().mean((0, 1))
        return state - self.mean.to(state.dtype)


class OutsideGenerator(nn.Module):
    """Initial values from a generator that no setting seeds."""

    def __init__(self, facts):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1 + random.Random().random() for _ in range(facts.width)]))

    def forward(self, state, turn):
        return state * self.scale


class TwoZeros(nn.Module):
    """Both factors of a product start at zero."""

    def __init__(self, facts):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(4, facts.width))
        self.up = nn.Parameter(torch.zeros(facts.width, 4))

    def forward(self, state, turn):
        return {"state": [LowRank(self.down, self.up)]}


class InAList(nn.Module):
    """A parameter that no module knows of."""

    def __init__(self, facts):
        super().__init__()
        self.hidden = [nn.Parameter(torch.ones(facts.width))]

    def forward(self, state, turn):
        return state * self.hidden[0].to(state.dtype)


class Switched(nn.Module):
    """A parameter that is frozen when it is first used."""

    def __init__(self, facts):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(facts.width))

    def forward(self, state, turn):
        return state * self.scale.requires_grad_(False)


class Late(nn.Module):
    """A parameter that is made when it is first used."""

    def forward(self, state, turn):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(state.shape[-1]))
        return state * self.scale


class AddsInNull(nn.Module):
    """An entry that says it changes nothing."""

    def start(self, prelude, turn):
        return prelude

    def inject(self, state, prelude, turn):
        return state + 0.01 * prelude


@dataclass
class Rewrites:
    """An adapter that changes the weights it makes learn."""

    rate = None

    def __call__(self, model):
        for parameter in model.layer(model.split.coda[0]).parameters():
            parameter.data *= 1.01
            parameter.requires_grad_(True)


@dataclass
class Objective:
    """The next token's loss, read with labels that were moved."""

    move: object
    wants_teacher = False
    wants_turns = False

    def __call__(self, trace, labels):
        return NextToken()(trace, self.move(labels))


class Misses(ACTHalter):
    """The stopping turn takes what it asks for, not the remainder."""

    def forward(self, old, new, turn):
        p = torch.sigmoid(self.unit(new).squeeze(-1).float())
        return Halt(turn.spent + p >= 1 - self.epsilon, p)


def early(old, new, turn):
    """Some tokens stop after the first turn."""
    return turn.mask & (new[..., 0] > 0)


def not_at_first(new, turn):
    """No share at the first turn, all of it at the last."""
    return None if turn.index == 0 else torch.full(turn.mask.shape, float(turn.last))


def signed(new, turn):
    """Shares that sum to one, one of them negative."""
    return torch.full(turn.mask.shape, {0: -0.5, 1: 1.5}.get(turn.index, 0.0))


def late_mean(values):
    """The mean over all tokens of a row, later ones too."""
    return values.mean(1, keepdim=True)


def centred_in_bfloat16(state, turn):
    """The variance as a difference of two large means."""
    moved = state + 64
    variance = moved.square().mean(-1, keepdim=True) - moved.mean(-1, keepdim=True).square()
    return state * variance.clamp(min=1e-3).rsqrt()


def angles_in_bfloat16(state, turn):
    """Large angles in the state's own dtype."""
    angle = turn.positions[..., None].to(state.dtype) * torch.linspace(0, 40, state.shape[-1]).to(state.dtype)
    return state + 0.1 * angle.sin()


def step_noise(state, turn):
    """An op of noise from the global generator."""
    return {"state": [Add(0.1 * torch.randn(state.shape))]}


FUTURE = r"the model sees the future: logits up to position \d+ moved"
NEIGHBOURS = "a part mixes the rows of a batch"
SHARES = {"gives_shares": True}
PROMISE = {"starts_null": True}
DEFECTS = {
    "pooling over later tokens": Defect(
        Slot.GATE, gate(lambda old, new, turn: new + late_mean(new)),
        {"causality": FUTURE, "padding": "padding on the .* a part ignores the mask"}),
    "a halter that looks at later tokens": Defect(
        Slot.HALTER, halter(lambda old, new, turn: (new[..., 0] > late_mean(new)[..., 0]) & turn.mask),
        {"causality": r"the model sees the future", "padding": "the halter looks at padding"}),
    "a halter that looks at other rows": Defect(
        Slot.HALTER, halter(lambda old, new, turn: new[..., 0] > new[..., 0].mean(0)),
        {"batch": "reading rows one by one changes how many turns .*: the halter looks at other rows"}),
    "a gate with batch statistics": Defect(
        Slot.GATE, gate(lambda old, new, turn: new - new.mean(0)),
        {"batch": f"one by one moves logits .* {NEIGHBOURS}"}),
    "a gate that knows its row": Defect(
        Slot.GATE, gate(lambda old, new, turn: new * torch.linspace(0.5, 1, len(new))[:, None, None]),
        {"batch": f"moves logits .* {NEIGHBOURS}, or knows its row"}),
    "positions counted from the first pad": Defect(
        Slot.NORM, norm(lambda state, turn: state + 0.1 * torch.arange(state.shape[1])[:, None].sin()),
        {"padding": "padding on the left moves logits .* the positions"}),
    "noise from the global generator": Defect(
        Slot.MODULATOR, norm(step_noise),
        {"seeds": "two forwards of one model differ: a part draws", "saving": "answers otherwise"}),
    "initial values from another generator": Defect(
        Slot.NORM, OutsideGenerator, {"seeds": r"two models of one seed differ in loops\.0\.norm\.scale"}),
    "state kept between calls": Defect(
        Slot.GATE, Counting, {"seeds": "two forwards of one model differ: .* keeps a state", "batch": "moves logits"}),
    "a random buffer that is not saved": Defect(
        Slot.NORM, Drawn, {"saving": "saved and loaded answers otherwise: a part holds a tensor it does not save"}),
    "statistics of training that are not saved": Defect(
        Slot.NORM, Running, {"saving": "saved and loaded answers otherwise"}),
    "a variance in bfloat16": Defect(
        Slot.NORM, norm(centred_in_bfloat16), {"precision": r"bfloat16 moves the logits by .* needs float32"}),
    "angles in bfloat16": Defect(
        Slot.NORM, norm(angles_in_bfloat16), {"precision": r"bfloat16 moves the logits by .* needs float32"}),
    "no number": Defect(
        Slot.NORM, norm(lambda state, turn: state / 0.0 * 0.0), {
            "causality": "logits are not finite", "padding": "moves logits by nan", "precision": "by nan%"}),
    "both factors of a product zero": Defect(
        Slot.MODULATOR, TwoZeros, {"gradients": r"dead parameters: .*loops\.0\.modulator\.down: 4 of 4 rows"}),
    "an option that is never read": Defect(
        Slot.GATE, gate(lambda old, new, turn: new), {"options": r"nothing reads gate\.pool"}, options=PoolOptions),
    "labels shifted a second time": Defect(
        Slot.OBJECTIVE, lambda facts: Objective(lambda labels: labels.roll(-1, 1)),
        {"labels": "objective 'faulty' likes a model better that is sure of the token after the next one"}),
    "labels shifted back": Defect(
        Slot.OBJECTIVE, lambda facts: Objective(lambda labels: labels.roll(1, 1)),
        {"labels": "likes a model better that is sure of the token it has just read"}),
    "labels that nobody reads": Defect(
        Slot.OBJECTIVE, lambda facts: Objective(lambda labels: labels * 0 + 7),
        {"labels": "no objective reads the labels"}),
    "a remainder that is not taken": Defect(
        Slot.HALTER, lambda facts: Misses(facts.width), {"exits": "shares of a token's turns miss one by"}, SHARES),
    "no share at the first turn": Defect(
        Slot.HALTER, halter(never, not_at_first), {"exits": "3 of 4 turns have a share"}, SHARES),
    "a negative share": Defect(
        Slot.HALTER, halter(never, signed), {"exits": r"a share is -5\.0e-01: it is a probability"}, SHARES),
    "shares that are not declared": Defect(
        Slot.HALTER, halter(never, lambda new, turn: torch.full(turn.mask.shape, float(turn.last))),
        {"exits": "halter 'faulty' says that it gives no shares in training, and there are some"}),
    "a parameter in a list": Defect(
        Slot.NORM, InAList, {"counting": r"a tensor \(128,\) learns and the optimiser does not have it"}),
    "a parameter made at its first use": Defect(
        Slot.NORM, lambda facts: Late(), {
            "counting": "learns and the optimiser does not have it", "saving": "does not fit a fresh model"}),
    "a parameter frozen at its first use": Defect(
        Slot.NORM, Switched, {
            "counting": r"loops\.0\.norm\.scale is a parameter and does not learn",
            "gradients": r"dead parameters: .*norm\.scale"}),
    "an adapter that changes weights": Defect(
        Slot.ADAPTER, lambda facts: Rewrites(), {
            "identity": "with neutral parts the model is not its kept layers",
            "start": r"adapter 'faulty' at its start moves logits by .* it promises to start as nothing"}, PROMISE),
    "a null part that adds something": Defect(
        Slot.ENTRY, lambda facts: AddsInNull(), {"identity": "with neutral parts the model is not"}, {"null": True}),
    "a modulator that promises to start as nothing and adds something": Defect(
        Slot.MODULATOR, norm(lambda state, turn: {"state": [Add(torch.full(state.shape[-1:], 0.01))]}),
        {"start": "modulator 'faulty' at its start moves logits by .* it promises to start as nothing"}, PROMISE),
    "a gate that promises to start as nothing and keeps old states": Defect(
        Slot.GATE, gate(lambda old, new, turn: 0.1 * old + 0.9 * new),
        {"start": "gate 'faulty' at its start moves logits by"},
        {"starts_null": lambda options: options == NoOptions()}),
    "a halter that stops tokens and says that it does not": Defect(
        Slot.HALTER, halter(early, adaptive=False),
        {"exits": "halter 'faulty' stops tokens early and says that it is not adaptive"}),
    "a halter that promises to start as nothing and stops": Defect(
        Slot.HALTER, halter(early),
        {"start": "halter 'faulty' at its start changes how many turns a token takes"}, PROMISE),
    "a part that breaks off": Defect(
        Slot.GATE, gate(lambda old, new, turn: new.view(3, -1)),
        dict.fromkeys(("padding", "precision", "gradients", "exits"), "a part breaks off: RuntimeError")),
}  # fmt: skip


# Faulty bookkeeping: what is put in the place of a function of `accounting`, given the real one


def one_turn_for_all(real):
    return lambda model, length, depth=None: real(model, length, Depth.full(1))


def with_a_teacher(real):
    """Training also counts a forward pass of another model: here, of this one."""
    return lambda model, length, depth=None: (
        real(model, length, depth) + accounting.flops_per_token(model, length, depth)
    )


def without_backward(real):
    return lambda model, length, depth=None: accounting.flops_per_token(model, length, depth)


def every_turn_with_gradient(real):
    return lambda *run: MeanDepth(real(*run).turns, real(*run).turns)


def a_slot_for_each_layer(real):
    return lambda model: (
        real(model)
        * len(model.split.order)
        // sum(model.turns if i in model.split.looped else 1 for i in model.split.order)
    )


def a_key_for_each_query(real):
    config = "num_attention_heads", "num_key_value_heads"
    return lambda model: real(model) * getattr(model.base.config, config[0]) // getattr(model.base.config, config[1])


MISCOUNTED = {  # the function, what it becomes, and what the check has to say
    "operations of one turn": ("flops_per_token", one_turn_for_all, "forward operations"),
    "training of one turn": ("train_flops_per_token", one_turn_for_all, "training operations"),
    "operations of the teacher": ("train_flops_per_token", with_a_teacher, "training operations"),
    "no backward pass": ("train_flops_per_token", without_backward, "training operations"),
    "a backward pass for every turn": ("mean_depth", every_turn_with_gradient, "training operations"),
    "a cache without turns": ("kv_bytes_per_token", a_slot_for_each_layer, "bytes of keys and values"),
    "a cache of query heads": ("kv_bytes_per_token", a_key_for_each_query, "bytes of keys and values"),
}
