"""`ouro generate` as a user calls it, on a run folder of a tiny model that nobody trained."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from tokenizers import decoders
from typer.testing import CliRunner

from ouroboros_cli.app import app
from ouroboros_cli.generating import Shade
from ouroboros_core import hub, pretrained, rundir, writing
from ouroboros_core.build import build
from ouroboros_core.pieces import Pieces
from ouroboros_core.resolve import resolve
from ouroboros_core.testing import tiny_model, tiny_tokenizer
from ouroboros_core.weights import save_parts

PROMPT = "the state of our union"
FEW = ("--max-new-tokens", 12)
DRAWN = (*FEW, "--temperature", 1)
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
COLOUR = re.compile(r"\x1b\[38;2;(\d+;\d+;\d+)m([^\x1b]*)\x1b\[0m")
OPENED = cache(writing.opened)


@pytest.fixture
def ouro(monkeypatch):
    """Call `ouro` in this process: exit code, stdout, stderr. Each folder is opened once, to save time."""
    monkeypatch.setattr(writing, "opened", lambda folder, *_: OPENED(folder))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def ouro(*arguments, stdin=None, env=()):
        told = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin, env=dict(env))
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return ouro


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "base"
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of(base, host, randomise):
    """Write the run folder of a random model with this halter."""

    def folder_of(name, **halter):
        tables = {"base": {"name": str(base), "dtype": "float32", "device": "cpu"}, "modulator": {"rank": 4}}
        settings = resolve(host, [{**tables, "halter": halter, "loop": {"turns": 6}}])
        loaded = pretrained.load(settings.base)
        model = build(settings, host, loaded.model).model
        for loop in model.loops:
            randomise(loop)
        facts = {"base": {"name": str(base), "fingerprint": loaded.fingerprint}}
        folder = rundir.begin(base.parent / name, settings, facts)
        save_parts(model, loaded.fingerprint, folder)
        model.config.base = loaded.told(settings.base)
        hub.describe(model, folder)
        return folder

    return folder_of


@pytest.fixture(scope="module")
def run(folder_of):
    """A run whose tokens stop between the second and the sixth turn."""
    return folder_of("adaptive", use="latent-diff", threshold=0.15)


@pytest.fixture(scope="module")
def fixed(folder_of):
    return folder_of("fixed", use="fixed")


def refused(told):
    """The one line of a refusal."""
    code, out, err = told
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def written(ouro, *arguments, **others):
    """What `--json` says."""
    code, out, err = ouro("generate", *arguments, "--json", **others)
    assert (code, err) == (0, "")
    return json.loads(out)


def heard(run):
    """The pieces that a listener hears of what `DRAWN` asks for."""
    model, tokenizer = OPENED(run)
    pieces = []
    writing.write(
        model, tokenizer, PROMPT, writing.Decoding(most=12, temperature=1.0), lambda *piece: pieces.append(piece)
    )
    return pieces


def test_the_text_alone_is_printed_and_equals_that_of_json(ouro, run):
    told = written(ouro, run, PROMPT, *DRAWN)
    assert told.keys() == {"prompt", "text", "tokens", "turns", "adaptive", "seconds", "tokens_per_second"}
    assert told["prompt"] == PROMPT
    assert len(told["tokens"]) == len(told["turns"]) == 12
    assert told["tokens_per_second"] == pytest.approx(12 / told["seconds"])
    assert ouro("generate", run, PROMPT, *DRAWN) == (0, told["text"] + "\n", "")
    assert ouro("generate", run, PROMPT, *DRAWN, "--echo") == (0, PROMPT + told["text"] + "\n", "")


@pytest.mark.parametrize("how", [("-",), ("--stdin",), ("-", "--stdin")], ids=" ".join)
def test_the_prompt_may_come_from_stdin(ouro, run, how):
    told = written(ouro, run, *how, *FEW, stdin=PROMPT + "\n")
    assert told["prompt"] == PROMPT
    assert told["text"] == written(ouro, run, PROMPT, *FEW)["text"]


def test_every_flag_arrives(ouro, run, monkeypatch):
    seen = []
    monkeypatch.setattr("ouroboros_cli.generating.generate_and_show", lambda *args, **_: seen.append(args[2]))
    ouro("generate", run, PROMPT)
    flags = (
        "--turns 3 --max-new-tokens 5 --temperature .5 --top-p .9 --top-k 7 --seed 4 --beams 2 --cache modulo:3 --chat"
    )
    ouro("generate", run, PROMPT, *flags.split())
    ouro("generate", run, PROMPT, "--no-cache", "--cache", "turn")
    ouro("generate", run, PROMPT, "--compile")
    plain = {"turns": None, "most": 128, "temperature": None, "top_p": None, "top_k": None, "seed": 0, "beams": 1}
    plain |= {"shared_slots": None, "cached": True, "chat": False, "compiled": False}
    other = {"turns": 3, "most": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 4, "beams": 2}
    other |= {"shared_slots": 3, "cached": True, "chat": True, "compiled": False}
    assert [vars(how) for how in seen] == [plain, other, {**plain, "cached": False}, {**plain, "compiled": True}]


def test_greedy_is_the_default_and_a_seed_changes_only_what_is_drawn(ouro, run):
    greedy = [written(ouro, run, PROMPT, *FEW, "--seed", seed)["tokens"] for seed in (0, 1)]
    drawn = [written(ouro, run, PROMPT, *DRAWN, "--seed", seed)["tokens"] for seed in (0, 1, 1)]
    assert greedy[0] == greedy[1]
    assert drawn[0] != drawn[1] == drawn[2]


def test_without_a_cache_the_text_is_the_same(ouro, run):
    cached, uncached = (written(ouro, run, PROMPT, *FEW, *more) for more in ((), ("--no-cache",)))
    assert (cached["tokens"], cached["turns"]) == (uncached["tokens"], uncached["turns"])


def test_where_there_is_no_terminal_turns_are_numbers_behind_the_tokens(ouro, run):
    pieces = heard(run)
    turns = [turn for _, several in pieces for turn in several]
    assert len(set(turns)) > 1
    text = "".join(f"{piece}·{'+'.join(map(str, several))}" for piece, several in pieces)
    legend = f"turns for a token: min {min(turns)}, mean {sum(turns) / 12:.3g}, max {max(turns)}, of 6"
    assert ouro("generate", run, PROMPT, *DRAWN, "--show", "turns") == (0, f"{text}\n{legend}\n", "")


@pytest.mark.parametrize(
    ("piece", "turns", "shown"),
    [("é", [2, 4], "é·2+4"), ("word\n\n", [3], "word·3\n\n"), ("\n", [5], "·5\n"), ("", [2], "")],
)
def test_a_number_stands_before_the_end_of_a_line_and_behind_no_empty_piece(capsys, piece, turns, shown):
    Shade(1, 6).show(piece, turns)
    assert capsys.readouterr().out == shown


def test_in_a_terminal_turns_are_colours_from_cold_to_warm(ouro, run):
    pieces = heard(run)
    _, out, _ = ouro("generate", run, PROMPT, *DRAWN, "--show", "turns", env=TERMINAL)
    assert "·" not in out
    text, legend = out.removesuffix("\n").rsplit("\n", 1)
    assert COLOUR.sub(r"\2", text) == "".join(piece for piece, _ in pieces)
    colours = [colour for colour, _ in COLOUR.findall(text)]
    assert len(set(zip(colours, map(max, (turns for _, turns in pieces)), strict=True))) == len(set(colours)) > 1
    least, _, most = [[int(value) for value in colour.split(";")] for colour, _ in COLOUR.findall(legend)]
    assert least[0] < most[0]  # more red
    assert least[2] > most[2]  # less blue


def test_no_color_is_heeded_in_a_terminal(ouro, run):
    plain = ouro("generate", run, PROMPT, *FEW, "--show", "turns")
    assert ouro("generate", run, PROMPT, *FEW, "--show", "turns", env={**TERMINAL, "NO_COLOR": "1"}) == plain
    assert ouro("generate", run, PROMPT, *FEW, "--show", "turns", env={**TERMINAL, "TERM": "dumb"}) == plain


def test_without_show_a_terminal_gets_the_bare_text(ouro, run):
    assert ouro("generate", run, PROMPT, *FEW, env=TERMINAL) == ouro("generate", run, PROMPT, *FEW)


def test_the_legend_says_where_every_token_takes_all_turns(ouro, fixed):
    _, out, _ = ouro("generate", fixed, PROMPT, *FEW, "--show", "turns", "--turns", 3)
    assert out.endswith("\nturns: 3 for every token, since the halter of this model stops none early\n")


def test_beams_say_that_nothing_is_streamed(ouro, run):
    code, out, err = ouro("generate", run, PROMPT, *FEW, "--beams", 3)
    assert (code, err) == (0, "3 beams: the text comes whole, at the end\n")
    assert out == written(ouro, run, PROMPT, *FEW, "--beams", 3)["text"] + "\n"


def test_what_was_written_stays_when_it_is_stopped(ouro, run, monkeypatch):
    whole, put = written(ouro, run, PROMPT, *FEW)["text"], Pieces.put

    def put_ten(self, tokens):
        if len(self.tokens) == 10:
            raise KeyboardInterrupt
        put(self, tokens)

    monkeypatch.setattr(Pieces, "put", put_ten)
    code, out, err = ouro("generate", run, PROMPT, *FEW)
    assert (code, err) == (130, "stopped: the text ends where it was stopped\n")
    assert len(out) > 2
    assert out.endswith("\n")
    assert whole.startswith(out[:-1])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "no prompt: give a text behind the run's folder, or --stdin"),
        (("",), "the prompt is empty: give a text to go on from"),
        (("-",), "the prompt is empty: give a text to go on from"),
        ((PROMPT, "--stdin"), "two prompts, one as an argument and --stdin: leave out one of them"),
        ((PROMPT, "--cache", "best"), "cache policy 'best': expected turn, last or modulo:N with N of 1 or more"),
        ((PROMPT, "--cache", "last", "--no-cache"), "without a cache there are no slots to share"),
        ((PROMPT, "--compile", "--beams", 2), "compile, or follow one beam"),
        ((PROMPT, "--top-k", 5), "give a temperature too"),
        ((PROMPT, "--max-new-tokens", 300), "more than the 256 positions of the model"),
        ((PROMPT, "--chat"), "has no chat template: give the prompt as plain text"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(ouro, run, arguments, line):
    assert line in refused(ouro("generate", run, *arguments, stdin=""))


def test_a_folder_that_is_no_run_is_one_line(ouro, tmp_path):
    assert "is no run folder" in refused(ouro("generate", tmp_path, PROMPT))


@pytest.mark.parametrize("flag", ["--turns", "--max-new-tokens", "--beams", "--top-k"])
def test_a_count_below_one_is_refused(ouro, flag):
    code, _, err = ouro("generate", Path("nowhere"), PROMPT, flag, 0)
    assert code == 2
    assert flag in err
