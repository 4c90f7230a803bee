"""`ouro compare` as a user calls it, and how its table reads."""

import json
import random
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ouroboros_cli.app import app
from ouroboros_cli.comparing import show
from ouroboros_core.testing import WORDS, tiny_base

FIRST, SECOND = "ouroboros modulator.rank=4", "ouroboros modulator=none gate.bias=-1"


@pytest.fixture(scope="module")
def ouro():
    """Call `ouro` in this process: exit code, stdout, stderr."""

    def ouro(*arguments, columns=120):
        told = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})
        if told.exception and not isinstance(told.exception, SystemExit):
            raise told.exception
        return told.exit_code, told.stdout, told.stderr

    return ouro


@pytest.fixture(scope="module")
def budget(tmp_path_factory):
    """Flags of seconds of training on a tiny base."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text").mkdir()
    for number in range(8):
        words = random.Random(number).choices(WORDS, k=300)
        (folder / "text" / f"{number}.txt").write_text(" ".join(words))
    values = {"data.train": str(folder / "text"), "data.heldout": ["near"], "data.length": 32, "data.apart": 0.5}
    values |= {"eval.tokens": 256, "eval.validation": 256, "run.folder": str(folder / "runs"), "train.warmup": 1}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in values.items()]
    return ["--base", tiny_base(folder / "base"), "--dtype", "float32", "--device", "cpu", "--steps", 2, *sets]


@pytest.fixture(scope="module")
def finished(ouro, budget):
    """Two variants and a control, compared: what was printed."""
    variants = ["--preset", FIRST, "--preset", SECOND]
    return ouro("compare", *variants, "--seeds", 1, "--turns", 2, "--seed", 3, "--name", "mine", *budget)


def folder_of(out):
    return re.search(r"^written to (\S+)$", out, re.MULTILINE)[1]


def row(out, name):
    """The first cells of a table's row, in words."""
    return re.search(rf"^ *{re.escape(name)} +(.*?) *$", out, re.MULTILINE)[1].split()


def test_the_table_has_every_variant_the_control_and_the_intact_model(finished):
    code, out, err = finished
    assert code == 0
    for name in (FIRST, SECOND, f"control of {FIRST}", "intact model, untrained"):
        assert re.fullmatch(r"\d\.\d{3}", row(out, name)[0]), name
    assert "cell 3 of 3: control of ouroboros modulator.rank=4, seed 3" in err
    assert re.search(r"-mine$", folder_of(out))


def test_json_is_the_table_and_resuming_tells_it_again_without_training(finished, ouro):
    folder = folder_of(finished[1])
    code, out, err = ouro("compare", "--resume", folder, "--json", "--quiet")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["folder"] == folder
    assert list(found["variants"]) == [FIRST, SECOND, f"control of {FIRST}"]
    assert found["seeds"] == [3]
    for name, one in found["domains"]["near"]["variants"].items():
        assert row(finished[1], name)[0] == f"{one['loss']['value']:.3f}"
    _, again, err = ouro("compare", "--resume", folder)
    assert again == finished[1]
    assert "train" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to compare: give --preset once for each variant"),
        (["--turns", "2"], "nothing to compare"),
        (["--preset", "relaxd"], "no preset is called 'relaxd'. Did you mean 'relaxed'?"),
        (["--preset", "relaxed", "--preset", "relaxed"], "a variant is given twice"),
        (
            ["--preset", "ouroboros", "--preset", "ouroboros gate=none", "--gate", "none"],
            "gate.use is set for every variant too",
        ),
        (["--preset", "ouroboros gate.bais=1"], "gate.bais: no such setting. Did you mean 'bias'?"),
        (["--preset", "relaxed", "--set", "modulator.pool=prompt"], "modulator.pool: no such setting"),
        (["--preset", "ouroboros", "--control", "adaptor=full"], "expected slot.key=value"),
        (["--resume", "nowhere"], "nowhere is no comparison"),
        (["--resume", "nowhere", "--preset", "relaxed"], "leave out presets and settings"),
        (["--resume", "nowhere", "--seeds", "3"], "leave out presets and settings"),
        (["--resume", "nowhere", "--turns", "3"], "leave out presets and settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_exit_code_2(ouro, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ouro("compare", *arguments)
    (line,) = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("error: ")
    assert said in line
    assert not list(tmp_path.iterdir())


def test_an_option_that_only_the_variants_have_may_be_laid_over_them(ouro, budget, tmp_path):
    """`start` is an option of lora, which no default names."""
    flags = ["--preset", "relaxed modulator.rank=3", "--set", "modulator.start=nowhere", "--resume", tmp_path]
    assert "leave out" in ouro("compare", *flags)[2]
    line = ouro("compare", *flags[:-2], *budget)[2].strip()
    assert line.startswith("error: variant 'relaxed modulator.rank=3': modulator.start = 'nowhere': ")


# How it reads

LONG = "ouroboros modulator=none gate.bias=-1 norm=sandwich train.lr=1e-3"
DOMAINS = {
    "near": (3.412, "documents"),
    "moby-dick": (4.105, "blocks of 1,024 tokens"),
    "a-long-name": (12.5, "documents"),
}


def told(names, domains):
    """A made-up comparison: the first variant best, the second within noise, the others not."""

    def loss(value):
        return {"value": value, "low": value - 0.05, "high": value + 0.06}

    def judged(place, value):
        return {"loss": loss(value + place / 10), "best": place == 0, "within_noise": place < 2,
                "recovered": 0.874 - place / 10 if place < 3 else None}  # fmt: skip

    cost = {"trainable": 8_390_656, "unique": 134_515_008, "effective": 264_515_008, "trained_tokens": 204_800,
            "train_flops": 3.21e8, "decode_flops": 2.01e8, "kv_bytes": 13_824, "tokens_per_second": 1412.0}  # fmt: skip
    rows = {name: cost | {"train_flops": 3.21e8 * (1 + place)} for place, name in enumerate(names)}
    return {
        "seeds": [0, 1],
        "variants": rows,
        "intact": cost | {"trainable": 0, "train_flops": None},
        "domains": {name: {"units": 16, "unit": unit, "intact": loss(value - 0.5),
                           "variants": {one: judged(place, value) for place, one in enumerate(names)}}
                    for name, (value, unit) in domains.items()},
        "unequal": {"train_flops": {"least": names[0], "most": names[-1]}},
    }  # fmt: skip


def printed(found, width):
    console = Console(width=width, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        show(found, console)
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_is_cut_off(width, count):
    names = ["ouroboros", "relaxed", LONG, "control of ouroboros"]
    text = printed(told(names, dict(list(DOMAINS.items())[:count])), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in list(DOMAINS)[:count]:
        assert name in text
    assert all(word in text for word in LONG.split())  # wrapped, not cut
    for number in (
        "3.412 *",
        "3.512 ≈",
        "3.612",
        "3.36–3.47",
        "2.912",
        "87.4%",
        "8.39M",
        "135M",
        "265M",
        "321M",
        "201M",
    ):
        assert number in text, number
    assert re.search(r"321M +201M +13\.8k +1\.41k", text)


def test_a_name_that_goes_on_below_is_told_from_the_next_row():
    lines = [line.rstrip() for line in printed(told([LONG, "relaxed"], DOMAINS), 80).splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith(" ouroboros modulator=none"))
    assert lines[first + 1].startswith("   gate.bias=-1")
    assert sum(line.startswith(" relaxed") for line in lines) == 3  # in two tables of losses and one of costs


def test_names_are_shown_as_they_are_written():
    variant, domain = 'ouroboros train.betas=[0.8,0.9] data.column="[/b]"', "texts/of [bold]/some.txt"
    text = printed(told([variant], {domain: DOMAINS["near"]}), 120)
    assert text.count(variant) == 2
    assert re.search(r"^ +some\.txt +recov-", text, re.MULTILINE)
    assert f"Judged on {domain}: 16 documents." in text


def test_domains_that_do_not_fit_go_below_with_every_variant_again():
    domains = {f"{name}-{number}": one for number in (1, 2) for name, one in DOMAINS.items()}
    text = printed(told(["ouroboros", "control of ouroboros"], domains), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(name in text for name in domains)
    assert text.count("intact model, untrained") == 3


def test_the_notes_say_what_was_judged_what_the_marks_mean_and_what_is_not_equal():
    text = re.sub(r"\s+", " ", printed(told(["ouroboros", "relaxed"], DOMAINS), 80))
    assert "204,800 training tokens each, seeds 0, 1." in text
    assert "near: 16 documents; moby-dick: 16 blocks of 1,024 tokens" in text
    assert "* the lowest loss; ≈ within noise of it" in text
    assert "Not equal: training FLOPs a token (321M to 642M)." in text
    assert "Not equal" not in printed({**told(["ouroboros"], DOMAINS), "unequal": {}}, 80)


def test_without_a_range_or_an_intact_model_the_table_says_so():
    found = told(["ouroboros", "relaxed"], {"near": DOMAINS["near"]})
    near = found["domains"]["near"]
    near["variants"]["relaxed"]["loss"] |= {"low": None, "high": None}
    text = printed({**found, "intact": None, "domains": {"near": {**near, "intact": None}}}, 80)
    assert "no range" in text
    assert "intact" not in text
