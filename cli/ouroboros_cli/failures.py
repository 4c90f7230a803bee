"""How a command fails: one clear line and the right exit code; real faults keep their traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from ouroboros_core.errors import CheckFailed, Interrupted, UserError

EXIT_CODES: dict[type[BaseException], tuple[int, str]] = {
    UserError: (2, "error"),
    CheckFailed: (1, "check failed"),
    Interrupted: (130, "stopped"),
    KeyboardInterrupt: (130, "stopped"),
}


def told_in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the failures we foresee into a line on stderr and an exit code."""

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except tuple(EXIT_CODES) as failure:
            code, word = next(told for kind, told in EXIT_CODES.items() if isinstance(failure, kind))
            print(f"{word}: {str(failure) or 'nothing was written'}", file=sys.stderr)
            raise typer.Exit(code) from None

    return guarded
