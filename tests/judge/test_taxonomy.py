from __future__ import annotations

import json
from typing import Any

from deescal.judge import calibration, cues, prompts
from deescal.judge.taxonomy import BY_GROUP, BY_NAME, FEATURES, GROUPS, NAMES, rubric
from tests.judge.transcripts import DRILL, EVERYDAY, NARRATED, STOP


def test_thirty_features_in_five_groups() -> None:
    assert [len(BY_GROUP[g]) for g in GROUPS] == [6, 6, 7, 6, 5]
    assert len(set(NAMES)) == len(FEATURES) == 30


def test_every_feature_has_its_definition_in_the_rubric_and_its_own_question() -> None:
    text = rubric()
    assert all(f.definition in text for f in FEATURES)
    assert len({prompts.ask(f) for f in FEATURES}) == 30
    assert all(f.question.endswith("?") for f in FEATURES)


def test_the_shipped_calibration_fits_taxonomy_prompts_and_inputs() -> None:
    data = json.loads(calibration.PACKAGED.read_text())
    assert list(data["features"]) == list(NAMES)
    assert data["inputs"] == list(calibration.INPUTS)
    assert data["prompt_version"] == prompts.PROMPT_VERSION
    assert data["cues_version"] == cues.VERSION
    for row in data["features"].values():
        assert len(row["weights"]) == len(calibration.INPUTS)
        assert 0 < row["threshold"] < 1


def test_every_feature_has_its_cues_in_order() -> None:
    assert tuple(cues._CUES) == NAMES


def test_cues_count_in_the_mouth_of_their_side_only() -> None:
    order = {"speaker": "A", "role": "officer", "text": "Step out of the car."}
    assert cues.hits("police_commands_present", order) == 1
    assert cues.hits("police_commands_present", {**order, "role": "civilian"}) == 0
    assert cues.hits("police_commands_present", {**order, "text": "Go on."}) == 0
    refusal = {**order, "role": "civilian", "text": "I am not leaving."}
    said = cues.hits("noncompliance_resistance_language", refusal)
    assert said == cues.hits("noncompliance_resistance_language", {**refusal, "text": "I’m not leaving."}) > 0
    assert set(cues.counts([order])) != {0.0}
    assert len(cues.counts([order])) == len(BY_NAME)
    assert len(cues.shape([order])) == len(cues.SHAPE_NAMES)


def test_a_drill_in_words_of_its_own_has_its_cues_and_real_talk_has_none() -> None:
    def occurrences(turns: list[dict[str, Any]]) -> int:
        return sum(cues.hits("training_range_context", {**t, "role": "other"}) for t in turns)

    assert occurrences(DRILL) >= 4
    assert [occurrences(turns) for turns in (STOP, NARRATED, EVERYDAY)] == [0, 0, 0]
