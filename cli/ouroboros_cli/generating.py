"""`ouro generate`."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style

from ouroboros_core.errors import Interrupted, UserError

if TYPE_CHECKING:
    from ouroboros_core.writing import Decoding, Written

COLD, WARM = ColorTriplet(70, 140, 255), ColorTriplet(255, 80, 50)  # few turns, many


@dataclass(frozen=True)
class Where:
    """Where the model and its base are, where it runs, and whether plugins of others are loaded."""

    run: Path
    base: str | None = None
    device: str | None = None
    third_party: bool = True


def prompt_of(prompt: str | None, stdin: bool) -> str:
    """The prompt, or what stdin says, without the line end that a shell puts behind it.

    Raises:
        UserError: there is none, or there are two.
    """
    if stdin and prompt not in (None, "-"):
        raise UserError("two prompts, one as an argument and --stdin: leave out one of them")
    if stdin or prompt == "-":
        return sys.stdin.read().removesuffix("\n")
    if prompt is None:
        raise UserError("no prompt: give a text behind the run's folder, or --stdin")
    return prompt


def generate_and_show(
    where: Where, prompt: str, how: Decoding, *, echo: bool, show_turns: bool, json: bool
) -> None:  # fmt: skip
    """Write, and print the text as it comes; or JSON at the end."""
    from ouroboros_core.host import PluginHost
    from ouroboros_core.writing import most_turns, must_say_something, opened, write

    must_say_something(prompt)
    host = PluginHost.installed(third_party=where.third_party)
    model, tokenizer = opened(where.run, host, where.base, where.device)
    if how.compiled:
        print("compiling one pass after the first token: a minute or two, later runs find it again", file=sys.stderr)
    if json:
        _as_json(write(model, tokenizer, prompt, how))
        return
    if how.beams > 1:
        print(f"{how.beams} beams: the text comes whole, at the end", file=sys.stderr)
    shade = Shade(len(model.loops), most_turns(model, how))
    if echo:
        print(prompt, end="\n" if how.chat else "", flush=True)
    try:
        written = write(model, tokenizer, prompt, how, shade.show if show_turns else _show)
    except KeyboardInterrupt:
        print(flush=True)
        raise Interrupted("the text ends where it was stopped") from None
    print(flush=True)
    if show_turns:
        shade.legend(written)


class Shade:
    """Prints pieces with the turns behind them: in colours from cold to warm, or where there are none in numbers.

    Args:
        least: turns that every token takes.
        most: turns that a token can take.
    """

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.console = Console()
        self.coloured = self.console.color_system is not None and not self.console.no_color

    def show(self, piece: str, turns: Sequence[int]) -> None:
        """Print a piece."""
        text = piece.rstrip("\n")
        mark = "" if self.coloured or not piece else "·" + "+".join(map(str, turns))
        self._print(text + mark + piece[len(text) :], max(turns))

    def legend(self, written: Written) -> None:
        """Print what the colours or numbers stand for."""
        turns = written.turns
        if not written.adaptive:
            self._print(f"turns: {self.most} for every token, since the halter of this model stops none early\n")
            return
        self._print("turns for a token: ")
        for name, value in (("min", min(turns)), ("mean", sum(turns) / len(turns)), ("max", max(turns))):
            self._print(f"{name} {value:.3g}", value)
            self._print(", " if name != "max" else f", of {self.most}\n")

    def _print(self, text: str, turns: float | None = None) -> None:
        style = self._style(turns) if self.coloured and turns is not None else None
        self.console.out(text, style=style, end="", highlight=False)
        self.console.file.flush()

    def _style(self, turns: float) -> Style:
        warmth = (turns - self.least) / max(1, self.most - self.least)
        return Style(color=Color.from_triplet(blend_rgb(COLD, WARM, warmth)))


def _show(piece: str, turns: Sequence[int]) -> None:
    print(piece, end="", flush=True)


def _as_json(written: Written) -> None:
    told = {**asdict(written), "tokens_per_second": written.tokens_per_second}
    print(jsons.dumps(told, ensure_ascii=False))
