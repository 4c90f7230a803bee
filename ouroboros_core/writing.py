"""Writing: a prompt goes in, text comes out piece by piece, with the turns that each token took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig

from ouroboros_core import rundir
from ouroboros_core.devices import accelerator_for
from ouroboros_core.errors import UserError
from ouroboros_core.host import PluginHost
from ouroboros_core.model import RecursiveLM
from ouroboros_core.passing import may_stop
from ouroboros_core.pieces import Heard, Pieces, turns_of_passes


@dataclass(frozen=True)
class Decoding:
    """How to write.

    Args:
        turns: to take; None: those that the model takes at evaluation.
        most: new tokens.
        temperature: the best token is taken where it is None or 0; else one is drawn.
        top_p: draw from the likeliest tokens that together have this probability.
        top_k: draw from so many of the likeliest tokens.
        seed: of what is drawn.
        beams: continuations that are followed at once; with more than one, nothing is heard before the end.
        shared_slots: as `policies.parse_policy` answers.
        cached: keep keys and values; else everything is read again for each token.
        chat: the prompt is what a user says to a model that knows a chat template.
        compiled: compile the pass of one token before the second, for a cache of the text's full length.

    Raises:
        UserError: what is asked for contradicts itself.
    """

    turns: int | None = None
    most: int = 128
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    beams: int = 1
    shared_slots: int | None = None
    cached: bool = True
    chat: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if not self.temperature and (self.top_p is not None or self.top_k is not None):
            raise UserError("top-p and top-k narrow what is drawn, and nothing is: give a temperature too, such as 0.8")
        if self.shared_slots is not None and not self.cached:
            raise UserError("without a cache there are no slots to share: leave out the cache policy, or use a cache")
        if self.compiled and not self.cached:
            raise UserError("what is compiled is a pass that reads a cache: compile, or write without a cache")
        if self.compiled and self.beams > 1:
            raise UserError("the library compiles nothing where it follows several beams: compile, or follow one beam")

    def told(self) -> dict[str, Any]:
        """What `RecursiveLM.generate` is told. How to draw is always said: the base may have other ideas."""
        told: dict[str, Any] = {"max_new_tokens": self.most, "num_beams": self.beams}
        told |= {"turns": self.turns, "shared_slots": self.shared_slots, "use_cache": self.cached}
        top_p, top_k = 1.0 if self.top_p is None else self.top_p, self.top_k or 0
        drawn = {"temperature": self.temperature, "top_p": top_p, "top_k": top_k}
        told |= compiling() if self.compiled else {}
        return told | {"do_sample": True, **drawn} if self.temperature else told | {"do_sample": False}


@dataclass(frozen=True)
class Written:
    """What was written."""

    prompt: str
    text: str  # without the prompt
    tokens: list[int]  # new ones, with the one that ended the text, if one did
    turns: list[int]  # that the forward pass which chose each token took at its last position, in all loops
    adaptive: bool  # a token may stop before the last turn
    seconds: float  # for reading the prompt and writing

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second."""
        return len(self.tokens) / self.seconds


def opened(
    folder: Path | str, host: PluginHost | None = None, base: str | None = None, device: str | None = None
) -> tuple[RecursiveLM, Any]:  # fmt: skip
    """The model of a run's folder, and its tokenizer.

    Args:
        base: where it is now; None: where it was.
        device: None: the one that the run asked for.

    Raises:
        UserError: the folder or the base is not what it was, or a plugin is not there.
    """
    loaded = rundir.load_run(folder, host, base)
    model: RecursiveLM = loaded.built.model.to(accelerator_for(device or loaded.settings.base.device).device)
    return model, loaded.base.tokenizer


def write(
    model: RecursiveLM, tokenizer: Any, prompt: str, how: Decoding | None = None, heard: Heard = lambda *_: None
) -> Written:  # fmt: skip
    """Write on from a prompt, until the model ends the text or `how.most` tokens are there. Seeds torch's generator.

    Args:
        heard: is called with each piece as soon as its characters are whole, and at the end with what is left.

    Raises:
        UserError: there is no prompt, or the tokens would not fit; or the model cannot write as told.
    """
    how = how or Decoding()
    ids = encoded(tokenizer, prompt, how.chat)
    _must_fit(model, len(ids), how.most)
    if how.compiled and may_stop(model):
        raise UserError("the halter of this model stops each token in its time: there is no one pass to compile")
    batch = torch.tensor([ids], device=model.device)
    torch.manual_seed(how.seed)
    began = time.perf_counter()
    with turns_of_passes(model) as passes, _telling_of_the_compiler():
        pieces = Pieces(tokenizer, ids, passes, heard)
        found = model.generate(
            batch, attention_mask=torch.ones_like(batch), streamer=None if how.beams > 1 else pieces,
            return_dict_in_generate=True, **_ends(model, tokenizer), **how.told(),
        )  # fmt: skip
    if how.beams > 1:
        _tell_best(found, len(ids), pieces)
    spent = time.perf_counter() - began
    return Written(prompt, pieces.text, pieces.tokens, pieces.turns, may_stop(model), spent)


def compiling() -> dict[str, Any]:
    """What tells the library's `generate` to compile the pass of one token, also on a CPU."""
    config = CompileConfig(mode="default")  # the library's own default replays CUDA graphs, which nobody has tried
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@contextmanager
def _telling_of_the_compiler() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import

        if not isinstance(error, BackendCompilerFailed):
            raise
        inner = error.inner_exception
        cause = (str(inner).strip() or type(inner).__name__).splitlines()[0]
        raise UserError(f"the pass of one token could not be compiled, write without compiling it: {cause}") from error


def encoded(tokenizer: Any, prompt: str, chat: bool = False) -> list[int]:
    """The tokens of a prompt: as training reads text, with none in front; or as the chat template has it.

    Raises:
        UserError: the prompt is empty, or there is no chat template.
    """
    must_say_something(prompt)
    if chat:
        if not tokenizer.chat_template:
            raise UserError("the tokenizer of this model has no chat template: give the prompt as plain text")
        said = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids


def must_say_something(prompt: str) -> None:
    """Refuse an empty prompt, which leaves a model nothing to go on from.

    Raises:
        UserError: nothing but white space.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: give a text to go on from")


def most_turns(model: RecursiveLM, how: Decoding) -> int:
    """The most turns that a token can take, in all loops."""
    return (how.turns or model.turns) * len(model.loops)


def _tell_best(found: Any, prompt: int, pieces: Pieces) -> None:
    """Hear the best of the beams: it has gone from row to row."""
    for token, row in zip(found.sequences[0, prompt:].tolist(), found.beam_indices[0].tolist(), strict=False):
        if row >= 0:
            pieces.add(token, row)
    pieces.end()


def _ends(model: RecursiveLM, tokenizer: Any) -> dict[str, Any]:
    """Tokens that end a text: those of the base, and the one between documents in training."""
    told = model.generation_config.eos_token_id
    several = [*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id]
    ends = [token for token in dict.fromkeys(several) if token is not None]
    return {"eos_token_id": ends, "pad_token_id": ends[0]} if ends else {}


def _must_fit(model: RecursiveLM, prompt: int, most: int) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and prompt + most > room:
        left = f"ask for at most {room - prompt} new ones" if prompt < room else "shorten the prompt"
        raise UserError(
            f"{prompt} tokens of the prompt and {most} new ones are more than the {room} positions of the model: {left}"
        )
