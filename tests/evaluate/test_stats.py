"""Known answers of R and of the libraries, symmetries, what cannot be computed, and promises kept in simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench.stats import MEAN, simulate
from deescal.evaluate.stats import Comparison, bootstrap_mean, compare, correct, mean_and_error

# R's `sleep`: extra hours of ten patients under either drug; every patient is a cluster of one item.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Depression scores at two visits, the example of R's `wilcox.test` (Hollander & Wolfe 1973).
VISIT_1 = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
VISIT_2 = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one_each(a: list[float], b: list[float], **kwargs: int) -> Comparison:
    return compare(a, b, range(len(a)), **kwargs)


def scores(seed: int = 0, n_clusters: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b and labels of items in clusters of 1 to 20."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([f"s{i}" for i in range(n_clusters)], rng.integers(1, 21, n_clusters))
    return rng.normal(0.4, 1, len(labels)), rng.normal(0, 1, len(labels)), labels


def assert_same(found: Comparison, expected: Comparison) -> None:
    assert found.reason == expected.reason
    assert astuple(found)[:-1] == pytest.approx(astuple(expected)[:-1], rel=1e-9, abs=1e-12, nan_ok=True)


# --- known answers --------------------------------------------------------------------------------------------


def test_paired_t_of_sleep_as_in_r() -> None:
    found = one_each(SLEEP_1, SLEEP_2)
    assert found.p_t == pytest.approx(0.002833, abs=5e-7)
    assert found.dz * math.sqrt(10) == pytest.approx(-4.0621, abs=5e-5)  # R's t
    assert found.difference == pytest.approx(-1.58)
    assert found.rank_biserial == -1  # nine of nine that differ


def test_wilcoxon_of_depression_as_in_r() -> None:
    found = one_each(VISIT_1, VISIT_2)
    assert found.p_wilcoxon == pytest.approx(2 * 0.01953, abs=1e-5)
    assert found.rank_biserial == pytest.approx((40 - 5) / 45)  # V = 40 of 45


def test_wilcoxon_of_many_clusters_has_rs_continuity_correction() -> None:
    d = np.random.default_rng(3).normal(0.2, 1, 80)
    z = (abs(scipy_stats.wilcoxon(d, alternative="greater").statistic - 80 * 81 / 4) - 0.5) / math.sqrt(
        80 * 81 * 161 / 24
    )
    assert one_each(list(d), [0.0] * 80).p_wilcoxon == pytest.approx(2 * scipy_stats.norm.sf(z))


def test_randomization_of_few_clusters_is_exact() -> None:
    """Of sleep's 2^10 swaps, those of the patient without a difference change nothing, and only two are as extreme."""
    assert one_each(SLEEP_1, SLEEP_2).p_randomization == pytest.approx(2 * 2 / 2**10)


def test_tests_are_scipys_of_cluster_means() -> None:
    a, b, labels = scores()
    found = compare(a, b, labels)
    names = np.unique(labels)
    means_a, means_b = (np.array([x[labels == name].mean() for name in names]) for x in (a, b))
    assert found.p_t == pytest.approx(scipy_stats.ttest_rel(means_a, means_b).pvalue)
    assert found.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(means_a, means_b).pvalue)
    assert found.dz == pytest.approx((means_a - means_b).mean() / (means_a - means_b).std(ddof=1))
    sums_a, sums_b = ([x[labels == name].sum() for name in names] for x in (a, b))
    swaps = scipy_stats.permutation_test(
        (sums_a, sums_b), lambda x, y, axis: np.sum(x - y, axis), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_randomization == pytest.approx(swaps.pvalue)
    assert (found.n_items, found.n_dropped, found.n_clusters) == (len(a), 0, 12)
    assert (found.mean_a, found.mean_b) == (a.mean(), b.mean())


def test_standard_error_is_that_of_statsmodels_clustered_regression() -> None:
    from statsmodels.api import OLS

    values, _, labels = scores()
    _, index = np.unique(labels, return_inverse=True)
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": index})
    mean, error = mean_and_error(np.bincount(index, values), np.bincount(index))
    assert (mean, error) == pytest.approx((fit.params[0], fit.bse[0]))


def test_interval_of_independent_normal_scores_is_students() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap_mean(values, np.arange(400))
    t = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.02)


def test_corrections_are_those_of_rs_p_adjust() -> None:
    p = [0.01, 0.02, 0.03, 0.04]
    assert correct(p, "bonferroni") == pytest.approx([0.04, 0.08, 0.12, 0.16])
    assert correct(p, "holm") == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert correct([0.6, 0.01], "bonferroni") == pytest.approx([1, 0.02])


def test_corrections_leave_out_what_is_missing() -> None:
    found = correct([0.04, math.nan, 0.01], "holm")
    assert found == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)
    assert np.isnan(correct([math.nan], "bonferroni")).all()
    assert len(correct([], "holm")) == 0


# --- symmetries -----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 30))
def test_swapping_flips_signs_and_nothing_else(seed: int, n_clusters: int) -> None:
    a, b, labels = scores(seed, n_clusters)
    found = compare(a, b, labels, n_resamples=200)
    expected = replace(
        found,
        mean_a=found.mean_b,
        mean_b=found.mean_a,
        difference=-found.difference,
        low=-found.high,
        high=-found.low,
        dz=-found.dz,
        rank_biserial=-found.rank_biserial,
    )
    assert_same(compare(b, a, labels, n_resamples=200), expected)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_order_of_items_does_not_matter(seed: int) -> None:
    a, b, labels = scores(seed)
    order = np.random.default_rng(seed).permutation(len(a))
    shuffled = compare(a[order], b[order], labels[order], n_resamples=200)
    assert_same(shuffled, compare(a, b, labels, n_resamples=200))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.01, 1000), st.floats(-100, 100))
def test_shift_and_unit_of_scores_change_only_what_has_the_unit(seed: int, unit: float, shift: float) -> None:
    a, b, labels = scores(seed)
    plain, other = (compare(x, y, labels, n_resamples=200) for x, y in ((a, b), (unit * a + shift, unit * b + shift)))
    for name in ("p_t", "p_wilcoxon", "p_randomization", "dz", "rank_biserial"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-5)
    for name in ("difference", "low", "high"):
        assert getattr(other, name) / unit == pytest.approx(getattr(plain, name), rel=1e-5, abs=1e-8)
    assert other.mean_a == pytest.approx(unit * plain.mean_a + shift)


def test_a_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    a, b, labels = scores(n_clusters=20)
    assert compare(a, b, labels, seed=1) == compare(a, b, labels, seed=1)
    one, two = (compare(a, b, labels, seed=seed) for seed in (1, 2))
    assert (one.low, one.p_randomization) != (two.low, two.p_randomization)
    assert one.low == pytest.approx(two.low, abs=0.05)
    assert one.p_t == two.p_t


def test_interval_holds_the_mean_and_widens_with_the_level() -> None:
    values, _, labels = scores()
    narrow, wide = (bootstrap_mean(values, labels, level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_copies_of_an_item_are_no_evidence() -> None:
    """Ten copies of every item, in its own cluster, change nothing; as clusters of their own they would."""
    a, b, labels = scores()
    once = compare(a, b, labels)
    assert_same(compare(np.repeat(a, 10), np.repeat(b, 10), np.repeat(labels, 10)), replace(once, n_items=10 * len(a)))
    alone = compare(np.repeat(a, 10), np.repeat(b, 10), np.arange(10 * len(a)), n_resamples=500)
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


# --- what cannot be computed ----------------------------------------------------------------------------------

P_VALUES = ("p_t", "p_wilcoxon", "p_randomization")


def assert_missing(found: object, *names: str) -> None:
    assert all(math.isnan(getattr(found, name)) for name in names), found


def test_items_without_a_score_are_dropped_from_both_and_counted() -> None:
    a, b, labels = scores()
    with_gaps_a, with_gaps_b = a.copy(), b.copy()
    with_gaps_a[3], with_gaps_b[[3, 7]] = np.nan, np.nan
    kept = np.delete(np.arange(len(a)), [3, 7])
    found = compare(with_gaps_a, with_gaps_b, labels)
    assert_same(found, replace(compare(a[kept], b[kept], labels[kept]), n_dropped=2))
    assert found.n_items + found.n_dropped == len(a)
    assert bootstrap_mean(with_gaps_a, labels).n_dropped == 1


def test_nothing_in_common_is_nan_throughout() -> None:
    found = compare([1.0, np.nan], [np.nan, 1.0], ["s", "t"])
    assert (found.n_items, found.n_dropped, found.reason) == (0, 2, "no item has a score of both")
    assert_missing(found, "mean_a", "difference", "low", *P_VALUES, "dz", "rank_biserial")
    assert bootstrap_mean([np.nan], ["s"]).reason == "no item has a score"
    assert bootstrap_mean([], []).n_items == 0


def test_one_cluster_has_a_difference_but_no_test() -> None:
    found = compare([1.0, 2.0], [0.0, 0.0], ["s", "s"])
    assert (found.difference, found.reason) == (1.5, "one cluster only")
    assert_missing(found, "low", "high", *P_VALUES, "dz", "rank_biserial")
    alone = bootstrap_mean([1.0, 2.0], ["s", "s"])
    assert (alone.mean, alone.reason) == (1.5, "one cluster only")
    assert_missing(alone, "low", "high")


def test_ties_are_nan_also_where_sums_are_rounded() -> None:
    for a, b in (([0.1, 0.2, 0.7], [0.1, 0.2, 0.7]), ([0.1 + 0.2, 0.5, 0.5], [0.3, 0.5, 0.5])):
        found = one_each(a, b)
        assert found.reason == "no cluster differs"
        assert found.difference == pytest.approx(0)
        assert_missing(found, "low", "high", *P_VALUES, "dz", "rank_biserial")


def test_one_and_the_same_difference_everywhere_has_ranks_but_no_spread() -> None:
    found = one_each([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert found.reason == "all clusters are alike"
    assert_missing(found, "low", "high", "p_t", "dz")
    assert found.rank_biserial == 1
    assert found.p_wilcoxon == found.p_randomization == pytest.approx(2 / 2**8)


def test_two_of_fifty_clusters_are_too_few_for_an_interval_but_not_for_p() -> None:
    found = one_each([1.0, 1.0] + [0.0] * 48, [0.0] * 50)
    assert found.reason == "too few clusters differ from each other for an interval"
    assert_missing(found, "low", "high")
    assert found.p_wilcoxon == pytest.approx(0.5, abs=0.4)
    assert found.p_randomization == pytest.approx(0.5, abs=0.02)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 1.0, math.nan]), st.sampled_from([0.0, 0.3, 1.0, math.nan]),
                       st.sampled_from("stuvw")), max_size=25)
)  # fmt: skip
def test_nan_comes_with_a_reason_and_only_then(items: list[tuple[float, float, str]]) -> None:
    a, b, labels = ([item[i] for item in items] for i in range(3))
    for found in (compare(a, b, labels, n_resamples=50), bootstrap_mean(a, labels, n_resamples=50)):
        missing = any(isinstance(x, float) and math.isnan(x) for x in astuple(found))
        assert missing == bool(found.reason)
        assert found.n_items + found.n_dropped == len(items)
        assert not missing or found.n_clusters <= 5


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(2,\), cluster labels of shape \(3,\)"):
        compare([1, 2, 3], [1, 2], ["s", "t", "u"])


# --- promises, in a small simulation; bench/stats.py has the large one ----------------------------------------


def test_clusters_keep_false_positives_near_5_percent_where_single_turns_do_not() -> None:
    held, positive, unclustered = [], [], []
    for seed in range(200):
        data = simulate(np.random.default_rng(seed), 50)
        found = bootstrap_mean(data.a, data.scenario, n_resamples=200)
        held.append(found.low <= MEAN <= found.high)
        positive.append(compare(data.a, data.b, data.scenario, n_resamples=50).p_t < 0.05)
        unclustered.append(scipy_stats.ttest_rel(data.a, data.b).pvalue < 0.05)
    assert 0.90 <= np.mean(held) <= 0.99
    assert np.mean(positive) <= 0.09
    assert np.mean(unclustered) >= 0.15
