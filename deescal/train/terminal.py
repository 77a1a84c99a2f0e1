"""A fine-tune on the terminal: what is learned, how it goes, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from deescal.schema import Row
from deescal.train.job import Ended, Watch
from deescal.train.parity import show_parity
from deescal.train.progress import TrainProgress


class Terminal(Watch):
    """Shows a run as it goes; a context, so that the moving line ends with it."""

    def __init__(self) -> None:
        self.console = Console()
        self._progress: TrainProgress | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_progress()

    def targets(self, text: str) -> None:
        self.console.print("what is learned, ⟦in these marks⟧, of two examples:", style="bold")
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, n_steps: int, counts: Mapping[str, Any]) -> None:
        for split, n in counts.items():
            self.console.print(
                f"{split}: {n['examples']:,} examples, {n['tokens']:,} tokens, {n['target_tokens']:,} of them learned"
            )
        self._progress = TrainProgress(n_steps, self.console)
        self._progress.__enter__()

    def row(self, row: Row) -> None:
        if self._progress:
            self._progress.update(row)

    def step(self, text: str) -> None:
        self._end_progress()
        self.console.print(f"{text} ...", style="dim")

    def failed(self, why: str) -> None:
        """Say why there is no result, and how to go on."""
        self._end_progress()
        self.console.print(
            f"deescal: {why}; run the same command again to go on from the last checkpoint", markup=False
        )

    def _end_progress(self) -> None:
        if self._progress:
            self._progress.__exit__(None, None, None)
            self._progress = None


def show_ended(ended: Ended, console: Console) -> None:
    """The parity table, and the run in a few lines."""
    result = ended.run["result"]
    show_parity(ended.run["parity"])
    table = Table(box=None, show_header=False)
    for name, value in summary_lines(result):
        table.add_row(name, value)
    console.print(table)
    what = "model" if ended.run["config"]["method"] == "full" else "adapter"
    console.print(f"{what:<9} {ended.out}/adapter\npage      {ended.out}/report.html", soft_wrap=True)


def summary_lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what the terminal says of a run; `result` as `deescal.train.outcome.outcome` gives it."""
    lines = [
        ("validation loss", f"{result['base_loss']:.4f} -> {result['tuned_loss']:.4f} nats a civilian token"),
        ("steps", f"{result['steps']:,}, the best {result['best_step']:,}"),
        ("tokens", f"{result['tokens']:,}, {result['target_tokens']:,} learned"),
        ("speed", f"{result['tokens_per_s']:,.0f} tokens/s, {result['target_tokens_per_s']:,.0f} learned tokens/s"),
        ("peak memory", f"{result['peak_memory_gib']:.1f} GiB a worker"),
    ]
    if (scenarios := result.get("scenarios")) is not None:
        lines.insert(1, ("scenarios", f"{scenarios['better']} of {scenarios['n']} better"))
    if result["restarts"]:
        lines.append(("restarts", f"{result['restarts']}, {result['repeated_steps']} step(s) repeated"))
    return lines
