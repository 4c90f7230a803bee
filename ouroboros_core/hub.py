"""Saving and loading as the library does it: what was trained against a base that is not copied, or the whole model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_torch_model, save_torch_state_dict, snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME

from ouroboros_core import pretrained
from ouroboros_core.anatomy import Anatomy, HFModel, with_layers
from ouroboros_core.build import build
from ouroboros_core.config import RecursiveConfig
from ouroboros_core.errors import UserError
from ouroboros_core.files import sha256, written_aside
from ouroboros_core.host import PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.resolve import resolve
from ouroboros_core.rundir import read_json
from ouroboros_core.settings import Settings
from ouroboros_core.split import Split
from ouroboros_core.weights import CHECKSUM, PARTS, load_parts, must_be_as_written, must_be_for, save_parts, seal

WHOLE, CHECKSUMS = "model*.safetensors", "model.sha256"
ONE, INDEX, WHOLE_AND_INDEX = "model.safetensors", "model.safetensors.index.json", "model*.safetensors*"
CONFIG = "config.json"
WANTED = ["*.json", "*.safetensors", "*.sha256", "*.txt", "*.model"]  # of a model on the hub
HUB: tuple[str, ...] = ("revision", "cache_dir", "token", "local_files_only")
IGNORED = frozenset(
    {"trust_remote_code", "use_safetensors", "low_cpu_mem_usage", "code_revision", "adapter_kwargs", "_commit_hash"}
)


def save(model: RecursiveLM, folder: str | os.PathLike[str], *, merge_base: bool = False) -> None:
    """Write `config.json` and the weights: those that differ from the base, or with `merge_base` all of them.

    Raises:
        UserError: the base has no name by which it could be found again; or the folder cannot be written.
    """
    folder = Path(folder)
    if not merge_base and not model.config.base:
        raise UserError("the model does not know the name of its base: save the whole with merge_base=True")
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob(WHOLE_AND_INDEX))
    if before and not (folder / CHECKSUMS).is_file():
        raise UserError(f"{folder} holds another model, perhaps the base: save into a folder of its own")
    if merge_base:
        before -= _save_whole(model, folder)
    else:
        save_parts(model, model.config.base["fingerprint"], folder)
    for stale in before:  # it would be loaded with what is new, or in its place
        stale.unlink()
    describe(model, folder)


def describe(model: RecursiveLM, folder: Path) -> None:
    """Write `config.json` and `generation_config.json`."""
    model.config.architectures = [type(model).__name__]
    if tables := model.config.tables:  # what it computes in may be another dtype than the settings said
        kept = {**tables.get("base", {}), "dtype": str(model.dtype).removeprefix("torch.")}
        model.config.tables = {**tables, "base": kept}
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    for checksums in (CHECKSUM, CHECKSUMS):
        seal(folder, checksums, _said(folder))


def load(
    name: str | os.PathLike[str], *args: Any, config: RecursiveConfig | None = None, base_model: str | None = None,
    turns: int | None = None, dtype: Any = None, torch_dtype: Any = None, device_map: Any = None,
    attn_implementation: str | None = None, host: PluginHost | None = None, output_loading_info: bool = False,
    **others: Any,
) -> Any:  # fmt: skip
    """The model of a folder that `save`, `ouro run` or `ouro export` has written, in evaluation mode.

    Args:
        name: the folder, or a Hugging Face id (with `revision`, `cache_dir` and `token`).
        base_model: where the base is now, if it is not where it was; its fingerprint must be the same.
        turns: to take; None: those of the config.
        dtype: to compute in, "bfloat16" or "float32"; None: as it was trained.
        device_map: one device, such as "cuda"; None: the CPU.
        host: the plugins; None: those installed.

    Raises:
        UserError: a file is missing or damaged, the base is another one, or a part is not installed.
    """
    hub: dict[str, Any] = {key: others.pop(key) for key in HUB if key in others}
    if unknown := [key for key in others if key not in IGNORED]:
        raise TypeError(f"from_pretrained of a recursive model takes no {unknown[0]}")
    folder = _folder(name, hub)
    config = config or _config(folder)
    host = host or PluginHost.installed()
    settings = _settings(folder, config, host, base_model, dtype or torch_dtype)
    config.lay_out(_counted(config.turns if turns is None else turns), config.shared_slots)
    how = next((how for weights, how in {WHOLE: _whole, PARTS: _on_base}.items() if any(folder.glob(weights))), None)
    if how is None:
        raise UserError(f"{folder} has no weights, neither {PARTS} nor {WHOLE}: the run did not finish, or lost them")
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # building draws initial values, which are replaced
        model = how(folder, config, settings, host, attn_implementation or config._attn_implementation)
    model.config.lay_out(config.turns, config.shared_slots)
    model.config.architectures = config.architectures
    if (folder / GENERATION_CONFIG_NAME).is_file() and read_json(folder / GENERATION_CONFIG_NAME):
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model = model.to(_device(device_map)).eval()
    return (model, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}) if output_loading_info else model


def _folder(name: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(name), allow_patterns=WANTED, **hub))
        except (OSError, ValueError) as error:
            said = str(error).strip().splitlines()[0]
            raise UserError(f"{name} is no folder, and cannot be had from the Hugging Face hub: {said}") from error
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has no {CONFIG}: no model was saved there, or its run did not finish")
    return folder


def _config(folder: Path) -> RecursiveConfig:
    told = read_json(folder / CONFIG)
    if (kind := told.get("model_type")) != RecursiveConfig.model_type:
        raise UserError(f"{folder / CONFIG} is not of a recursive model: its model_type is {kind}")
    config: RecursiveConfig = RecursiveConfig.from_dict(told)
    return config


def _said(folder: Path) -> dict[str, Any]:
    """What `config.json` says of what the weights are for."""
    told = read_json(folder / CONFIG)
    return {key: told.get(key) for key in ("tables", "split", "turns", "base_config")}


def _counted(turns: Any) -> int:
    if not isinstance(turns, int) or turns < 1:
        raise UserError(f"turns = {turns!r}: a recursive model takes 1 or more")
    return turns


def _settings(folder: Path, config: RecursiveConfig, host: PluginHost, base: str | None, dtype: Any) -> Settings:
    """What the model was built with, here and now."""
    if not (isinstance(config.tables, dict) and isinstance(config.split, dict)):
        raise UserError(f"{folder / CONFIG} does not say which parts and layers the model has: it was not saved whole")
    now = {"name": base and str(base), "dtype": None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")}
    try:
        resolve(host, [config.tables])
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error} Is the plugin there that brings it? ouro list-plugins") from error
    return resolve(host, [config.tables, {"base": {key: value for key, value in now.items() if value}}])


def _on_base(folder: Path, config: RecursiveConfig, settings: Settings, host: PluginHost, attention: str | None) -> Any:
    told = config.base or {}
    then = (config.tables or {}).get("base", {}).get("dtype", settings.base.dtype)
    trained = settings.base.model_copy(update={"dtype": told.get("dtype", then)})
    try:
        base = pretrained.load(trained, settings.train.seed, attention)
    except UserError as error:
        raise UserError(f"{error}. {folder} holds no weights of it: say where it is with base_model=...") from error
    if told.get("fingerprint") != base.fingerprint:
        raise UserError(
            f"{folder} was trained on a base with fingerprint {told.get('fingerprint')}, and {settings.base.name} has "
            f"{base.fingerprint}: give the right one with base_model=..."
        )
    for parameter in base.model.parameters():  # not the buffers: the library keeps those of rotary in float32
        parameter.data = parameter.data.to(getattr(torch, settings.base.dtype))
    model = build(settings, host, base.model, split=Split.from_dict(config.split or {}), fill_bases=False).model
    model.config.base = {**base.told(settings.base), "dtype": trained.dtype}
    load_parts(model, folder)
    must_be_for(folder, CHECKSUM, _said(folder))
    return model


def _whole(folder: Path, config: RecursiveConfig, settings: Settings, host: PluginHost, attention: str | None) -> Any:
    split = Split.from_dict(config.split or {})
    anatomy = host.anatomy(config.base_config)
    dtype = getattr(torch, settings.base.dtype)
    intact = _hollow(anatomy, config.base_config, split, dtype, attention)
    # layers that start as means of others are about to be read, and the others are not there
    built = build(settings, host, intact, split=replace(split, averaged={}), fill_bases=False)
    model = built.model
    model.split, model.config.split, model.config.base = split, config.split, config.base
    must_be_as_written(folder, CHECKSUMS, [path.name for path in folder.glob(WHOLE)])
    must_be_for(folder, CHECKSUMS, _said(folder))
    try:
        missing, unexpected = load_torch_model(model, folder if (folder / INDEX).exists() else folder / ONE)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read: {' '.join(str(error).split())[:200]}") from error
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in state if name not in missing}
    if lost := [name for name in missing if id(state[name]) not in there] + list(unexpected):
        raise UserError(f"{folder} holds another model: {lost[0]} is only on one side")
    return model


def _hollow(anatomy: Anatomy, config: Any, split: Split, dtype: torch.dtype, attention: str | None) -> HFModel:
    """A model in the place of the intact one: only layers that are kept have room for weights."""
    made = {} if attention is None else {"attn_implementation": attention}
    with no_init_weights():
        short = AutoModelForCausalLM.from_config(anatomy.config_for(config, split.kept), dtype=dtype, **made)
    short.tie_weights()  # which is left out with the initial values
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config, dtype=dtype)
    kept = dict(zip(split.kept, anatomy.inner(short).layers, strict=True))
    layers = [kept.get(i, layer) for i, layer in enumerate(anatomy.inner(shapes).layers)]
    config._attn_implementation = short.config._attn_implementation
    return with_layers(anatomy, short, nn.ModuleList(layers), config).requires_grad_(False).eval()


def _save_whole(model: RecursiveLM, folder: Path) -> set[Path]:
    """Write every weight; returns the files that hold them."""
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        once.setdefault(id(tensor), (name, tensor))
    with written_aside(folder / ".whole", replace=True) as aside:
        state = {name: tensor.detach().contiguous() for name, tensor in once.values()}
        save_torch_state_dict(state, aside, metadata={"format": "pt"})
        names = sorted(path.name for path in aside.iterdir())
        (aside / CHECKSUMS).write_text("".join(f"{sha256(aside / name)}  {name}\n" for name in names))
    for path in sorted((folder / ".whole").iterdir()):
        path.replace(folder / path.name)
    (folder / ".whole").rmdir()
    return {folder / name for name in names}


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping) and len(device_map) == 1:
        (device_map,) = device_map.values()
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, Mapping | Sequence) and not isinstance(device_map, str):
        raise UserError("a recursive model goes on one device: give device_map one, such as 'cuda'")
    return torch.device(device_map if device_map is not None else "cpu")
