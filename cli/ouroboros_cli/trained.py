"""Commands on a trained run: signatures and nothing else, as in `app`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from ouroboros_cli.flags import Json, Quiet, ThirdParty

Temperature = Annotated[float | None, typer.Option(min=0, help="draw each token; 0: take the best", show_default="0")]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help="draw from the likeliest, which sum to this", show_default=False)
]
TopK = Annotated[int | None, typer.Option(min=1, help="draw from so many of the likeliest", show_default=False)]
Base = Annotated[str | None, typer.Option(help="where the base is now: the same weights", show_default="where it was")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps", show_default="base.device")]


def generate(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    prompt: Annotated[
        str | None, typer.Argument(help="a text to go on from; -: from stdin", show_default=False)
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="the prompt comes from stdin")] = False,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt into the model's chat template")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="print the prompt too")] = False,
    turns: Annotated[int | None, typer.Option(min=1, help="turns of the loop", show_default="the run's")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="of the text at most")] = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
    beams: Annotated[int, typer.Option(min=1, help="continuations to follow; from 2 on nothing is streamed")] = 1,
    cache: Annotated[
        str, typer.Option(metavar="POLICY", help="slots of turns: turn (one each), last (one for all) or modulo:N")
    ] = "turn",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="read everything again for each token")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="for long texts: a minute first, then faster")] = False,
    show: Annotated[
        Literal["turns"] | None, typer.Option(help="how many turns each token took", show_default=False)
    ] = None,
    base: Base = None,
    device: Device = None,
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Write on from a text with a trained run, and print what is written as it comes."""
    from ouroboros_cli.generating import Where, generate_and_show, prompt_of
    from ouroboros_core.policies import parse_policy
    from ouroboros_core.writing import Decoding

    text, slots = prompt_of(prompt, stdin), parse_policy(cache)
    how = Decoding(turns, max_new_tokens, temperature, top_p, top_k, seed, beams, slots, not no_cache, chat, compiled)
    where = Where(run, base, device, third_party)
    generate_and_show(where, text, how, echo=echo, show_turns=bool(show), json=json)


def export(
    run: Annotated[Path, typer.Argument(help="the folder of a run", show_default=False)],
    to: Annotated[
        str, typer.Option(help="hf: for transformers with this package; peft: for PEFT without it", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="a new folder", show_default=False)],
    merge_base: Annotated[bool, typer.Option("--merge-base", help="hf: write the base's weights too")] = False,
    turns: Annotated[
        int | None, typer.Option(help="to take, for peft no others", show_default="those of the run")
    ] = None,
    base: Base = None,
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Write a trained run for others: a folder that transformers or PEFT loads, with a model card."""
    from ouroboros_cli.exporting import export_and_show

    export_and_show(run, to, out, merge_base=merge_base, turns=turns, base=base, third_party=third_party, json=json)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    only: Annotated[list[str] | None, typer.Option(metavar="SECTION", help="only this one; may be repeated")] = None,
    turns: Annotated[str | None, typer.Option(metavar="N,N", help="of the depth curve; else 1,2,4 and so on")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="only this held-out text; may be repeated")] = None,
    tokens: Annotated[int | None, typer.Option(help="most of a domain", show_default="eval.tokens of the run")] = None,
    cache: Annotated[str | None, typer.Option(metavar="POLICY,POLICY", help="for example last,modulo:2")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="TASK,TASK", help="of lm-evaluation-harness")] = None,
    tasks_from: Annotated[Path | None, typer.Option(help="folder of task files", show_default="the hub")] = None,
    limit: Annotated[int | None, typer.Option(help="items of each task", show_default="all")] = None,
    base: Base = None,
    device: Device = None,
    third_party: ThirdParty = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Examine a trained run. Sections: loss, depth, residuals, halting; and tasks and cache, where some are named."""
    from ouroboros_cli.evaluating import examine_and_show

    given = {
        "only": only, "turns": turns, "domains": domain, "tokens": tokens, "cache": cache, "tasks": tasks,
        "tasks_from": tasks_from, "limit": limit, "device": device,
    }  # fmt: skip
    examine_and_show(run, given, base=base, third_party=third_party, json=json, quiet=quiet)


TRAINED: Mapping[str, Callable[..., None]] = {"generate": generate, "export": export, "eval": evaluate}
