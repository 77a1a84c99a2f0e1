"""Statistics of scores that come in clusters: confidence intervals, paired tests, effect sizes, corrections.

Turns of one scenario share people, place and course of events: they are not independent. So what is resampled, swapped
or ranked here is always a whole cluster: a scenario, or an incident that has several. `bench/stats.py` shows by
simulation what that buys. What cannot be computed is NaN with a reason, never zero and never a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

NAN = float("nan")
DIGITS = 12  # of the greatest score: smaller differences are of rounding, and ties
_NUMBERS_AT_ONCE = 2_000_000  # drawn by the resampling tests: 16 MB an array


@dataclass(frozen=True)
class Estimate:
    """A mean over items and its confidence interval."""

    n_items: int
    n_dropped: int  # without a score
    n_clusters: int
    mean: float
    low: float
    high: float
    reason: str  # why something is NaN; empty where nothing is


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same items. Differences are a minus b; p-values two-sided and not corrected."""

    n_items: int
    n_dropped: int  # without a score of a, of b, or of both
    n_clusters: int
    mean_a: float = NAN  # over items, as are mean_b and difference
    mean_b: float = NAN
    difference: float = NAN
    low: float = NAN  # confidence interval of the difference
    high: float = NAN
    p_t: float = NAN
    p_wilcoxon: float = NAN
    p_randomization: float = NAN
    dz: float = NAN  # Cohen's: mean over standard deviation of the clusters' mean differences
    rank_biserial: float = NAN  # -1..1: share of the rank sum where a is higher, less that where b is (Kerby 2014)
    reason: str = ""  # why something is NaN; empty where nothing is


def bootstrap_mean(
    values: ArrayLike, clusters: ArrayLike, *, n_resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean over items with its cluster-bootstrap interval.

    Args:
        values: float (n_items,); NaN where an item has no score, which is dropped and counted.
        clusters: label of each item's cluster (n_items,).
    """
    scores, labels = _columns(values, clusters)
    known = np.isfinite(scores)
    scores, n_dropped = scores[known], int((~known).sum())
    if not len(scores):
        return Estimate(0, n_dropped, 0, NAN, NAN, NAN, "no item has a score")
    means, counts = _cluster_means(scores, labels[known], np.abs(scores).max())
    low, high, reason = bootstrap_interval(means, counts, n_resamples=n_resamples, level=level, seed=seed)
    return Estimate(len(scores), n_dropped, len(means), float(scores.mean()), low, high, reason)


def compare(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, n_resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Two systems' scores of the same items, tested with clusters as the observations.

    The difference weighs items alike, and so do its interval and the approximate randomization; t and Wilcoxon tests
    and effect sizes are of cluster means, which they weigh alike. Where large clusters differ from small ones, the two
    kinds may disagree. By drawing, `p_randomization` is at least 2 / (n_resamples + 1).

    Args:
        a, b: float (n_items,); an item with NaN in either is dropped and counted.
        clusters: label of each item's cluster (n_items,).
    """
    scores_a, labels = _columns(a, clusters)
    scores_b, _ = _columns(b, clusters)
    both = np.isfinite(scores_a) & np.isfinite(scores_b)
    scores_a, scores_b, n_dropped = scores_a[both], scores_b[both], int((~both).sum())
    if not len(scores_a):
        return Comparison(0, n_dropped, 0, reason="no item has a score of both")
    differences = scores_a - scores_b
    greatest = max(np.abs(scores_a).max(), np.abs(scores_b).max())
    means, counts = _cluster_means(differences, labels[both], greatest)
    described = Comparison(
        n_items=len(differences),
        n_dropped=n_dropped,
        n_clusters=len(means),
        mean_a=float(scores_a.mean()),
        mean_b=float(scores_b.mean()),
        difference=float(differences.mean()),
    )
    if len(means) < 2:
        return replace(described, reason="one cluster only")
    if not means.any():
        return replace(described, reason="no cluster differs")
    low, high, reason = bootstrap_interval(means, counts, n_resamples=n_resamples, level=level, seed=seed)
    p_t, dz = _t_test(means)
    p_wilcoxon, rank_biserial = _wilcoxon(means)
    return replace(
        described,
        low=low,
        high=high,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        p_randomization=_randomization(means * counts, n_resamples, seed),
        dz=dz,
        rank_biserial=rank_biserial,
        reason=reason,
    )


def correct(p_values: ArrayLike, method: Literal["bonferroni", "holm"]) -> np.ndarray:
    """p-values of one family (n,), corrected by statsmodels; NaN stays NaN and does not count as a member."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.array(p_values, float)
    known = np.isfinite(corrected)
    if known.any():
        corrected[known] = multipletests(corrected[known], method=method)[1]
    return corrected


def bootstrap_interval(
    means: np.ndarray, counts: np.ndarray, *, n_resamples: int, level: float, seed: int
) -> tuple[float, float, str]:
    """Clusters' means and sizes -> low, high of the mean over items, and the reason where these are NaN.

    The symmetric bootstrap-t (Hall 1988, J. R. Statist. Soc. B 50(1)): the quantile of the absolute studentised mean
    over resampled clusters, times the standard error, to either side. Cameron, Gelbach & Miller (2008, Rev. Econ.
    Statist. 90(3)) advise to studentise where clusters are few or unequal. With 50 clusters of heavy-tailed scores,
    percentile and BCa intervals cover 91 to 94 % instead of 95, and so does the two-tailed bootstrap-t; this one does
    what it says (`bench/stats.py`). A bound may lie outside of what scores can be, such as below 0.
    """
    from scipy.stats import bootstrap

    if len(means) < 2:
        return NAN, NAN, "one cluster only"
    if np.ptp(means) == 0:
        return NAN, NAN, "all clusters are alike"
    mean, error = mean_and_error(means * counts, counts)
    drawn_means, drawn_errors = bootstrap(
        (means * counts, counts),
        mean_and_error,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=n_resamples,
        batch=max(1, _NUMBERS_AT_ONCE // len(means)),
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    drawn_errors[drawn_errors < 1e-9 * error] = 0  # but for rounding: one cluster, drawn over and over
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.nan_to_num(np.abs(drawn_means - mean) / drawn_errors, nan=0, posinf=np.inf)
    # Without interpolation, which is NaN beside an infinite pivot.
    margin = np.quantile(pivots, level, method="higher") * error
    if not math.isfinite(margin):
        return NAN, NAN, "too few clusters differ from each other for an interval"
    return float(mean - margin), float(mean + margin), ""


def mean_and_error(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Clusters' sums and sizes along `axis` -> mean over items, and its cluster-robust standard error.

    Vectorised; the same as statsmodels' regression on a constant with `cov_type="cluster"`.
    """
    n, total = sums.shape[axis], counts.sum(axis, keepdims=True)
    mean = sums.sum(axis, keepdims=True) / total
    error = np.sqrt(n / (n - 1) * np.square(sums - mean * counts).sum(axis, keepdims=True)) / total
    return mean.squeeze(axis), error.squeeze(axis)


def _columns(values: ArrayLike, clusters: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(values, float), np.asarray(clusters)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores of shape {scores.shape}, cluster labels of shape {labels.shape}: expected one each")
    return scores, labels


def _cluster_means(values: np.ndarray, labels: np.ndarray, greatest: float) -> tuple[np.ndarray, np.ndarray]:
    """Means and sizes of clusters; means are rounded, relative to the greatest score, so that ties are ties."""
    _, index = np.unique(labels, return_inverse=True)
    counts = np.bincount(index).astype(float)
    unit = greatest or 1.0
    return np.round(np.bincount(index, values) / counts / unit, DIGITS) * unit, counts


def _t_test(means: np.ndarray) -> tuple[float, float]:
    """Paired t on cluster means -> p, Cohen's dz."""
    from scipy.stats import ttest_1samp

    if np.ptp(means) == 0:
        return NAN, NAN
    t, p = ttest_1samp(means, 0)
    return float(p), float(t) / math.sqrt(len(means))


def _wilcoxon(means: np.ndarray) -> tuple[float, float]:
    """Signed ranks of cluster means, zeros left out -> p (exact for few, as SciPy chooses), rank-biserial."""
    from scipy.stats import rankdata, wilcoxon

    ranks = rankdata(np.abs(means[means != 0]))
    rank_biserial = np.sum(np.sign(means[means != 0]) * ranks) / ranks.sum()
    return float(wilcoxon(means, correction=True).pvalue), float(rank_biserial)


def _randomization(sums: np.ndarray, n_resamples: int, seed: int) -> float:
    """Approximate randomization (Noreen 1989): a and b swapped, or not, in each cluster as a whole; exact for few."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=max(1, _NUMBERS_AT_ONCE // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
