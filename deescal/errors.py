"""The two kinds of expected trouble. Anything else is a bug and stops the job with a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The user's mistake (wrong config, missing file, unreachable bucket): one line, exit code 2."""


class ClipError(Exception):
    """One clip cannot be processed (corrupt, silent, too long): it becomes a failed row with this one line."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none; for use in the errors above."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
