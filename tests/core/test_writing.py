"""Writing: pieces, turns and choices, against the tokenizer, the trace and a loop of argmax."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ouroboros_core import writing
from ouroboros_core.contracts import Depth
from ouroboros_core.errors import UserError
from ouroboros_core.passing import may_stop
from ouroboros_core.pieces import Pieces
from ouroboros_core.policies import parse_policy
from ouroboros_core.testing import tiny_tokenizer
from ouroboros_core.writing import Decoding, compiling, encoded, most_turns, write

PROMPT = "the state of our union"
HALTERS = {"kl": {"threshold": 0.008}, "latent-diff": {"threshold": 0.1}}


@pytest.fixture
def tokenizer():
    """Byte-level, and it puts its bytes together again."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def model(make, randomise):
    """A random model with this halter; tokens take between 2 and 6 turns with those in `HALTERS`."""

    def model(halter="fixed", **tables):
        options = {"use": halter, **HALTERS.get(halter, {})}
        made = make(**{"halter": options, "loop": {"turns": 6}, **tables}).model
        return randomise(made).eval()

    return model


@pytest.fixture
def heard():
    """What a listener got: pieces with their turns."""

    class Heard(list):
        def __call__(self, piece, turns):
            self.append((piece, tuple(turns)))

    return Heard()


def traced(model, tokenizer, written, turns=None):
    """The turns of each new token, from one uncached reading of the whole text."""
    ids = tokenizer(written.prompt)["input_ids"]
    with torch.no_grad():
        trace = model.trace(torch.tensor([ids + written.tokens]), depth=Depth.full(turns or model.turns))
    return trace.taken[0, len(ids) - 1 : -1].int().tolist()


def listen(tokenizer, text, before=()):
    """Let a text's tokens come one by one, each with another number of turns."""
    ids, told = tokenizer(text)["input_ids"], []
    pieces = Pieces(tokenizer, before, [[turns] for turns in range(len(ids))], lambda *piece: told.append(piece))
    for token in ids:
        pieces.put(torch.tensor([token]))
    return ids, pieces, told


# Pieces


def test_a_character_spread_over_several_tokens_comes_whole_with_the_turns_of_all(tokenizer):
    text = "né 日本 😀 the"
    ids, pieces, told = listen(tokenizer, text)
    assert "".join(piece for piece, _ in told) == pieces.text == text
    assert ("é", [1, 2]) in told
    assert ("日", [4, 5, 6]) in told
    assert [turns for _, several in told for turns in several] == list(range(len(ids)))
    pieces.end()
    assert pieces.text == text


def test_an_unfinished_character_comes_at_the_end_or_never_is_one(tokenizer):
    ids = tokenizer("a日")["input_ids"]
    told = []
    pieces = Pieces(tokenizer, [], [[2]] * 3, lambda *piece: told.append(piece))
    for token in ids[:-1]:
        pieces.put(torch.tensor([token]))
    assert told == [("a", [2])]
    pieces.end()
    assert told == [("a", [2]), (tokenizer.decode(ids[1:-1]), [2, 2])]


def test_a_word_after_the_prompt_keeps_its_space_where_a_first_word_has_none():
    words = Tokenizer(models.WordLevel({"▁the": 0, "▁state": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1, 0]) == "state the"
    _, pieces, told = listen(tokenizer, "state the", before=[0])
    assert pieces.text == " state the"
    assert told == [(" state", [0]), (" the", [1])]


def test_the_prompt_is_not_repeated(tokenizer):
    pieces = Pieces(tokenizer, [5], [[1]], lambda *_: None)
    pieces.put(torch.tensor([[5]]))
    assert (pieces.text, pieces.tokens) == ("", [])


def test_pieces_joined_are_what_the_tokenizer_makes_of_all_tokens(model, tokenizer, heard):
    written = write(model(), tokenizer, PROMPT, Decoding(most=40, temperature=2.0), heard)
    whole = tokenizer.decode(written.tokens, skip_special_tokens=True)
    assert written.text == "".join(piece for piece, _ in heard) == whole
    assert "\N{REPLACEMENT CHARACTER}" in whole  # a random model writes bytes that are no characters
    assert [turns for _, several in heard for turns in several] == written.turns


def test_the_first_piece_is_heard_after_the_first_pass(model, tokenizer):
    one, passes, at = model(), [], []
    one.register_forward_hook(lambda *_: passes.append(1))
    write(one, tokenizer, PROMPT, Decoding(most=8), lambda *_: at.append(len(passes)))
    assert at[0] == 1
    assert at == sorted(set(at))


# Turns


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("halter", HALTERS)
def test_turns_are_those_of_one_uncached_reading(model, tokenizer, halter, cached):
    one = model(halter)
    written = write(one, tokenizer, PROMPT, Decoding(most=16, temperature=1.0, cached=cached))
    assert written.turns == traced(one, tokenizer, written)
    assert len(set(written.turns)) > 2
    assert written.adaptive


@pytest.mark.parametrize("halter", HALTERS)
def test_turns_follow_the_best_of_the_beams_from_row_to_row(model, tokenizer, heard, halter):
    one, passes = model(halter), []
    one.register_forward_hook(lambda *_: passes.append(1))
    how = Decoding(most=16, beams=4)
    written = write(one, tokenizer, PROMPT, how, lambda *piece: (passes.append("told"), heard(*piece)))
    assert written.turns == traced(one, tokenizer, written)
    assert len(set(written.turns)) > 1
    assert passes.index("told") == 16  # nothing is heard before the last pass
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    best = one.generate(ids, num_beams=4, max_new_tokens=16, do_sample=False, pad_token_id=0)
    assert written.tokens == best[0, ids.shape[1] :].tolist()
    assert written.text == "".join(piece for piece, _ in heard)


def test_turns_can_be_chosen_while_decoding(model, tokenizer):
    one, how = model("latent-diff"), Decoding(turns=3, most=16)
    written = write(one, tokenizer, PROMPT, how)
    assert written.turns == traced(one, tokenizer, written, turns=3)
    assert max(written.turns) <= most_turns(one, how) == 3
    assert one.turns == 6


def test_a_halter_that_stops_nobody_takes_every_turn_of_every_loop(model, tokenizer):
    one, how = model(splitter={"use": "sequence"}, loop={"turns": 2}, modulator={"use": "none"}), Decoding(most=4)
    loops = len(one.loops)
    assert loops > 1
    written = write(one, tokenizer, PROMPT, how)
    assert written.turns == [most_turns(one, how)] * 4 == [2 * loops] * 4
    assert not written.adaptive
    assert not may_stop(one)


def test_nothing_listens_any_more_afterwards(model, tokenizer):
    one = model()
    write(one, tokenizer, PROMPT, Decoding(most=2))
    assert not one._forward_hooks


# Choices


@pytest.mark.parametrize("how", [Decoding(), Decoding(temperature=0.0), Decoding(cached=False)], ids=str)
def test_by_default_the_likeliest_token_is_taken_whatever_the_base_prefers(model, tokenizer, how):
    one = model("latent-diff")
    one.generation_config.do_sample, one.generation_config.temperature = True, 2.0
    written = write(one, tokenizer, PROMPT, Decoding(**{**vars(how), "most": 12}))
    ids = tokenizer(PROMPT)["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(one.trace(torch.tensor([ids])).logits()[0, -1].argmax()))
    assert written.tokens == ids[-12:]
    assert written.tokens_per_second == 12 / written.seconds


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-6}], ids=str)
def test_drawing_from_the_likeliest_alone_is_taking_it(model, tokenizer, narrow):
    one = model()
    drawn = write(one, tokenizer, PROMPT, Decoding(most=12, temperature=1.5, **narrow))
    assert drawn.tokens == write(one, tokenizer, PROMPT, Decoding(most=12)).tokens


def test_a_seed_says_what_is_drawn(model, tokenizer):
    one = model()

    def drawn(seed):
        return write(one, tokenizer, PROMPT, Decoding(most=16, temperature=1.0, seed=seed)).tokens

    assert drawn(1) == drawn(1) != drawn(2)


def test_nothing_but_what_is_told_narrows_a_draw(model, tokenizer):
    one = model()
    one.generation_config.top_k, one.generation_config.top_p = 1, 0.1
    drawn = write(one, tokenizer, PROMPT, Decoding(most=16, temperature=1.0)).tokens
    assert drawn != write(one, tokenizer, PROMPT, Decoding(most=16)).tokens


@pytest.mark.parametrize("whose", ["base", "tokenizer"])
def test_a_text_ends_where_the_base_or_the_tokenizer_says(model, tokenizer, heard, whose):
    one = model("latent-diff")
    all_tokens = write(one, tokenizer, PROMPT, Decoding(most=20, temperature=1.0)).tokens
    place = next(i for i in range(4, 20) if all_tokens[i] not in all_tokens[:i])
    if whose == "base":
        one.generation_config.eos_token_id = [all_tokens[place], 319]
    else:
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(all_tokens[place])})
    written = write(one, tokenizer, PROMPT, Decoding(most=20, temperature=1.0), heard)
    assert written.tokens == all_tokens[: place + 1]
    assert len(written.turns) == place + 1
    if whose == "tokenizer":
        assert written.text == tokenizer.decode(all_tokens[:place])


@pytest.mark.parametrize(("slots", "expected"), [(None, 6), (1, 1), (2, 2)])
def test_turns_share_slots_as_told_and_only_while_writing(model, tokenizer, slots, expected):
    one, seen = model(), set()
    one.register_forward_hook(lambda *_: seen.add(one.config.slots.by_turn))
    write(one, tokenizer, PROMPT, Decoding(most=3, shared_slots=slots))
    assert seen == {expected}
    assert one.config.shared_slots is None


def test_a_chat_is_put_into_the_template(model, tokenizer):
    tokenizer.chat_template = (
        "{% for said in messages %}<end>{{ said.role }}: {{ said.content }}{% endfor %}"
        "{% if add_generation_prompt %} of{% endif %}"
    )
    ids = encoded(tokenizer, "what do they know", chat=True)
    assert tokenizer.decode(ids) == "<end>user: what do they know of"
    plain = tokenizer(" what do they know")["input_ids"]
    assert ids[0] == 0
    assert str(plain)[1:-1] in str(ids)
    written = write(model(), tokenizer, "what do they know", Decoding(most=4, chat=True))
    assert written.prompt == "what do they know"
    assert written.text == tokenizer.decode(written.tokens, skip_special_tokens=True)


def test_a_prompt_is_read_as_in_training_with_nothing_in_front():
    class Adds:
        chat_template = None

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [9] * add_special_tokens + [1, 2]}

    assert encoded(Adds(), "a prompt") == [1, 2]


# Compiled


@pytest.fixture
def compiled_by(monkeypatch):
    """Let this function stand for the compiler: (graph, inputs) -> what runs."""

    def stand_in(backend):
        def told():
            how = compiling()
            how["compile_config"].backend, how["compile_config"].mode = backend, None
            return how

        torch.compiler.reset()
        monkeypatch.setattr(writing, "compiling", told)

    return stand_in


@pytest.mark.parametrize("how", [{}, {"turns": 3}, {"shared_slots": 2}, {"temperature": 1.0}], ids=str)
def test_compiled_once_the_same_is_written_and_heard(model, tokenizer, heard, compiled_by, how):
    one, graphs = model(), []
    compiled_by(lambda graph, _: graphs.append(graph) or graph.forward)
    plain = write(one, tokenizer, PROMPT, Decoding(most=12, **how))
    written = write(one, tokenizer, PROMPT, Decoding(most=12, compiled=True, **how), heard)
    assert (written.text, written.tokens, written.turns) == (plain.text, plain.tokens, plain.turns)
    assert "".join(piece for piece, _ in heard) == plain.text
    assert len(graphs) == 1


def test_a_compiler_that_fails_is_told_in_one_line(model, tokenizer, compiled_by):
    def backend(_graph, _inputs):
        raise OSError("there is no compiler here")

    compiled_by(backend)
    line = r"^the pass of one token could not be compiled, write without compiling it: .*there is no compiler here$"
    with pytest.raises(UserError, match=line):
        write(model(), tokenizer, PROMPT, Decoding(most=4, compiled=True))


# Refusals


def test_compiling_where_each_token_stops_in_its_time_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="there is no one pass to compile"):
        write(model("latent-diff"), tokenizer, PROMPT, Decoding(compiled=True))


@pytest.mark.parametrize(
    ("told", "line"),
    [({"cached": False}, "compile, or write without a cache"), ({"beams": 2}, "or follow one beam")],
    ids=str,
)
def test_compiling_what_the_library_does_not_compile_is_refused(told, line):
    with pytest.raises(UserError, match=line):
        Decoding(compiled=True, **told)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(model, tokenizer, prompt):
    with pytest.raises(UserError, match=r"^the prompt is empty: give a text"):
        write(model(), tokenizer, prompt)


def test_tokens_that_would_not_fit_are_refused_before_anything_is_written(model, tokenizer, heard):
    one = model()
    count = len(tokenizer(PROMPT)["input_ids"])
    line = rf"{count} tokens of the prompt and 256 new ones are more than the 256 positions .* at most {256 - count} "
    with pytest.raises(UserError, match=line):
        write(one, tokenizer, PROMPT, Decoding(most=256), heard)
    with pytest.raises(UserError, match="shorten the prompt"):
        write(one, tokenizer, PROMPT * 90, Decoding(most=1), heard)
    assert heard == []
    assert len(write(one, tokenizer, "the " * 31, Decoding(most=3)).tokens) == 3


def test_a_chat_without_a_template_is_refused(model, tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        write(model(), tokenizer, PROMPT, Decoding(chat=True))


@pytest.mark.parametrize("told", [{"top_p": 0.9}, {"top_k": 5}, {"top_k": 5, "temperature": 0.0}], ids=str)
def test_narrowing_a_draw_without_one_is_refused(told):
    with pytest.raises(UserError, match="give a temperature too"):
        Decoding(**told)


def test_sharing_the_slots_of_no_cache_is_refused():
    with pytest.raises(UserError, match="no slots to share"):
        Decoding(shared_slots=1, cached=False)


@pytest.mark.parametrize(("text", "slots"), [("turn", None), ("last", 1), ("modulo:1", 1), ("modulo:12", 12)])
def test_a_cache_policy_by_name(text, slots):
    assert parse_policy(text) == slots


@pytest.mark.parametrize(
    "text", ["", "Turn", "modulo", "modulo:", "modulo:0", "modulo:-1", "modulo:²", "modulo:2x", "3"]
)
def test_any_other_cache_policy_is_refused(text):
    with pytest.raises(UserError, match=r"^cache policy '.*': expected turn, last or modulo:N with N of 1 or more$"):
        parse_policy(text)
