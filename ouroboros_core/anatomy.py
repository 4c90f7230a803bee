"""Anatomy: where a Hugging Face decoder keeps its organs. The only architecture-specific knowledge there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from ouroboros_core.ops import Branches

if TYPE_CHECKING:
    from transformers import Cache

    from ouroboros_core.few import Few
    from ouroboros_core.keys import View

HFModel = Any  # a Hugging Face model: an nn.Module with a config, which torch's types cannot describe


class Calls(Protocol):
    """How the layers of one batch are called."""

    def __call__(
        self, layer: nn.Module, index: int, branches: Branches | None = None, cache: View | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The layer as a function h (B, T, D) -> h. `index` is its number in the intact model.

        A layer of a recurrent block comes with `branches`: its residual branches must run through them, so that ops
        can be applied inside the layer. Any other is called as the library calls it. `cache` is what its attention
        takes for the cache.
        """
        ...

    def only(self, few: Few) -> Calls:
        """The same for some of the tokens, which still attend to all."""
        ...


class Anatomy(Protocol):
    """How to take a causal language model of one family apart and run its pieces."""

    name: str

    def inner(self, base: HFModel) -> Any:
        """The module that holds embeddings, layers and final norm; its `layers` is the list of layers."""
        ...

    def embed(self, base: HFModel, ids: Tensor) -> Tensor:
        """Token embeddings. ids (B, T) -> (B, T, D)."""
        ...

    def calls(
        self, base: HFModel, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None = None, *,
        whole: bool = False,
    ) -> Calls:  # fmt: skip
        """Bind what every layer of this batch shares (mask, rotary, positions).

        Args:
            mask: (B, T with those in the cache), nonzero for real tokens; None where nothing is padded.
            cache: what earlier tokens left.
            whole: make masks in full, also where attention needs none: `only` is going to be asked.
        """
        ...

    def finish(self, base: HFModel, h: Tensor) -> Tensor:
        """The final norm. (B, T, D) -> (B, T, D)."""
        ...

    def head(self, base: HFModel) -> nn.Linear:
        """The vocabulary projection: weight (V, D), no bias."""
        ...

    def linears(self, layer: nn.Module) -> Mapping[str, nn.Linear]:
        """The linears of a layer that may be modulated, by short name."""
        ...

    def config_for(self, config: Any, layers: Sequence[int]) -> Any:
        """The model's config, copied, for a model that has only these layers."""
        ...


def with_layers(anatomy: Anatomy, base: HFModel, layers: nn.Module, config: Any) -> nn.Module:
    """A model that shares everything with the base but its container of layers and its config."""
    inner = anatomy.inner(base)
    (name,) = (name for name, child in base.named_children() if child is inner)
    return _shallow(base, **{name: _shallow(inner, layers=layers, config=config)}, config=config)


def numbered(layer: nn.Module, index: int) -> nn.Module:
    """The same layer as number `index` of a model: its attention finds its keys there. Weights are shared."""
    twin = _shallow(layer, **{name: numbered(child, index) for name, child in layer.named_children()})
    if hasattr(twin, "layer_idx"):
        twin.layer_idx = index  # type: ignore[assignment]
    return twin


def _shallow(module: nn.Module, **changes: Any) -> nn.Module:
    """A copy that shares every child and parameter, with some attributes replaced in the copy only."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    for name, value in changes.items():
        setattr(twin, name, value)
    return twin
