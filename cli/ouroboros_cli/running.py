"""`ouro run`."""

from __future__ import annotations

import json as jsons
import os
from pathlib import Path

from ouroboros_cli.flags import Layers
from ouroboros_core.errors import UserError


def run_and_show(layers: Layers, resume: Path | None, *, third_party: bool, json: bool, quiet: bool) -> None:
    """Run, and print the table, or JSON, on stdout."""
    if resume and not layers.empty:
        raise UserError("--resume takes every setting from the run's folder: leave out the other settings")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with watching(quiet) as display:
        from ouroboros_core.host import PluginHost
        from ouroboros_core.resolve import resolve
        from ouroboros_core.run import run
        from ouroboros_core.rundir import settings_of

        host = PluginHost.installed(third_party=third_party)
        settings = settings_of(resume, host) if resume else resolve(host, layers.read(host))
        outcome = run(settings, host, display, resume=resume)
    if not outcome.speaker:
        return
    if json:
        print(jsons.dumps({"folder": str(outcome.folder), **outcome.evaluation}, indent=2))
    else:
        from ouroboros_cli.render import show_outcome

        show_outcome(outcome)


def watching(quiet: bool):  # type: ignore[no-untyped-def]
    """The live display, or nothing."""
    from contextlib import nullcontext

    from ouroboros_cli.display import Display

    return nullcontext() if quiet else Display()
