"""The summary as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deescal.report.summary import StageCost, Summary, in_order

if TYPE_CHECKING:
    from rich.table import Table

MAX_CAUSES_SHOWN = 8


def funnel_table(summary: Summary) -> Table:
    """Inputs -> distinct clips -> failed by stage and cause, rejected by rule -> accepted."""
    from rich.table import Table

    table = Table(title="What became of the inputs", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("clips", justify="right")
    table.add_row("inputs", str(summary.inputs), style="bold")
    if summary.aliases:
        table.add_row("  same content as another (aliases)", str(summary.aliases), style="dim")
    table.add_row("distinct clips", str(summary.rows), style="bold")
    table.add_row("failed", str(summary.status["failed"]), style="bold magenta")
    for step in summary.funnel():
        _add_causes(table, step.failed, f"{step.stage}: ")
    table.add_row("rejected", str(summary.status["rejected"]), style="bold yellow")
    _add_causes(table, summary.rejected)
    table.add_row("accepted", str(summary.status["accepted"]), style="bold green")
    return table


def _add_causes(table: Table, causes: Counter[str], prefix: str = "") -> None:
    from rich.text import Text

    top, rest = top_causes(causes, MAX_CAUSES_SHOWN)
    for cause, count in top:
        table.add_row(Text(f"  {prefix}{cause}"), str(count), style="dim")  # Text: no markup in others' words
    if rest:
        table.add_row(f"  {prefix}other causes", str(rest), style="dim")


def top_causes(causes: Counter[str], n: int) -> tuple[list[tuple[str, int]], int]:
    """The n commonest causes (ties by name) and how many clips the rest have."""
    ordered = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
    return ordered[:n], sum(count for _, count in ordered[n:])


def stage_table(summary: Summary, stages: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """Stage, clips, audio-hours, seconds of compute, times real time, and their total.

    Args:
        stages: `run.json`'s stages, {stage: {"clips", "audio_h", "seconds"}}; without, what the rows say is shown.
    """
    from rich.table import Table

    table = Table(title="Work by stage", title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("clips", "audio h", "compute s", "x real time"):
        table.add_column(name, justify="right")
    costs = stage_costs(summary, stages)
    for stage, cost in costs.items():
        table.add_row(stage, str(cost.clips), f"{cost.audio_s / 3600:.2f}", f"{cost.seconds:,.1f}", speed_text(cost))
    if costs:
        total = total_cost(costs)
        hours = f"{total.audio_s / 3600:.2f}"
        table.add_row("all", str(total.clips), hours, f"{total.seconds:,.1f}", speed_text(total), style="bold")
    return table


def stage_costs(summary: Summary, stages: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, StageCost]:
    """Cost of each stage, in the order of the run: as the job measured it, else as the rows say."""
    if not stages:
        return summary.stages
    measured = {s: StageCost(int(c["clips"]), c["audio_h"] * 3600.0, c["seconds"]) for s, c in stages.items()}
    return {stage: measured[stage] for stage in in_order(measured)}


def total_cost(costs: Mapping[str, StageCost]) -> StageCost:
    """Clips and audio counted once, compute over all stages."""
    return StageCost(
        max((cost.clips for cost in costs.values()), default=0),
        max((cost.audio_s for cost in costs.values()), default=0.0),
        sum(cost.seconds for cost in costs.values()),
    )


def speed_text(cost: StageCost) -> str:
    """Audio seconds per second of compute: '0.8', '23', '> 9,999', or a dash where it means nothing."""
    speed = cost.times_real_time
    if speed is None:
        return "–"
    if speed > 9_999:
        return "> 9,999"
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
