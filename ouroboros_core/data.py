"""Text as blocks of tokens: packed, labelled once, ordered by a pure function of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ouroboros_core import corpus
from ouroboros_core.corpus import Document
from ouroboros_core.errors import UserError
from ouroboros_core.losses import IGNORE
from ouroboros_core.settings import DataSettings

UNIT = 1024  # tokens of the blocks that stand for documents where a domain is one book; longer rows are blocks
NEAR = "near"  # the training source's own held-out documents
ROLES = ("train", "validation", NEAR)


@dataclass(frozen=True)
class Domain:
    """Held-out text of one kind. Intervals resample its units."""

    name: str
    blocks: Tensor  # (N, length + 1) token ids; IGNORE behind the end of a document
    unit: Tensor  # (N,) from 0: the document, or block of tokens within the only one, that each row belongs to
    documents: int
    units: str  # what the units are

    @property
    def tokens(self) -> int:
        """Tokens that are scored."""
        return int((self.blocks[:, 1:] != IGNORE).sum())


@dataclass(frozen=True)
class Text:
    """Everything a run reads. No document is in two of its parts."""

    train: Tensor  # (N, length + 1)
    validation: Domain | None
    heldout: Sequence[Domain]
    fingerprint: Mapping[str, str]  # part -> hash of its documents


def align(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Input ids and labels of packed blocks: the one place where labels are shifted.

    blocks (N, T + 1) -> ids (N, T), labels (N, T): `labels[:, t]` is the token after `ids[:, t]`.
    """
    return blocks[:, :-1].clamp(min=0), blocks[:, 1:]


def prepare(
    data: DataSettings, tokenizer: Any, *, train_tokens: int, heldout_tokens: int, validation_tokens: int
) -> Text:
    """Read, split, tokenise and pack everything.

    Args:
        train_tokens: how many the run will see; more are read only where reading is cheap.
        heldout_tokens: most tokens of one held-out domain.

    Raises:
        UserError: no text, too little of it, or a document on both sides.
    """
    characters = 6 * (train_tokens + heldout_tokens + validation_tokens)
    documents = corpus.with_roles(corpus.read(data.train, data, characters), data)
    of = {role: [d for d in documents if d.role == role] for role in ROLES}
    if taken := [name for name in data.heldout if name in ("train", "validation")]:
        raise UserError(f"data.heldout: '{taken[0]}' means a part of the training source; give the source by its path")
    held = {name: of[NEAR] if name == NEAR else corpus.read(name, data, 6 * heldout_tokens) for name in data.heldout}
    _must_be_apart(of["train"], held)
    if NEAR in data.heldout and not of[NEAR]:
        raise UserError(
            f"data {data.train} is {len(documents)} document(s): too few to keep some apart. Give it as more files, "
            'or name other held-out text: --set data.heldout=["file.txt"]'
        )
    heldout = [_domain(name, these, tokenizer, data.length, heldout_tokens) for name, these in held.items()]
    if empty := [domain.name for domain in heldout if not domain.tokens]:
        raise UserError(f"held-out text '{empty[0]}' holds fewer than two tokens: nothing can be judged on it")
    validation = _domain("validation", of["validation"], tokenizer, data.length, validation_tokens)
    return Text(
        train=pack(_tokens(of["train"], tokenizer), data.length, tokenizer.eos_token_id, data.train),
        validation=validation if validation.tokens else None,
        heldout=heldout,
        fingerprint={name: _fingerprint(these) for name, these in {**held, **of}.items() if these},
    )


def pack(documents: Iterable[Sequence[int]], length: int, end: int | None, source: str) -> Tensor:
    """Documents one after another, `end` between them, cut into blocks: (N, length + 1).

    Neighbouring blocks share one token, so that every token but the first is predicted once; what is left after the
    last whole block is not used.

    Raises:
        UserError: fewer tokens than one block.
    """
    stream = [token for tokens in documents for token in [*tokens, *([] if end is None else [end])]]
    if len(stream) <= length:
        raise UserError(f"data {source} holds {len(stream)} tokens to train on: one sequence takes {length + 1}")
    return torch.tensor(stream, dtype=torch.long).unfold(0, length + 1, length).clone()


def rows_of_step(step: int, batch: int, total: int, seed: int) -> list[int]:
    """Which blocks a step reads: every epoch a new permutation. A resume costs nothing and loses nothing."""
    return [_order(seed, i // total, total)[i % total] for i in range(step * batch, (step + 1) * batch)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(total, generator=generator).tolist()


def _tokens(documents: Sequence[Document], tokenizer: Any) -> list[list[int]]:
    if not documents:
        return []
    texts = [document.text for document in documents]
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _domain(name: str, documents: Sequence[Document], tokenizer: Any, length: int, most: int) -> Domain:
    """The first tokens of each document, an even share of `most`, in rows that never cross documents."""
    documents = documents[: max(1, most // length)]  # so that each has room for a row
    rows, units = [], []
    share, size = most // max(1, len(documents)), max(UNIT, length)
    for number, tokens in enumerate(_tokens(documents, tokenizer)):
        for start in range(0, min(len(tokens) - 1, share), length):
            row = tokens[start : min(start + length, share) + 1]
            rows.append(row + [IGNORE] * (length + 1 - len(row)))
            units.append(number if len(documents) > 1 else start // size)
    blocks = torch.tensor(rows, dtype=torch.long).view(-1, length + 1)
    unit = torch.tensor(units, dtype=torch.long).unique(return_inverse=True)[1]
    called = "documents" if len(documents) > 1 else f"blocks of {size:,} tokens"
    return Domain(name, blocks, unit, len(documents), called)


def _must_be_apart(train: Sequence[Document], others: Mapping[str, Sequence[Document]]) -> None:
    seen = {document.digest for document in train}
    for name, documents in others.items():
        for document in documents:
            if document.digest in seen:
                raise UserError(f"held-out text '{name}': document {document.name} is trained on as well")


def _fingerprint(documents: Sequence[Document]) -> str:
    return hashlib.sha256("".join(sorted(d.digest for d in documents)).encode()).hexdigest()[:16]
