"""The config of a recursive model, as the library wants one: it reports as many layers as a cache needs slots."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ouroboros_core.auto import register_model
from ouroboros_core.errors import UserError
from ouroboros_core.keys import Slots
from ouroboros_core.split import Split

COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "sliding_window", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


class RecursiveConfig(PreTrainedConfig):
    """What `config.json` holds of a recursive model.

    `num_hidden_layers` and `layer_types` are of the model as a cache sees it: an entry for each slot.

    Args:
        base_config: the intact model's.
        split: which layers are kept, and looped: `dataclasses.asdict` of a `Split`.
        turns: turns at evaluation and decoding.
        shared_slots: how many cache slots the turns of a looped layer share; None: each has its own.
        probed: the halter reads logits after each turn.
        causal: no token sees a later one.
        tables: the settings that the model was built with.
        base: name, revision and fingerprint of the base, where its weights are not here.
    """

    model_type = "ouroboros"
    sub_configs: ClassVar[dict[str, Any]] = {"base_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    base_config: Any = None
    split: dict[str, Any] | None = None
    turns: int = 4
    shared_slots: int | None = None
    probed: bool = False
    causal: bool = True
    tables: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    tie_word_embeddings: bool = False  # the base ties its own

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from the base and the split.

        Raises:
            UserError: something is missing, or is no such thing.
        """
        try:
            self._fill_in(**kwargs)
        except (UserError, LookupError, TypeError, ValueError, AttributeError, StrictDataclassError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"config.json is damaged: this is no config of a recursive model ({said})") from error
        register_model()

    @property
    def slots(self) -> Slots:
        """Which slot of the cache holds what."""
        return Slots(Split.from_dict(self.split or {}), self.turns, self.shared_slots, self.probed)

    def _fill_in(self, **kwargs: Any) -> None:
        if isinstance(self.base_config, dict):
            told = dict(self.base_config)
            self.base_config = CONFIG_MAPPING[told.pop("model_type")](**told)
        for name in COPIED:
            if hasattr(self.base_config, name):
                setattr(self, name, getattr(self.base_config, name))
        super().__post_init__(**kwargs)
        if self.split is not None:
            self.lay_out(self.turns, self.shared_slots)

    def lay_out(self, turns: int, shared_slots: int | None) -> None:
        """Change the number of turns, or how many slots they share.

        Raises:
            UserError: a number that is none, or less than one.
        """
        for name, number in (("turns", turns), ("shared_slots", 1 if shared_slots is None else shared_slots)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"{name} = {number!r}: expected a whole number of 1 or more")
        self.turns, self.shared_slots = turns, shared_slots
        layers = self.slots.layers
        self.num_hidden_layers = len(layers)
        if types := getattr(self.base_config, "layer_types", None):
            self.layer_types = [types[i] for i in layers]


def config_of(base_config: Any, split: Split, turns: int, *, probed: bool, causal: bool) -> RecursiveConfig:
    """The config of a model made from a base."""
    base_config = copy.deepcopy(base_config)
    return RecursiveConfig(base_config=base_config, split=asdict(split), turns=turns, probed=probed, causal=causal)
