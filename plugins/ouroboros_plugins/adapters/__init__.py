"""Adapters: which of the base's own weights may learn."""

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.options import NoOptions
from ouroboros_plugins.adapters.coda_lora import CodaLora, CodaLoraOptions
from ouroboros_plugins.adapters.full import Full, FullOptions
from ouroboros_plugins.adapters.none import NoAdapter
from ouroboros_plugins.adapters.unfreeze import Unfreeze, UnfreezeOptions

PARTS = (
    Part(
        Slot.ADAPTER,
        "none",
        NoOptions,
        lambda options, facts: NoAdapter(),
        "The base stays frozen.",
        null=True,
        default=True,
    ),
    Part(
        Slot.ADAPTER,
        "coda-lora",
        CodaLoraOptions,
        lambda options, facts: CodaLora(options.rank, options.alpha, options.dropout),
        "LoRA on the linears of the coda.",
        "Hu 2022, through PEFT; Ouroboros, section 6",
        starts_null=True,
    ),
    Part(
        Slot.ADAPTER,
        "unfreeze",
        UnfreezeOptions,
        lambda options, facts: Unfreeze(options.layers),
        "The last layers of the coda learn.",
        "Ouroboros, section 6",
        starts_null=True,
    ),
    Part(
        Slot.ADAPTER,
        "full",
        FullOptions,
        lambda options, facts: Full(options.rate),
        "All weights learn, at a rate of their own: healing, uptraining, or training from scratch.",
        "Bae 2024; McLeish 2025",
        starts_null=True,
    ),
)
