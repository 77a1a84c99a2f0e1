"""What all commands share: options, and how they end where the user has to mend something."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from deescal.errors import UserError, one_line

if TYPE_CHECKING:
    from rich.console import Console

Out = Annotated[str, typer.Option("--out", help="Folder of the run: a path or s3://bucket/prefix.")]


def user_errors_are_one_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """A UserError, or storage that cannot be read or written, is one line and exit code 2; Ctrl-C says how to go on."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            print(f"deescal: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("deescal: stopped; run the same command again to go on", file=sys.stderr)
            raise typer.Exit(130) from None
        except Exception as error:
            from deescal.storage import STORAGE_ERRORS  # slow to import

            if not isinstance(error, STORAGE_ERRORS):
                raise
            print(f"deescal: storage: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            raise typer.Exit(2) from None

    return wrapped


def make_console() -> Console:
    """The terminal; a log, which has no width of its own, gets room for whole tables."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def require(condition: object, message: str) -> None:
    """Raises UserError with this message where the condition does not hold."""
    if not condition:
        raise UserError(message)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Sources and `key=value` overrides: an override's key is a dotted name, which no URI with = starts with."""
    overrides = [a for a in arguments if a.partition("=")[1] and a.partition("=")[0].replace(".", "_").isidentifier()]
    return [a for a in arguments if a not in overrides], overrides


class RunUnlessNamed(TyperGroup):
    """`deescal train --data ...` is `deescal train run --data ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return list(super().parse_args(ctx, args))
