"""The state of a training run as plain tensors: trained weights, optimiser moments, random states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ouroboros_core.checkpoint import Checkpoint
from ouroboros_core.errors import UserError

MODEL, OPTIMIZER, RANDOM = "model.", "optimizer.", "random."


def take(loss: nn.Module, optimizer: Any, step: int, accelerator: Accelerator) -> Checkpoint:
    """Everything a run needs to go on after `step` as if nothing had happened.

    Called on every process; the first one's answer is whole.
    """
    whole = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, flatten_optimizer_state_dict=True
    )
    trained = {name for name, p in accelerator.unwrap_model(loss).named_parameters() if p.requires_grad}
    state: Mapping[str, Any] = get_model_state_dict(loss, options=whole)
    moments: Mapping[str, Any] = get_optimizer_state_dict(loss, _plain(optimizer), options=whole)
    tensors: dict[str, Tensor] = {MODEL + name: state[name] for name in state if name in trained}
    tensors |= {OPTIMIZER + name: value for name, value in moments.items() if isinstance(value, Tensor)}
    facts = {name: value for name, value in moments.items() if not isinstance(value, Tensor)}
    for rank, states in enumerate(gather_object([_random_states()])):
        tensors |= {f"{RANDOM}{rank}.{device}": state for device, state in states.items()}
    return Checkpoint(tensors, {"step": step, "optimizer": facts, "processes": accelerator.num_processes})


def restore(taken: Checkpoint, loss: nn.Module, optimizer: Any, accelerator: Accelerator) -> int:
    """Put a snapshot back in place. Returns the step it was taken after.

    Raises:
        UserError: it is of another model, or of another number of processes.
    """
    if taken.facts["processes"] != accelerator.num_processes:
        raise UserError(
            f"the checkpoint was written by {taken.facts['processes']} process(es), and these are "
            f"{accelerator.num_processes}: resume with as many, or bit-identity is lost"
        )
    model = accelerator.unwrap_model(loss)
    weights = _under(MODEL, taken)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != trained:
        raise UserError(
            f"the checkpoint is of another model: {sorted(weights.keys() ^ trained)[0]} is only on one side"
        )
    model.load_state_dict(weights, strict=False)
    options = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
    moments = {**_under(OPTIMIZER, taken), **taken.facts["optimizer"]}
    set_optimizer_state_dict(loss, _plain(optimizer), moments, options=options)
    _set_random_states(_under(f"{RANDOM}{accelerator.process_index}.", taken))
    return int(taken.facts["step"])


def _under(prefix: str, taken: Checkpoint) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in taken.tensors.items() if name.startswith(prefix)}


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
