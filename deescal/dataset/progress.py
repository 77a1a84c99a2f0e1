"""A build on the terminal: a bar a step, then what came out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deescal.dataset.build import Progress as OnPart
from deescal.dataset.build import Result
from deescal.dataset.split import SPLITS

SHOWN = 8  # reasons a table lists


def build_with_progress(run: Callable[[OnPart], Result]) -> None:
    """Run a build, show how it goes and what came out."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]parts"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def on_part(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done)
            if not console.is_terminal:
                console.print(f"  {step}: {done} of {total} parts")

        result = run(on_part)
    console.print(splits_table(result.stats))
    console.print(dropped_table(result.stats))
    console.print(_found(result.stats), soft_wrap=True)
    console.print(f"examples  {result.out}/examples/*.parquet\npage      {result.report_uri}", soft_wrap=True)


def splits_table(stats: dict[str, Any]) -> Table:
    """Scenarios, turns, words, tokens and examples of each split."""
    table = Table(box=None)
    columns = ("scenarios", "turns", "words", "tokens", "examples", "target_tokens")
    table.add_column("split")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for split in SPLITS:
        table.add_row(split, *(f"{stats['by_split'][split][name]:,}" for name in columns))
    return table


def dropped_table(stats: dict[str, Any]) -> Table:
    """What is not in the examples, commonest reasons first."""
    table = Table(box=None)
    for name, side in (("left out", "left"), ("n", "right"), ("reason", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    reasons = [
        *(("scenarios", n, why) for why, n in stats["scenarios"]["dropped"].items()),
        *(("turns", n, why) for why, n in stats["turns"]["dropped"].items()),
        *(("turns", n["turns"], why) for why, n in stats["examples"]["unused"].items()),
    ]
    for what, n, why in sorted(reasons, key=lambda r: (r[0], -r[1]))[: 2 * SHOWN]:
        table.add_row(what, f"{n:,}", why)
    return table


def _found(stats: dict[str, Any]) -> str:
    scenarios, turns = stats["scenarios"], stats["turns"]
    lines = [
        f"{scenarios['kept']:,} of {scenarios['total']:,} scenarios and {turns['kept']:,} of {turns['total']:,} turns "
        f"kept; {sum(stats['redactions'].values()):,} places redacted",
        f"leakage: {stats['leakage']['ours']['pairs']} linked pairs span our splits",
    ]
    if official := stats["leakage"]["official"]:
        sizes = ", ".join(f"{n} of {size}" for size, n in official["by_size"].items())
        lines.append(
            f"         {official['pairs']} span the published split, in {official['incidents']} incidents"
            + (f" ({sizes} scenarios)" if sizes else "")
        )
    return "\n".join(lines)
