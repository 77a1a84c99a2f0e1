"""The page of a dataset: its numbers, other people's words as text only, and a look in a browser."""

import re
from pathlib import Path

import pytest

from deescal.dataset.stats import SPLITS, StatsBuilder
from deescal.report.dataset_page import (
    bars,
    bias_rows,
    causes,
    render_dataset_page,
    scenario_steps,
    turn_steps,
    write_dataset_page,
)
from tests.browser import opened
from tests.dataset.test_card import EVIL, make_stats

BUILD = {
    "deescal": "0.1.0",
    "title": "Encounters",
    "started_at": "2026-01-02T03:04:05+00:00",
    "config": {"examples": {"max_tokens": 2048}},
    "models": ["judge@1f2e", "org/model"],
    "versions": {"ray": "2"},
}


def test_page_shows_the_numbers(tmp_path):
    stats = make_stats()
    page = Path(write_dataset_page(stats, BUILD, str(tmp_path))).read_text()
    assert f"60 scenarios became {stats['examples']['total']:,} examples" in page
    assert "2 January 2026" in page
    assert "examples.max_tokens" in page
    assert "1f2e" in page
    assert "do not add up" not in page
    for name in (*SPLITS, "near-duplicate", "no civilian reply follows", "type-token ratio, moving average", "phone"):
        assert name in page
    assert page.count("<svg") == 6


def test_steps_lose_what_is_missing():
    stats = make_stats()
    steps = scenario_steps(stats)
    assert [s["n"] for s in steps] == [92, 60, 54, stats["scenarios"]["with_examples"]]
    assert [s["lost"] for s in steps[:3]] == [0, 32, 6]
    assert all(0 <= s["share"] <= 1 for s in steps)
    assert turn_steps(stats)[-1]["lost"] == 75
    assert next(s["name"] for s in scenario_steps({**stats, "clips": None})) == "Scenarios"


def test_numbers_that_do_not_add_up_are_said():
    stats = make_stats()
    stats["turns"]["total"] += 1
    assert "The numbers do not add up: turns" in render_dataset_page(stats, {})


def test_page_of_little():
    page = render_dataset_page(StatsBuilder("t", 2048).result(), {})
    assert "0 scenarios became 0 examples" in page
    assert "Not measured in this build" in page
    assert "were not judged" in page
    one = render_dataset_page(make_stats(1, bias=False), {})
    assert "1 scenario became" in one


def test_bias_without_a_test_says_why():
    stats = make_stats()
    test = {"p": None, "cliffs_delta": None, "reason": "fewer than two clips in a group"}
    stats["bias"]["tests"]["perplexity"] = test
    del stats["bias"]["groups"]["rejected"]["perplexity"]
    row = next(r for r in bias_rows(stats["bias"]) if r["name"] == "perplexity")
    assert row["groups"]["rejected"] is None
    assert (row["groups"]["accepted"]["at_p10"], row["groups"]["accepted"]["at_p90"]) == (0, 1)
    assert "fewer than two clips in a group" in render_dataset_page(stats, {})


def test_causes_are_bounded_and_conserve():
    shown = causes({f"reason {i}": i for i in range(100)})
    assert len(shown) == 13
    assert sum(n for _, n, _ in shown) == sum(range(100))
    assert causes({}) == causes({"none of it": 0}) == []


def test_bars_name_their_values():
    drawn = bars({"edges": [0, 1, 2, 4], "counts": [3, 0, 6]})
    assert [(b["values"], b["height"]) for b in drawn["bars"]] == [("0", 0.5), ("1", 0.0), ("2 to 3", 1.0)]


def test_words_of_others_stay_text():
    stats = make_stats(source=EVIL, reason=EVIL)
    stats["bias"]["by_source"] = {EVIL: {}}
    stats["redactions"] = {EVIL: 1}
    page = render_dataset_page(stats, {"title": EVIL, "config": {EVIL: EVIL}, "deescal": EVIL, "started_at": EVIL})
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"?https?:", page)


@pytest.mark.browser
def test_page_in_a_browser(tmp_path):
    (tmp_path / "report.html").write_text(render_dataset_page(make_stats(source=EVIL), BUILD))
    with opened(tmp_path / "report.html") as (page, trouble, requests):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 1280, "height": 900})
        assert page.locator(".histogram svg rect").count() > 20
        widths = (
            page.locator("#funnel .funnel")
            .first.locator(".fill:first-child")
            .evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
        )
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] > 0
        page.locator("summary").click()
        assert page.get_by_text("examples.max_tokens").is_visible()
    assert trouble == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
