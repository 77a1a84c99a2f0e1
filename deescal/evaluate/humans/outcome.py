"""What ratings come to: means or win rates with their intervals, and how far raters agree."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from deescal.evaluate.humans.criteria import HELPFULNESS, MORE_REAL, REALISM, Question
from deescal.schema import Row

_QUESTIONS = {question.name: question for question in (REALISM, HELPFULNESS, MORE_REAL)}


def outcome(ratings: pa.Table, pack: Mapping[str, Any]) -> Row:
    """The counted ratings of one pack, as a dict that is JSON but for its NaNs.

    Args:
        ratings: as `deescal.evaluate.humans.ratings.RATINGS`.
        pack: its summary, as `deescal.evaluate.humans.pack.make_pack` gives it.

    Returns:
        pack: as given.
        rated: {items, twice, ratings}: items with a counted rating, those with two or more.
        agreement: {question: {level, alpha, kappa, observed}}, each as `deescal.evaluate.agreement.Agreement`.
        means (Likert): {question: {model: estimate}}, each as `deescal.evaluate.stats.Estimate`, over ratings, with an
            interval that is clustered by incident (a scenario where none is known).
        pairs (pairwise): [{model, model_b, wins, ties, losses, identical, win_rate: estimate}], of model against
            model_b; a tie is half a win; lines that both answered in the same words are `identical` and not rated.
        win_rates (pairwise): {model: estimate}, over all its pairs.
        chose_a (pairwise): {a, b}: how often either side was chosen, which an order effect would set apart.
    """
    rows = [row for row in ratings.to_pylist() if row["counted"]]
    raters_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        raters_of[row["rated_id"]].add(row["rater"])
    twice = sum(len(raters) > 1 for raters in raters_of.values())
    by_question = _grouped(rows, "question")
    return {
        "pack": dict(pack),
        "rated": {"items": len(raters_of), "twice": twice, "ratings": len(rows)},
        **(_pairs(rows, pack) if "pairs" in pack else {"means": _means(by_question)}),
        "agreement": {question: agreement(of, _QUESTIONS[question]) for question, of in by_question.items()},
    }


def _grouped(rows: Iterable[Row], *columns: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[columns[0]] if len(columns) == 1 else tuple(row[c] for c in columns)].append(row)
    return dict(sorted(groups.items()))


def _means(by_question: Mapping[str, Sequence[Row]]) -> Row:
    return {
        question: {
            model: _estimate([row["value"] for row in of], [_cluster(row) for row in of])
            for model, of in _grouped(rows, "model").items()
        }
        for question, rows in by_question.items()
    }


def _pairs(rows: Sequence[Row], pack: Mapping[str, Any]) -> Row:
    identical = {(pair["model"], pair["model_b"]): pair["identical"] for pair in pack["pairs"]}
    pairs: list[Row] = []
    won: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (model, model_b), of in _grouped(rows, "model", "model_b").items():
        values = Counter(row["value"] for row in of)
        pairs.append(
            {
                "model": model,
                "model_b": model_b,
                "wins": values[1.0],
                "ties": values[0.5],
                "losses": values[0.0],
                "identical": identical[model, model_b],
                "win_rate": _estimate([row["value"] for row in of], [_cluster(row) for row in of]),
            }
        )
        won[model] += [(row["value"], _cluster(row)) for row in of]
        won[model_b] += [(1 - row["value"], _cluster(row)) for row in of]
    sides = Counter(row["choice"] for row in rows)
    return {
        "pairs": pairs,
        "win_rates": {model: _estimate(*zip(*won[model], strict=True)) for model in sorted(won)},
        "chose_a": {"a": sides["A"], "b": sides["B"]},
    }


def _cluster(row: Row) -> str:
    """What depends on each other; the same as in the evaluation's own intervals."""
    return str(row["incident_id"] or row["scenario_id"])


def _estimate(values: Sequence[float], clusters: Sequence[str]) -> Row:
    from deescal.evaluate.stats import bootstrap_mean

    return asdict(bootstrap_mean(values, clusters))


def agreement(rows: Sequence[Row], question: Question) -> Row:
    """How far raters agree on one question, over all items: alpha, kappa and the share of equal pairs of ratings.

    Of pairs, the sides are compared, not the models: as these are shown in random order, a model that always wins
    does not make agreement on it a matter of chance.
    """
    from deescal.evaluate.agreement import fleiss_kappa, krippendorff_alpha, observed_agreement

    codes = {choice: code for code, choice in enumerate(question.choices)}
    raters, items = (sorted({row[name] for row in rows}) for name in ("rater", "rated_id"))
    matrix = np.full((len(raters), len(items)), math.nan)
    for row in rows:
        matrix[raters.index(row["rater"]), items.index(row["rated_id"])] = codes[row["choice"]]
    return {
        "level": question.level,
        "alpha": asdict(krippendorff_alpha(matrix, question.level)),
        "kappa": asdict(fleiss_kappa(matrix)),
        "observed": asdict(observed_agreement(matrix)),
    }
