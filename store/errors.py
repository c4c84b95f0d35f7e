"""Errors that a user can do something about. `jobs.cli` prints one whose class has `user_facing = True` as one line."""


class UserError(Exception):
    """A bad argument or input. The message is one line: what was wanted, the value seen, what to try."""

    user_facing = True
