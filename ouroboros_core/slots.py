"""The slots, in a module of their own: the command line names them before anything heavy is imported."""

from enum import StrEnum


class Slot(StrEnum):
    """The places of the recursion that a plugin may fill."""

    SPLITTER = "splitter"
    ENTRY = "entry"
    MODULATOR = "modulator"
    GATE = "gate"
    NORM = "norm"
    HALTER = "halter"
    SCHEDULE = "schedule"
    OBJECTIVE = "objective"
    ADAPTER = "adapter"

    @property
    def takes_many(self) -> bool:
        """Whether several parts may share the slot, named in a list."""
        return self in (Slot.MODULATOR, Slot.OBJECTIVE, Slot.ADAPTER)
