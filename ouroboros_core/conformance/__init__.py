"""Conformance: what must hold of any combination of parts, tried on a small random model of the base's shape.

A run's own checks (`checks`) are made on the real model before it is trained; these are more, take seconds, need no
weights, and go on after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ouroboros_core import pretrained
from ouroboros_core.conformance.costs import operations
from ouroboros_core.conformance.decoding import cached, gathered
from ouroboros_core.conformance.halting import exits
from ouroboros_core.conformance.invariances import batch, causality, identity, padding
from ouroboros_core.conformance.learning import counting, gradients, labels, options
from ouroboros_core.conformance.repeating import precision, saving, seeds
from ouroboros_core.conformance.start import start
from ouroboros_core.conformance.subject import Subject
from ouroboros_core.errors import CheckFailed, UserError
from ouroboros_core.host import PluginHost
from ouroboros_core.refusals import refuse_nonsense
from ouroboros_core.reporting import CheckResult
from ouroboros_core.settings import Settings
from ouroboros_core.testing import shrunk

CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "identity": identity, "start": start, "causality": causality, "padding": padding, "batch": batch, "seeds": seeds,
    "saving": saving, "precision": precision, "gradients": gradients, "options": options, "labels": labels,
    "exits": exits, "cached": cached, "gathered": gathered, "counting": counting, "operations": operations,
}  # fmt: skip


def conformance(
    settings: Settings, host: PluginHost, only: Sequence[str] = (), config: Any = None
) -> list[CheckResult]:  # fmt: skip
    """Make every check, whatever the others say.

    Args:
        only: the names of some checks; none: all of them.
        config: of the base, in transformers' form, where it is not to be looked for.

    Raises:
        UserError: the settings make no model, or no check is called so.
    """
    names = wanted(only)
    subject = subject_of(settings, host, config)
    return [verdict(name, subject) for name in names]


def subject_of(settings: Settings, host: PluginHost, config: Any = None) -> Subject:
    """What checks are made on: a small random model of the base's shape.

    Raises:
        UserError: the settings make no model.
    """
    refuse_nonsense(settings)
    subject = Subject(settings, host, shrunk(config or pretrained.load_config(settings.base)))
    subject.built()  # a mistake in the settings is told once, as such
    return subject


def wanted(only: Sequence[str]) -> Sequence[str]:
    """These checks, or all of them where none is named.

    Raises:
        UserError: no check is called so.
    """
    if unknown := [name for name in only if name not in CHECKS]:
        raise UserError(f"no check is called '{unknown[0]}'. Known: {', '.join(CHECKS)}")
    return only or list(CHECKS)


def verdict(name: str, subject: Subject) -> CheckResult:
    """One check's result, passed or not. A part that breaks off fails the check; a mistake of the user's does not."""
    try:
        return CheckResult(name, True, CHECKS[name](subject))
    except CheckFailed as failure:
        return CheckResult(name, False, str(failure))
    except UserError:
        raise
    except Exception as error:
        return CheckResult(name, False, f"a part breaks off: {type(error).__name__}: {error}")
