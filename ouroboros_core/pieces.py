"""Text from tokens as they are chosen, in pieces of whole characters, each with the turns that its tokens took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ouroboros_core.model import RecursiveLM
from ouroboros_core.trace import RecursiveOutput

Heard = Callable[[str, Sequence[int]], None]  # (a piece, the turns of each token behind it)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of the first bytes of a character


class Pieces:
    """Text from tokens as they come: what `generate` calls a streamer.

    A character may be spread over several tokens: they wait for each other.

    Args:
        before: tokens of the prompt, since some tokenizers begin a word otherwise where nothing is before it.
        passes: (B) for each forward pass so far: the turns taken at its last position.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int], passes: Sequence[Tensor], heard: Heard) -> None:
        self.tokenizer, self.passes, self.heard = tokenizer, passes, heard
        self.before, self.waiting = list(before), list[int]()
        self.text, self.tokens, self.turns = "", list[int](), list[int]()

    def put(self, tokens: Tensor) -> None:
        """Take the prompt (1, T), which is passed over; then each new token (1,)."""
        if tokens.ndim == 1:
            self.add(int(tokens), row=0)

    def add(self, token: int, row: int) -> None:
        """Take a new token, which the next pass has chosen in this row."""
        self.turns.append(int(self.passes[len(self.tokens)][row]))
        self.tokens.append(token)
        self.waiting.append(token)
        piece = self._piece()
        if piece and not piece.endswith(UNFINISHED):
            self._tell(piece)

    def end(self) -> None:
        """Tell what still waits: the token that ends a text has no characters, and the last one may be unfinished."""
        if self.waiting:
            self._tell(self._piece())

    def _piece(self) -> str:
        told, now = (self._decoded(ids) for ids in (self.before, self.before + self.waiting))
        return now[len(told) :]

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tell(self, piece: str) -> None:
        count = len(self.waiting)
        self.before, self.waiting = self.waiting, []
        self.text += piece
        self.heard(piece, self.turns[-count:])


@contextmanager
def turns_of_passes(model: RecursiveLM) -> Iterator[list[Tensor]]:
    """Within this scope a list grows with every forward pass: turns (B) at the last position, which chooses."""
    passes: list[Tensor] = []

    @torch.compiler.disable  # where the model is compiled, a list that grows would have it compiled again
    def hear(_model: RecursiveLM, _args: object, out: RecursiveOutput) -> None:
        assert out.turns is not None
        passes.append(out.turns[:, -1].clone())

    handle = model.register_forward_hook(hear)
    try:
        yield passes
    finally:
        handle.remove()
