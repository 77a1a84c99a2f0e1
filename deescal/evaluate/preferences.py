"""Step `judge`, pairwise: which of two contestants' replies to one line is more real, asked in both orders.

Teacher-forced replies only: elsewhere two replies do not answer the same words.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from deescal.evaluate.config import JudgingConfig
from deescal.evaluate.judging import ask_judge, sample_items
from deescal.evaluate.rows import TURNS
from deescal.evaluate.stats import compare, correct
from deescal.judge.pairwise import prefer
from deescal.schema import MESSAGE, Row, to_table
from deescal.score.job import Watch
from deescal.storage import join

_ITEM = {name: TURNS.field(name).type for name in ("item_id", "scenario_id", "incident_id")}
# One question: a pair of replies in one order; with the columns of `deescal.score`'s task `pairwise`.
TO_COMPARE = pa.schema(
    {
        **_ITEM,
        "turn_id": pa.int32(),
        "a": pa.string(),  # labels
        "b": pa.string(),
        "seed": pa.int32(),  # of both replies
        "a_first": pa.bool_(),
        "messages": pa.list_(MESSAGE),
        "first": pa.string(),
        "second": pa.string(),
    }
)
# preferences.parquet: a pair of replies, from both orders of one sample of the judge.
PREFERENCES = pa.schema(
    {
        **_ITEM,
        "a": pa.string(),
        "b": pa.string(),
        "seed": pa.int32(),
        "judge_sample": pa.int32(),
        "winner": pa.string(),  # a, b, or tie; null where an answer could not be read
        "agreed": pa.bool_(),  # both orders say the same
        "order_bias": pa.string(),  # first or second: the place that was preferred, whoever stood there
        "because_a_first": pa.string(),
        "because_b_first": pa.string(),
        "error": pa.string(),
    }
)


def compare_pairs(
    out: str,
    turns: pa.Table,
    pairs: Sequence[tuple[str, str]],
    config: JudgingConfig,
    watch: Watch,
    fingerprint: str,
    retry_failed: bool,
) -> pa.Table:
    """PREFERENCES between each of `pairs`; arguments as of `deescal.evaluate.judging.judge`."""
    rows = rows_to_compare(turns, pairs, config)
    if not rows:
        return PREFERENCES.empty_table()
    place = join(out, "judge", f"{fingerprint}-pairwise")
    return read_preferences(ask_judge(place, to_table(rows, TO_COMPARE), "pairwise", config, watch, retry_failed))


def rows_to_compare(turns: pa.Table, pairs: Sequence[tuple[str, str]], config: JudgingConfig) -> list[Row]:
    """TO_COMPARE: each pair on sampled lines, in both orders; replies of the same words are not asked about.

    Args:
        turns: turns.parquet.
        pairs: labels (a, b).
    """
    of = turns.filter(pc.equal(turns["protocol"], "teacher_forced"))
    chosen = set(sample_items(of, config.n_items, config.seed))
    replies: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)
    for row in of.to_pylist():
        if row["item_id"] in chosen and row["reply"] is not None:
            replies[row["item_id"], row["seed"]][row["model"]] = row
    return [
        _row(by_model[a], by_model[b], a_first)
        for a, b in pairs
        for _, by_model in sorted(replies.items())
        if a in by_model and b in by_model and by_model[a]["reply"].split() != by_model[b]["reply"].split()
        for a_first in (True, False)
    ]


def _row(a: Row, b: Row, a_first: bool) -> Row:
    first, second = (a, b) if a_first else (b, a)
    kept = {name: a[name] for name in TO_COMPARE.names if name in a}
    told = {"a": a["model"], "b": b["model"], "a_first": a_first, "first": first["reply"], "second": second["reply"]}
    return {**kept, **told}


def read_preferences(scores: pa.Table) -> pa.Table:
    """SCORES of the task `pairwise` over TO_COMPARE -> PREFERENCES."""
    names = ("item_id", "scenario_id", "incident_id", "a", "b", "seed", "sample")
    orders: dict[tuple[object, ...], dict[bool, Row]] = defaultdict(dict)
    for row in scores.to_pylist():
        if row["error"] is not None:
            row["unread"] = row["error"]
        orders[tuple(row[name] for name in names)][row["a_first"]] = row
    rows = []
    for key, of in orders.items():
        found = prefer(of[True], of[False])
        because = found.because or (None, None)
        rows.append(
            {
                **dict(zip([*names[:-1], "judge_sample"], key, strict=True)),
                **{name: getattr(found, name) for name in ("winner", "agreed", "order_bias", "error")},
                "because_a_first": because[0],
                "because_b_first": because[1],
            }
        )
    return to_table(rows, PREFERENCES)


def outcomes(preferences: Sequence[Row]) -> list[Row]:
    """A row for each pair: a, b, n, wins, ties, losses, unread, agreed, first, second, win_rate, low, high, p, p_holm.

    `win_rate` is the share of items that a wins, a tie being half a win, with its interval; `p` is of approximate
    randomization, a and b swapped in whole incidents, and `p_holm` of all pairs; `first` and `second` count a place
    that won in both orders.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in preferences:
        groups[row["a"], row["b"]].append(row)
    found = [{"a": a, "b": b, **_outcome(rows)} for (a, b), rows in groups.items()]
    for row, p in zip(found, correct([row["p"] for row in found], "holm"), strict=True):
        row["p_holm"] = float(p)
    return found


def _outcome(rows: Sequence[Row]) -> Row:
    worth = {"a": 1.0, "b": 0.0, "tie": 0.5}
    items: dict[str, list[float]] = defaultdict(list)
    cluster = {}
    for row in rows:
        cluster[row["item_id"]] = row["incident_id"] or row["scenario_id"]
        items[row["item_id"]] += [worth[row["winner"]]] if row["winner"] else []
    won = [sum(of) / len(of) if of else math.nan for of in items.values()]
    tested = compare(won, [1 - x for x in won], list(cluster.values()))
    winners = [row["winner"] for row in rows]
    biases = [row["order_bias"] for row in rows]
    return {
        "n": len(rows),
        "wins": winners.count("a"),
        "ties": winners.count("tie"),
        "losses": winners.count("b"),
        "unread": winners.count(None),
        "agreed": sum(bool(row["agreed"]) for row in rows),
        "first": biases.count("first"),
        "second": biases.count("second"),
        "win_rate": tested.mean_a,
        "low": (1 + tested.low) / 2,  # of a's rate: the difference is twice the rate less 1
        "high": (1 + tested.high) / 2,
        "p": tested.p_randomization,
        "reason": tested.reason,
    }
