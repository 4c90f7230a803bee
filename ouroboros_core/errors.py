"""The two ways a run is refused. Anything else that escapes is a fault of ours and keeps its traceback."""


class UserError(Exception):
    """A mistake the user can correct: one line that says what, where and what next. Exit code 2."""


class CheckFailed(Exception):  # noqa: N818 - named for what happened, as in the message
    """A trust check failed: the number the run would print could not be believed. Exit code 1."""


class Interrupted(Exception):  # noqa: N818
    """The user stopped the run; its state is saved and the message says how to go on. Exit code 130."""
