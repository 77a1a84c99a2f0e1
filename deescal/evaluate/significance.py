"""Tables of a whole evaluation: every system's mean with its interval, and every comparison with corrected p-values.

Both start from one row per turn, model and generation seed. Seeds of one item are averaged first: they are draws of one
observation, not observations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deescal.evaluate.stats import bootstrap_mean, compare, correct
from deescal.schema import to_table

TESTS = ("p_t", "p_wilcoxon", "p_randomization")

MEANS = pa.schema(
    {
        "protocol": pa.string(),
        "model": pa.string(),
        "metric": pa.string(),
        "n_items": pa.int64(),
        "n_dropped": pa.int64(),  # items of the protocol without a score; n_items + n_dropped are all its items
        "n_clusters": pa.int64(),
        "mean": pa.float64(),  # over items
        "low": pa.float64(),
        "high": pa.float64(),
        "reason": pa.string(),  # why something is NaN
    }
)

SIGNIFICANCE = pa.schema(
    {
        "protocol": pa.string(),
        "metric": pa.string(),
        "a": pa.string(),
        "b": pa.string(),
        "n_items": pa.int64(),
        "n_dropped": pa.int64(),  # items of the protocol without a score of both
        "n_clusters": pa.int64(),
        "mean_a": pa.float64(),
        "mean_b": pa.float64(),
        "difference": pa.float64(),  # a minus b, mean over items
        "low": pa.float64(),
        "high": pa.float64(),
        **{f"{test}{correction}": pa.float64() for test in TESTS for correction in ("", "_bonferroni", "_holm")},
        "dz": pa.float64(),
        "rank_biserial": pa.float64(),
        "reason": pa.string(),  # why something is NaN
    }
)


class _Scores(NamedTuple):
    """One protocol: all its items, and what each model scored on them."""

    clusters: np.ndarray  # (n_items,) incident of the item, its scenario where no incident is known
    of_model: dict[str, dict[str, np.ndarray]]  # model -> metric -> (n_items,), NaN without a score


def means_table(turns: pa.Table, metrics: Sequence[str], *, seed: int = 0, n_resamples: int = 10_000) -> pa.Table:
    """Mean and 95 % interval of every protocol, model and metric: MEANS. Args as of `significance_table`."""
    rows = [
        {"protocol": protocol, "model": model, "metric": metric}
        | asdict(bootstrap_mean(of_metric[metric], scores.clusters, seed=seed, n_resamples=n_resamples))
        for protocol, scores in _protocols(turns, metrics)
        for model, of_metric in scores.of_model.items()
        for metric in metrics
    ]
    return to_table(rows, MEANS)


def significance_table(
    turns: pa.Table,
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    *,
    seed: int = 0,
    n_resamples: int = 10_000,
) -> pa.Table:
    """All pairs of models on all metrics: SIGNIFICANCE, one row per protocol, pair and metric.

    The family that Bonferroni and Holm correct for is, for each test by itself, all comparisons of one protocol: every
    pair on every metric. Comparisons without a p-value are no members. Intervals, of 95 %, are not corrected.

    Where the family is large, more is drawn than `n_resamples`: a p-value of the randomization is never under
    2 / (n + 1), which times the family must be able to fall under 0.05.

    Args:
        turns: columns model, protocol, item_id, scenario_id, incident_id (may be null), and a float column per metric,
            null or NaN where there is no score; one row per model, protocol, item and seed of generation.
        pairs: (a, b); a model without any turn gives rows of NaN with the reason, so that one that failed spoils
            nothing else.
        metrics: names of columns.

    Raises:
        KeyError: `turns` has no such column.
    """
    rows = []
    family_size = len(pairs) * len(metrics)
    if n_resamples < 40 * family_size:
        n_resamples = 100 * family_size
    for protocol, scores in _protocols(turns, metrics):
        nothing = dict.fromkeys(metrics, np.full(len(scores.clusters), np.nan))
        family = []
        for a, b in pairs:
            of_a, of_b = scores.of_model.get(a, nothing), scores.of_model.get(b, nothing)
            for metric in metrics:
                found = compare(of_a[metric], of_b[metric], scores.clusters, seed=seed, n_resamples=n_resamples)
                family.append({"protocol": protocol, "metric": metric, "a": a, "b": b, **asdict(found)})
        for test in TESTS:
            for method in ("bonferroni", "holm"):
                for row, p in zip(family, correct([row[test] for row in family], method), strict=True):
                    row[f"{test}_{method}"] = float(p)
        rows += family
    return to_table(rows, SIGNIFICANCE)


def _protocols(turns: pa.Table, metrics: Sequence[str]) -> Iterator[tuple[str, _Scores]]:
    """Protocols in order of name, each with its items in order of (scenario, item), so that rows may come in any."""
    known = [turns[m].cast(pa.float64()) for m in metrics]
    known = [pc.if_else(pc.is_finite(column), column, None) for column in known]
    table = pa.table(
        {
            **{name: turns[name] for name in ("protocol", "model", "scenario_id", "item_id")},
            "cluster": pc.coalesce(turns["incident_id"], turns["scenario_id"]),
            **dict(zip(metrics, known, strict=True)),
        }
    )
    keys = ["protocol", "model", "scenario_id", "item_id", "cluster"]
    averaged = table.group_by(keys).aggregate([(m, "mean") for m in metrics]).sort_by([(k, "ascending") for k in keys])
    for protocol in pc.unique(averaged["protocol"]).to_pylist():
        yield protocol, _scores(averaged.filter(pc.equal(averaged["protocol"], protocol)), metrics)


def _scores(table: pa.Table, metrics: Sequence[str]) -> _Scores:
    cluster_of: dict[tuple[str, str], str] = {}
    items = list(zip(table["scenario_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    for item, cluster in zip(items, table["cluster"].to_pylist(), strict=True):
        if cluster_of.setdefault(item, cluster) != cluster:
            raise ValueError(f"item {item[1]} of scenario {item[0]} is in two incidents")
    place = {item: i for i, item in enumerate(sorted(cluster_of))}
    row_of, model_of = np.array([place[item] for item in items]), np.array(table["model"].to_pylist())
    of_model: dict[str, dict[str, np.ndarray]] = {}
    for model in pc.unique(table["model"]).to_pylist():
        mine = model_of == model
        of_model[model] = {}
        for metric in metrics:
            values = np.full(len(place), np.nan)
            values[row_of[mine]] = table[f"{metric}_mean"].to_numpy()[mine]
            of_model[model][metric] = values
    return _Scores(np.array([cluster_of[item] for item in place]), of_model)
