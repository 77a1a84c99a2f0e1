"""Agreement against published examples, and what it cannot say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.evaluate.agreement import (
    Level,
    fleiss_kappa,
    krippendorff_alpha,
    observed_agreement,
)

NAN = math.nan
# Krippendorff's own example, "Computing Krippendorff's Alpha-Reliability" (2011), part D: four observers, twelve units.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
# Fleiss (1971), Table 1: how many of six psychiatrists gave each of thirty patients each of five diagnoses.
FLEISS = """
    00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
    00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def diagnoses() -> np.ndarray:
    """Raters by patients."""
    return np.array([np.repeat(range(5), [int(n) for n in counts]) for counts in FLEISS.split()], float).T


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_krippendorffs_own_example(level: Level, alpha: float) -> None:
    found = krippendorff_alpha(KRIPPENDORFF, level)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert (found.n_raters, found.n_items, found.n_dropped) == (4, 11, 1)  # the last unit has one rating


def test_fleiss_diagnoses_as_in_r() -> None:
    found = fleiss_kappa(diagnoses())
    assert found.value == pytest.approx(0.4302445, abs=5e-8)  # irr::kappam.fleiss
    assert (found.n_raters, found.n_items, found.n_dropped, found.reason) == (6, 30, 0, "")
    assert observed_agreement(diagnoses()).value == pytest.approx(0.556, abs=5e-4)  # Fleiss' mean P


@settings(max_examples=50)
@given(st.integers(2, 6), st.integers(2, 20), st.integers(0, 10_000))
def test_alpha_is_kappa_corrected_for_small_samples(n_raters: int, n_items: int, seed: int) -> None:
    """Of complete nominal ratings 1 - alpha = (1 - kappa) (1 - 1/n), n ratings in all: two libraries, one truth."""
    ratings = np.random.default_rng(seed).integers(0, 3, (n_raters, n_items)).astype(float)
    alpha, kappa = krippendorff_alpha(ratings, "nominal"), fleiss_kappa(ratings)
    assert 1 - alpha.value == pytest.approx((1 - kappa.value) * (1 - 1 / ratings.size), nan_ok=True)
    assert math.isnan(alpha.value) == bool(alpha.reason) == bool(kappa.reason)


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_order_of_raters_and_items_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ratings = np.where(rng.random((4, 12)) < 0.3, NAN, rng.integers(1, 6, (4, 12)))
    other = ratings[rng.permutation(4)][:, rng.permutation(12)]
    for measure in (fleiss_kappa, observed_agreement, lambda r: krippendorff_alpha(r, "ordinal")):
        one, two = measure(ratings), measure(other)
        assert two.value == pytest.approx(one.value, nan_ok=True)
        assert (one.n_items, one.reason) == (two.n_items, two.reason)
        assert one.n_items + one.n_dropped == 12


def test_raters_who_agree_and_who_never_do() -> None:
    same, opposite = [[1, 2, 1, 2], [1, 2, 1, 2]], [[1, 2, 1, 2], [2, 1, 2, 1]]
    assert krippendorff_alpha(same, "nominal").value == fleiss_kappa(same).value == 1
    assert fleiss_kappa(opposite).value == -1
    assert observed_agreement(same).value == 1
    assert observed_agreement(opposite).value == 0


@pytest.mark.parametrize(
    ("ratings", "reason"),
    [
        ([[1, 2, NAN], [NAN, NAN, 3]], "no item has two ratings"),
        ([[1, 2, 3]], "no item has two ratings"),
        (np.empty((2, 0)), "no item has two ratings"),
        ([[4, 4, 4], [4, 4, 4]], "all ratings are the same"),
        ([[4, 4, 1], [4, 4, NAN]], "all ratings are the same"),  # the other value is in no pair
    ],
)
def test_what_cannot_be_computed_is_nan_with_a_reason(ratings: list, reason: str) -> None:
    for found in (fleiss_kappa(ratings), krippendorff_alpha(ratings, "interval")):
        assert math.isnan(found.value)
        assert found.reason == reason


def test_observed_agreement_needs_pairs_but_no_variety() -> None:
    assert observed_agreement([[4, 4], [4, 4]]).value == 1
    assert observed_agreement([[1, NAN], [NAN, 2]]).reason == "no item has two ratings"
    # three of six pairs, then one of one; the third item has no pair
    found = observed_agreement([[1, 1, 1], [1, 1, NAN], [1, NAN, NAN], [2, NAN, NAN]])
    assert found.value == pytest.approx((0.5 + 1) / 2)
    assert (found.n_items, found.n_dropped) == (2, 1)


def test_kappa_uses_items_with_the_usual_number_of_ratings() -> None:
    """Three items have two ratings each, by varying raters; the one with three and the one with one are left out."""
    ratings = [[1, 1, NAN, 1, NAN], [1, NAN, 2, 2, NAN], [NAN, 2, 2, 1, 1]]
    found = fleiss_kappa(ratings)
    assert found.value == pytest.approx(fleiss_kappa([[1, 1, 2], [1, 2, 2]]).value)
    assert (found.n_raters, found.n_items, found.n_dropped) == (3, 3, 2)


def test_ratings_are_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"ratings of shape \(3,\): expected raters by items"):
        observed_agreement([1, 2, 3])
