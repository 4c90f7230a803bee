"""Options: one pydantic model a part, which knows which of its fields somebody read.

The same declaration feeds validation, `ouro describe`, the written settings and the check that no setting is
without effect. Reading a field by attribute counts; dumping, comparing or printing the model does not, because
pydantic does these without attribute access.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr


class Options(BaseModel):
    """What a user may choose about one part. Subclass it, give every field a default and a description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("_") and name in type(self).model_fields:
            super().__getattribute__("__pydantic_private__")["_read"].add(name)
        return value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__  # whoever read them

    def __copy__(self) -> Self:
        twin = super().__copy__()
        twin._read = set(self._read)
        return twin

    @property
    def causal(self) -> bool:
        """False if the part, so configured, lets a token see a later one. Override where that can happen."""
        return True

    def forget_reads(self) -> None:
        """Start the record of reads anew: what validation read does not count."""
        self._read.clear()

    def unread(self) -> list[str]:
        """The fields nobody has read since the last `forget_reads`.

        A field that is None is one nobody set: it claims no effect. So an option that matters only in some cases has
        None as its default, and setting it where it does not matter is found out.
        """
        return [name for name, value in self.__dict__.items() if value is not None and name not in self._read]


class NoOptions(Options):
    """The options of a part that has none."""
