"""LoRA on the coda, through PEFT."""

from dataclasses import dataclass
from typing import ClassVar

from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field

from ouroboros_core.errors import UserError
from ouroboros_core.model import RecursiveLM
from ouroboros_core.options import Options


class CodaLoraOptions(Options):
    """LoRA on every linear of the coda."""

    rank: int = Field(8, ge=1, description="of each update")
    alpha: float = Field(16.0, gt=0, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the updates' input, in training")


@dataclass(frozen=True)
class CodaLora:
    """W x + (alpha / R) B A x on the coda's linears (Hu 2022). B = 0 at the start, so nothing changes at first."""

    rate: ClassVar[float | None] = None
    rank: int
    alpha: float
    dropout: float

    def __call__(self, model: RecursiveLM) -> None:
        """Inject the updates. What learns already goes on learning.

        Raises:
            UserError: the split has no coda.
        """
        if not model.split.coda:
            raise UserError("adapter 'coda-lora': the split has no coda to adapt")
        wanted = {id(linear) for i in model.split.coda for linear in model.anatomy.linears(model.layer(i)).values()}
        names = [name for name, module in model.base.named_modules() if id(module) in wanted]
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=names)
        learning = [parameter for parameter in model.base.parameters() if parameter.requires_grad]
        inject_adapter_in_model(config, model.base)  # it freezes all but its own
        for parameter in learning:
            parameter.requires_grad_(True)
