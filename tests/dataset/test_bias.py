from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.dataset.bias import bias_report, compare, describe, is_sampled, measure, moving_average_ttr


def test_lexical_diversity_of_known_texts() -> None:
    assert moving_average_ttr(["a", "b"] * 50, window=50) == pytest.approx(2 / 50)
    assert moving_average_ttr([str(i) for i in range(80)], window=50) == 1.0
    assert moving_average_ttr(["a"] * 10, window=50) is None
    found = measure(["Stop, stop the car.", "Why?"], {"escalation": 2})
    assert (found["turns"], found["words"], found["words_per_turn"], found["score_escalation"]) == (2, 5, 2.5, 2)
    assert found["type_token_ratio"] == pytest.approx(4 / 5)


@given(st.lists(st.sampled_from("abcdef"), min_size=5, max_size=60))
def test_the_moving_average_is_the_mean_of_all_windows(words: list[str]) -> None:
    windows = [words[i : i + 5] for i in range(len(words) - 4)]
    expected = sum(len(set(w)) / 5 for w in windows) / len(windows)
    assert moving_average_ttr(words, window=5) == pytest.approx(expected)


def test_a_comparison_of_groups_gives_direction_and_refuses_too_few() -> None:
    found = compare([5, 6, 7, 8, 9], [1, 2, 3, 4])
    assert found["cliffs_delta"] == 1.0
    assert found["p"] == pytest.approx(0.0159, abs=1e-3)  # exact test: 2 / C(9, 4)
    assert compare([1.0], [2.0, 3.0])["reason"] == "fewer than two clips in a group"


def test_the_report_has_groups_tests_and_sources() -> None:
    rows = [
        {"status": status, "source": source, "measures": {"words": words, "perplexity": None}}
        for status, source, words in [("accepted", "a", 10.0), ("accepted", "b", 20.0), ("rejected", "a", 5.0)]
    ]
    report = bias_report(rows)
    assert report["groups"]["accepted"]["words"] == describe([10.0, 20.0])
    assert "perplexity" not in report["groups"]["accepted"]
    assert report["by_source"]["b"]["words"]["n"] == 1
    assert report["tests"]["words"]["p"] is None


def test_the_sample_depends_on_the_id_alone() -> None:
    ids = [f"{i * 2654435761 % 2**32:08x}{'0' * 24}" for i in range(4000)]
    chosen = [i for i in ids if is_sampled(i, 0.1)]
    assert len(chosen) == pytest.approx(400, rel=0.2)
    assert not any(is_sampled(i, 0.0) for i in ids)
