from __future__ import annotations

import pytest

from deescal.judge.roles import ANSWER_BIAS, ROLES, assign, combine, role_of_label, rule_prior
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


def log_probabilities(role: str) -> list[float]:
    """A model that is sure of a role."""
    return [-0.1 if r == role else -9.0 for r in ROLES]


def test_each_speaker_gets_the_answer_to_the_question_about_it() -> None:
    engine = FakeLlm(roles={"A": log_probabilities("dispatcher"), "B": log_probabilities("civilian")})
    found = assign(EVERYDAY, engine, max_tokens=1000)
    assert {s: role for s, (role, _) in found.items()} == {"A": "dispatcher", "B": "civilian"}


def test_what_a_model_answers_on_average_tells_nothing() -> None:
    (model, usual), *_ = ANSWER_BIAS.items()
    engine = FakeLlm(roles={"A": usual, "B": usual})
    prior = {s: (best(p), pytest.approx(max(p.values()))) for s, p in rule_prior(EVERYDAY).items()}
    assert assign(EVERYDAY, engine, 1000, model) == prior
    assert assign(EVERYDAY, engine, 1000, "another") != prior
    for_once = [x + 5.0 * (r == "civilian") for r, x in zip(ROLES, usual, strict=True)]  # still not its likeliest
    assert assign(EVERYDAY, FakeLlm(roles={"B": for_once}), 1000, model)["B"][0] == "civilian"
    assert assign(EVERYDAY, FakeLlm(roles={"B": for_once}), 1000, "another")["B"][0] != "civilian"


def test_who_does_not_speak_in_what_the_model_reads_is_not_asked_about() -> None:
    late = turns("C: Officers, what is going on out there?", "C: I am his neighbor, I saw it all.")
    engine = FakeLlm(roles={s: log_probabilities("narrator") for s in "ABC"})
    both = [*STOP, *late]
    found = assign(both, engine, max_tokens=100)
    assert len(engine.asked) == 2
    prior = rule_prior(both)["C"]
    assert found["C"] == (best(prior), pytest.approx(max(prior.values())))


@pytest.mark.parametrize("first", ["word " * 10_000, "字" * 10_000])
def test_a_turn_longer_than_the_model_reads_is_cut(first: str) -> None:
    engine = FakeLlm(max_tokens=400)
    engine.count_tokens = lambda text: max(len(text.split()), text.count("字"))  # type: ignore[method-assign]
    found = assign([*turns(f"A: {first}"), *STOP], engine, max_tokens=200)
    assert set(found) == {"A", "B"}
    assert engine.asked
    assert len(engine.asked[0]) > 100
