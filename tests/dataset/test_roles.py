from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.dataset.labels import anonymous, label_role, person_name
from deescal.dataset.roles import (
    FEATURES,
    ROLES,
    DatasetRolesConfig,
    SpeakerRole,
    evidence,
    name_roles,
    open_speakers,
    probabilities,
)
from deescal.judge.roles import ROLES as ASKED
from tests.judge.fake_llm import FakeLlm


def turns(*lines: str) -> list[dict[str, str]]:
    """'speaker: text' lines -> turns."""
    return [dict(zip(("speaker", "text"), line.split(": ", 1), strict=True)) for line in lines]


STOP = turns(
    "[Police Officer]: Good evening. The reason I stopped you is your tail light. License and registration, please?",
    "Ada Marlow: Why did you stop me? I did not do anything wrong.",
    "[Police Officer]: Do you have any weapons in the car?",
    "Ada Marlow: No, officer. This is my mother's car. My kids are waiting at home.",
    "[Police Officer]: Step out of the car for me, Ada. Have you been drinking tonight?",
    "Ada Marlow: I had one beer. Am I under arrest?",
    "[Narrator]: Ada Marlow was charged with driving on a suspended license.",
)
PARTNERS = turns(
    "[Narrator]: Officer Tolland arrives first. His partner is a minute away.",
    "Tolland: Sir, show me your hands. I need you to step out of the truck.",
    "[Driver]: I didn't do nothing. Why are you pulling me over?",
    "Tolland: You're being detained. Turn around and put your hands behind your back. Any weapons on you?",
    "[Driver]: No, sir. I want a lawyer.",
    "Tolland: Copy that, one in custody. I'm Officer Tolland with the county police.",
)
CHANNEL = turns(
    "Rupert: Hi everyone, welcome back to the channel. In today's video we look at a stop that goes wrong.",
    "[Officer]: Drop the knife!",
    "[Suspect]: Leave me alone!",
    "Rupert: So the officer has two seconds. He was right to keep his distance here, and the suspect then walks away.",
    "Rupert: Let me know what you think in the comments below, subscribe, and I'll see you in the next one.",
)


@pytest.mark.parametrize(
    ("label", "role"),
    [
        ("[Police Officer]", "officer"),
        ("Deputy Tolland", "officer"),
        ("Sgt. Tolland", "officer"),
        ("Captain Tolland", "officer"),
        ("[K-9 handler]", "officer"),
        ("[Game warden]", "officer"),
        ("[Female Officer]", "officer"),
        ("[Lead Investigator]", "officer"),
        ("[Loss prevention officer]", "other"),
        ("[Neighbor, talking to the police]", "bystander"),
        ("[Driver stopped by Deputy Tolland]", "civilian"),
        ("[Officer's partner]", "officer"),
        ("[Friend of Ada]", "civilian"),
        ("[Store employee]", "civilian"),
        ("[Patient]", "civilian"),
        ("[Maintenance Worker]", "civilian"),
        ("[EMT]", "medic"),
        ("Firefighter", "medic"),
        ("[Commentator]", "narrator"),
        ("[Operator]", "dispatcher"),
        ("[911 operator]", "dispatcher"),
        ("[GPS voice]", "other"),
        ("Ada Wagstaff", None),
        ("Ada Marlow", None),
        ("[Voice 2]", None),
        ("[Interviewer]", None),
        ("A", None),
        ("", None),
    ],
)
def test_labels_that_tell_a_role(label: str, role: str | None) -> None:
    assert label_role(label) == role


def test_names_are_told_from_other_labels() -> None:
    assert person_name("Ada Marlow") == ("Ada", "Marlow")
    assert person_name("O'Neil") == ("O'Neil",)
    assert not any(map(person_name, ["[Ada Marlow]", "Voice 2", "Unknown Male", "A", "", "Officer 2", "ada"]))
    assert anonymous("[Unidentified speaker]")
    assert not anonymous("Ada Marlow")


@pytest.mark.parametrize(
    ("scenario", "speaker", "role"),
    [
        (STOP, "Ada Marlow", "civilian"),
        (PARTNERS, "Tolland", "officer"),
        (CHANNEL, "Rupert", "narrator"),
    ],
)
def test_names_get_a_role_from_what_they_say_and_how_they_are_named(
    scenario: list[dict[str, str]], speaker: str, role: str
) -> None:
    found = name_roles(scenario)[speaker]
    assert (found.role, found.method) == (role, "speech")
    assert found.confidence > 0.6


def test_a_label_that_names_a_role_decides_whatever_is_said() -> None:
    found = name_roles(turns("[Police Officer]: Welcome back to my channel, subscribe!", "[EMT]: Hands up!"))
    assert {s: (f.role, f.method) for s, f in found.items()} == {
        "[Police Officer]": ("officer", "label"),
        "[EMT]": ("medic", "label"),
    }


def test_a_rank_before_the_name_makes_an_officer_likelier_and_a_charge_less_likely() -> None:
    def officer(mention: str) -> float:
        scenario = turns("Tolland: I was there last night.", f"[Narrator]: {mention}")
        return probabilities(evidence(scenario, {"[Narrator]": "narrator"})["Tolland"])["officer"]

    assert officer("Officer Tolland was there.") > officer("Tolland was there.") > officer("Tolland was arrested.")


def test_nobody_in_particular_stays_open() -> None:
    scenario = [{**t, "speaker": "[Voice 1]" if t["speaker"] == "Tolland" else t["speaker"]} for t in PARTNERS]
    found = name_roles(scenario)
    assert found["[Voice 1]"].role == "officer"
    assert open_speakers(found, DatasetRolesConfig()) == ["[Voice 1]"]


def test_roles_that_curation_gave_are_kept() -> None:
    scenario = [{**t, "role": "civilian"} if t["speaker"] == "Tolland" else {**t, "role": None} for t in PARTNERS]
    assert name_roles(scenario, curated={"Tolland": 0.7})["Tolland"] == SpeakerRole("civilian", 0.7, "curation")
    assert name_roles(scenario)["Tolland"].confidence == 1.0
    assert name_roles(scenario)["[Driver]"].method == "label"


def test_the_model_is_asked_about_open_speakers_only_and_moves_them() -> None:
    sure = [-0.1 if role == "dispatcher" else -20.0 for role in ASKED]
    engine = FakeLlm(roles={"D": sure, "E": sure})
    scenario = [*STOP, *turns("[Voice 1]: Okay.", "[Voice 2]: Yeah.")]
    config = DatasetRolesConfig(use_model=True)
    before, after = name_roles(scenario), name_roles(scenario, engine, config)
    assert len(engine.asked) == 2
    assert {s for s, f in after.items() if f.method == "model"} == {"[Voice 1]", "[Voice 2]"}
    assert after["[Voice 1]"].role == "dispatcher"
    assert after["Ada Marlow"] == before["Ada Marlow"]


def test_the_model_is_not_asked_unless_the_config_says_so() -> None:
    engine = FakeLlm()
    name_roles(turns("[Voice 1]: Okay."), engine)
    assert not engine.asked
    with pytest.raises(ValueError, match="engine"):
        name_roles(STOP, None, DatasetRolesConfig(use_model=True))


def test_who_is_not_in_what_the_model_reads_keeps_the_role_of_the_rules() -> None:
    scenario = [{"speaker": f"[Voice {i}]", "text": "well " * 10} for i in (1, 2)]
    found = name_roles(scenario, FakeLlm(), DatasetRolesConfig(use_model=True, max_tokens=20))
    assert [f.method for f in found.values()] == ["model", "speech"]


def test_no_turns_no_speakers() -> None:
    assert name_roles([]) == {}


LABELS = st.sampled_from(["[Police Officer]", "Ada Marlow", "Tolland", "[Voice 1]", "[Narrator]", "A", "", "(unclear)"])
TEXTS = st.text(max_size=60) | st.sampled_from([t["text"] for t in STOP + PARTNERS + CHANNEL])


@given(st.lists(st.builds(lambda s, t: {"speaker": s, "text": t}, LABELS, TEXTS), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_speaker_gets_one_role_with_a_probability(scenario: list[dict[str, str]]) -> None:
    found = name_roles(scenario)
    assert list(found) == list(dict.fromkeys(t["speaker"] for t in scenario))
    assert all(f.role in ROLES and 0 < f.confidence <= 1 for f in found.values())
    for features in evidence(scenario, {}).values():
        assert features.shape == (len(FEATURES),)
        assert sum(probabilities(features).values()) == pytest.approx(1)


@given(st.from_regex(r"[A-Z][a-z]{3,9}zq", fullmatch=True))
@settings(max_examples=30, deadline=None)
def test_the_name_itself_tells_nothing(name: str) -> None:
    renamed = [{key: value.replace("Tolland", name) for key, value in t.items()} for t in PARTNERS]
    assert name_roles(renamed)[name] == name_roles(PARTNERS)["Tolland"]
