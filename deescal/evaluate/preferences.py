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
from deescal.judge.pairwise import WORTH, prefer
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
        "judge_sample": pa.int32(),  # null where it was not asked
        "winner": pa.string(),  # a, b, or tie; null where an answer could not be read
        "agreed": pa.bool_(),  # both orders say the same
        "same_words": pa.bool_(),  # of both replies: a tie, about which the judge was not asked
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
    tables = [to_table([_tie(row) for row in rows if is_same(row) and row["a_first"]], PREFERENCES)]
    if asked := [row for row in rows if not is_same(row)]:
        place = join(out, "judge", f"{fingerprint}-pairwise")
        scores = ask_judge(place, to_table(asked, TO_COMPARE), "pairwise", config, watch, retry_failed)
        tables.append(read_preferences(scores))
    return pa.concat_tables(tables)


def _tie(row: Row) -> Row:
    empty: Row = dict.fromkeys(PREFERENCES.names)
    kept = {name: row[name] for name in ("item_id", "scenario_id", "incident_id", "a", "b", "seed")}
    return {**empty, **kept, "winner": "tie", "agreed": True, "same_words": True}


def rows_to_compare(turns: pa.Table, pairs: Sequence[tuple[str, str]], config: JudgingConfig) -> list[Row]:
    """TO_COMPARE: each pair on sampled lines, in both orders; replies of the same words among them (`is_same`).

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
        if a in by_model and b in by_model
        for a_first in (True, False)
    ]


def is_same(row: Row) -> bool:
    """Whether both replies of a TO_COMPARE row have the same words: a tie, about which nobody is asked."""
    return bool(row["first"].split() == row["second"].split())


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
                "same_words": False,
                "because_a_first": because[0],
                "because_b_first": because[1],
            }
        )
    return to_table(rows, PREFERENCES)


# preferences.csv: a row for each pair.
CHOICES = pa.schema(
    {
        "a": pa.string(),
        "b": pa.string(),
        "n": pa.int64(),  # pairs of replies, and samples of the judge
        "wins": pa.int64(),  # of a, in both orders
        "ties": pa.int64(),
        "losses": pa.int64(),
        "unread": pa.int64(),  # an answer could not be read
        "same_words": pa.int64(),  # of the ties
        "agreed": pa.int64(),  # of those asked and read: both orders say the same
        "first": pa.int64(),  # the first place won in both orders
        "second": pa.int64(),
        "n_items": pa.int64(),
        "n_clusters": pa.int64(),  # incidents
        "win_rate": pa.float64(),  # of a over items, 0..1; a tie is half a win
        "low": pa.float64(),
        "high": pa.float64(),
        "p": pa.float64(),  # approximate randomization: a and b swapped in whole incidents
        "p_holm": pa.float64(),  # over the pairs
        "reason": pa.string(),  # why something is NaN
    }
)


def choices_table(preferences: Sequence[Row], *, seed: int = 0, n_resamples: int = 10_000) -> pa.Table:
    """CHOICES of rows of PREFERENCES."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in preferences:
        groups[row["a"], row["b"]].append(row)
    found = [{"a": a, "b": b, **_choices(rows, seed, n_resamples)} for (a, b), rows in groups.items()]
    for row, p in zip(found, correct([row["p"] for row in found], "holm"), strict=True):
        row["p_holm"] = float(p)
    return to_table(found, CHOICES)


def _choices(rows: Sequence[Row], seed: int, n_resamples: int) -> Row:
    items: dict[str, list[float]] = defaultdict(list)
    cluster = {}
    for row in rows:
        cluster[row["item_id"]] = row["incident_id"] or row["scenario_id"]
        items[row["item_id"]] += [WORTH[row["winner"]]] if row["winner"] else []
    won = [sum(of) / len(of) if of else math.nan for of in items.values()]
    tested = compare(won, [1 - x for x in won], list(cluster.values()), seed=seed, n_resamples=n_resamples)
    winners = [row["winner"] for row in rows]
    biases = [row["order_bias"] for row in rows]
    return {
        "n": len(rows),
        "wins": winners.count("a"),
        "ties": winners.count("tie"),
        "losses": winners.count("b"),
        "unread": winners.count(None),
        "same_words": sum(bool(row["same_words"]) for row in rows),
        "agreed": sum(bool(row["agreed"]) and not row["same_words"] for row in rows),
        "first": biases.count("first"),
        "second": biases.count("second"),
        "n_items": tested.n_items,
        "n_clusters": tested.n_clusters,
        "win_rate": tested.mean_a,
        "low": (1 + tested.low) / 2,  # of a's rate: the difference is twice the rate less 1
        "high": (1 + tested.high) / 2,
        "p": tested.p_randomization,
        "p_holm": math.nan,
        "reason": tested.reason,
    }
