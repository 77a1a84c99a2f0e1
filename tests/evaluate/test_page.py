"""The page of an evaluation: its numbers are those of the tables, other people's words are text, and a look."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from deescal.evaluate.calibration import Calibration
from deescal.evaluate.metrics import MetricsConfig
from deescal.evaluate.preferences import PREFERENCES, choices_table
from deescal.evaluate.published import PUBLISHED, published_of
from deescal.evaluate.significance import SIGNIFICANCE, means_table
from deescal.evaluate.summary import SUMMARY_TABLE, arrow, csv_text, seconds_a_turn, summary_table
from deescal.evaluate.terminal import paper_table
from deescal.report import judge_findings
from deescal.report.evaluate_findings import (
    choose_examples,
    comparison_text,
    example_cards,
    interval_text,
    p_text,
    paper_lines,
    read_csv,
    verdict,
)
from deescal.report.evaluate_page import render_evaluate_page
from deescal.schema import Row, to_table
from deescal.storage import write_bytes
from tests.browser import opened

from .made_up import OFFICER, MadeUp, make

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>$\\frac{$"
HUMANS = {
    "rated": {"items": 6, "twice": 6, "ratings": 24},
    "raters": {"r1": {"counted": True}, "r2": {"counted": False}},
    "means": {"realism": {"smollm2-135m": {"mean": 3.25, "low": 2.5, "high": 4.0, "n_items": 12}}},
    "agreement": {
        "realism": {
            "alpha": {"value": 0.613, "reason": ""},
            "kappa": {"value": None, "reason": "all ratings are the same"},
            "observed": {"value": 0.75, "reason": ""},
        }
    },
}


@pytest.fixture(scope="module")
def made() -> MadeUp:
    return make()


@pytest.fixture(scope="module")
def page(made: MadeUp) -> str:
    return render(made, humans=[HUMANS])


def render(made: MadeUp, **more: Any) -> str:
    return render_evaluate_page(made.run, made.turns, made.summary, made.tests, judged=made.judged, **more)


def rows_of(page: str) -> list[str]:
    """Table rows as a reader sees them."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in rows]


def test_the_papers_table_has_our_numbers_beside_the_published(made: MadeUp, page: str) -> None:
    rows = rows_of(page)
    base, tuned = (
        next(r for r in made.summary if r["model"] == name)
        for name in ("Qwen2.5-3B-Instruct", "Qwen2.5-3B-Instruct:tuned")
    )
    line = next(row for row in rows if row.startswith("Qwen2.5-3B-Instruct → tuned "))
    for name in ("rouge_l", "bleu_4", "meteor"):
        assert f"{base[name]:.2f} → {tuned[name]:.2f}" in line
        assert f"{tuned[f'{name}_low']:.2f} to {tuned[f'{name}_high']:.2f}" in line
    beside = rows[rows.index(line) + 1]
    assert beside.startswith("Qwen2.5-3B-Instruct, as published 11.2 → 15.8 0.9 → 3.8 15.7 → 19.5")
    assert (
        sum(row.startswith("some-large-model ") and not {"realism", "plausibility"} & set(row.split()) for row in rows)
        == 1
    )
    assert sum(", as published" in row for row in rows) == 1


def test_conversations_are_shown_whole_and_without_overlap_scores() -> None:
    made = make(n_scenarios=3, n_turns=3, protocols=("interactive", "teacher_forced"), judged=False)
    found = render(made)
    start = found.index('id="interactive"')
    section = found[start : found.index("</section>", start)]
    assert "Conversations" in section
    assert "ROUGE-L, BLEU-4 and METEOR are" not in section
    table = next(row for row in rows_of(section) if row.startswith("Base"))
    assert "ROUGE-L" not in table
    for text in (OFFICER[0], OFFICER[2], "Really said"):
        assert (text in section) == (text != "Really said")
    assert "ROUGE-L" in found


def test_choices_of_the_judge_and_its_worth_are_tables(made: MadeUp) -> None:
    row: Row = dict.fromkeys(PREFERENCES.names)
    row |= {"a": "x", "b": "y", "seed": 0, "agreed": True}
    chosen = [{**row, "item_id": f"i{n}", "scenario_id": f"i{n}", "winner": "a" if n else "b"} for n in range(9)]
    chosen.append({**row, "item_id": "i9", "scenario_id": "i9", "winner": "tie", "same_words": True})
    worth = [
        Calibration("p", "teacher_forced", "realism", "plausibility", 40, 9, 0.613, math.nan),
        Calibration("q", "rollout", "more_real", "pairwise", 2, 1, math.nan, 1.0, "all decisions are the same"),
    ]
    rows = rows_of(render(made, choices=choices_table(chosen).to_pylist(), calibration=worth))
    line = next(row for row in rows if row.startswith("x against y "))
    assert line.startswith("x against y 8, 1, 1 1 85.0")
    assert line.endswith("9 of 9 0 0 0")
    assert "its plausibility ranks replies as people do (Spearman&#39;s rho) teacher forced 0.61 – 40 9" in rows
    assert "it prefers the same of two (Cohen&#39;s kappa) rollout none: all decisions are the same 100 % 2 1" in rows


def test_rollouts_are_not_beside_published_numbers() -> None:
    made = make(n_scenarios=2, n_turns=2, protocols=("rollout",), judged=False)
    assert "as published" not in render(made).lower()


def test_means_are_those_of_the_intervals(made: MadeUp) -> None:
    rows = made.turns.to_pylist()
    # A second draw of the first item alone weighs no more than the first did.
    first = next(r for r in rows if r["model"] == "smollm2-135m")
    turns = to_table([*rows, {**first, "seed": 1, "rouge_l": 1.0}], made.turns.schema)
    means = means_table(turns, ["rouge_l"], n_resamples=100)
    (row,) = [r for r in summary_table(turns, means, MetricsConfig()).to_pylist() if r["model"] == "smollm2-135m"]
    of = [r["rouge_l"] for r in rows if r["model"] == "smollm2-135m"]
    assert row["rouge_l"] == pytest.approx(100 * (sum(of) + (1 - first["rouge_l"]) / 2) / len(of))
    assert row["rouge_l_low"] < row["rouge_l"] < row["rouge_l_high"]


def test_the_significance_table_has_every_comparison(made: MadeUp, page: str) -> None:
    rows = rows_of(page)
    for test in made.tests:
        of_pair = rows[rows.index(f"{test['a']} less {test['b']}") + 1 :]
        line = next(row for row in of_pair if row.startswith(named(test)))
        assert f"{100 * test['difference']:+.2f}".replace("-", "−") in line
        for name in ("randomization", "wilcoxon", "t"):
            found = [p_text(test[f"p_{name}{how}"]).replace("<", "&lt;") for how in ("", "_holm", "_bonferroni")]
            assert "{} Holm {} Bonferroni {}".format(*found) in line
        without = f"{test['n_dropped']} without " if test["n_dropped"] else ""
        assert line.endswith(f"{test['n_items']} {without}{test['n_clusters']}")
    assert page.count("as in the table below") == 3


def named(test: Row) -> str:
    return {"rouge_l": "ROUGE-L", "bleu_4": "BLEU-4", "meteor": "METEOR"}[test["metric"]]


def test_errors_judge_people_and_what_was_run_are_there(made: MadeUp, page: str) -> None:
    n_errors = sum(row["n_errors"] for row in made.summary)
    assert n_errors > 0
    assert f"{n_errors} request" in page
    assert "HTTP N: rate limit, try again in N s" in page
    rows = rows_of(page)
    judged = [row for row in rows if " realism teacher forced " in row]
    assert judged[0].startswith("the real replies ")
    assert len(judged) == 6
    assert "realism smollm2-135m 3.25 [2.50, 4.00] 12" in rows
    assert "realism 0.61 none: all ratings are the same 0.75" in rows
    assert "attention checks failed: r2" in page
    for found in (
        "0123456789ab",
        "generate.sampling.temperature",
        "s3://bucket/tuned",
        "2 January 2026",
        "135m@0123456789ab",
    ):
        assert found in page


def test_examples_are_the_extremes_of_what_changed(made: MadeUp, page: str) -> None:
    a, b = made.run["pairs"][0]
    best, worst = choose_examples(made.turns, "rouge_l", (a, b), 4)
    scores = {(r["item_id"], r["model"]): r["rouge_l"] for r in made.turns.to_pylist()}
    changes = sorted(scores[i, a] - scores[i, b] for i, m in scores if m == a)
    assert [scores[i, a] - scores[i, b] for i in best] == changes[::-1][:4]
    assert [scores[i, a] - scores[i, b] for i in worst] == changes[:4]
    assert all(f"<h4>{item}</h4>" in page for item in best + worst)
    (card,) = example_cards(made.turns, best[:1], ["rouge_l"])
    assert len(card["replies"]) == 5
    few, rest = choose_examples(made.turns.slice(0, 2), "rouge_l", None, 4)
    assert len(few) == 1
    assert rest == []


def test_failed_contestants_and_few_scenarios_are_said() -> None:
    made = make(n_scenarios=1, n_turns=2, judged=False)
    made.run["failed"] = {"gone": "no such model"}
    text = render(made)
    assert "gone is out:" in text
    assert "not tested: one cluster only" in text
    assert "What the judge says" not in text
    assert "nan" not in " ".join(rows_of(text)).replace("nantly", "")


def hostile() -> str:
    made = make(n_scenarios=2, n_turns=2)
    rows = made.turns.to_pylist()
    for row in rows:
        row["messages"] = [{"role": EVIL, "content": EVIL}]
        row["reference"], row["item_id"] = EVIL, row["item_id"] + EVIL
        row["reply"], row["error"] = (EVIL, None) if row["reply"] else (None, EVIL)
    run = {**made.run, "failed": {"x": EVIL}, "errors": {"x": {EVIL: 1}}, "data": EVIL, "signatures": {EVIL: EVIL}}
    turns = to_table(rows, made.turns.schema)
    return render_evaluate_page(run, turns, made.summary, made.tests, judged=made.judged, humans=[HUMANS])


def test_words_of_others_stay_text() -> None:
    text = hostile()
    assert "alert(1)" in text
    assert "<script" not in text
    assert "<img" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=\"?https?:", text)


@pytest.mark.browser
def test_page_in_a_browser(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(hostile())
    with opened(tmp_path / "report.html") as (page, trouble, requests):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".answers .real .said").first.inner_text() == EVIL
        page.set_viewport_size({"width": 1280, "height": 900})
        page.locator("#made summary").click()
        assert page.get_by_text("generate.sampling.temperature").is_visible()
    assert trouble == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_tables_come_back_from_csv_as_they_were(made: MadeUp, tmp_path: Path) -> None:
    for rows, schema in ((made.summary, SUMMARY_TABLE), (made.tests, SIGNIFICANCE)):
        write_bytes(str(tmp_path / "t.csv"), csv_text(to_table(rows, schema)))
        back = read_csv(str(tmp_path / "t.csv"), schema)
        for row, again in zip(rows, back, strict=True):
            for name, value in row.items():
                same = again[name] == value or (isinstance(value, float) and math.isclose(value, again[name]))
                assert same or (value != value and again[name] != again[name]), name


def test_the_terminals_table_is_the_papers(made: MadeUp) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(paper_table("teacher_forced", made.summary, made.run["pairs"]))
    text = console.export_text()
    base, tuned = (next(r for r in made.summary if r["model"] == m) for m in ("smollm2-135m", "smollm2-135m:tuned"))
    assert f"{base['rouge_l']:.2f} -> {tuned['rouge_l']:.2f}" in text
    assert "teacher forced: 72 replies of 12 scenarios" in text


def test_words_for_numbers() -> None:
    assert (arrow(1.0, 2.0, 1), arrow(1.0, None, 1), arrow(None, 2.0, 1)) == ("1.0 -> 2.0", "1.0", "- -> 2.0")
    assert interval_text(-1.0, -2.0, 0.5, 1, sign=True) == "−1.0 [−2.0, +0.5]"
    assert interval_text(1.0, math.nan, math.nan, 1) == "1.0"
    assert (p_text(0.0004), p_text(0.0123), p_text(math.nan)) == ("< 0.001", "0.012", "–")
    nothing = {"metric": "rouge_l", "difference": math.nan, "reason": "no item has a score of both"}
    assert comparison_text(nothing) == "not compared: no item has a score of both"
    better = {"metric": "rouge_l", "difference": 0.1, "p_randomization_holm": 0.01, "reason": ""}
    none = {"metric": "meteor", "difference": -0.1, "p_randomization_holm": 0.4, "reason": ""}
    assert verdict([better, none]) == "better on ROUGE-L; no difference shown on 1 of 2 metrics"


def test_published_numbers_are_found_by_any_name_of_a_model() -> None:
    for name in ("Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct", "/models/qwen2.5-3b-instruct/"):
        assert published_of(name) is PUBLISHED[0]
    assert published_of("google/gemma-2-2b-it") is PUBLISHED[2]
    assert published_of("Qwen2.5-3B") is None
    (line,) = paper_lines([{**dict.fromkeys(SUMMARY_TABLE.names), "model": "x", "n_errors": 0}], [], ["rouge_l"], {})
    assert line["cells"]["rouge_l"][0] == "-"


def test_seconds_a_turn_count_overlapping_waits_once() -> None:
    times = {"asked_at_s": [0.0, 1.0, 10.0, 20.0], "latency_s": [2.0, 2.0, 1.0, 5.0]}
    turns = pa.table({**times, "reply": ["a", "b", "c", None]})
    assert seconds_a_turn(turns) == pytest.approx(4 / 3)
    assert seconds_a_turn(turns.slice(3)) is None


def test_several_samples_of_the_judge_say_how_far_it_agrees_with_itself() -> None:
    rows = [
        {"rubric": "realism", "protocol": "rollout", "scores": [40.0 * n, 40.0 * n, None if n else 0.0]}
        for n in range(3)
    ]
    once = [{"rubric": "plausibility", "protocol": "rollout", "scores": [1.0]}]
    assert judge_findings.repeat_rows([*rows, *once]) == [
        {"rubric": "realism", "protocol": "rollout", "n": 3, "alpha": "1.00", "kappa": "1.00"}
    ]
    assert judge_findings.bands_text([90.0, 60.0, 60.0, 10.0, math.nan]) == "25, 50, 25 %"
    assert judge_findings.bands_text([math.nan]) == "–"
