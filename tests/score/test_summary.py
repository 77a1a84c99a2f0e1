"""The summary of a run, and how it looks."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deescal.score.job import Ended
from deescal.score.summary import cause, covered_s, summarize
from deescal.score.tables import answer_row
from deescal.score.terminal import show_ended


def answer(at_s: float, seconds: float, **values: Any) -> dict[str, Any]:
    counts = {"n_prompt_tokens": 100, "n_cached_tokens": 80, "n_completion_tokens": 10}
    good = {"output": "x", "finish_reason": "stop", "asked_at_s": at_s, "latency_s": seconds, **counts}
    return answer_row({"request_id": "r", "attempts": 0}, **(good | values))


def test_a_summary_counts_tokens_seconds_and_errors() -> None:
    answers = [
        answer(0, 2),
        answer(1, 2),
        answer(100, 1, finish_reason="length"),  # after a kill and a pause
        answer_row({"request_id": "r", "attempts": 0}, error="the prompt has 5,000 tokens"),
        answer_row({"request_id": "r", "attempts": 0}, error="the prompt has 7,123 tokens"),
    ]
    found = summarize(answers)
    assert (found["requests"], found["answered"]) == (5, 3)
    assert found["errors"] == {"the prompt has N tokens": 2}
    assert found["finish_reasons"] == {"stop": 2, "length": 1}
    assert found["busy_s"] == 4
    assert found["completion_tokens_per_s"] == 7.5
    assert found["cache_hit_share"] == 0.8
    assert found["latency_p50_s"] == 2
    shown = StringIO()
    run = {"summary": found, "by_model": {"base": found}, "rows": 5, "wall_s": 4.0}
    show_ended(Ended("out", run), Console(file=shown, width=120))
    for text in ("3 of 5", "80%", "7.5", "2 x the prompt has N tokens", "out/scores.parquet", "--retry-failed"):
        assert text in shown.getvalue()


def test_what_a_server_does_not_tell_is_none() -> None:
    found = summarize([answer(0, 1, n_cached_tokens=None)])
    assert found["cached_tokens"] is None
    assert found["cache_hit_share"] is None
    nothing = summarize([answer_row({"request_id": "r", "attempts": 0}, error="no")])
    assert nothing["latency_p50_s"] is nothing["requests_per_s"] is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20))))
def test_covered_seconds_are_those_of_the_union(spans: list[tuple[int, int]]) -> None:
    ticks = {t for start, n in spans for t in range(start, start + n)}
    assert math.isclose(covered_s((s, s + n) for s, n in spans), len(ticks))


@pytest.mark.parametrize(("error", "same"), [("HTTP 503: x", "HTTP N: x"), ("1,234.5 of 6", "N of N")])
def test_causes_have_no_numbers(error: str, same: str) -> None:
    assert cause(error) == same
