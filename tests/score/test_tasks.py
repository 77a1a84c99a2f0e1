"""What is asked of a row by each task, and what is read from the answer."""

from __future__ import annotations

import json

import pytest

from deescal.dataset.chat import system_prompt
from deescal.judge import deescalation, realism
from deescal.score.tasks import DEESCALATION, FEATURES, PLAUSIBILITY, REALISM, Room, RowError, scene_of

from .conftest import user

ROOM = Room(lambda text: len(text.split()), 4000, 256)
TALK = user("Step out of the car.", "Why?", "You ran a light.", "I did not!")


def test_realism_asks_about_the_reply_and_reads_the_verdict() -> None:
    row = {"messages": TALK[:3], "reference": "No way.", "reply": "I would be delighted to comply, officer."}
    asked = REALISM.ask(row, ROOM)
    assert json.loads(asked["json_schema"]) == realism.SCHEMA
    assert "delighted" in asked["messages"][-1]["content"]
    fault = {name: {"evidence": "", "points": 0} for name in realism.SCHEMA["required"]}
    fault["artificial_language"] = {"evidence": "I would be delighted", "points": 15}
    read = REALISM.read(json.dumps(fault), row, ROOM)
    assert (read["score"], read["band"], read["unread"]) == (85, "real", None)
    assert read["deductions"][0]["criterion"] == "artificial_language"
    assert REALISM.read("{", row, ROOM)["unread"].startswith("not JSON")
    assert set(read) == set(REALISM.columns.names)


def test_the_judge_reads_what_fits() -> None:
    row = {"messages": user(*(f"line {i} " + "word " * 50 for i in range(100)))}
    small = Room(ROOM.count_tokens, 1200, 256)
    asked = DEESCALATION.ask(row, small)
    assert sum(ROOM.count_tokens(m["content"]) for m in asked["messages"]) < small.prompt_tokens
    assert "line 99" in asked["messages"][-1]["content"]
    assert "left out" in asked["messages"][-1]["content"]
    with pytest.raises(RowError, match="no room"):
        DEESCALATION.ask(row, Room(ROOM.count_tokens, 400, 256))


def test_deescalation_reads_an_outcome() -> None:
    row = {"messages": TALK}
    none = {"turns": [], "points": 0}
    answer = {"turns": [3], "outcome": "resolution", "position": 10}
    read = DEESCALATION.read(json.dumps({**answer, **{c.name: none for c in deescalation.CRITERIA}}), row, ROOM)
    assert (read["score"], read["band"], read["evidence_turns"]) == (100, "resolution", (3,))


def test_the_scene_is_found_in_the_system_message() -> None:
    messages = [{"role": "system", "content": system_prompt("A car park.", "Tired.")}, *TALK]
    assert scene_of({"messages": messages}) == ("A car park.", "Tired.")
    assert scene_of({"messages": messages, "context": "A home.", "character": None}) == ("A home.", None)
    assert scene_of({"messages": TALK}) == (None, None)


def test_features_take_turns_as_they_are() -> None:
    asked = FEATURES.ask({"turns": [{"speaker": None, "role": "officer", "text": "Stop."}]}, ROOM)
    assert asked["turns"] == [{"turn_id": 0, "speaker": "?", "role": "officer", "text": "Stop."}]
    for turns in ([], None, [{"text": None}]):
        with pytest.raises(RowError):
            FEATURES.ask({"turns": turns}, ROOM)


def test_plausibility_is_asked_as_a_choice_and_read_from_probabilities() -> None:
    row = {"messages": [{"role": "user", "content": "Stop."}], "reply": "Why?", "reference": "What?"}
    asked = PLAUSIBILITY.ask(row, ROOM)
    assert asked["choices"] == ["Yes", "No"]
    assert "What?" not in asked["messages"][1]["content"], "the judge does not know the real reply"
    assert "<reply>\nWhy?" in asked["messages"][1]["content"]
    with pytest.raises(RowError, match="reply: null"):
        PLAUSIBILITY.ask({**row, "reply": None}, ROOM)
    for answer, score in (
        ("[0, 0]", 50),
        ("[-0.105361, -2.302585]", 90),
        ("[-900, 0]", 0),
        ("Yes", None),
        ("[1]", None),
    ):
        assert PLAUSIBILITY.read(answer, row, ROOM)["score"] == pytest.approx(score, abs=0.01)
