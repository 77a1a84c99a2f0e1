"""An evaluation on the terminal: how it goes, and the paper's table of what came out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from deescal.evaluate.job import Ended, Watch
from deescal.evaluate.steps import SIGNIFICANCE_FILE, SUMMARY_FILE
from deescal.evaluate.summary import SUMMARY_TABLE, arrow, paper_rows
from deescal.report.evaluate_findings import DIGITS, METRIC_NAMES, comparison_text, read_csv, short, shown_metrics
from deescal.report.page import clock, words
from deescal.schema import Row
from deescal.score.terminal import Terminal as ScoreTerminal
from deescal.storage import join


class Terminal(ScoreTerminal, Watch):
    """Shows a run as it goes; a context, so that the moving line ends with it."""

    def __enter__(self) -> Terminal:
        return self

    def begin(self, total: int, done: int) -> None:
        self._progress.reset(self._bar)
        super().begin(total, done)

    def step(self, text: str) -> None:
        self._progress.stop()
        self.console.print(f"{text} ...", style="dim")

    def failed(self, label: str, why: str) -> None:
        self.console.print(f"{label} is out: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def show_ended(ended: Ended, console: Console) -> None:
    """A table for each protocol, what differs, what failed, and where the rest is."""
    from deescal.evaluate.significance import SIGNIFICANCE

    summary = read_csv(join(ended.out, SUMMARY_FILE), SUMMARY_TABLE)
    tests = read_csv(join(ended.out, SIGNIFICANCE_FILE), SIGNIFICANCE)
    for protocol in sorted({row["protocol"] for row in summary}, reverse=True):
        of = [row for row in summary if row["protocol"] == protocol]
        console.print(paper_table(protocol, of, ended.run["tuned"]))
        for row in tests:
            if row["protocol"] != protocol or {row["a"], row["b"]} & ended.failed.keys():
                continue
            line = f"  {row['a']} - {row['b']}  {METRIC_NAMES[row['metric']]} {comparison_text(row)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, causes in ended.run["errors"].items():
        for why, n in causes.items():
            console.print(f"warning: {name}: {n:,} x {why}", style="yellow", markup=False, soft_wrap=True)
    for label, why in ended.failed.items():
        console.print(f"warning: {label} is out: {why}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{ended.run['rows']:,} replies, {clock(ended.run['wall_s'])}")
    console.print(
        f"tables    {ended.out}/summary.csv, significance.csv\npage      {ended.out}/report.html", soft_wrap=True
    )


def paper_table(protocol: str, summary: Sequence[Row], tuned_pairs: Sequence[tuple[str, str]]) -> Table:
    """The paper's layout: base -> tuned for every pair (tuned, base)."""
    first = summary[0]
    shown = shown_metrics(summary)
    table = Table(
        title=f"{words(protocol)}: {first['n_items']:,} replies of {first['n_scenarios']:,} scenarios",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for name in shown:
        table.add_column(METRIC_NAMES[name], justify="right")
    table.add_column("s/turn", justify="right")
    table.add_column("errors", justify="right")
    for line in paper_rows(summary, tuned_pairs):
        base, tuned = line.base, line.tuned
        after = tuned or {}
        cells = [arrow(base[name], after.get(name), DIGITS[name]) for name in shown]
        cells.append(arrow(base["seconds_a_turn"], after.get("seconds_a_turn"), 2))
        errors = f"{base['n_errors']:,}" + (f" -> {tuned['n_errors']:,}" if tuned else "")
        name = f"{base['model']} -> {short(tuned['model'], base['model'])}" if tuned else base["model"]
        table.add_row(name, *cells, errors)
    return table
