from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import numpy as np
import pytest

from deescal.judge import calibration
from deescal.judge.features import JudgeConfig, judge
from deescal.judge.llm import VllmEngine
from deescal.judge.stage import assign_roles
from deescal.models import identity
from tests.judge.transcripts import NARRATED, STOP


class NoSystemRole:
    """A tokenizer whose template refuses a system role, as Gemma's does."""

    chat_template = ""

    def apply_chat_template(self, chat: list[dict[str, str]], **_: Any) -> str:
        if chat[0]["role"] == "system":
            raise jinja2.TemplateError("System role not supported")
        return f"<user>{chat[0]['content']}<model>"


def test_a_model_without_a_system_role_gets_it_with_the_users_text() -> None:
    engine = object.__new__(VllmEngine)
    engine._tokenizer = NoSystemRole()
    assert engine.render("Be brief.", "Hello") == "<user>Be brief.\n\nHello<model>"


@pytest.mark.engine
def test_choices_are_exact_however_unlikely(judge_engine: VllmEngine) -> None:
    prompt = judge_engine.render("Answer with one word.", "Is fire hot? Answer yes or no.")
    (three,) = np.exp(judge_engine.choose([prompt], ["yes", "no", "xylophone"]))
    assert three[0] > three[1] > 0
    assert 0 < three[2] < 1e-3
    assert three.sum() <= 1 + 1e-6
    with pytest.raises(ValueError, match="share a first token"):
        judge_engine.choose([prompt], ["yes", "Yes"])


@pytest.mark.engine
def test_generated_text_has_the_form_asked_for(judge_engine: VllmEngine) -> None:
    prompt = judge_engine.render("", "Name a color and a number.")
    assert re.fullmatch(r"\d{2}", judge_engine.generate([prompt], max_tokens=8, regex=r"\d{2}")[0])
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert set(json.loads(judge_engine.generate([prompt], max_tokens=30, json_schema=schema)[0])) == {"ok"}


@pytest.mark.engine
def test_the_local_judge_tells_a_stop_from_a_narration(judge_engine: VllmEngine) -> None:
    loaded = calibration.load(identity("qwen2.5-coder-1.5b"))
    assert loaded.fitted
    clips = []
    for turns, roles in ((STOP, ["officer", "civilian"]), (NARRATED, ["narrator"])):
        columns = assign_roles(turns, judge_engine, 1500)
        assert [s["role"] for s in columns["speakers"]] == roles
        clips.append(columns["turns"])
    (stop, scores), (narrated, no_scores) = judge(clips, judge_engine, JudgeConfig(), loaded)
    assert scores["police_presence"] >= 3
    assert scores["context"] == 0
    assert no_scores["police_presence"] <= 1
    assert no_scores["context"] >= 2
    assert all(f["present"] == bool(f["evidence"]) for f in stop)
    assert {i for f in narrated for i in f["evidence"]} <= {0, 1, 2}
