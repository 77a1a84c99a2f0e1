from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deescal.config import load_config
from deescal.errors import UserError
from deescal.judge.features import group_scores
from deescal.judge.select import SelectConfig, select
from deescal.judge.taxonomy import BY_GROUP, NAMES


def judged(present: set[str]) -> tuple[list[dict], dict[str, int]]:
    features = [{"name": n, "probability": 0.97 if n in present else 0.02, "present": n in present} for n in NAMES]
    return features, group_scores(features)


def verdict(present: set[str], **config: object) -> tuple[str, str]:
    return select(*judged(present), SelectConfig.model_validate(config))


ENCOUNTER = {
    "police_identified_by_role",
    "police_commands_present",
    "conversation_present",
    "verbal_disagreement_detected",
    "empathetic_statements",
}
subsets = st.sets(st.sampled_from(NAMES))
gains = st.sampled_from([n for n in NAMES if n not in BY_GROUP["context"]])


def test_reasons_name_the_rule_and_the_numbers() -> None:
    assert verdict(ENCOUNTER) == ("accepted", "code: police 2 >= 2, interaction 2 >= 2, de-escalation 1 >= 1")
    assert verdict(ENCOUNTER - {"conversation_present"}) == ("rejected", "code: interaction 1 < 2")
    assert verdict(ENCOUNTER | {"advertisement_content_detected"}) == (
        "rejected",
        "code: context filter advertisement_content_detected (p 0.97)",
    )
    assert verdict(ENCOUNTER, rule="paper") == ("rejected", "paper: escalation 0 < 3, de-escalation 1 < 3")
    three = set(BY_GROUP["escalation"][:3])
    assert verdict(ENCOUNTER | three, rule="paper") == ("accepted", "paper: police 2 >= 2, escalation 3 >= 3")
    assert verdict(three, rule="paper") == ("rejected", "paper: police 0 < 2")


@given(subsets, st.sampled_from(BY_GROUP["context"]))
def test_every_context_filter_rejects_under_the_code_rule(present: set[str], name: str) -> None:
    status, reason = verdict(present | {name})
    assert status == "rejected"
    assert "context filter" in reason
    assert f"{name} (p 0.97)" in reason


@given(subsets, st.sampled_from(BY_GROUP["context"]))
def test_the_paper_rule_has_no_context_filters_unless_asked(present: set[str], name: str) -> None:
    assert verdict(present | {name}, rule="paper")[0] == verdict(present - {name}, rule="paper")[0]
    assert verdict(present | {name}, rule="paper", context_filters=[name])[0] == "rejected"


@given(subsets, gains, st.sampled_from(["code", "paper"]))
def test_one_more_feature_outside_context_never_loses_a_clip(present: set[str], more: str, rule: str) -> None:
    if verdict(present, rule=rule)[0] == "accepted":
        assert verdict(present | {more}, rule=rule)[0] == "accepted"


@given(subsets, st.sampled_from(["code", "paper"]))
def test_every_reason_names_its_rule_and_a_number(present: set[str], rule: str) -> None:
    assert re.fullmatch(rf"{rule}: .*\d.*", verdict(present, rule=rule)[1])


def test_filters_are_named_in_one_order_whatever_their_probabilities() -> None:
    def reason(police: float, training: float) -> str:
        found = judged({"no_police_presence", "training_range_context"})
        probabilities = {"no_police_presence": police, "training_range_context": training}
        features = [{**f, "probability": probabilities.get(f["name"], f["probability"])} for f in found[0]]
        config = SelectConfig.model_validate({"context_filters": ["training_range_context", "no_police_presence"]})
        return re.sub(r" \(.*?\)", "", select(features, found[1], config)[1])

    assert reason(0.6, 0.9) == reason(0.9, 0.6) == "code: context filter no_police_presence, training_range_context"


def test_thresholds_are_fields() -> None:
    assert verdict(ENCOUNTER, code_min_police=3) == ("rejected", "code: police 2 < 3")
    assert verdict(ENCOUNTER, rule="paper", paper_min_deescalation=1)[0] == "accepted"


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(UserError, match="'weather' is no context feature"):
        load_config(None, SelectConfig, ["context_filters=[weather]"])
    with pytest.raises(ValidationError):
        SelectConfig.model_validate({"rule": "coin"})
