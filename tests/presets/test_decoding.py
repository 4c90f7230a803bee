"""Decoding with a cache: what any preset writes is what it would write if it read everything anew for each token."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CompileConfig, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ouroboros_core.build import build
from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.memory import SumsLayer
from ouroboros_core.testing import tiny_config, tiny_model
from tests.presets.restated import embedded, ffn, own_linears, read_out

ROWS, PROMPT, WRITTEN, LESS, FEW = 4, 12, 128, 16, 8  # tokens
PADS = (0, 5, 0, 2)  # on the left of each row
CLOSE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Case:
    """What of a preset is changed for a tiny model of so many layers."""

    layers: int
    tables: dict = field(default_factory=dict)
    turns: int = 3
    halts: bool = False  # tokens take different numbers of turns
    spread: float = 0.05  # deviation of the noise on what is learnt


SMALL = {"modulator": {"rank": 4}}
CASES = {
    "huginn": Case(
        4, {"splitter": {"prelude": 1, "size": 2, "coda": 1}, "halter": {"threshold": 0.4}}, turns=6, halts=True
    ),
    "ouroboros": Case(9, SMALL),
    "ouroboros-static": Case(9, SMALL),
    "refiner": Case(6, SMALL),
    "relaxed": Case(6, {**SMALL, "splitter": {"layers": 2}}),
    "retrofit": Case(9, {"splitter": {"prelude": 2, "block": 5, "size": 2, "coda": 2}}),
    "ringformer": Case(1, turns=6),
    "thinking-deeper": Case(1, turns=8),
    "universal": Case(1, {"halter": {"bias": -0.5}}, turns=6, halts=True, spread=0.07),
}
every_case = pytest.mark.parametrize("name", CASES)
telling = pytest.mark.parametrize("name", ["ouroboros", "universal", "huginn"])  # a memory, exits, a probe with exits


def prompt(rows=ROWS, tokens=PROMPT):
    """Token ids padded on the left, and their mask."""
    ids = torch.randint(1, 320, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(tokens) >= torch.tensor(PADS[:rows])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def write(model, given, tokens, **how):
    """What the library makes of `generate`, with logits."""
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **how}
    return model.generate(**given, max_new_tokens=tokens, return_dict_in_generate=True, output_logits=True, **how)


def read_once(model, given, sequences, turns=None):
    """One pass without a cache over everything that was written. -> the trace, and where tokens are real."""
    new = sequences.shape[1] - given["input_ids"].shape[1]
    mask = F.pad(given["attention_mask"], (0, new), value=1)
    return model.trace(sequences, mask, Depth.full(turns or model.turns)), mask.bool()


def assert_written_is_read(model, given, tokens, turns=None, **how):
    """What is written with a cache is what one pass over all of it says, word by word, and so are the logits.

    No token sees a later one, so that the pass says at each place what it would say if the text ended there: it is
    decoding without a cache, all steps of it at once. Returns the trace, and where its tokens are real.
    """
    written = write(model, given, tokens, **{"turns": turns, **how})
    trace, real = read_once(model, given, written.sequences, turns)
    cached, whole = torch.stack(written.logits, 1), trace.logits()[:, -tokens - 1 : -1]
    assert (cached - whole).abs().max() <= CLOSE * whole.abs().max()
    assert torch.equal(whole.argmax(-1), written.sequences[:, -tokens:])
    return trace, real


@pytest.fixture(scope="session")
def decoder(settings_of, host, randomise):
    """The model of a preset off its initial values; another base's config, and more tables, may be given."""

    @cache
    def made(name):
        return moved(name)

    def moved(name, *layers, base=None):
        case = CASES[name]
        settings = settings_of(name, {"loop": {"turns": case.turns}}, case.tables, *layers)
        model = build(settings, host, base or tiny_model(case.layers)).model
        randomise(model.loops, spread=case.spread, seed=4)
        return model.eval()

    return lambda name, *layers, **more: moved(name, *layers, **more) if layers or more else made(name)


def test_no_preset_is_left_out(host):
    assert {preset.name for _, preset in host.presets()} == {*CASES, "ouroboros-paper"}


@torch.no_grad()
@every_case
def test_128_tokens_written_with_a_cache_are_those_written_without_one(name, decoder):
    trace, real = assert_written_is_read(decoder(name), prompt(), WRITTEN)
    assert len(trace.taken[real].unique()) > 2 if CASES[name].halts else trace.taken[real].unique().numel() == 1


@torch.no_grad()
@every_case
def test_the_librarys_own_decoding_without_a_cache_writes_the_same(name, decoder):
    model = decoder(name)
    with_cache, without = (write(model, prompt(), LESS, use_cache=cached) for cached in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)


def test_a_model_whose_tokens_see_later_ones_says_that_it_cannot_write(settings_of, host):
    settings = settings_of("ouroboros-paper", SMALL, {"run": {"allow_leak": True}})
    model = build(settings, host, tiny_model(9)).model
    with pytest.raises(UserError, match=r"\Aa part lets tokens see later ones: such a model cannot write.*\Z"):
        write(model, prompt(), 1)


# The ways of the library's `generate`


@torch.no_grad()
@telling
def test_a_seed_draws_the_same_words_with_and_without_a_cache(name, decoder):
    drawn = []
    for seed, cached in ((1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        drawn.append(write(decoder(name), prompt(), FEW, do_sample=True, top_k=0, use_cache=cached).sequences)
    with_cache, without, another = drawn
    assert torch.equal(with_cache, without)
    assert not torch.equal(with_cache, another)


@torch.no_grad()
@telling
def test_beams_find_the_same_with_and_without_a_cache(name, decoder):
    model = decoder(name)
    with_cache, without = (write(model, prompt(), FEW, num_beams=3, use_cache=cached) for cached in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    places = with_cache.beam_indices  # the beam that each word came from
    assert (places[:, 1:] != places[:, :-1]).any()
    assert not torch.equal(with_cache.sequences, write(model, prompt(), FEW).sequences)


@torch.no_grad()
@every_case
def test_a_cache_of_a_fixed_size_serves_as_well(name, decoder):
    assert_written_is_read(decoder(name), prompt(), FEW, cache_implementation="static")


@torch.no_grad()
@every_case
def test_compiled_as_one_graph_for_all_tokens_it_writes_the_same(name, decoder):
    torch.compiler.reset()
    graphs, whole = [], not CASES[name].halts

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    how = CompileConfig(backend=backend, mode=None, fullgraph=whole)
    how._compile_all_devices = True
    assert_written_is_read(decoder(name), prompt(), FEW, cache_implementation="static", compile_config=how)
    assert len(graphs) == whole  # where tokens stop, each in its time, nothing is compiled


@torch.no_grad()
@telling
@pytest.mark.parametrize("turns", [1, 2, 11])
def test_fewer_turns_or_more_than_the_configs_may_be_taken(name, turns, decoder):
    model = decoder(name)
    usual = model.turns
    trace, _ = assert_written_is_read(model, prompt(), FEW, turns=turns)
    assert usual != turns
    assert model.turns == model.config.turns == usual
    assert trace.taken.max() <= turns


@torch.no_grad()
@telling
def test_rows_do_not_know_their_order(name, decoder):
    turned = {name: value.flip(0) for name, value in prompt().items()}
    one, other = write(decoder(name), prompt(), FEW), write(decoder(name), turned, FEW)
    assert torch.equal(one.sequences, other.sequences.flip(0))


# What is in the cache


def read_in_pieces(model, given, past, ends):
    """The text in pieces that end there, through a cache. -> logits."""
    ids, mask = given["input_ids"], given["attention_mask"]
    pieces = [
        model(ids[:, start:end], mask[:, :end], past_key_values=past, use_cache=True).logits
        for start, end in pairwise((0, *ends))
    ]
    return torch.cat(pieces, 1)


@torch.no_grad()
@telling
def test_a_cache_is_filled_alike_in_one_piece_in_several_and_when_it_makes_its_layers_itself(name, decoder):
    model, given = decoder(name), prompt(rows=1)
    whole, several, its_own = DynamicCache(config=model.config), DynamicCache(config=model.config), DynamicCache()
    expected = read_in_pieces(model, given, whole, [PROMPT])
    for past in (several, its_own):
        logits = read_in_pieces(model, given, past, [4, *range(5, PROMPT + 1)])  # one by one, turns may be skipped
        assert (logits - expected).abs().max() <= CLOSE * expected.abs().max()
        assert len(past.layers) == len(whole.layers) >= model.config.num_hidden_layers
        for one, other in zip(past.layers, whole.layers, strict=True):
            assert_same_layer(one, other)
    taken = model.trace(given["input_ids"]).taken
    assert (taken[:, 4:].min() < model.turns - 1) == CASES[name].halts


def assert_same_layer(one, other):
    """The keys and values of all tokens; or the sums of rows."""
    if isinstance(other, SumsLayer):
        assert one.sums.keys() == other.sums.keys() != set()
        pairs = [(one.sums[name], other.sums[name]) for name in other.sums]
    else:
        pairs = [(one.keys, other.keys), (one.values, other.values)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=CLOSE)


@torch.no_grad()
@telling
def test_rows_of_a_cache_that_beams_turn_round_take_everything_that_is_remembered_with_them(name, decoder):
    model, given = decoder(name), prompt()
    past, order = DynamicCache(config=model.config), torch.tensor([3, 0, 0, 2])
    read_in_pieces(model, given, past, [PROMPT])
    past.reorder_cache(order)
    ids, mask = (torch.cat([each[order], torch.full((ROWS, 1), 5 if each is given["input_ids"] else 1)], 1)
                 for each in given.values())  # fmt: skip
    turned = model(ids[:, -1:], mask, past_key_values=past, use_cache=True).logits
    whole = model.trace(ids, mask).logits()[:, -1:]
    assert (turned - whole).abs().max() <= CLOSE * whole.abs().max()
    assert (whole[0] - whole[1]).abs().max() > 10 * CLOSE * whole.abs().max()


@torch.no_grad()
def test_a_prefix_mean_that_beams_left_behind_would_be_seen(decoder, monkeypatch):
    model = decoder("ouroboros")
    beams = {"num_beams": 3, "output_scores": True}
    right, again = (write(model, prompt(), FEW, use_cache=cached, **beams).sequences_scores for cached in (False, True))
    monkeypatch.setattr(SumsLayer, "reorder_cache", lambda self, order: None)
    wrong = write(model, prompt(), FEW, **beams).sequences_scores
    assert (again - right).abs().max() < CLOSE / 10
    assert (wrong - right).abs().max() > CLOSE


# Several loops


HALTERS = {
    "fixed": {},
    "act": {"unit": "linear", "bias": 0.0},
    "latent-diff": {"threshold": 0.25},
}


@torch.no_grad()
@pytest.mark.parametrize("halter", HALTERS)
@pytest.mark.parametrize("splitter", ["cycle", "sequence"])
def test_each_loop_of_several_keeps_its_own(splitter, halter, make, randomise):
    model = make(splitter={"use": splitter, "layers": 2}, halter={"use": halter, **HALTERS[halter]}, loop={"turns": 4})
    model = model.model.eval()
    randomise(model.loops, spread=0.05, seed=4)
    trace, real = assert_written_is_read(model, prompt(rows=1), 2 * LESS)  # one token at a time may skip turns
    assert len(model.loops) == {"cycle": 1, "sequence": 2}[splitter]
    assert (len(trace.taken[real].unique()) > 1) == (halter != "fixed")


# Turns that share slots


def seeing(base, layer, x, past):
    """A layer that sees keys and values of earlier tokens too. -> its state, and the keys and values of all.

    x (B, T, D); keys and values (B, heads, tokens, head width).
    """
    linear, here, before = own_linears(layer), layer.input_layernorm(x), past[0].shape[2]
    q, k, v = (linear(name, here).unflatten(-1, (-1, base.config.head_dim)).transpose(1, 2) for name in "qkv")
    positions = torch.arange(before, before + x.shape[1])
    q, k = apply_rotary_pos_emb(q, k, *base.model.rotary_emb(x, position_ids=positions[None]))
    k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    seen = torch.arange(k.shape[2]) <= positions[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    x = x + linear("o", mixed.transpose(1, 2).flatten(-2))
    return x + ffn(linear, layer.post_attention_layernorm(x)), (k, v)


def slowly(model, ids, tokens, shared):
    """Layers 0 1, then 2 3 at each turn, then 4 5, for one word after the other. -> logits (B, tokens, V).

    Turn t of a layer finds in slot t modulo `shared` what the last such turn has left of earlier tokens.
    """
    base, nothing = model.base, torch.zeros(len(ids), 2, 0, 8)
    order = [(0, 0), (0, 1), *product(range(model.turns), (2, 3)), (0, 4), (0, 5)]
    kept, told = defaultdict(lambda: (nothing, nothing)), []
    for _ in range(tokens):
        h, left = embedded(base, ids), {}
        for turn, index in order:
            slot = index, turn % shared
            h, left[slot] = seeing(base, base.model.layers[str(index)], h, kept[slot])
        kept.update(left)
        told.append(read_out(base, h)[:, -1])
        ids = told[-1].argmax(-1, keepdim=True)
    return torch.stack(told, 1)


@pytest.fixture(scope="session")
def bare(make):
    """Six layers, the middle two looped, and no parts that do anything."""
    none = {slot: {"use": "none"} for slot in ("modulator", "norm", "gate")}
    return make(**none, splitter={"prelude": 2, "size": 2, "coda": 2}, loop={"turns": 5}).model.eval()


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("shared", [1, 2, 5, 9])
def test_turns_that_share_slots_find_what_the_last_of_them_left(shared, length, bare):
    ids = torch.randint(1, 320, (2, length), generator=torch.Generator().manual_seed(0))
    written = write(bare, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, LESS, shared_slots=shared)
    ours, plain = torch.stack(written.logits, 1), slowly(bare, ids, LESS, shared)
    assert (ours - plain).abs().max() <= CLOSE * plain.abs().max()
    assert len([one for one in written.past_key_values.layers if one.get_seq_length()]) == 4 + 2 * min(5, shared)
    whole, _ = read_once(bare, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, written.sequences)
    differs = (whole.logits()[:, length - 1 : -1] - plain).abs().max() > 0.01 * plain.abs().max()
    assert differs == (shared < 5)


@torch.no_grad()
def test_turns_cannot_share_a_slot_that_slides(decoder, randomise):
    model = decoder("universal", base=windowed("mistral", 1, randomise))
    with pytest.raises(UserError, match=r"\Aturns cannot share a slot of a sliding window: .*\Z"):
        write(model, prompt(), 1, shared_slots=1)


# Bases with a sliding window


def windowed(family, layers, randomise):
    """A random base whose layers, or every other one, see no more than the last 8 tokens."""
    config = tiny_config(layers, family)
    config.sliding_window = 8
    if family == "qwen2":
        config.use_sliding_window = True
        config.layer_types = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return randomise(base, spread=0.15).eval().requires_grad_(False)


LARGER = {("universal", "qwen2"): {"halter": {"bias": 1.0}}}  # states, so that fewer tokens would stop


@torch.no_grad()
@telling
@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_sliding_window_slides_over_every_turns_keys(name, family, decoder, randomise):
    base = windowed(family, CASES[name].layers, randomise)
    model = decoder(name, LARGER.get((name, family), {}), base=base)
    trace, real = assert_written_is_read(model, prompt(), LESS)
    assert (len(trace.taken[real].unique()) > 1) == CASES[name].halts
    assert_written_is_read(model, prompt(), LESS, cache_implementation="static")
