from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.config import load_config
from deescal.errors import UserError
from deescal.judge import calibration
from deescal.judge.features import ABSENCES, JudgeConfig, judge, merge
from deescal.judge.select import SelectConfig, select
from deescal.judge.stage import assign_roles
from deescal.judge.taxonomy import NAMES
from deescal.judge.windows import LINE_OVERHEAD, windows
from tests.judge.fake_llm import FakeLlm
from tests.judge.transcripts import EVERYDAY, NARRATED, STOP, turns


def with_roles(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return assign_roles(turns, FakeLlm(), 1000)["turns"]


def words(text: str) -> int:
    return len(text.split())


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(LINE_OVERHEAD + 2, 120),
    st.integers(0, 6),
)
@settings(max_examples=200)
def test_windows_cover_every_word_in_order_within_the_budget(lengths: list[int], budget: int, overlap: int) -> None:
    turns = [{"turn_id": i, "text": " ".join(f"w{i}_{k}" for k in range(n))} for i, n in enumerate(lengths)]
    found = windows(turns, budget, overlap, words)
    assert all(sum(words(t["text"]) + LINE_OVERHEAD for t in part) <= budget for part in found)
    seen = dict.fromkeys(w for part in found for t in part for w in t["text"].split())
    assert list(seen) == [w for t in turns for w in t["text"].split()]
    assert all(part[-1] is not found[-1][-1] for part in found[:-1]), "a window brings nothing new"


def test_neighbouring_windows_share_turns() -> None:
    turns = [{"turn_id": i, "text": "one two"} for i in range(10)]
    parts = windows(turns, 4 * (2 + LINE_OVERHEAD), 2, words)
    assert [[t["turn_id"] for t in p] for p in parts] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]


def test_text_without_spaces_is_cut_too_and_no_room_is_an_error() -> None:
    parts = windows([{"turn_id": 0, "text": "字" * 500}], 50, 0, len)
    assert sum(len(t["text"]) for part in parts for t in part) == 500
    assert all(len(t["text"]) + LINE_OVERHEAD <= 50 for part in parts for t in part)
    with pytest.raises(ValueError, match="no room"):
        windows([{"turn_id": 0, "text": "xyz"}], 5, 0, len)


def test_a_turn_of_ten_thousand_words_is_judged_with_evidence() -> None:
    speech = turns("A: " + "and then he went on " * 2000, "B: Deal.", "A: So it went.")
    engine = FakeLlm(max_tokens=1800)
    ((features, _),) = judge([with_roles(speech)], engine, JudgeConfig(window_tokens=1000), everything_present())
    asked_about_lines = [p for p in engine.asked if "Line of a transcript" in p]
    assert asked_about_lines
    assert all(set(f["evidence"]) <= {0, 1, 2} for f in features)


def everything_present() -> calibration.Calibration:
    return replace(calibration.uncalibrated(), thresholds=np.zeros(len(NAMES)))


def test_a_feature_is_the_maximum_over_windows_but_an_absence_the_minimum() -> None:
    table = np.tile([[0.9], [0.2]], len(NAMES))
    merged = dict(zip(NAMES, merge(table), strict=True))
    assert {n for n, p in merged.items() if p == 0.2} == set(ABSENCES)


def test_an_encounter_a_narration_and_a_chat() -> None:
    clips = [with_roles(t) for t in (STOP, NARRATED, EVERYDAY)]
    stop, narrated, everyday = judge(clips, FakeLlm(), JudgeConfig(), calibration.uncalibrated())
    shown = {f["name"] for f in stop[0] if f["present"]}
    assert {"id_request_event", "police_warning_language", "empathetic_statements", "agreement_reached"} <= shown
    assert stop[1]["police_presence"] >= 5
    assert stop[1]["context"] == 0
    ad = next(f for f in narrated[0] if f["name"] == "advertisement_content_detected")
    assert ad["present"]
    assert ad["evidence"] == [1]
    assert narrated[1]["context"] == 4
    assert [f["name"] for f in everyday[0]] == list(NAMES)
    assert select(*everyday, SelectConfig())[0] == "rejected"


@pytest.mark.parametrize("window_tokens", [1500, 60])
def test_evidence_names_existing_turns_of_what_is_present_only(window_tokens: int) -> None:
    turns = [{**t, "turn_id": t["turn_id"] + 100} for t in with_roles(STOP)]
    config = JudgeConfig(window_tokens=window_tokens, max_evidence=2)
    ((features, scores),) = judge([turns], FakeLlm(), config, calibration.uncalibrated())
    ids = {t["turn_id"] for t in turns}
    for feature in features:
        assert set(feature["evidence"]) <= ids
        assert feature["evidence"] == sorted(set(feature["evidence"]))
        assert len(feature["evidence"]) <= 2
        if not feature["present"]:
            assert feature["evidence"] == []
        elif feature["name"] not in ("no_police_presence", "no_conversation_detected"):
            assert feature["evidence"]
    assert sum(scores.values()) == sum(f["present"] for f in features)


def test_thirty_questions_share_their_beginning() -> None:
    engine = FakeLlm()
    judge([with_roles(EVERYDAY)], engine, JudgeConfig(), calibration.uncalibrated())
    asked = engine.asked[:30]
    shared = next(i for i, c in enumerate(asked[0]) if any(p[i] != c for p in asked))
    assert shared / max(len(p) for p in asked) > 0.9


def test_an_uncalibrated_judge_has_to_be_asked_for() -> None:
    with pytest.raises(UserError, match=r"the judge is some/other-7b\); fit one with `bench/judge.py calibrate`"):
        calibration.load("some/other-7b")
    loaded = calibration.load("some/other-7b", "none")
    assert not loaded.fitted
    assert set(loaded.thresholds) == {0.5}
    answers = np.linspace(-2, 2, len(NAMES))
    assert loaded.probabilities(answers, with_roles(STOP)) == pytest.approx(1 / (1 + np.exp(-answers)))


def test_thresholds_and_calibrations_that_do_not_fit_are_the_users_mistake(tmp_path: Any) -> None:
    loaded = calibration.load("x", "none", {"agreement_reached": 0.9})
    assert loaded.thresholds[NAMES.index("agreement_reached")] == 0.9
    with pytest.raises(UserError, match="unknown feature 'agreement'"):
        calibration.load("x", "none", {"agreement": 0.9})
    with pytest.raises(UserError, match="less than or equal to 1"):
        load_config(None, JudgeConfig, ["thresholds.agreement_reached=90"])
    with pytest.raises(UserError, match="No such file"):
        calibration.load("x", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="was fitted for"):
        calibration.load("x", str(calibration.PACKAGED))
