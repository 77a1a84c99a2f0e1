"""A scoring run on the terminal: a line that moves, and what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deescal.command import make_console
from deescal.report.page import clock
from deescal.score.job import Ended, Watch

SAY_EVERY_S = 30.0  # a line of a log, which has no line that moves


class Terminal(Watch):
    """Shows a run as it goes; a context, so that the moving line ends with it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self._errors = 0
        self._progress = Progress(
            TextColumn("requests"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=self.console.is_terminal,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task("requests", detail="starting")
        self._said_s = time.monotonic()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, total: int, done: int) -> None:
        known = f", {done:,} of them answered before" if done else ""
        self.console.print(f"{total:,} requests{known}", style="dim")
        self._progress.update(self._bar, total=total, completed=done)
        self._progress.start()

    def answers(self, answers: pa.Table) -> None:
        self._errors += answers.num_rows - answers["error"].null_count
        detail = f"{self._errors:,} error(s)" if self._errors else ""
        self._progress.update(self._bar, advance=answers.num_rows, detail=detail)
        if not self.console.is_terminal and time.monotonic() - self._said_s >= SAY_EVERY_S:
            self._said_s, task = time.monotonic(), self._progress.tasks[self._bar]
            left = f", {clock(task.time_remaining)} left" if task.time_remaining else ""
            said = f"  {task.completed:,.0f} of {task.total or 0:,.0f}{left}{detail and f', {detail}'}"
            self.console.print(said, style="dim", highlight=False)


def show_ended(ended: Ended, console: Console) -> None:
    """The summary, a column a model, and where the table is."""
    run = ended.run
    columns = run["by_model"]
    table = Table(box=None)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for label, *values in zip(*(_cells(summary) for summary in columns.values()), strict=True):
        table.add_row(label[0], *(value[1] for value in (label, *values)))
    console.print(table)
    for why, n in run["summary"]["errors"].items():
        console.print(f"  {n:,} x {why}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{run['rows']:,} rows, {clock(run['wall_s'])}\nscores  {ended.out}/scores.parquet", soft_wrap=True)
    if ended.n_errors:
        console.print(
            f"warning: {ended.n_errors:,} request(s) have an error in place of an answer; "
            "run the same command with --retry-failed to ask them again",
            style="yellow",
            markup=False,
        )


def _cells(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of what is worth a line."""

    def shown(value: float | None, form: str, unit: str = "") -> str:
        return "-" if value is None else format(value, form) + unit

    return [
        ("answered", f"{summary['answered']:,} of {summary['requests']:,}"),
        ("cut at max_tokens", f"{summary['finish_reasons'].get('length', 0):,}"),
        ("prompt tokens", shown(summary["prompt_tokens"], ",")),
        ("of them cached", shown(summary["cache_hit_share"], ".0%")),
        ("answer tokens", shown(summary["completion_tokens"], ",")),
        ("answer tokens/s", shown(summary["completion_tokens_per_s"], ",.1f")),
        ("requests/s", shown(summary["requests_per_s"], ",.2f")),
        ("latency p50", shown(summary["latency_p50_s"], ",.2f", " s")),
        ("latency p95", shown(summary["latency_p95_s"], ",.2f", " s")),
    ]
