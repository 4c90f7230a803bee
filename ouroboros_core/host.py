"""The plugin host: loads each plugin by itself, survives the broken ones, and looks parts up.

The host is a value. Nothing is loaded on import, and two hosts know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from ouroboros_core.anatomy import Anatomy
from ouroboros_core.contracts import Part, Slot
from ouroboros_core.errors import UserError
from ouroboros_core.hooks import PROJECT, Hooks
from ouroboros_core.options import Options
from ouroboros_core.presets import Preset

BUILTIN = "builtin"
OURS = "ouroboros-core"  # the distribution whose entry point may call itself built in
Offer = TypeVar("Offer", Part, Preset)
BROKEN = (Exception, SystemExit)  # what a plugin may do to us at import or in a hook


@dataclass
class PluginRecord:
    """A plugin, loaded or broken."""

    name: str
    distribution: str
    version: str
    parts: list[Part] = field(default_factory=list)
    presets: list[Preset] = field(default_factory=list)
    anatomy: Callable[..., Anatomy | None] | None = None
    loaded: bool = False  # what it offers is offered, whatever goes wrong later
    error: BaseException | None = None

    @property
    def builtin(self) -> bool:
        """Whether it came with Ouroboros."""
        return self.distribution == OURS

    @property
    def cause(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        return f"{type(self.error).__name__}: {self.error}".replace("\n", " ") if self.error else ""


class PluginHost:
    """Every plugin that was found, in a fixed order: the built-in one, then by name."""

    def __init__(self) -> None:
        self.records: list[PluginRecord] = []

    @classmethod
    def installed(cls, *, third_party: bool = True) -> PluginHost:
        """A host with every plugin installed in this environment, or with the built-in parts only."""
        host = cls()
        found = sorted(entry_points(group=PROJECT), key=lambda entry: (not _ours(entry), entry.name, str(entry.dist)))
        for entry in found:
            if third_party or _ours(entry):
                distribution = entry.dist.name if entry.dist else "unknown"
                version = entry.dist.version if entry.dist else "unknown"
                host.add(entry.name, entry.load, distribution=distribution, version=version)
        return host

    def add(
        self, name: str, load: Callable[[], Any], *, distribution: str = "local", version: str = "0"
    ) -> PluginRecord:
        """Load one plugin, all of it or nothing. Whatever it does wrong is recorded, and nobody else is touched."""
        record = PluginRecord(name, distribution, version)
        self.records.append(record)
        try:
            implementations = _implementations(name, load())
            parts = _checked(offer()) if (offer := implementations.get("ouroboros_parts")) else []
            presets = _checked_presets(offer()) if (offer := implementations.get("ouroboros_presets")) else []
        except BROKEN as error:
            record.error = error
            return record
        record.parts, record.presets, record.loaded = parts, presets, True
        record.anatomy = implementations.get("ouroboros_anatomy")
        return record

    def parts(self, slot: Slot) -> Iterator[tuple[PluginRecord, Part]]:
        """Every part offered for a slot, with the plugin that offers it."""
        for record in self.records:
            for part in record.parts:
                if part.slot == slot:
                    yield record, part

    def find(self, slot: Slot, name: str) -> Part:
        """The part of this name, or of this `distribution:name`.

        A built-in name can never be redirected by installing a package.

        Raises:
            UserError: nothing, or more than one thing, is called that.
        """
        return self._found(slot.value, name, list(self.parts(slot)))

    def preset(self, name: str) -> Preset:
        """The preset of this name, or of this `distribution:name`.

        Raises:
            UserError: nothing, or more than one thing, is called that.
        """
        return self._found("preset", name, list(self.presets()))

    def presets(self) -> Iterator[tuple[PluginRecord, Preset]]:
        """Every preset, with the plugin that offers it."""
        for record in self.records:
            for preset in record.presets:
                yield record, preset

    def _found(self, what: str, name: str, known: list[tuple[PluginRecord, Offer]]) -> Offer:
        offers = [(record, one) for record, one in known if name in (one.name, qualified(record, one))]
        ours = [one for record, one in offers if record.builtin]
        if ours or len(offers) == 1:
            return (ours or [one for _, one in offers])[0]
        if offers:
            choices = ", ".join(qualified(record, one) for record, one in offers)
            raise UserError(f"several plugins offer a {what} called '{name}'. Say which: {choices}")
        raise UserError(self._unknown(what, name, sorted({one.name for _, one in known})))

    def only(self, slot: Slot, wanted: Callable[[Part], bool]) -> Part:
        """The built-in part of a slot that is its default, or its null part."""
        for record in self.records:
            if record.builtin and not record.loaded:
                raise UserError(f"the built-in parts failed to load: {record.cause}")
        (part,) = (part for record, part in self.parts(slot) if record.builtin and wanted(part))
        return part

    def default(self, slot: Slot) -> Part:
        """What fills a slot when nothing is said."""
        return self.only(slot, lambda part: part.default)

    def null(self, slot: Slot) -> Part:
        """The part of a slot that changes nothing."""
        return self.only(slot, lambda part: part.null)

    def anatomy(self, config: Any) -> Anatomy:
        """Who knows this model? Third parties are asked first: they win by being specific.

        Raises:
            UserError: nobody knows it.
        """
        for record in sorted(self.records, key=lambda record: record.builtin):
            try:
                found = record.anatomy and record.anatomy(config=config)
            except BROKEN as error:
                record.error = error
                continue
            if found:
                return found
        kind = getattr(config, "model_type", type(config).__name__)
        raise UserError(
            f"no plugin knows the anatomy of a '{kind}' model. Use one of the Llama family (Llama, SmolLM, Qwen2, "
            f"Qwen3, Mistral), or install a plugin that offers one.{self._failures()}"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Distribution and version of every plugin that loaded; where a name is taken, by `distribution:name`."""
        found: dict[str, str] = {}
        for record in self.records:
            if record.loaded:
                name = f"{record.distribution}:{record.name}" if record.name in found else record.name
                found[name] = f"{record.distribution} {record.version}"
        return found

    def _unknown(self, what: str, name: str, known: list[str]) -> str:
        near = get_close_matches(name, known, n=1)
        meant = f" Did you mean '{near[0]}'?" if near else ""
        return f"no {what} is called '{name}'.{meant} Known: {', '.join(known)}.{self._failures()}"

    def _failures(self) -> str:
        failed = [record.name for record in self.records if record.error]
        return f" {len(failed)} plugin(s) failed to load: {', '.join(failed)}. Why: ouro list-plugins" if failed else ""


def qualified(record: PluginRecord, offer: Part | Preset) -> str:
    """The name that always works: `distribution:name`."""
    return f"{record.distribution}:{offer.name}"


def _ours(entry: EntryPoint) -> bool:
    return entry.name == BUILTIN and entry.dist is not None and entry.dist.name == OURS


def _implementations(name: str, plugin: Any) -> dict[str, Callable[..., Any]]:
    """The plugin's hook functions by name, checked by pluggy: unknown hooks and wrong signatures raise."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(plugin, name)
    manager.check_pending()
    callers = manager.get_hookcallers(plugin) or []
    return {caller.name: _callable(caller.get_hookimpls()[0]) for caller in callers}


def _callable(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """The function, called as pluggy would: with the arguments it names, whatever else is known."""
    return lambda **known: implementation.function(*(known[name] for name in implementation.argnames))


def _checked(offer: Any) -> list[Part]:
    """The offered parts."""
    parts = _drained("ouroboros_parts", offer, Part)
    for part in parts:
        if not (isinstance(part.options, type) and issubclass(part.options, Options)):
            raise TypeError(f"the options of {part.slot} '{part.name}' are no subclass of ouroboros_core.Options")
    _must_differ("parts", [f"{part.slot} '{part.name}'" for part in parts])
    return parts


def _checked_presets(offer: Any) -> list[Preset]:
    """The offered presets."""
    presets = _drained("ouroboros_presets", offer, Preset)
    for preset in presets:
        preset.check()
    _must_differ("presets", [preset.name for preset in presets])
    return presets


def _drained(hook: str, offer: Any, kind: type[Offer]) -> list[Offer]:
    """What a hook offered, drained here so that a generator that raises late is caught like any other."""
    if not hasattr(offer, "__iter__"):
        raise TypeError(f"{hook} returned {type(offer).__name__}, not an iterable of {kind.__name__}")
    found = list(offer)
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(f"{hook} yielded {type(one).__name__}, not a {kind.__name__}")
    return found


def _must_differ(what: str, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two {what} with one name: {twice[0]}")
