"""Losses over the vocabulary, token by token. Logits are held whole while they fit, else in chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # the label of a position that is not scored
CHUNK = 512  # rows; torch's automatic choice was five times slower where it was tried
FITS = 2**28  # logits up to here (1 GiB in float32) are held whole: faster wherever memory allows


def token_nll(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label. hidden (B, T, D), head (V, D), labels (B, T) -> (B, T) float32, nats.

    Labels are aligned: position t's label is what position t must predict. Ignored positions are zero.
    """
    rows, targets = hidden.flatten(0, 1), labels.flatten()
    if rows.shape[0] * head.shape[0] <= FITS:
        nll = F.cross_entropy(F.linear(rows, head).float(), targets, ignore_index=IGNORE, reduction="none")
    else:  # reduction="none": torch's own mean would be taken in the rows' dtype, off by 0.25 nats in bfloat16
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK, chunking_method=None)
        nll = F.linear_cross_entropy(
            rows.to(head.dtype), head, targets, ignore_index=IGNORE, reduction="none", options=options
        ).float()
    return nll.view_as(labels)


def token_kl(hidden: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each token's next-token distribution at a temperature, times its square.

    hidden, teacher (B, T, D); heads (V, D) -> (B, T) float32, nats. The square keeps the gradient's size (Hinton
    2015). Where logits do not fit, chunks of rows are recomputed in the backward pass. The teacher gets no gradient.
    """
    teacher, teacher_head = teacher.detach(), teacher_head.detach()

    def chunk(rows: Tensor, teacher_rows: Tensor) -> Tensor:
        ours = F.log_softmax(F.linear(rows, head).float() / temperature, dim=-1)
        theirs = F.log_softmax(F.linear(teacher_rows, teacher_head).float() / temperature, dim=-1)
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)

    rows, teacher_rows = hidden.flatten(0, 1), teacher.flatten(0, 1)
    if rows.shape[0] * head.shape[0] <= FITS:
        divergence = chunk(rows, teacher_rows)
    else:
        pairs = zip(rows.split(CHUNK), teacher_rows.split(CHUNK), strict=True)
        divergence = torch.cat([checkpoint(chunk, ours, theirs, use_reentrant=False) for ours, theirs in pairs])
    return divergence.view(hidden.shape[:2]) * temperature**2
