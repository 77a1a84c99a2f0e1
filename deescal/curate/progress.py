"""A run on the terminal: a line that moves while it works, the funnel and the stages' times at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deescal.curate.job import Result, Watch
from deescal.curate.plan import Plan
from deescal.report import funnel_table, judge_warning, stage_table
from deescal.schema import Row


def run_with_progress(job: Callable[[Watch], Result], strict: bool) -> None:
    """Run a job, show how it goes and how it ended; exit 1 under `strict` when clips failed."""
    console = Console()
    seen: Counter[str] = Counter()
    audio_s = 0.0
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=console.is_terminal,
        disable=not console.is_terminal,  # a log gets a line a clip instead
    )
    bar = progress.add_task("clips", detail="loading models")

    def on_start(plan: Plan) -> None:
        if plan.unseen:
            console.print(
                f"[yellow]warning: {len(plan.unseen)} input(s) cannot be looked at now, their rows are kept as they "
                f"are; the first is {escape(plan.unseen[0])}",
                soft_wrap=True,
            )
        if plan.done:
            console.print(f"{plan.done} input(s) are complete already; {len(plan.todo)} to do")
        if plan.todo:
            console.print(f"{len(plan.todo)} clip(s) to do; loading models", style="dim")
            progress.update(bar, total=len(plan.todo))
            progress.start()

    def on_clip(outcome: Row) -> None:
        nonlocal audio_s
        seen[outcome["status"]] += 1
        audio_s += outcome["duration_s"] or 0.0
        detail = ", ".join(f"{n} {status}" for status, n in sorted(seen.items()))
        progress.update(bar, advance=1, detail=f"{detail}; {audio_s / 60:.1f} min of audio")
        if outcome["status"] == "failed" or not console.is_terminal:
            name = outcome["uri"].rsplit("/", 1)[-1]
            console.print(
                f"  {outcome['status']:<9} {name}: {outcome['reason'] or 'content that is here already'}",
                markup=False,
                soft_wrap=True,
            )

    try:
        result = job(Watch(on_start, on_clip))
    finally:
        progress.stop()
    console.print(funnel_table(result.summary))
    console.print(stage_table(result.summary))
    console.print(f"table   {result.out}/clips/*.parquet\npage    {result.report_uri}")
    if warning := judge_warning(result.run):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    failed = result.run["status"].get("failed", 0)
    if failed:
        console.print(
            f"[yellow]warning: {failed} clip(s) failed; causes are in the table and the page. "
            "Mend them and run again with --retry-failed."
        )
        if strict:
            raise typer.Exit(1)
