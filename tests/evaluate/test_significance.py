"""Tables of all means and comparisons: what is paired, what a cluster and a family are, and that nothing is lost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest

from deescal.evaluate.significance import MEANS, SIGNIFICANCE, TESTS, means_table, significance_table
from deescal.evaluate.stats import bootstrap_mean, compare, correct

METRICS = ("rouge_l", "bleu")
PAIRS = [("tuned", "base"), ("api", "base")]
PROTOCOLS = ("rollout", "teacher_forced")
N_SCENARIOS, N_TURNS = 10, 6


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make_turns(n_seeds: int = 1, protocols: Sequence[str] = ("rollout",)) -> list[dict]:
    """Rows of three models; tuned is better at ROUGE-L."""
    rng = np.random.default_rng(0)
    return [
        {
            "model": model,
            "protocol": protocol,
            "seed": seed,
            "item_id": f"{turn}",  # unique within a scenario only
            "scenario_id": f"s{scenario}",
            "incident_id": f"i{scenario // 2}" if scenario < 4 else None,
            "rouge_l": float(rng.normal(10 + 3 * (model == "tuned"), 2)),
            "bleu": float(rng.exponential(2)),
        }
        for model in ("base", "tuned", "api")
        for protocol in protocols
        for seed in range(n_seeds)
        for scenario in range(N_SCENARIOS)
        for turn in range(N_TURNS)
    ]


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def columns(rows: list[dict], model: str, metric: str, protocol: str = "rollout") -> tuple[list, list]:
    """Scores and clusters, in order of scenario and item."""
    mine = [row for row in rows if row["model"] == model and row["protocol"] == protocol]
    mine.sort(key=lambda row: (row["scenario_id"], row["item_id"]))
    return [row[metric] for row in mine], [row["incident_id"] or row["scenario_id"] for row in mine]


def test_rows_are_compare_with_incidents_as_clusters() -> None:
    rows = make_turns(protocols=PROTOCOLS)
    found = significance_table(table(rows), PAIRS, METRICS, seed=5, n_resamples=500)
    assert found.schema == SIGNIFICANCE
    keys = [(r["protocol"], r["a"], r["b"], r["metric"]) for r in found.to_pylist()]
    assert keys == [(p, a, b, m) for p in PROTOCOLS for a, b in PAIRS for m in METRICS]
    row = found.to_pylist()[0]
    (a, clusters), (b, _) = (columns(rows, model, "rouge_l") for model in ("tuned", "base"))
    expected = compare(a, b, clusters, seed=5, n_resamples=500)
    assert expected.n_clusters == N_SCENARIOS - 2  # two incidents have two scenarios each
    assert {name: row[name] for name in vars(expected)} == vars(expected)


def test_the_family_is_all_comparisons_of_a_protocol_test_by_test() -> None:
    found = significance_table(table(make_turns(protocols=PROTOCOLS)), PAIRS, METRICS, n_resamples=500).to_pylist()
    for _, family in groupby(found, key=lambda row: row["protocol"]):
        family = list(family)
        assert len(family) == len(PAIRS) * len(METRICS)
        for test in TESTS:
            p = [row[test] for row in family]
            for method in ("bonferroni", "holm"):
                assert [row[f"{test}_{method}"] for row in family] == correct(p, method).tolist()
            assert all(row[test] <= row[f"{test}_holm"] <= row[f"{test}_bonferroni"] <= 1 for row in family)


def test_a_large_family_can_still_be_significant() -> None:
    """Of 300 comparisons the smallest p of 400 drawings, corrected, is above 1."""
    metrics = [f"m{i}" for i in range(150)]
    rows = [
        {"model": model, "protocol": "rollout", "item_id": "0", "scenario_id": f"s{s}", "incident_id": f"s{s}"}
        | dict.fromkeys(metrics, (model != "base") + s / 100)
        for model in ("base", "tuned", "api")
        for s in range(30)
    ]
    found = significance_table(table(rows), PAIRS, metrics, n_resamples=400).to_pylist()
    assert len(found) == 300
    assert all(row["p_randomization_holm"] < 0.05 for row in found)


def test_means_have_intervals_over_incidents() -> None:
    rows = make_turns(protocols=PROTOCOLS)
    found = means_table(table(rows), METRICS, seed=5, n_resamples=500)
    assert found.schema == MEANS
    assert found.num_rows == 2 * 3 * len(METRICS)
    row = next(r for r in found.to_pylist() if (r["protocol"], r["model"], r["metric"]) == ("rollout", "api", "bleu"))
    expected = bootstrap_mean(*columns(rows, "api", "bleu"), seed=5, n_resamples=500)
    assert {name: row[name] for name in vars(expected)} == vars(expected)


def test_order_of_rows_does_not_matter() -> None:
    turns = table(make_turns(n_seeds=2))
    shuffled = turns.take(np.random.default_rng(1).permutation(turns.num_rows))
    one, two = (significance_table(t, PAIRS, METRICS, n_resamples=500).to_pylist() for t in (turns, shuffled))
    for left, right in zip(one, two, strict=True):
        assert left == {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k, v in right.items()}


def test_seeds_are_averaged_before_anything_else() -> None:
    """Three seeds per item are not three times the evidence."""
    rows = [{**row, "seed": s} for row in make_turns() for s in range(3)]
    for i, row in enumerate(rows):
        row["rouge_l"] += (-1, 0, 1)[i % 3]
    once, thrice = (significance_table(table(r), PAIRS, METRICS, n_resamples=500) for r in (make_turns(), rows))
    for left, right in zip(once.to_pylist(), thrice.to_pylist(), strict=True):
        assert right["n_items"] == N_SCENARIOS * N_TURNS
        assert right["p_t"] == pytest.approx(left["p_t"])
        assert right["low"] == pytest.approx(left["low"])


def test_missing_scores_drop_pairwise_and_nothing_is_lost() -> None:
    """Null, NaN, and rows that are not there at all; one seed of two is enough for a score."""
    rows = make_turns(2, PROTOCOLS)
    for row in rows:
        if row["protocol"] == "rollout" and row["model"] == "tuned" and row["scenario_id"] == "s9":
            if row["item_id"] == "0":
                row["rouge_l"] = None
            if row["item_id"] == "1":
                row["rouge_l"] = math.nan
            if row["item_id"] == "2" and row["seed"] == 0:
                row["rouge_l"] = None
    rows = [r for r in rows if (r["protocol"], r["model"], r["item_id"]) != ("rollout", "base", "5")]
    n_items = N_SCENARIOS * N_TURNS
    found = significance_table(table(rows), PAIRS, METRICS, n_resamples=500).to_pylist()
    dropped = {(r["protocol"], r["a"], r["metric"]): r["n_dropped"] for r in found}
    assert dropped["rollout", "tuned", "rouge_l"] == N_SCENARIOS + 2
    assert dropped["rollout", "tuned", "bleu"] == dropped["rollout", "api", "rouge_l"] == N_SCENARIOS
    assert dropped["teacher_forced", "tuned", "rouge_l"] == 0
    assert all(row["n_items"] + row["n_dropped"] == n_items for row in found)
    assert all(row["n_items"] + row["n_dropped"] == n_items for row in means_table(table(rows), METRICS).to_pylist())


def test_a_model_that_failed_spoils_nothing_else() -> None:
    turns = table(make_turns())
    alone = significance_table(turns, PAIRS, METRICS, n_resamples=500).to_pylist()
    found = significance_table(turns, [*PAIRS, ("gone", "base")], METRICS, n_resamples=500).to_pylist()
    assert [row for row in found if row["a"] != "gone"] == alone
    for row in found:
        if row["a"] == "gone":
            assert row["reason"] == "no item has a score of both"
            assert all(math.isnan(row[f"{test}_holm"]) for test in TESTS)


def test_no_turns_give_empty_tables() -> None:
    turns = table(make_turns()).slice(0, 0)
    assert significance_table(turns, PAIRS, METRICS).num_rows == 0
    assert means_table(turns, METRICS).schema == MEANS


def test_an_unknown_metric_and_an_item_of_two_incidents_are_refused() -> None:
    rows = make_turns()
    with pytest.raises(KeyError, match="meteor"):
        significance_table(table(rows), PAIRS, ["meteor"])
    rows[0]["incident_id"] = "other"
    with pytest.raises(ValueError, match="item 0 of scenario s0 is in two incidents"):
        significance_table(table(rows), PAIRS, METRICS)
