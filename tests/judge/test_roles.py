from __future__ import annotations

import pytest

from deescal.judge.roles import ROLES, assign, combine, letters_of, role_of_label, rule_prior
from tests.judge.fake_llm import FakeLlm
from tests.judge.transcripts import EVERYDAY, NARRATED, STOP, turns


def best(prior: dict[str, float]) -> str:
    return max(prior, key=prior.__getitem__)


@pytest.mark.parametrize(
    ("label", "role"),
    [
        ("[Police Officer]", "officer"),
        ("Deputy Hale", "officer"),
        ("[Police dispatcher]", "dispatcher"),
        ("[911 operator]", "dispatcher"),
        ("[Narrator]", "narrator"),
        ("[Person being arrested by police]", "civilian"),
        ("[Concerned driver who called 911]", "civilian"),
        ("[Bystander]", "bystander"),
        ("Paramedic", "other"),
        ("A", None),
        ("[Voice 2]", None),
        ("Mary Miller", None),
    ],
)
def test_labels_that_tell_a_role(label: str, role: str | None) -> None:
    assert role_of_label(label) == role


def test_what_is_said_gives_roles_away() -> None:
    prior = rule_prior(STOP)
    assert [best(prior[s]) for s in "AB"] == ["officer", "civilian"]
    assert best(rule_prior(NARRATED)["A"]) == "narrator"
    call = turns("A: 911, what is your emergency?", "B: Someone is in my house. My kids are here.")
    assert best(rule_prior(call)["A"]) == "dispatcher"
    assert all(sum(p.values()) == pytest.approx(1) and set(p) == set(ROLES) for p in prior.values())


def test_small_talk_leaves_it_open() -> None:
    assert max(rule_prior(EVERYDAY)["B"].values()) < 0.7


def test_the_model_moves_an_open_prior_but_not_a_clear_one() -> None:
    narrator = [-9.0, -9.0, -9.0, -9.0, -0.1, -9.0]
    assert best(combine(rule_prior(EVERYDAY)["A"], narrator, weight=1.0)) == "narrator"
    assert best(combine(rule_prior(STOP)["A"], narrator)) == "officer"
    silent = combine(rule_prior(STOP)["A"], [float("-inf")] * 5 + [-1.0])
    assert sum(silent.values()) == pytest.approx(1)


def test_every_speaker_gets_a_role_and_a_confidence_and_labels_are_not_asked_about() -> None:
    engine = FakeLlm()
    labelled = [{**t, "speaker": {"A": "[Police Officer]", "B": "B"}[t["speaker"]]} for t in STOP]
    found = assign(labelled, engine, max_tokens=1000)
    assert {s: role for s, (role, _) in found.items()} == {"[Police Officer]": "officer", "B": "civilian"}
    assert all(0 < confidence <= 1 for _, confidence in found.values())
    assert len(engine.asked) == 1


def test_a_long_transcript_is_cut_for_the_question() -> None:
    engine = FakeLlm()
    assign(STOP * 50, engine, max_tokens=40)
    assert all(engine.count_tokens(p.split("</system>")[1]) < 80 for p in engine.asked)


def test_letters_go_on_after_z() -> None:
    many = [{"speaker": f"speaker {i}", "text": ""} for i in range(28)]
    assert list(letters_of(many).values())[-3:] == ["Z", "AA", "AB"]
