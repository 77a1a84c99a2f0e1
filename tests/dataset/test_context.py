"""Context and character: from the beginning only, in the form asked for, and null when the model fails."""

import json
import re

import jsonschema
import pytest

from deescal.dataset.context import SCHEMA, ContextConfig, ContextWriter, Generated, opening, parse, write_contexts

ANSWER = {
    "place": "roadside",
    "reason_of_contact": "A stop for speeding.",
    "stakes": "A fine, or the loss of the licence",
    "emotional_state": "annoyed",
    "temperament": "unclear",
    "goal": "To get to work  in time.",
    "way_of_speaking": "Short, with questions.",
}


class FakeGenerator:
    """Answers every prompt alike; keeps what it was asked."""

    def __init__(self, config=None, answer=None):
        self.config, self.answer = config, json.dumps(ANSWER) if answer is None else answer
        self.prompts, self.options = [], {}

    def render(self, system, user, answer_prefix=""):
        return f"{system}\n{user}\n{answer_prefix}"

    def count_tokens(self, text):
        return len(text.split())

    def generate(self, prompts, **options):
        self.prompts += prompts
        self.options = options
        return [self.answer for _ in prompts]


def turns(n, start="officer"):
    roles = ("officer", "civilian") if start == "officer" else ("civilian", "officer")
    return [{"turn_id": i, "speaker": "AB"[i % 2], "role": roles[i % 2], "text": f"line{i} here"} for i in range(n)]


def test_texts_are_rendered_from_the_answer():
    jsonschema.validate(ANSWER, SCHEMA)
    assert parse(json.dumps(ANSWER)) == Generated(
        context="Place: roadside. Why the police are there: A stop for speeding. "
        "Stakes: A fine, or the loss of the licence.",
        character="Feels: annoyed. Wants: To get to work in time. Speaks: Short, with questions.",
    )


@pytest.mark.parametrize("answer", ["", '{"place": "home", "reason', "[]", "null", '{"place": 3}', "{}"])
def test_a_broken_answer_is_null(answer):
    assert write_contexts([turns(8)], FakeGenerator(answer=answer), ContextConfig()) == [Generated(None, None)]


def test_the_end_is_never_read():
    llm = FakeGenerator()
    write_contexts([turns(6), turns(200)], llm, ContextConfig(opening_civilian_turns=4))
    short, long = ([int(i) for i in re.findall(r"line(\d+)", prompt)] for prompt in llm.prompts)
    assert short == [0, 1, 2]
    assert long == list(range(8))
    assert "Never say or guess what happens later" in llm.prompts[0]
    assert llm.options["json_schema"] == SCHEMA


def test_the_opening_fits_its_tokens():
    assert len(opening(turns(400), FakeGenerator(), ContextConfig(opening_civilian_turns=99, opening_tokens=50))) == 12


def test_nobody_is_asked_about_where_no_civilian_speaks():
    llm = FakeGenerator()
    alone = [{**turn, "role": "officer"} for turn in turns(10)]
    first, second, third = write_contexts([alone, turns(10), []], llm, ContextConfig())
    assert (first, third) == (Generated(None, None), Generated(None, None))
    assert second.character
    assert len(llm.prompts) == 1


def test_the_engine_is_the_one_of_the_config():
    config = ContextConfig(enabled=True, engine="tests.dataset.test_context:FakeGenerator")
    (written,) = ContextWriter(config)([turns(10)])
    assert written.context.startswith("Place: roadside.")
    assert config.models() == [config.llm.model]
    assert ContextConfig().models() == []


@pytest.mark.engine
def test_the_real_model_keeps_to_the_form():
    talk = [
        ("officer", "Good evening. The reason I stopped you is that you ran the red light back there."),
        ("civilian", "It was yellow! I am already late for my shift, can you hurry up?"),
        ("officer", "License and registration, please."),
        ("civilian", "Fine. Here. This is ridiculous, you people always pick on me."),
        ("officer", "I understand you are upset. Stay in the car."),
        ("civilian", "Whatever. Just write it and let me go."),
        ("officer", "You are under arrest for an outstanding warrant."),
        ("civilian", "What? No. Okay, okay, I am coming out."),
    ]
    rows = [{"turn_id": i, "speaker": role, "role": role, "text": text} for i, (role, text) in enumerate(talk)]
    config = ContextConfig(enabled=True)
    (written,) = ContextWriter(config)([rows])
    assert written.context
    assert written.character
    assert "warrant" not in written.context.lower()
    assert max(len(written.context), len(written.character)) < 700
