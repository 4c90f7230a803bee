"""Export: the model of a run's folder, written for others: for the library, or for PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ouroboros_core import hub
from ouroboros_core.card import model_card
from ouroboros_core.errors import UserError
from ouroboros_core.files import written_aside
from ouroboros_core.host import PluginHost
from ouroboros_core.rundir import Loaded, evaluation_of, load_run
from ouroboros_core.settings import Settings

README = "README.md"


@dataclass(frozen=True)
class Wish:
    """What is to be written, and where."""

    out: Path
    merge_base: bool
    turns: int | None


@dataclass(frozen=True)
class Form:
    """One way to write a model: how, and the lines of Python that load it."""

    write: Callable[[Loaded, dict[str, Any] | None, list[str], Wish], None]
    load: Callable[[Path], list[str]]


def export(
    folder: Path | str, to: str, out: Path | str, *, merge_base: bool = False, turns: int | None = None,
    base: str | None = None, host: PluginHost | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the model of a run into a new folder: all of it, or nothing.

    Args:
        folder: of a run whose training is finished.
        to: "hf", a folder that `AutoModelForCausalLM` loads where this package is imported; or "peft", an ordinary
            model and a LoRA for it, which need nothing of this package.
        out: where to; it must not be there yet, or be empty.
        merge_base: write every weight of an "hf" folder, not only what the base has not.
        turns: that the model is to take; None: those of the run. A "peft" folder can take no others.
        base: where the base is now; None: where it was.

    Returns:
        What was written: `files` with their sizes in bytes, and `load`, lines of Python.

    Raises:
        UserError: the folder or its base is not what it was, or what is asked for cannot be written.
    """
    folder, wish = Path(folder), Wish(Path(out), merge_base, turns)
    _refuse_nonsense(to, wish)
    host = host or PluginHost.installed()
    loaded, evaluation = load_run(folder, host, base), evaluation_of(folder)
    try:
        FORMS[to].write(loaded, evaluation, _plugins(loaded.settings, host), wish)
    except FileExistsError as error:
        raise _taken(wish.out) from error
    paths = sorted(path for path in wish.out.rglob("*") if path.is_file())
    return {
        "folder": str(wish.out),
        "to": to,
        "merge_base": merge_base,
        "turns": turns or loaded.settings.loop.turns,
        "files": {path.relative_to(wish.out).as_posix(): path.stat().st_size for path in paths},
        "load": FORMS[to].load(wish.out),
    }


def _refuse_nonsense(to: str, wish: Wish) -> None:
    if to not in FORMS:
        raise UserError(f"--to {to}: choose {' or '.join(FORMS)}")
    if to == "peft" and wish.merge_base:
        raise UserError("--merge-base belongs to --to hf: for PEFT the base is always written, with its turns unrolled")
    if wish.turns is not None and wish.turns < 1:
        raise UserError(f"--turns {wish.turns}: a recursive model takes 1 or more")
    if wish.out.exists() and (not wish.out.is_dir() or any(wish.out.iterdir()) or wish.out.samefile(Path.cwd())):
        raise _taken(wish.out)


def _taken(out: Path) -> UserError:
    return UserError(f"{out} is there already: name a folder that is not there yet, or an empty one")


def _plugins(settings: Settings, host: PluginHost) -> list[str]:
    """The distributions that brought parts, beside this one."""
    chosen = [(slot, choice.part) for slot, choices in settings.parts.items() for choice in choices]
    offers = [record for slot, part in chosen for record, offer in host.parts(slot) if offer is part]
    return sorted({f"`{record.distribution}` {record.version}" for record in offers if not record.builtin})


def _write_hf(loaded: Loaded, evaluation: dict[str, Any] | None, plugins: list[str], wish: Wish) -> None:
    model = loaded.built.model
    with model.laid_out(wish.turns or model.turns):
        card = model_card(loaded, evaluation, merged=wish.merge_base, plugins=plugins)
        with written_aside(wish.out) as aside:
            hub.save(model, aside, merge_base=wish.merge_base)
            loaded.base.tokenizer.save_pretrained(aside)
            (aside / README).write_text(card)


def _write_peft(loaded: Loaded, evaluation: dict[str, Any] | None, plugins: list[str], wish: Wish) -> None:
    from ouroboros_core.peft_export import to_peft  # which imports PEFT

    logging.disable_progress_bar()
    if wish.out.exists():
        wish.out.rmdir()  # it is empty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what PEFT calls will be called otherwise: no concern of users
        to_peft(loaded.built.model, loaded.base.tokenizer, wish.out, wish.turns)


def _load_hf(out: Path) -> list[str]:
    return [
        "import ouroboros_core",
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})",
    ]


def _load_peft(out: Path) -> list[str]:
    base, adapter = str(out / "base"), str(out / "adapter")
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {adapter!r})",
    ]


FORMS: Mapping[str, Form] = {"hf": Form(_write_hf, _load_hf), "peft": Form(_write_peft, _load_peft)}
