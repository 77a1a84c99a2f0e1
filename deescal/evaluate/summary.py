"""What an evaluation came to: a row for each protocol and contestant, as summary.csv, and the paper's layout of it."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deescal.evaluate.metrics import SUMMARY, MetricsConfig, rescaled, summarize
from deescal.evaluate.rows import RUBRICS
from deescal.schema import Row, to_table
from deescal.score.summary import cause, covered_s

TIMES_100 = ("rouge_l", "bleu_4", "meteor")  # as the paper prints them
PAPER_METRICS = ("rouge_l", "bleu_4", "meteor", "bertscore_f1")
BOUNDED = (*PAPER_METRICS, *RUBRICS)  # with an interval

SUMMARY_TABLE = pa.schema(
    [
        ("protocol", pa.string()),
        ("model", pa.string()),  # the contestant's label
        ("n_items", pa.int64()),
        ("n_scenarios", pa.int64()),
        ("n_incidents", pa.int64()),
        ("seeds", pa.int64()),
        *SUMMARY,
        ("seconds_a_turn", pa.float64()),  # seconds in which any reply was awaited / replies: speed, all at once
        ("realism", pa.float64()),  # the judge's, 0..100, of the replies judged
        ("plausibility", pa.float64()),  # the same
        ("deescalation", pa.float64()),  # the same, of the rollouts and conversations judged
        # 95 % intervals, clustered by incident, in the units of the means
        *((f"{name}_{end}", pa.float64()) for name in BOUNDED for end in ("low", "high")),
    ]
)


def summary_table(turns: pa.Table, means: pa.Table, config: MetricsConfig) -> pa.Table:
    """SUMMARY_TABLE of scored turns.

    What has an interval is the mean that it is of: over items, after the mean over an item's seeds.

    Args:
        turns: SCORED_TURNS, with columns of RUBRICS where there was a judge.
        means: of `deescal.evaluate.significance.means_table` over them.
    """
    bounds = {(row["protocol"], row["model"], row["metric"]): row for row in means.to_pylist()}
    rows = []
    for protocol, model in _contestants(turns):
        of = turns.filter(pc.and_(pc.equal(turns["protocol"], protocol), pc.equal(turns["model"], model)))
        row: Row = dict.fromkeys(SUMMARY_TABLE.names)
        row |= {"protocol": protocol, "model": model, **summarize(of, config)}
        row["n_items"] = pc.count_distinct(of["item_id"]).as_py()
        row["n_scenarios"] = pc.count_distinct(of["scenario_id"]).as_py()
        row["n_incidents"] = pc.count_distinct(pc.coalesce(of["incident_id"], of["scenario_id"])).as_py()
        row["seeds"] = pc.count_distinct(of["seed"]).as_py()
        row["seconds_a_turn"] = seconds_a_turn(of)
        for metric in BOUNDED:
            if (found := bounds.get((protocol, model, metric))) is not None:
                scale = scale_of(metric)
                row[metric] = None if math.isnan(found["mean"]) else scale * found["mean"]
                row |= {f"{metric}_low": scale * found["low"], f"{metric}_high": scale * found["high"]}
        row |= rescaled(row["bertscore_f1"], config)
        rows.append(row)
    return to_table(rows, SUMMARY_TABLE)


def _contestants(turns: pa.Table) -> list[tuple[str, str]]:
    found = turns.group_by(["protocol", "model"]).aggregate([]).to_pylist()
    return sorted((row["protocol"], row["model"]) for row in found)


def scale_of(metric: str) -> float:
    """What a score of turns.parquet is multiplied with, to be printed as the paper does."""
    return 100.0 if metric in TIMES_100 else 1.0


def seconds_a_turn(turns: pa.Table) -> float | None:
    """Seconds in which at least one reply was awaited, over replies; None where times are not known."""
    rows = turns.select(["asked_at_s", "latency_s", "reply"]).to_pylist()
    timed = [r for r in rows if None not in (r["reply"], r["asked_at_s"], r["latency_s"])]
    if not timed:
        return None
    return covered_s((r["asked_at_s"], r["asked_at_s"] + r["latency_s"]) for r in timed) / len(timed)


def error_causes(turns: pa.Table) -> dict[str, dict[str, int]]:
    """'protocol, model' -> cause -> replies that are missing for it; without those that have none."""
    failed = turns.filter(pc.is_valid(turns["error"])).select(["protocol", "model", "error"]).to_pylist()
    found: dict[str, Counter[str]] = {}
    for row in failed:
        found.setdefault(f"{row['protocol']}, {row['model']}", Counter())[cause(row["error"])] += 1
    return {name: dict(causes.most_common()) for name, causes in sorted(found.items())}


@dataclass(frozen=True)
class PaperRow:
    """A line of the paper's table: a base with what it was tuned to, or a contestant alone (`tuned` is None)."""

    base: Mapping[str, Any]  # rows of SUMMARY_TABLE
    tuned: Mapping[str, Any] | None


def paper_rows(summary: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> list[PaperRow]:
    """Lines of one protocol: each (tuned, base) that is known, then who is in none of them."""
    by_label = {row["model"]: row for row in summary}
    known = [(b, t) for t, b in pairs if t in by_label and b in by_label]
    lines = [PaperRow(by_label[base], by_label[tuned]) for base, tuned in known]
    shown = {label for pair in known for label in pair}
    return lines + [PaperRow(row, None) for row in summary if row["model"] not in shown]


def arrow(before: float | None, after: float | None, digits: int) -> str:
    """'11.2 -> 15.8', or the one number, or a dash."""
    shown = ["-" if value is None else f"{value:.{digits}f}" for value in (before, after)]
    return shown[0] if after is None else " -> ".join(shown)


def csv_text(table: pa.Table) -> bytes:
    """A table as CSV; what is null is empty, what cannot be computed is nan."""
    from pyarrow import csv

    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    return buffer.getvalue()
