"""Rehearsal: the prompt is training's own, dials are the documented sentences, and nothing is left out silently."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.dataset.examples import ExamplesConfig, make_examples
from deescal.serve.errors import RequestRefused
from deescal.serve.rehearse import DIALS, LEVELS, NEUTRAL, RehearseRequest, Temperament, fit_turns, rehearse_messages
from tests.dataset.test_examples import WORDS
from tests.serve.fake_backend import CONTEXT_TOKENS, Server

URL = "/v1/rehearse"
WHO = ("officer", "civilian", "bystander", "dispatcher", "medic", "other")
DIALOGUE = [
    {"who": "officer", "text": " Step back, please. "},
    {"who": "bystander", "text": "Leave her alone!"},
    {"who": "civilian", "text": "Why?"},
    {"who": "civilian", "text": "What did I do?"},
    {"who": "officer", "text": "It is hot."},
]


def ask(turns=DIALOGUE, **fields):
    return {"model": "tuned", "turns": turns, **fields}


def prompt(**fields):
    return rehearse_messages(RehearseRequest.model_validate(ask(**fields)))


def test_a_prompt_by_hand():
    assert prompt(scenario="A fire.", character="Mother of two.") == [
        {
            "role": "system",
            "content": "You are the civilian in an encounter with the police. Say only what this person says next, in "
            "their own words.\nSituation: A fire.\nWho you are: Mother of two.",
        },
        {"role": "user", "content": "Step back, please.\n[Bystander] Leave her alone!"},
        {"role": "assistant", "content": "Why? What did I do?"},
        {"role": "user", "content": "It is hot."},
    ]
    assert prompt()[0]["role"] == "user"  # no system message where there is nothing to say


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(WHO), st.sampled_from(["Go. ", " No!", "a\nb"])), min_size=1, max_size=12),
    st.sampled_from([None, "A stop."]),
    st.sampled_from([None, "A nurse."]),
)
def test_equal_to_what_training_has(spoken, scenario, character):
    turns = [("officer", "Hello."), *spoken, ("officer", "Well?")]
    rows = [{"turn_id": i, "speaker": who, "role": who, "text": text} for i, (who, text) in enumerate(turns)]
    rows.append({"turn_id": len(turns), "speaker": "civilian", "role": "civilian", "text": "Reply."})
    config = ExamplesConfig(min_turns=0, min_civilian_turns=0, min_words=0, max_tokens=10_000)
    (example,) = make_examples("s", "i", rows, config, WORDS, scenario, character).examples
    *before, reply = example["messages"]
    assert reply == {"role": "assistant", "content": "Reply."}
    asked = ask([{"who": who, "text": text} for who, text in turns], scenario=scenario, character=character)
    assert rehearse_messages(RehearseRequest.model_validate(asked)) == before


def test_speakers_of_one_kind_can_be_told_apart():
    turns = [{"who": "officer", "text": "Stop.", "speaker": a} for a in ("first", "first", "second")]
    assert prompt(turns=turns) == [{"role": "user", "content": "Stop. Stop.\nStop."}]


@pytest.mark.parametrize("level", [NEUTRAL, "neutral", None])
def test_neutral_dials_add_nothing(level):
    temperament = dict.fromkeys(DIALS, level)
    assert prompt(character="A nurse.", temperament=temperament) == prompt(character="A nurse.")
    assert prompt(temperament=temperament) == prompt()


def test_dials_are_sentences_after_the_character():
    system = prompt(character="A nurse.", temperament={"trust": 2, "agitation": "very high"})[0]["content"]
    assert system.endswith(f"\nWho you are: A nurse. {DIALS['agitation'][5]} {DIALS['trust'][2]}")
    assert DIALS["trust"][1] in prompt(temperament={"trust": "very low"})[0]["content"]


def test_every_dial_has_a_sentence_for_every_level_but_the_middle():
    assert set(Temperament.model_fields) == set(DIALS)
    for by_level in DIALS.values():
        assert sorted(by_level) == [1, 2, 4, 5]
    sentences = [s for by_level in DIALS.values() for s in by_level.values()]
    assert len(set(sentences)) == len(sentences)


def test_the_documented_table_is_the_one_in_use():
    page = (Path(__file__).parents[2] / "docs" / "rehearse.md").read_text()
    for dial, by_level in DIALS.items():
        for level, sentence in by_level.items():
            assert re.search(rf"^\| {dial} \| {level} {LEVELS[level - 1]} \| {re.escape(sentence)} \|$", page, re.M)


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"turns": []}, "turns", "at least 1"),
        ({"turns": [*DIALOGUE, {"who": "civilian", "text": "x"}]}, "turns", "last turn is the civilian's"),
        ({"turns": [{"who": "civilian", "text": "x"}, *DIALOGUE]}, "turns", "first turn is the civilian's"),
        ({"turns": [{"who": "narrator", "text": "x"}]}, "turns.0.who", "should be 'officer'"),
        ({"turns": [{"who": "officer", "text": "  "}]}, "turns.0.text", "holds no words"),
        ({"turns": [{"who": "officer", "text": "a\0"}]}, "turns.0.text", "NUL"),
        ({"temperament": {"agitation": 6}}, "temperament.agitation", "less than or equal to 5"),
        ({"temperament": {"agitation": 0.5}}, "temperament.agitation", "1 to 5"),
        ({"temperament": {"anger": 1}}, "temperament.anger", "allowed: agitation, cooperation, talkativeness, trust"),
        ({"stream": True, "echo_prompt": True}, None, "echo_prompt"),
        ({"max_tokens": 10**6}, "max_tokens", "allows 2048"),
        ({"messages": []}, "messages", "unknown field"),
    ],
)
def test_what_is_refused(fields, param, why):
    response = Server().post(URL, {**ask(), **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert why in error["message"]


def test_an_answer():
    server = Server()
    response = server.post(URL, ask(temperature=0.7, seed=3, max_tokens=9))
    assert response.json() == {
        "reply": "It is hot.",
        "model": "tuned",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 18, "completion_tokens": 3, "total_tokens": 21},
        "n_dropped_turns": 0,
    }
    asked = {"model": "tuned", "messages": prompt(), "temperature": 0.7, "seed": 3, "max_completion_tokens": 9}
    assert server.backend.asked == [asked]
    assert server.post(URL, ask(echo_prompt=True)).json()["messages"] == prompt()
    assert server.backend.asked[-1]["temperature"] == 0


def test_a_stream():
    text = Server().post(URL, ask(stream=True)).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"usage"' in text


LONG = [
    {"who": who, "text": f"turn {i} " + "word " * 700}
    for i, who in enumerate(["officer", "civilian", "other"] * 3 + ["officer"])
]


def test_too_long_is_refused_unless_the_newest_are_to_be_kept():
    server = Server()
    refused = server.post(URL, ask(LONG))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert str(CONTEXT_TOKENS) in refused.json()["error"]["message"]
    kept = server.post(URL, ask(LONG, keep="newest", echo_prompt=True)).json()
    assert kept["n_dropped_turns"] == 5  # four would fit, but begin with the civilian
    assert kept["messages"][0]["content"].startswith("[Someone] turn 5 ")
    streamed = server.post(URL, ask(LONG, keep="newest", stream=True))
    assert streamed.headers["x-dropped-turns"] == "5"
    alone = server.post(URL, ask([{"who": "officer", "text": "word " * 5000}], keep="newest"))
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "turns")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(WHO), st.integers(1, 30)), max_size=20), st.integers(1, 300))
def test_the_most_turns_that_fit_are_kept(spoken, n_tokens):
    turns = [{"who": who, "text": "word " * n} for who, n in [("officer", 1), *spoken, ("officer", 1)]]
    request = RehearseRequest.model_validate(ask(turns, scenario="Here."))

    def count(messages):
        return sum(len(m["content"].split()) for m in messages)

    fitting = [
        i
        for i, turn in enumerate(turns)
        if turn["who"] != "civilian" and count(rehearse_messages(request, i)) <= n_tokens
    ]
    if fitting:
        assert fit_turns(request, n_tokens, count) == fitting[0]
    else:
        with pytest.raises(RequestRefused):
            fit_turns(request, n_tokens, count)
