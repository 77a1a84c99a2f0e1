"""The judge's choice between two replies, in both orders; and what it is worth beside people's ratings."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from deescal.config import fingerprint
from deescal.evaluate.calibration import calibrate
from deescal.evaluate.config import JudgingConfig
from deescal.evaluate.humans.ratings import RATINGS
from deescal.evaluate.judging import JUDGED
from deescal.evaluate.preferences import (
    PREFERENCES,
    TO_COMPARE,
    choices_table,
    is_same,
    read_preferences,
    rows_to_compare,
)
from deescal.evaluate.ratings_of_run import read_calibration, read_outcomes
from deescal.schema import Row, to_table
from deescal.storage import write_json, write_table

from .test_protocols import turn, turns_table


def test_each_pair_is_asked_in_both_orders_about_lines_that_all_answered() -> None:
    rows = [turn(f"s{s}-0-{i}", m, f"{m} {i}") for s in range(2) for i in range(2) for m in "abc"]
    rows[0] = {**rows[0], "reply": None}  # s0-0-0 of a
    rows[3] = {**rows[3], "reply": "the same"}  # s0-0-1, a and b
    rows[4] = {**rows[4], "reply": "the  same "}
    rows += [turn("s0-0-1", m, "x", protocol="rollout") for m in "abc"]
    found = rows_to_compare(turns_table(rows), [("a", "b"), ("c", "a")], JudgingConfig(model="j", n_items=9))
    asked = {(r["item_id"], r["a"], r["b"], r["a_first"], r["first"], r["second"]) for r in found}
    assert len(asked) == len(found) == 2 * (3 + 3)
    assert ("s1-0-0", "c", "a", True, "c 0", "a 0") in asked
    assert ("s1-0-0", "c", "a", False, "a 0", "c 0") in asked
    assert not any(r["item_id"] == "s0-0-0" for r in found)
    assert {(r["item_id"], r["b"]) for r in found if is_same(r)} == {("s0-0-1", "b")}
    to_table(found, TO_COMPARE)


def choices(rows: list[Row]) -> list[Row]:
    return choices_table(rows).to_pylist()


def answers(item: str, forward: str | None, swapped: str | None, **more: object) -> list[Row]:
    key = {"item_id": item, "scenario_id": item, "incident_id": None, "a": "a", "b": "b", "seed": 0, "sample": 0}
    return [
        {**key, **more, "a_first": a_first, "better": better, "because": "x", "error": None}
        | {"unread": None if better else "not JSON"}
        for a_first, better in ((True, forward), (False, swapped))
    ]


def test_a_winner_wins_in_both_orders() -> None:
    scores = [
        *answers("i", "first", "second"),
        *answers("j", "first", "first"),
        *answers("k", "second", "first"),
        *answers("l", "first", None),
        *answers("i", "tie", "tie", sample=1),
    ]
    scores[6] = {**scores[6], "error": "HTTP 500", "better": None}
    table = read_preferences(pa.Table.from_pylist(scores))
    assert table.schema.equals(PREFERENCES)
    rows = table.to_pylist()
    assert [(r["item_id"], r["judge_sample"], r["winner"], r["order_bias"]) for r in rows] == [
        ("i", 0, "a", None),
        ("j", 0, "tie", "first"),
        ("k", 0, "b", None),
        ("l", 0, None, None),
        ("i", 1, "tie", None),
    ]
    assert rows[3]["error"] == "HTTP 500"
    (found,) = choices(rows)
    assert [found[n] for n in ("n", "wins", "ties", "losses", "unread", "agreed", "first", "second")] == [
        *(5, 1, 2, 1, 1, 3, 1, 0)
    ]
    assert found["win_rate"] == pytest.approx((0.75 + 0.5 + 0) / 3)


def preference(item: str, winner: str | None, a: str = "a", b: str = "b") -> Row:
    row: Row = dict.fromkeys(PREFERENCES.names)
    return row | {"item_id": item, "scenario_id": item, "a": a, "b": b, "seed": 0, "winner": winner}


def test_who_wins_nearly_always_wins_significantly_and_a_coin_does_not() -> None:
    rng = random.Random(3)
    rows = [preference(f"i{i}", "a" if i % 8 else "b") for i in range(40)]
    rows += [preference(f"i{i}", rng.choice(["a", "b", "tie"]), b="c") for i in range(40)]
    better, coin = choices(rows)
    assert better["win_rate"] == 35 / 40
    assert better["low"] < 35 / 40 < better["high"] < 1
    assert better["p"] <= better["p_holm"] < 0.001
    assert coin["p_holm"] > 0.05
    (none,) = choices([preference("i", None)])
    assert math.isnan(none["win_rate"])
    assert none["reason"]


def rating(item: str, value: float, model: str = "a", **more: object) -> Row:
    row = {"item_id": item, "protocol": "teacher_forced", "model": model, "seed": 0, "value": value, "counted": True}
    row |= {"question": "realism", "model_b": None, "seed_b": None, "pack_id": "p", "scenario_id": item}
    return {**row, "incident_id": None, **more}


def judged(item: str, score: float | None, model: str = "a") -> Row:
    return {
        "rubric": "realism",
        "protocol": "teacher_forced",
        "item_id": item,
        "contestant": model,
        "seed": 0,
        "score": score,
    }


def test_a_judge_is_ranked_against_the_mean_of_the_people() -> None:
    people = [1, 2, 2, 4, 5, 3]
    scores = [10, 30, 20, 80, 70, 50]
    ratings = [rating(f"i{n}", value + d) for n, value in enumerate(people) for d in (-0.5, 0.5)]
    ratings += [rating("i0", 5, counted=False), rating("i9", 5)]  # inattentive; not judged
    rows = [judged(f"i{n}", score) for n, score in enumerate(scores)] + [judged("i8", 3.0), judged("i9", None)]
    (found,) = calibrate(rows, [], ratings)
    assert (found.pack_id, found.protocol, found.question) == ("p", "teacher_forced", "realism")
    assert (found.n, found.n_incidents) == (6, 6)
    assert found.value == pytest.approx(spearmanr(people, scores).statistic)
    likelier = [{**judged(f"i{n}", -score), "rubric": "plausibility"} for n, score in enumerate(scores)]
    both = calibrate([*rows, *likelier], [], ratings)
    assert [(of.rubric, of.value) for of in both] == [("plausibility", -found.value), ("realism", found.value)]


@pytest.mark.parametrize(
    ("scores", "values", "reason"),
    [([1, 2], [1, 2], "2 replies have both"), ([1, 1, 1], [1, 2, 3], "the judge"), ([1, 2, 3], [4, 4, 4], "people")],
)
def test_too_few_and_ties_have_no_coefficient_but_a_reason(scores: list, values: list, reason: str) -> None:
    rows = [judged(f"i{n}", score) for n, score in enumerate(scores)]
    (found,) = calibrate(rows, [], [rating(f"i{n}", value) for n, value in enumerate(values)])
    assert math.isnan(found.value)
    assert reason in found.reason


def test_choices_of_judge_and_people_are_compared_whoever_stands_first() -> None:
    def chosen(item: str, value: float) -> Row:
        return rating(item, value, question="more_real", model_b="b", seed_b=0)

    ratings = [chosen("i0", 1), chosen("i0", 1), chosen("i1", 0), chosen("i2", 0.5), chosen("i3", 1), chosen("i9", 1)]
    choices = [("i0", "b", "b", "a"), ("i1", "b", "a", "b"), ("i2", "tie", "a", "b"), ("i3", "a", "b", "a")]
    found = calibrate([], [preference(item, winner, a, b) for item, winner, a, b in choices], ratings)
    # i0: b against a, b wins: a. i1: b wins. i2: tie. i3: of b against a the first wins: b, people say a.
    (of,) = found
    assert (of.question, of.n, of.agreed) == ("more_real", 4, 0.75)
    assert of.value == pytest.approx((0.75 - 5 / 16) / (1 - 5 / 16))
    assert calibrate([], [], []) == []


def test_packs_are_not_pooled() -> None:
    rows = [judged(f"i{n}", n) for n in range(6)]
    ratings = [rating(f"i{n}", n) for n in range(6)] + [rating(f"i{n}", -n, pack_id="q") for n in range(4)]
    assert [(of.pack_id, of.n, of.value) for of in calibrate(rows, [], ratings)] == [
        ("p", 6, pytest.approx(1)),
        ("q", 4, pytest.approx(-1)),
    ]


def test_ratings_of_replies_that_were_replaced_since_are_left_out(tmp_path: Path) -> None:
    """As by another adapter under the same label."""
    rows = [turn(f"s-0-{n}", "a", f"reply {n}") for n in range(4)]
    run = str(tmp_path)
    write_table(f"{run}/turns.parquet", turns_table(rows))
    kept = {name: rows[0][name] for name in ("scenario_id", "incident_id")}
    counts = {"n_read": 1, "n_unread": 0, "unsupported": 0, "scores": [1.0], "error": None}
    scores = [{**judged(r["item_id"], n), **kept, **counts} for n, r in enumerate(rows)]
    write_table(f"{run}/judged.parquet", to_table(scores, JUDGED))
    people = [
        rating(r["item_id"], n, rater="r1", rated_id=str(n), choice=str(n + 1), words_b=None)
        | {"words": fingerprint(r["reply"])}
        for n, r in enumerate(rows)
    ]
    people[3]["words"] = fingerprint("what another adapter said")
    write_table(f"{run}/humans/p/ratings.parquet", to_table(people, RATINGS))
    for model, n in (("j", 3), (None, 0)):
        write_json(f"{run}/config.json", {"judge": {"model": model, "pairwise": False}})
        assert [of.n for of in read_calibration(run)] == [n] * bool(n)
    write_json(f"{run}/humans/p/outcome.json", {"pack": {}, "raters": {}, "rated": {"ratings": 4}})
    (found,) = read_outcomes(run)
    assert (found["replaced"], found["rated"]["ratings"]) == (1, 3)
    assert found["means"]["realism"]["a"]["mean"] == 1.0
