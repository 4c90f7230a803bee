"""For tests of parts, ours and other authors': small random models, and the facts a part is built from."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ouroboros_core.anatomy import HFModel
from ouroboros_core.contracts import Factors, LoopFacts, TapFacts, Turn
from ouroboros_core.host import PluginHost

WORDS = [
    "the",
    "state",
    "of",
    "our",
    "union",
    "is",
    "strong",
    "and",
    "the",
    "people",
    "of",
    "this",
    "nation",
    "know",
    "what",
    "they",
    "have",
    "to",
    "do",
    "now",
]


def tiny_config(layers: int = 6, family: str = "llama", vocabulary: int = 320) -> Any:
    """A config of 32 dimensions; families as transformers names them."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        family, vocab_size=vocabulary, num_hidden_layers=layers, max_position_embeddings=256, head_dim=8, **shape
    )
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 0, None, None
    return config


def tiny_model(layers: int = 6, family: str = "llama", vocabulary: int = 320) -> HFModel:
    """A random float32 model of 32 dimensions, the same at every call; families as transformers names them."""
    return _random(tiny_config(layers, family, vocabulary), std=0.15)


def _random(config: Any, std: float) -> HFModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # the library's small initial values make every layer a near identity
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=std)
    return model.eval().requires_grad_(False)


def shrunk(config: Any) -> HFModel:
    """A random float32 model with the layers of this config, 128 dimensions wide, the same at every call."""
    small, heads = copy.deepcopy(config), 8
    grouped = config.num_key_value_heads < config.num_attention_heads
    small.hidden_size, small.intermediate_size, small.vocab_size, small.head_dim = 128, 192, 320, 16
    small.num_attention_heads, small.num_key_value_heads = heads, heads // 2 if grouped else heads
    small.eos_token_id, small.bos_token_id, small.pad_token_id = 0, None, None
    return _random(small, std=0.075)


def assert_conforms(host: PluginHost, *layers: Mapping[str, Any], config: Any = None) -> None:
    """Make every check of `ouro check`, without any download, on a small random model of 6 layers.

    Args:
        layers: nested tables of settings, later ones on top.
        config: of another base, in transformers' form.

    Raises:
        AssertionError: checks failed; it names each, and says what was found.
    """
    from ouroboros_core.conformance import conformance  # which imports this module
    from ouroboros_core.resolve import resolve

    results = conformance(resolve(host, layers), host, config=config or tiny_config())
    failed = [f"{result.name}: {result.detail}" for result in results if not result.passed]
    assert not failed, "\n".join(["checks failed", *failed])


def tiny_tokenizer(text: str = " ".join(WORDS), vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a text; token 0 ends a document."""
    tokenizer = Tokenizer(models.BPE(unk_token="<end>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>")


def tiny_base(folder: Path | str, layers: int = 6, family: str = "llama") -> Path:
    """A folder with a tiny model and tokenizer, to be given as `--base`."""
    tiny_model(layers, family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


def loop_facts(width: int = 16, turns: int = 3, trained_turns: int | None = None) -> LoopFacts:
    """Facts of an imagined block with two linears, `0.q` and `0.down`, and seeded random bases and residuals."""
    taps = {"0.q": TapFacts(width, width), "0.down": TapFacts(2 * width, width)}

    generator = torch.Generator()

    def drawn(rank: int, tap: TapFacts) -> Factors:
        return tuple(torch.randn(*shape, generator=generator) for shape in ((rank, tap.inputs), (tap.outputs, rank)))  # type: ignore[return-value]

    def bases(rank: int) -> Mapping[str, Factors]:
        generator.manual_seed(0)
        return {name: drawn(rank, tap) for name, tap in taps.items()}

    def residuals(rank: int) -> Mapping[str, Sequence[Factors]]:
        generator.manual_seed(1)
        return {name: [drawn(rank, tap) for _ in range(turns)] for name, tap in taps.items()}

    return LoopFacts(width, turns, trained_turns or turns, taps, bases, residuals)


class PlainReader:
    """Reads a state with a seeded head of `words` words, and no norm and no coda before it.

    Args:
        old: (B, T, D) the state before the turn; None: `logits` was not asked then.
    """

    def __init__(self, width: int, words: int = 11, old: Tensor | None = None) -> None:
        self.head = torch.randn(words, width, generator=torch.Generator().manual_seed(0))
        self.old = old

    @property
    def before(self) -> Tensor | None:
        """(B, T, words) of the old state."""
        return None if self.old is None else self.logits(self.old)

    def normed(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def logits(self, state: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, words)."""
        return state @ self.head.T.to(state)


class PlainMemory:
    """Sums along the rows of a batch of which no token has stopped, and before which there was none."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def summed(self, name: str, values: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, ...) float32."""
        return (values.float() * self.mask.view(*self.mask.shape, *[1] * (values.ndim - 2))).cumsum(1)


def a_turn(
    batch: int = 2, tokens: int = 5, index: int = 0, last: bool = False, spent: Tensor | None = None,
    prelude: Tensor | None = None, seed: int = 0, width: int = 16, old: Tensor | None = None,
) -> Turn:  # fmt: skip
    """A turn over unpadded tokens. `old` is the state before it, for parts that ask what was read then."""
    positions = torch.arange(tokens).expand(batch, -1)
    spent = torch.zeros(batch, tokens) if spent is None else spent
    prelude = torch.zeros(batch, tokens, width) if prelude is None else prelude
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    reader = PlainReader(prelude.shape[-1], old=old)
    return Turn(index, last, positions, mask, spent, prelude, reader, PlainMemory(mask), seed)
