"""Export for PEFT: at a fixed depth, loops whose turns differ by low-rank changes of weights are a model and a LoRA.

They are *unrolled*: an ordinary model of the library has the looped layers again for every turn, each with keys and
values of its own, and a LoRA (Hu 2022) changes every repetition as its turn did. What is no low-rank change of a
linear, or not the same for every text, cannot be said so. It is found by what parts do, not by what they are called.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ouroboros_core.anatomy import HFModel, with_layers
from ouroboros_core.build import Chain
from ouroboros_core.contracts import Depth, Inside, Slot, Turn
from ouroboros_core.errors import UserError
from ouroboros_core.files import written_aside
from ouroboros_core.loop import Parts
from ouroboros_core.model import RecursiveLM
from ouroboros_core.ops import LowRank, Ops, Tap, Taps
from ouroboros_core.split import Split

BASE, ADAPTER = "base", "adapter"
READS, MOVES = "depends on the text", "changes states"  # what no LoRA does
TOKENS = 8  # of each of the two random texts on which the parts are watched
FACTOR = re.compile(r"\.lora_[AB]\.\w+\.weight$")  # in PEFT's names of weights


@dataclass(frozen=True)
class Change:
    """scale * up down: a change of a weight (out, in)."""

    down: Tensor  # (R, in)
    up: Tensor  # (out, R)
    scale: float = 1.0

    @property
    def kind(self) -> tuple[int, float]:
        """Rank and alpha, as PEFT counts them: scale = alpha / rank."""
        return len(self.down), self.scale * len(self.down)

    def beside(self, other: Change) -> Change:
        """The sum of both."""
        up = torch.cat([self.up * self.scale, other.up * other.scale], dim=1)
        return Change(torch.cat([self.down, other.down]), up)


@dataclass(frozen=True)
class Call:
    """What a modulator answered at a turn."""

    loop: int
    modulator: nn.Module
    turn: Turn
    ops: Ops


@torch.no_grad()
def to_peft(model: RecursiveLM, tokenizer: Any, folder: Path | str, turns: int | None = None) -> None:
    """Write `folder/base`, an ordinary model with its tokenizer, and `folder/adapter`, a LoRA for it in float32.

    The adapter names its base by the path given here. `AutoPeftModelForCausalLM` follows it, from the working
    directory unless the path is absolute; `PeftModel.from_pretrained` is handed the base and does not.

    Args:
        turns: to unroll; by default the model's. What is written takes these and no others.

    Raises:
        UserError: a part does what no LoRA can, or there is nothing for a LoRA to hold; or the folder is there, or
            cannot be written.
    """
    folder, turns = Path(folder), model.turns if turns is None else turns
    if turns < 1:
        raise UserError(f"--to peft: {turns} turns cannot be unrolled: ask for one or more")
    if folder.exists():
        raise UserError(f"--to peft: {folder} is there already: name another folder, or delete it")
    found = list(_by_turn(model, turns))
    order, starts = _unrolled(model.split, turns)
    config = model.anatomy.config_for(model.base.config, order)
    repeated = with_layers(model.anatomy, model.base, nn.ModuleList(map(model.layer, order)), config)
    stock = _stock(model, repeated)
    changes = _joined([*_placed(model, stock, starts, found), *_loras(repeated)])
    with written_aside(folder) as aside:
        stock.save_pretrained(aside / BASE)
        tokenizer.save_pretrained(aside / BASE)
        stock.name_or_path = str(folder / BASE)  # what PEFT will call the base
        _adapted(stock, changes).save_pretrained(aside / ADAPTER, save_embedding_layers=False)
        (aside / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's template, which names another base


def _by_turn(model: RecursiveLM, turns: int) -> Iterator[tuple[Call, str, Change]]:
    """How every turn changes the linears, by tap. Whatever else a part does is refused."""
    for call, other in zip(*(_watched(model, turns, seed) for seed in (0, 1)), strict=True):
        with model.precision(call.turn.prelude.device):
            _refuse_other_than_weights(model.loops[call.loop], call.turn)
        changes, others = (list(_changes(each, model.taps[call.loop])) for each in (call, other))
        if not _same(changes, others):
            raise _refusal(Slot.MODULATOR, call.modulator, READS)
        yield from ((call, tap, change) for tap, change in changes)


def _watched(model: RecursiveLM, turns: int, seed: int) -> list[Call]:
    """What every modulator answers, turn by turn, while the model reads a random text."""
    calls: list[Call] = []
    loops: Any = copy.deepcopy(model.loops).eval()
    for number, parts in enumerate(loops):
        if parts.halter.adaptive or parts.halter.weighted:
            raise _refusal(Slot.HALTER, parts.halter, READS)
        for modulator in parts.modulator.modulators if isinstance(parts.modulator, Chain) else [parts.modulator]:
            modulator.register_forward_hook(
                lambda modulator, given, ops, loop=number: calls.append(Call(loop, modulator, given[1], ops))
            )
    words, device = model.head.weight.shape[0], model.head.weight.device
    text = torch.randint(words, (1, TOKENS), generator=torch.Generator().manual_seed(seed)).to(device)
    with model.with_parts(list(loops)):
        model.trace(text, depth=Depth.full(turns))
    return calls


def _refuse_other_than_weights(parts: Parts, turn: Turn) -> None:
    """Refuse an entry, norm or gate that does anything at all, to the state or inside the block."""
    state, other = turn.prelude, turn.prelude.roll(1, -1)  # any two will do that are neither equal nor zero
    pairs = {
        Slot.ENTRY: [(parts.entry.start(state, turn), state), (parts.entry.inject(state, other, turn), state)],
        Slot.NORM: [(parts.norm(state, turn), state), (parts.read(state), state)],
        Slot.GATE: [(parts.gate(other, state, turn), state)],
    }
    for slot, outcomes in pairs.items():
        part = getattr(parts, slot)
        inside = isinstance(part, Inside) and part.inside(turn)
        if inside or not all(torch.equal(now.to(before.dtype), before) for now, before in outcomes):
            raise _refusal(slot, part, MOVES)


def _changes(call: Call, taps: Taps) -> Iterator[tuple[str, Change]]:
    """The changes of weights that a modulator answered with, by tap."""
    for tap, op in ((tap, op) for tap, ops in call.ops.items() for op in ops):
        if not (isinstance(op, LowRank) and isinstance(taps[tap], Tap)):
            raise _refusal(Slot.MODULATOR, call.modulator, MOVES)
        if op.core is not None and op.core.ndim > 1:
            raise _refusal(Slot.MODULATOR, call.modulator, READS)
        yield tap, Change(op.down.float(), op.up.float() * (1 if op.core is None else op.core.float()))


def _same(some: Sequence[tuple[str, Change]], others: Sequence[tuple[str, Change]]) -> bool:
    return len(some) == len(others) and all(
        tap == other_tap and torch.equal(one.down, other.down) and torch.equal(one.up, other.up)
        for (tap, one), (other_tap, other) in zip(some, others, strict=True)
    )


def _unrolled(split: Split, turns: int) -> tuple[list[int], dict[tuple[int, int], int]]:
    """The layers in the order they run, looped ones once for every turn; and where each loop's turns begin."""
    order: list[int] = []
    starts: dict[tuple[int, int], int] = {}
    loops = count()
    for segment in split.segments:
        loop = next(loops) if segment.looped else -1
        for turn in range(turns if segment.looped else 1):
            starts[loop, turn] = len(order)
            order += segment.layers
    return order, starts


def _stock(model: RecursiveLM, repeated: HFModel) -> HFModel:
    """A new model of the library with copies of these weights, without the factors of LoRA."""
    stock = AutoModelForCausalLM.from_config(repeated.config, dtype=model.dtype)
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in repeated.state_dict().items()
        if not FACTOR.search(name)
    }
    if strange := sorted(weights.keys() ^ stock.state_dict().keys()):
        raise UserError(f"--to peft: the adapter is no plain LoRA, for it made {strange[0]}: use --to hf")
    stock.load_state_dict(weights)
    stock.generation_config = copy.deepcopy(model.generation_config)
    return stock.eval()


def _loras(repeated: HFModel) -> Iterator[tuple[str, Change]]:
    """The LoRA that an adapter has put into the base, by the names of linears in the unrolled model."""
    for name, module in repeated.named_modules(remove_duplicate=False):
        for active in module.active_adapters if isinstance(module, LoraLayer) else ():
            down, up = (factor[active].weight.float() for factor in (module.lora_A, module.lora_B))
            yield name, Change(down, up, module.scaling[active])


def _placed(
    model: RecursiveLM, stock: HFModel, starts: Mapping[tuple[int, int], int], found: Iterable[tuple[Call, str, Change]]
) -> Iterator[tuple[str, Change]]:
    """The turns' changes, by the names of linears in the unrolled model."""
    names = {module: name for name, module in stock.named_modules()}
    layers = model.anatomy.inner(stock).layers
    for call, tap, change in found:
        place, _, short = tap.partition(".")
        layer = layers[starts[call.loop, call.turn.index] + int(place)]
        yield names[model.anatomy.linears(layer)[short]], change


def _joined(changes: Iterable[tuple[str, Change]]) -> dict[str, Change]:
    """One change for every linear: several have their ranks side by side."""
    joined: dict[str, Change] = {}
    for name, new in changes:
        joined[name] = joined[name].beside(new) if name in joined else new
    if not joined:
        raise UserError("--to peft: nothing changes a weight by turn and the coda has no LoRA: use --to hf")
    return joined


def _adapted(stock: HFModel, changes: Mapping[str, Change]) -> PeftModel:
    """The model with these changes as PEFT's layers; the commonest rank and alpha are the config's own."""
    (rank, alpha), _ = Counter(change.kind for change in changes.values()).most_common(1)[0]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(changes), task_type="CAUSAL_LM",
        rank_pattern={name: change.kind[0] for name, change in changes.items() if change.kind[0] != rank},
        alpha_pattern={name: change.kind[1] for name, change in changes.items() if change.kind[1] != alpha},
    )  # fmt: skip
    adapted = get_peft_model(stock, config)
    for name, change in changes.items():
        linear = adapted.get_base_model().get_submodule(name)
        linear.lora_A["default"].weight.copy_(change.down)
        linear.lora_B["default"].weight.copy_(change.up)
    return adapted


def _refusal(slot: Slot, part: Any, does: str) -> UserError:
    name = type(part).__name__
    return UserError(f"--to peft: {slot} {name} {does}; a LoRA changes weights, alike for every text: use --to hf")
