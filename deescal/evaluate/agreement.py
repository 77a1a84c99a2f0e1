"""How far raters agree, people or judges: Krippendorff's alpha, Fleiss' kappa and plain shares.

Ratings are a matrix of raters by items, NaN where a rater did not rate; categories are coded as numbers. What cannot be
computed is NaN with a reason: two raters who give one value to everything agree, but no better than chance would.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

NAN = float("nan")
Level = Literal["nominal", "ordinal", "interval", "ratio"]


@dataclass(frozen=True)
class Agreement:
    """One coefficient, and how much of the ratings it is of."""

    value: float
    n_raters: int  # who rated at least one of the items
    n_items: int
    n_dropped: int  # items that cannot be used; n_items + n_dropped are all items
    reason: str  # why `value` is NaN; empty where it is not


def krippendorff_alpha(ratings: ArrayLike, level: Level) -> Agreement:
    """Krippendorff's alpha, by the package of that name; of all items with at least two ratings.

    Args:
        ratings: float (n_raters, n_items), NaN where a rater did not rate.
        level: of measurement. Likert scales are ordinal, preferences nominal, scores of 0 to 100 interval.
    """
    import krippendorff

    matrix = _matrix(ratings)
    used = matrix[:, _n_ratings(matrix) >= 2]
    reason = _why_none(used)
    alpha = NAN if reason else krippendorff.alpha(reliability_data=used, level_of_measurement=level)
    return _agreement(alpha, matrix, used, reason)


def fleiss_kappa(ratings: ArrayLike) -> Agreement:
    """Fleiss' kappa, by statsmodels; of nominal categories.

    It wants as many ratings of every item, by the same raters or by others. Used are the items with the number of
    ratings, two or more, that most items have; of equals the greater.

    Args:
        ratings: float (n_raters, n_items), NaN where a rater did not rate.
    """
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    matrix = _matrix(ratings)
    n_ratings = _n_ratings(matrix)
    usual = Counter(int(n) for n in n_ratings if n >= 2)
    used = matrix[:, n_ratings == max(usual, key=lambda n: (usual[n], n), default=-1)]
    reason = _why_none(used)
    if reason:
        return _agreement(NAN, matrix, used, reason)
    by_item = [item[~np.isnan(item)] for item in used.T]
    return _agreement(fleiss_kappa(aggregate_raters(by_item)[0]), matrix, used, "")


def observed_agreement(ratings: ArrayLike) -> Agreement:
    """Share of agreeing pairs among an item's ratings, 0..1, averaged over items with at least two ratings.

    Args:
        ratings: float (n_raters, n_items), NaN where a rater did not rate.
    """
    matrix = _matrix(ratings)
    used = matrix[:, _n_ratings(matrix) >= 2]
    if not used.size:
        return _agreement(NAN, matrix, used, "no item has two ratings")
    shares = []
    for item in used.T:
        counts = np.unique(item[~np.isnan(item)], return_counts=True)[1]
        shares.append(np.sum(counts * (counts - 1)) / (counts.sum() * (counts.sum() - 1)))
    return _agreement(float(np.mean(shares)), matrix, used, "")


def _matrix(ratings: ArrayLike) -> np.ndarray:
    matrix = np.asarray(ratings, float)
    if matrix.ndim != 2:
        raise ValueError(f"ratings of shape {matrix.shape}: expected raters by items")
    return matrix


def _n_ratings(matrix: np.ndarray) -> np.ndarray:
    return (~np.isnan(matrix)).sum(0)


def _why_none(used: np.ndarray) -> str:
    if not used.size:
        return "no item has two ratings"
    return "all ratings are the same" if np.nanmin(used) == np.nanmax(used) else ""


def _agreement(value: float, matrix: np.ndarray, used: np.ndarray, reason: str) -> Agreement:
    n_raters = int((~np.isnan(used)).any(1).sum())
    return Agreement(float(value), n_raters, used.shape[1], matrix.shape[1] - used.shape[1], reason)
