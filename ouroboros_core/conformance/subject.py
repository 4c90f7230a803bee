"""What is checked: settings, on a small random model of the base's shape."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ouroboros_core.anatomy import HFModel
from ouroboros_core.build import Built, build
from ouroboros_core.contracts import LayerStatistics, Slot
from ouroboros_core.errors import CheckFailed
from ouroboros_core.host import PluginHost
from ouroboros_core.measure import measure
from ouroboros_core.model import RecursiveLM
from ouroboros_core.settings import Settings

ROWS, TOKENS = 3, 24
SAME = 1e-5  # of the largest logit, in float32: what another order of the same sums may move
STIRRED = 0.05  # deviation of the noise on what learns


@dataclass(frozen=True)
class Subject:
    """What is checked: settings, and a small random model of the base's shape."""

    settings: Settings
    host: PluginHost
    intact: HFModel

    def built(self, *, fill_bases: bool = True, dtype: torch.dtype = torch.float32, seed: int | None = None) -> Built:
        """The recursive model, fresh; of the settings' own seed, if no other is given."""
        intact = self.intact if dtype == torch.float32 else copy.deepcopy(self.intact).to(dtype)
        train = self.settings.train if seed is None else self.settings.train.model_copy(update={"seed": seed})
        settings = self.settings.with_tables(train=train)
        made = build(settings, self.host, intact, self.statistics, fill_bases=fill_bases)
        made.model.eval()
        return made

    @cached_property
    def ids(self) -> Tensor:
        """(ROWS, TOKENS) token ids."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(1, self.intact.config.vocab_size, (ROWS, TOKENS), generator=generator)

    @cached_property
    def statistics(self) -> LayerStatistics | None:
        """What the small model's layers do to these tokens, where the splitter measures that."""
        measures = self.settings.one(Slot.SPLITTER).part.measures
        return measure(self.intact, self.host.anatomy(self.intact.config), self.ids) if measures else None

    def stirred(self) -> RecursiveLM:
        """A model whose trained parts are off their initial values, so that none hides at nothing."""
        model = self.built().model
        generator = torch.Generator().manual_seed(1)
        for parameter in model.loops.parameters():
            parameter.data += STIRRED * torch.randn(parameter.shape, generator=generator)
        return model


def must_be_same(what: str, before: Tensor, after: Tensor, cause: str) -> None:
    """Refuse logits that moved.

    Raises:
        CheckFailed: by more than rounding.
    """
    moved, most = (before - after).abs().max().item(), before.abs().max().item()
    if not moved <= SAME * most:  # so that NaN fails too
        raise CheckFailed(f"{what} moves logits by {moved:.1e} of {most:.1e}: {cause}")


def must_halt_alike(what: str, before: Tensor, after: Tensor, cause: str) -> None:
    """Refuse numbers of turns that moved.

    Raises:
        CheckFailed: they did.
    """
    if moved := (before - after).abs().max().item():
        raise CheckFailed(f"{what} changes how many turns a token takes by {moved:g}: {cause}")
