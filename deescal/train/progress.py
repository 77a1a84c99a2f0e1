"""A fine-tune on the terminal: a line that moves; in a log, a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deescal.report.page import clock
from deescal.schema import Row


class TrainProgress:
    """Shows rows of training and validation, as `deescal.train.tracking` describes them, in the order they come."""

    def __init__(
        self,
        total_steps: int,
        console: Console | None = None,
        line_every_s: float = 30.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: total_steps: of the whole run; line_every_s: between lines where the console is no terminal."""
        self._console = console or Console()
        self._total_steps = total_steps
        self._line_every_s, self._now = line_every_s, now
        self._line_at = float("-inf")  # when the last plain line was written
        self._printed: Row | None = None  # as a plain line
        self._first: Row | None = None  # row of this attempt, which the pace is counted from
        self._last: Row | None = None
        self._seen: set[tuple[int, int, bool]] = set()
        self._progress = Progress(
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=self._console,
            transient=self._console.is_terminal,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("steps", total=total_steps, detail="loading the model")

    def __enter__(self) -> TrainProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._last is not None and self._last is not self._printed:
            self._print_row(self._last)

    def update(self, row: Row) -> None:
        """Show one row; one that was shown before, as it comes again after a restart, is passed over."""
        key = (row["attempt"], row["step"], "loss" in row)
        if key in self._seen:
            return
        self._seen.add(key)
        if "validation_loss" in row:
            what = "the base model" if row["step"] == 0 else f"step {row['step']:,}"
            self._print(f"validation loss {_number(row['validation_loss'], '.4f')} at {what}")
            return
        if self._first is None or row["attempt"] > self._first["attempt"]:
            if self._first is not None:
                self._print(f"restarted: attempt {row['attempt']} goes on at step {row['step']:,}")
            self._first = row
        self._last = row
        self._progress.update(self._bar, completed=row["step"], detail=", ".join(self._detail(row)))
        if not self._console.is_terminal and self._now() - self._line_at >= self._line_every_s:
            self._print_row(row)

    def _detail(self, row: Row) -> list[str]:
        left = seconds_left(self._first or row, row, self._total_steps)
        return [
            f"loss {_number(row['loss'], '.3f')}",
            f"{_number(row['tokens_per_s'], ',.0f')} tok/s",
            *([f"MFU {row['mfu']:.0%}"] if row.get("mfu") is not None else []),
            f"{_number(row['memory_gib'], '.1f')} GiB",
            *([f"{clock(left)} left"] if left is not None else []),
        ]

    def _print_row(self, row: Row) -> None:
        self._line_at, self._printed = self._now(), row
        self._print(f"step {row['step']:,} of {self._total_steps:,}: {', '.join(self._detail(row))}")

    def _print(self, line: str) -> None:
        self._console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def seconds_left(first: Row, last: Row, total_steps: int) -> float | None:
    """Time until the last step at the pace between two rows of one attempt; None where there is no pace yet."""
    steps = last["step"] - first["step"]
    if steps <= 0:
        return None
    return (last["seconds"] - first["seconds"]) / steps * max(total_steps - last["step"], 0)


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
