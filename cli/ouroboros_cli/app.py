"""`ouro`: signatures and nothing else. Each command imports its work when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ouroboros_cli.failures import told_in_one_line
from ouroboros_cli.flags import Json, Layers, Quiet, ThirdParty, takes_settings
from ouroboros_cli.trained import TRAINED

app = typer.Typer(
    name="ouro",
    help="Recursive transformers from parts, with numbers that can be believed.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


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
def plan(
    layers: Layers,
    measure: Annotated[
        bool, typer.Option("--measure", help="load the weights: layer statistics, and the loss of the kept layers")
    ] = False,
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Show the split, parameters, operations and memory of a run, from the base's config alone."""
    from ouroboros_cli.planning import plan_and_show

    plan_and_show(layers, measure=measure, third_party=third_party, json=json)


@app.command()
@takes_settings
@told_in_one_line
def check(
    layers: Layers,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="only this check; may be repeated", show_default=False)
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="SLOTS", help="combine the parts of these slots so that every two meet", show_default=False
        ),
    ] = None,
    product: Annotated[
        str | None,
        typer.Option(metavar="SLOTS", help="all combinations of the parts of these slots", show_default=False),
    ] = None,
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Check any combination of parts, in half a minute and without weights, on a small random model of the base."""
    from ouroboros_cli.checking import check_and_show, combine_and_show

    if pairs or product:
        combine_and_show(layers, only or [], pairs=pairs, product=product, third_party=third_party, json=json)
    else:
        check_and_show(layers, only or [], third_party=third_party, json=json)


@app.command()
@takes_settings
@told_in_one_line
def compare(
    layers: Layers,
    preset: Annotated[
        list[str] | None,
        typer.Option(help="a variant: a preset, and what differs: 'ouroboros modulator=none'", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="trainings of each variant, from train.seed on", show_default="2")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="what the trained control learns with if the first variant has no adapter; none: no control",
            show_default="adapter=full adapter.rate=1e-4",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on with an unfinished comparison: its folder", show_default=False)
    ] = None,
    third_party: ThirdParty = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train several variants on one budget, with every seed, and print one table with the trained control in it."""
    from ouroboros_cli.comparing import compare_and_show

    compare_and_show(layers, preset or [], seeds, control, resume, third_party=third_party, json=json, quiet=quiet)


for name, command in TRAINED.items():
    app.command(name)(told_in_one_line(command))


@app.command("list-presets")
@told_in_one_line
def list_presets(third_party: ThirdParty = True, json: Json = False) -> None:
    """Show every preset: published systems as named settings."""
    from ouroboros_cli.listing import show_presets

    show_presets(third_party=third_party, json=json)


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
    slot: Annotated[str, typer.Argument(help="a slot, for example gate; or preset")],
    name: Annotated[str, typer.Argument(help="a part of it, for example sigmoid; or a preset")],
    third_party: ThirdParty = True,
    json: Json = False,
) -> None:
    """Show a part's options with type, default and help, and the paper it is from; or what a preset sets."""
    from ouroboros_cli.listing import show_part, show_preset

    if slot == "preset":
        show_preset(name, third_party=third_party, json=json)
    else:
        show_part(slot, name, third_party=third_party, json=json)
