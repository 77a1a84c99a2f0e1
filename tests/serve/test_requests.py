"""What a request may say: OpenAI's fields within bounds; everything else a 400 that names the field."""

import json

import pytest

from deescal.serve.response_format import MAX_REPEAT, check_schema
from tests.serve.fake_backend import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server():
    return Server(limits={"max_tokens": 500, "default_max_tokens": 20, "max_n": 3, "max_prompts": 2})


def chat(**fields):
    return {"model": "base", "messages": [{"role": "user", "content": "hi"}], **fields}


def completion(**fields):
    return {"model": "base", "prompt": "hi", **fields}


def refused(response):
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_defaults_are_greedy_and_the_servers(server):
    assert server.post(CHAT, chat()).status_code == 200
    assert server.backend.asked[-1] == {
        "model": "base",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_completion_tokens": 20,
    }
    server.post(COMPLETIONS, completion())
    assert server.backend.asked[-1] == {"model": "base", "prompt": "hi", "temperature": 0, "max_tokens": 20}


def test_all_that_is_allowed_reaches_the_engine(server):
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "repetition_penalty": 1.1,
        "stop": ["END", "\n"],
        "seed": -(2**63),
        "n": 2,
        "ignore_eos": True,
    }
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]{1,5}$"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    more = {"logprobs": True, "top_logprobs": 20, "response_format": shape}
    ignored = {"user": "u", "metadata": {"a": "b"}}
    assert server.post(CHAT, chat(**sampling, **more, **ignored, max_tokens=7)).status_code == 200
    asked = server.backend.asked[-1]
    assert asked == chat(**sampling, **more, max_completion_tokens=7)
    assert server.post(COMPLETIONS, completion(**sampling, echo=True, logprobs=5, max_tokens=7)).status_code == 200
    assert server.backend.asked[-1] == completion(**sampling, echo=True, logprobs=5, max_tokens=7)


def test_null_is_as_good_as_nothing(server):
    nulls = dict.fromkeys(["temperature", "stop", "seed", "n", "stream", "max_tokens", "response_format", "user"])
    assert server.post(CHAT, chat(**nulls)).status_code == 200
    assert set(server.backend.asked[-1]) == {"model", "messages", "temperature", "max_completion_tokens"}


def test_parts_of_text_are_lines(server):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    server.post(CHAT, chat(messages=[{"role": "user", "content": parts}]))
    assert server.backend.asked[-1]["messages"] == [{"role": "user", "content": "a\nb"}]


def test_an_answer_can_be_sent_back(server):
    answer = server.post(CHAT, chat()).json()["choices"][0]["message"]
    messages = [*chat()["messages"], answer, {"role": "user", "content": "and?"}]
    assert server.post(CHAT, chat(messages=messages)).status_code == 200
    assert server.backend.asked[-1]["messages"][1] == {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2, 3], [[1], [2, 3]]])
def test_prompts(server, prompt):
    assert server.post(COMPLETIONS, completion(prompt=prompt)).status_code == 200
    assert server.backend.asked[-1]["prompt"] == prompt


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"foo": 1}, "foo", "unknown field 'foo' (allowed: model, "),
        ({"tools": []}, "tools", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"model": None}, "model", "valid string"),
        ({"model": "x" * 300}, "model", "at most 256"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system', 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "a string, or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "messages.0.content", "NUL"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name", "allowed: role, content"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ["a", ""]}, "stop.1", "at least 1 character"),
        ({"stop": 3}, "stop", "up to 4 of them"),
        ({"n": 4, "temperature": 1}, "n", "allows 3"),
        ({"n": 2}, "n", "all be the same"),
        ({"max_tokens": 501}, "max_tokens", "allows 500"),
        ({"max_completion_tokens": 501}, "max_completion_tokens", "allows 500"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, None, "give one"),
        ({"top_logprobs": 2}, None, "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"stream_options": {"include_usage": True}}, None, "stream=true"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "goes with"),
    ],
)
def test_a_wrong_field_is_named(server, fields, param, why):
    n_asked = len(server.backend.asked)
    error = refused(server.post(CHAT, chat(**fields)))
    assert error["param"] == param
    assert why in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(server.backend.asked) == n_asked


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""], [-1], ["a", 1], [2**31], {}, None, ["a"] * 3, "a\0"])
def test_prompts_that_are_none(server, prompt):
    assert refused(server.post(COMPLETIONS, completion(prompt=prompt)))["param"].startswith("prompt")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff",
        b'{"model": "base", "prompt": "a", "temperature": NaN}',
        b'{"model": "base", "prompt": "a", "temperature": Infinity}',
        b'{"model": "base", "prompt": "a", "temperature": 1e999}',
        b'{"model": "base", "prompt": "a", "seed": ' + b"9" * 400 + b"}",
        b'{"model": "base", "prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "base", "prompt": "\\ud800"}',
        b'{"model": "\\ud800", "prompt": "a"}',
        b'{"model": "base", "prompt": "a", "\\ud800": 1}',
        b'{"model": "base", "prompt": "a", "\\u0000\\n": 1}',
        b'{"model": "base", "prompt": "a", "stop": "\\u0000"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_bodies_that_are_none(server, text):
    error = refused(server.ask("POST", COMPLETIONS, content=text, headers={"Content-Type": "application/json"}))
    assert "\n" not in error["message"]


def test_a_message_does_not_repeat_what_was_said(server):
    body = chat(messages=[{"role": "user", "content": {"my secret": "is this"}}])
    assert "secret" not in refused(server.post(CHAT, body))["message"]


@pytest.mark.parametrize("fields", [{"model": "gone"}, {"model": "../etc"}, {"model": "\x07bell"}])
def test_an_unknown_model_is_a_404_that_lists_the_known(server, fields):
    response = server.post(CHAT, chat(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "base, tuned" in error["message"]


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(14),
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string", "maxLength": MAX_REPEAT}}},
        {"properties": {"maxLength": {"type": "integer"}, "pattern": {"type": "string"}}},
        {"type": "string", "pattern": r"^\d{3}-[A-Z]{2,4}$"},
    ],
)
def test_schemas_that_pass(schema):
    check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": 3}, r"not a JSON schema: at \$.type"),
        (nested(40), "levels"),
        ({"description": "x" * 20_000}, "bytes"),
        ({"type": "string", "maxLength": 10**7}, "maxLength of more than"),
        ({"type": "array", "minItems": 1e9}, "minItems of more than"),
        ({"anyOf": [{"pattern": "a{1,100000}"}]}, "repeats more than"),
        ({"pattern": "(a{1,900}){1,900}"}, "counted repetition of a group"),
        ({"patternProperties": {"a" * 300: {}}}, "more than 256"),
        ({"enum": ["a\0"]}, "NUL"),
        ({"pattern": "("}, "no regular expression"),
        ({"$ref": "http://example.com/schema"}, "another document"),
    ],
)
def test_schemas_that_cost_too_much(schema, why):
    with pytest.raises(ValueError, match=why):
        check_schema(schema)
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = json.dumps(chat(response_format=shape))
    error = refused(Server().ask("POST", CHAT, content=body, headers={"Content-Type": "application/json"}))
    assert error["param"] == "response_format.json_schema.schema"
