"""What the page and the terminal say of an evaluation: its tables in words and numbers, pure functions of rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deescal.evaluate.published import PUBLISHED, Published, published_of
from deescal.evaluate.summary import PAPER_METRICS, arrow, paper_rows, scale_of
from deescal.schema import Row
from deescal.storage import read_bytes

METRIC_NAMES = {
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "bertscore_f1": "BERTScore F1",
    "realism": "Realism (judge)",
    "plausibility": "Plausibility (judge)",
    "deescalation": "De-escalation (judge)",
}
DIGITS = {"rouge_l": 2, "bleu_4": 2, "meteor": 2, "bertscore_f1": 3, "realism": 1, "plausibility": 1, "deescalation": 1}
TEST_NAMES = {"randomization": "randomization", "wilcoxon": "Wilcoxon", "t": "paired t"}
SIGNIFICANT = 0.05
NOT_KNOWN = "–"
# column of the summary -> heading, format, factor
MORE = {
    "rouge_l_stem": ("ROUGE-L, stemmed", ".2f", 1.0),
    "sacrebleu": ("sacreBLEU, corpus", ".2f", 1.0),
    "bertscore_f1_rescaled": ("BERTScore, rescaled", ".3f", 1.0),
    "distinct_1": ("distinct-1", ".3f", 1.0),
    "distinct_2": ("distinct-2", ".3f", 1.0),
    "length_ratio": ("words / real words", ".2f", 1.0),
    "stop_rate": ("stop by themselves", ".0f", 100.0),
    "assistant_rate": ("sound like an AI", ".1f", 100.0),
    "latency_p50_s": ("latency p50", ".2f", 1.0),
    "latency_p95_s": ("latency p95", ".2f", 1.0),
}
UNITS = {"stop_rate": " %", "assistant_rate": " %", "latency_p50_s": " s", "latency_p95_s": " s"}


def read_csv(uri: str, schema: pa.Schema) -> list[Row]:
    """A table that `deescal.evaluate.summary.csv_text` wrote, as rows; what is empty is None."""
    from pyarrow import csv

    # Empty is null, "" in quotes is a text, and nan is a number.
    options = csv.ConvertOptions(
        column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    return csv.read_csv(pa.BufferReader(read_bytes(uri)), convert_options=options).to_pylist()


def known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def shown_metrics(summary: Sequence[Row]) -> list[str]:
    """Metrics that any contestant has a mean of. Args: summary: rows of SUMMARY_TABLE, of one protocol."""
    return [name for name in METRIC_NAMES if any(known(row[name]) for row in summary)]


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """With a true minus; a dash where there is none."""
    return format(value, f"{'+' if sign else ''}.{digits}f").replace("-", "−") if known(value) else NOT_KNOWN


def p_text(p: float | None) -> str:
    """'< 0.001', '0.012', or a dash."""
    if p is None or not known(p):
        return NOT_KNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_text(mean: float | None, low: float | None, high: float | None, digits: int, sign: bool = False) -> str:
    """'+4.60 [+3.10, +6.02]'; without bounds the mean alone."""
    shown = number(mean, digits, sign)
    if not (known(low) and known(high)):
        return shown
    return f"{shown} [{number(low, digits, sign)}, {number(high, digits, sign)}]"


def difference_text(row: Row) -> str:
    """Difference of a row of SIGNIFICANCE with its interval, as the paper prints scores; or why there is none."""
    if not known(row["difference"]):
        return f"not compared: {row['reason']}"
    scale, digits = scale_of(row["metric"]), DIGITS.get(row["metric"], 3)
    difference, low, high = (scale * row[name] for name in ("difference", "low", "high"))
    return interval_text(difference, low, high, digits, sign=True)


def comparison_text(row: Row) -> str:
    """The same with the corrected p, or why it was not tested."""
    shown = difference_text(row)
    if not known(row["difference"]):
        return shown
    if not known(row["p_randomization_holm"]):
        return f"{shown}, not tested: {row['reason']}"
    return f"{shown}, corrected p {p_text(row['p_randomization_holm'])}"


def is_significant(row: Row) -> bool:
    return known(row["p_randomization_holm"]) and row["p_randomization_holm"] < SIGNIFICANT


def verdict(tests: Sequence[Row]) -> str:
    """The comparisons of one pair and protocol in a sentence."""
    tested = [row for row in tests if known(row["p_randomization_holm"])]
    if not tested:
        reason = next((row["reason"] for row in tests if row["reason"]), "")
        return f"not tested: {reason}" if reason else "not tested"
    better = [METRIC_NAMES[r["metric"]] for r in tested if is_significant(r) and r["difference"] > 0]
    worse = [METRIC_NAMES[r["metric"]] for r in tested if is_significant(r) and r["difference"] < 0]
    parts = [f"{word} on {', '.join(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    rest = len(tested) - len(better) - len(worse)
    if rest:
        parts.append(f"no difference shown on {rest} of {len(tested)} metrics")
    return "; ".join(parts)


def paper_lines(
    summary: Sequence[Row], pairs: Sequence[tuple[str, str]], metrics: Sequence[str], models: Mapping[str, str]
) -> list[Row]:
    """The paper's table for one protocol: name, cells {metric: (text, intervals)}, speed, errors, published cells.

    Args:
        summary: rows of SUMMARY_TABLE.
        models: label -> model, by which the published numbers are found.
    """
    lines = []
    for line in paper_rows(summary, pairs):
        base, tuned = line.base, line.tuned
        after: Mapping[str, Any] = tuned or {}
        cells = {}
        for name in metrics:
            digits = DIGITS.get(name, 2)
            bounds = [
                f"{number(row.get(f'{name}_low'), digits)} to {number(row.get(f'{name}_high'), digits)}"
                for row in (base, tuned)
                if row is not None and known(row.get(f"{name}_low"))
            ]
            cells[name] = (arrow(base[name], after.get(name), digits), bounds)
        published = published_of(models.get(base["model"], "")) if base["model"] in models else None
        lines.append(
            {
                "name": f"{base['model']} -> {short(tuned['model'], base['model'])}" if tuned else base["model"],
                "cells": cells,
                "speed": arrow(base["seconds_a_turn"], after.get("seconds_a_turn"), 2),
                "errors": f"{base['n_errors']:,}" + (f" -> {tuned['n_errors']:,}" if tuned else ""),
                "published": published_cells(published) if published else None,
            }
        )
    return lines


def short(tuned: str, base: str) -> str:
    """The label of what was tuned from `base`, without saying the base again."""
    return tuned.removeprefix(f"{base}:")


def published_cells(published: Published) -> Row:
    """The paper's line, as its own table prints it."""
    digits = {"rouge_l": 1, "bleu_4": 1, "meteor": 1, "bertscore_f1": 2}
    cells = {}
    for name in PAPER_METRICS:
        base, tuned = getattr(published, name)
        cells[name] = arrow(base, tuned, digits[name])
    return {"name": published.model, "cells": cells, "speed": f"{published.seconds_a_turn:.2f}"}


def all_published() -> list[Row]:
    return [published_cells(published) for published in PUBLISHED]


def more_measures(summary: Sequence[Row]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(contestants, [(heading, a text each)]) of the other measures, without those that nobody has."""
    rows = []
    for name, (heading, form, factor) in MORE.items():
        if any(known(row[name]) for row in summary):
            texts = [
                format(factor * row[name], form) + UNITS.get(name, "") if known(row[name]) else NOT_KNOWN
                for row in summary
            ]
            rows.append((heading, texts))
    return [row["model"] for row in summary], rows


def choose_examples(turns: pa.Table, metric: str, pair: tuple[str, str] | None, n: int) -> tuple[list[str], list[str]]:
    """Ids of the `n` items with the greatest and of the `n` with the least of a metric; the first ones never twice.

    Args:
        turns: of one protocol; columns item_id, scenario_id, model and the metric.
        pair: (a, b): by a's score less b's, so that what is shown is what changed; None: by the mean of all.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in turns.select(["item_id", "model", metric]).to_pylist():
        if known(row[metric]):
            scores[row["item_id"]][row["model"]].append(row[metric])
    means = {item: {m: sum(s) / len(s) for m, s in of.items()} for item, of in scores.items()}
    if pair is not None:
        values = {item: of[pair[0]] - of[pair[1]] for item, of in means.items() if pair[0] in of and pair[1] in of}
    else:
        values = {item: sum(of.values()) / len(of) for item, of in means.items()}
    ordered = sorted(values, key=lambda item: (-values[item], item))
    best = ordered[:n]
    worst = [item for item in reversed(ordered) if item not in best][:n]
    return best, worst


def example_cards(turns: pa.Table, items: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """What the page shows of items: history, real reply, and each contestant's first seed with its scores."""
    chosen = turns.filter(pc.is_in(turns["item_id"], pa.array(items, pa.string()))).to_pylist()
    cards = []
    for item in items:
        rows = [row for row in chosen if row["item_id"] == item and row["seed"] == 0]
        messages: list[Row] = max((row["messages"] for row in rows), key=len, default=[])
        replies = [
            {
                "model": row["model"],
                "reply": row["reply"],
                "error": row["error"],
                "scores": scores_text(row, metrics),
            }
            for row in rows
        ]
        reference = rows[0]["reference"] if rows else ""
        cards.append({"item_id": item, "messages": messages, "reference": reference, "replies": replies})
    return cards


def conversation_cards(turns: pa.Table, metrics: Sequence[str], n: int) -> list[Row]:
    """Whole dialogues of the first `n` scenarios (ids are hashes, so of any), each contestant's with its first seed.

    Args:
        turns: of protocol interactive.
    """
    last: dict[str, dict[str, Row]] = defaultdict(dict)  # scenario -> contestant -> its last reply
    for row in turns.to_pylist():
        before = last[row["scenario_id"]].get(row["model"])
        if row["seed"] == 0 and row["reply"] is not None and (before is None or row["turn_id"] > before["turn_id"]):
            last[row["scenario_id"]][row["model"]] = row
    return [
        {
            "scenario_id": scenario,
            "conversations": [
                {
                    "model": model,
                    "messages": [
                        *(m for m in row["messages"] if m["role"] != "system"),
                        {"role": "assistant", "content": row["reply"] or "(nothing)"},
                    ],
                    "scores": scores_text(row, metrics),
                }
                for model, row in sorted(of.items())
            ],
        }
        for scenario, of in sorted(last.items())[:n]
        if of
    ]


def scores_text(row: Row, metrics: Sequence[str]) -> str:
    """'ROUGE-L 12.00, METEOR 8.10': what a reply has of these."""
    return ", ".join(
        f"{METRIC_NAMES[name]} {number(scale_of(name) * row[name], DIGITS[name])}"
        for name in metrics
        if name in row and known(row[name])
    )


def forest_rows(tests: Sequence[Row]) -> dict[str, list[Row]]:
    """metric -> its comparisons that have a difference, scaled as the paper prints it: a, b, difference, low, high."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in tests:
        if known(row["difference"]):
            scale = scale_of(row["metric"])
            scaled = {name: scale * row[name] for name in ("difference", "low", "high")}
            found[row["metric"]].append({"a": row["a"], "b": row["b"], **scaled, "significant": is_significant(row)})
    return dict(found)
