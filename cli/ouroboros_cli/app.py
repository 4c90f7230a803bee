"""`ouro`: signatures and nothing else. Each command imports its work when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ouroboros_cli.failures import told_in_one_line
from ouroboros_cli.flags import Layers, takes_settings

app = typer.Typer(
    name="ouro",
    help="Recursive transformers from parts, with numbers that can be believed.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
ThirdParty = Annotated[
    bool, typer.Option("--third-party/--no-third-party", help="load plugins that other packages bring")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but the result")]


@app.command()
@takes_settings
@told_in_one_line
def run(
    layers: Layers,
    resume: Annotated[
        Path | None, typer.Option(help="go on with an unfinished run: its folder", show_default=False)
    ] = None,
    third_party: ThirdParty = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build, check, train and judge. Without any argument: SmolLM2-135M on the bundled text, minutes on a laptop."""
    from ouroboros_cli.running import run_and_show

    run_and_show(layers, resume, third_party=third_party, json=json, quiet=quiet)


@app.command()
@takes_settings
@told_in_one_line
def plan(layers: Layers, third_party: ThirdParty = True, json: Json = False) -> None:
    """Show the split, parameters, operations and memory of a run, from the base's config alone."""
    from ouroboros_cli.planning import plan_and_show

    plan_and_show(layers, third_party=third_party, json=json)


@app.command("list-plugins")
@told_in_one_line
def list_plugins(
    slot: Annotated[str | None, typer.Option(help="only this slot", show_default=False)] = None,
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Show every part, where it comes from, and why a broken plugin failed."""
    from ouroboros_cli.listing import show_plugins

    show_plugins(slot, third_party=third_party, json=json)


@app.command()
@told_in_one_line
def describe(
    slot: Annotated[str, typer.Argument(help="a slot, for example gate")],
    name: Annotated[str, typer.Argument(help="a part of it, for example sigmoid")],
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Show a part's options with type, default and help, and the paper it is from."""
    from ouroboros_cli.listing import show_part

    show_part(slot, name, third_party=third_party, json=json)
