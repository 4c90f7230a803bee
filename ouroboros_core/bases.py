"""Frozen SVD bases: the main directions in which the removed layers differed from the looped ones.

Ouroboros, eq. 1: R = mean over removed l of (W_l - W_block); R ~ U S V^T; A = V_r^T, B = U_r S_r, both frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ouroboros_core.anatomy import Anatomy
from ouroboros_core.contracts import Factors
from ouroboros_core.errors import UserError

LOW_RANK_PAYS = 1024  # a full SVD of a smaller matrix takes well under a second


def residual(layers: Sequence[nn.Linear], block: nn.Linear) -> Tensor:
    """The mean difference of these linears from the block's. (out, in), float32."""
    total = torch.zeros_like(block.weight, dtype=torch.float32)
    for linear in layers:
        total += linear.weight.detach().float()
    return total / len(layers) - block.weight.detach().float()


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Truncated SVD: A (R, in) with orthonormal rows, B (out, R), so that B A is the best rank-R approximation.

    Large matrices are factored by randomised SVD (Halko 2011), seeded, without touching the caller's generator.

    Raises:
        UserError: the matrix has no `rank` directions.
    """
    if rank > min(matrix.shape):
        raise UserError(
            f"rank {rank} is more than a {tuple(matrix.shape)} matrix has: choose at most {min(matrix.shape)}, for "
            f"example --set modulator.rank={min(matrix.shape)}"
        )
    if matrix.is_meta or min(matrix.shape) <= LOW_RANK_PAYS:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return vt[:rank].contiguous(), (u[:, :rank] * s[:rank]).contiguous()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=min(2 * rank + 8, *matrix.shape), niter=6)
    return v[:, :rank].T.contiguous(), (u[:, :rank] * s[:rank]).contiguous()


def svd_bases(
    anatomy: Anatomy, block: Sequence[nn.Module], others: Sequence[nn.Module], rank: int
) -> dict[str, Factors]:
    """The bases of every tap of a block: "<place in the block>.<linear>" -> (A, B), in float32.

    Args:
        block: the looped layers, as they start.
        others: the layers of the intact model that the bases stand for.

    Raises:
        UserError: no layer is left for the bases to stand for.
    """
    if not others:
        raise UserError("no layer is removed, so there are no residuals to build SVD bases from: remove some layers")
    found: dict[str, Factors] = {}
    for place, layer in enumerate(block):
        for name, linear in anatomy.linears(layer).items():
            same = [anatomy.linears(other)[name] for other in others]
            found[f"{place}.{name}"] = factors(residual(same, linear), rank)
    return found


def svd_residuals(
    anatomy: Anatomy, block: Sequence[nn.Module], stood_for: Sequence[Sequence[nn.Module]], rank: int
) -> dict[str, list[Factors]]:
    """How the layers that a block stands for differ from it, turn by turn (Bae 2024, section 2.3), in float32.

    A linear that has fewer than `rank` directions gets all it has.

    Args:
        block: the looped layers, as they start.
        stood_for: [turn][place], layers of the intact model.

    Raises:
        UserError: the split does not say what the turns stand for.
    """
    if not stood_for:
        raise UserError(
            "the splitter does not say which layers the turns stand for, so there are no residuals to start from: "
            "choose cycle, sequence or middle-cycle, or start from zero"
        )
    return {
        f"{place}.{name}": [
            factors(residual([anatomy.linears(layers[place])[name]], linear), min(rank, *linear.weight.shape))
            for layers in stood_for
        ]
        for place, layer in enumerate(block)
        for name, linear in anatomy.linears(layer).items()
    }
