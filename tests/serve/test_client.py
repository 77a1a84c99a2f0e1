"""The client against a server that fails in every way servers do: what is asked again, what is not, what is said."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.errors import UserError
from deescal.serve.answers import Answer, EndpointError, read_answer, seconds_asked
from deescal.serve.client import Endpoint, ask_all, base_url, bounded, check_endpoint
from tests.conftest import free_port
from tests.serve.fake_server import FakeServer, drop, echo, fail, hang, html, raw, reply, stream

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Are you hurt?"}]}
KEY = "a-key-for-tests"


def endpoint_of(server: FakeServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, **{"backoff_s": 0.001, "timeout_s": 5.0, **settings})


def chat(server: FakeServer, **settings: Any) -> Answer:
    return asyncio.run(endpoint_of(server, **settings).chat(CHAT))


async def read(endpoint: Endpoint, fields: Any = CHAT) -> tuple[list[tuple[float, str]], Answer | None]:
    answer = endpoint.stream(fields)
    return [piece async for piece in answer], answer.answer


def test_an_answer_is_read_and_what_is_unknown_ignored() -> None:
    with FakeServer(then=reply("No.", service_tier="x", system_fingerprint={"a": 1})) as server:
        answer = chat(server)
    assert (answer.text, answer.finish_reason, answer.attempts) == ("No.", "stop", 1)
    assert (answer.n_prompt_tokens, answer.n_cached_tokens, answer.n_completion_tokens) == (7, 4, 3)
    assert answer.choices[0]["message"]["role"] == "assistant"
    assert 0 < answer.latency_s < 5
    assert server.seen[0][0] == "/v1/chat/completions"
    assert server.seen[0][2] == CHAT


def test_completions_and_a_server_that_counts_nothing() -> None:
    with FakeServer(then=reply("No.", usage=None)) as server:
        answer = asyncio.run(endpoint_of(server).complete({"model": "tiny", "prompt": "Are"}))
    assert server.seen[0][0] == "/v1/completions"
    assert answer.text == "No."
    assert (answer.n_prompt_tokens, answer.n_cached_tokens, answer.n_completion_tokens) == (None, None, None)


@pytest.mark.parametrize(
    "trouble",
    [
        *(fail(status) for status in (429, 500, 502, 503, 504)),
        raw(b"Path '/v1/chat/completions' not found. Ping http://.../-/routes for available routes.", 404),  # Ray Serve
        *(drop, html(), raw(b"\xff\xfe"), raw(b"[]"), raw(b'{"choices": []}')),
        *(raw(b'{"choices": [{"message": {"content": null}}]}'), raw(b'{"error": "overloaded"}')),
    ],
)
def test_what_may_pass_is_asked_again(trouble: Any) -> None:
    with FakeServer(trouble, trouble) as server:
        answer = chat(server)
    assert (answer.text, answer.attempts) == ("I'm fine.", 3)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422, 501])
def test_what_stays_wrong_is_asked_once(status: int) -> None:
    with FakeServer(then=fail(status, "the prompt is too long")) as server:
        with pytest.raises(EndpointError, match=f"^HTTP {status}: the prompt is too long$") as caught:
            chat(server)
        assert len(server.seen) == 1
    assert (caught.value.status, caught.value.retryable, caught.value.kind) == (status, False, f"HTTP {status}")


def test_it_gives_up_and_says_how_often_it_tried() -> None:
    with FakeServer(then=fail(503, "full")) as server:
        with pytest.raises(EndpointError, match=r"^HTTP 503: full \(after 3 attempts\)$") as caught:
            chat(server, retries=2)
        assert len(server.seen) == 3
    assert (caught.value.status, caught.value.retryable, caught.value.attempts) == (503, True, 3)


def test_nobody_listens() -> None:
    endpoint = Endpoint(f"http://127.0.0.1:{free_port()}", retries=1, backoff_s=0.001)
    with pytest.raises(EndpointError, match="no connection") as caught:
        asyncio.run(endpoint.chat(CHAT))
    assert (caught.value.kind, caught.value.status, caught.value.attempts) == ("connection", None, 2)


def test_a_server_that_hangs_is_left_after_the_timeout() -> None:
    with FakeServer(hang) as server:
        assert chat(server, timeout_s=0.2).attempts == 2
    with FakeServer(then=hang) as server, pytest.raises(EndpointError, match=r"no answer within 0\.2 s") as caught:
        chat(server, timeout_s=0.2, retries=0)
    assert caught.value.kind == "timeout"


def test_retry_after_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def remember(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", remember)
    with FakeServer(fail(429, retry_after="3"), fail(503), fail(429, retry_after="soon")) as server:
        assert chat(server, backoff_s=0.5).attempts == 4
    assert 3 <= waits[0] <= 3.5
    assert 0 <= waits[1] <= 1
    assert 0 <= waits[2] <= 2
    with FakeServer(then=fail(429, "quota", retry_after="3600")) as server:
        with pytest.raises(EndpointError, match=r"^HTTP 429: quota; try again in 3600 s$"):
            chat(server)
        assert len(server.seen) == 1


def test_waits_are_drawn_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits_of(seed: int) -> list[float]:
        waits: list[float] = []

        async def remember(seconds: float) -> None:
            waits.append(seconds)

        monkeypatch.setattr(asyncio, "sleep", remember)
        with FakeServer(*[fail(500)] * 4) as server:
            await endpoint_of(server, seed=seed, backoff_s=1.0).chat(CHAT)
        return waits

    first, again, other = (asyncio.run(waits_of(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(0 <= wait <= 2**n for n, wait in enumerate(first))


def test_a_rate_limit_is_waited_out_however_often_it_says_so() -> None:
    with FakeServer(*[fail(429, retry_after="0")] * 6) as server:
        assert chat(server, retries=1).attempts == 7
    with FakeServer(*[fail(429)] * 6) as server, pytest.raises(EndpointError, match=r"^HTTP 429.*after 2 attempts"):
        chat(server, retries=1)  # who does not say when to come back may mean never


def test_retry_after_as_seconds_or_a_date() -> None:
    assert seconds_asked("7") == 7
    assert seconds_asked(format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)) == 0
    assert 50 < (seconds_asked(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) or 0) <= 60
    assert [seconds_asked(text) for text in ("", "soon", "-1", "1.5")] == [None] * 4


@given(st.text())
def test_any_retry_after_is_understood_or_not(text: str) -> None:
    assert (seconds_asked(text) or 0.0) >= 0


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: str(v).encode()))
def test_any_body_is_an_answer_or_an_error_of_its_request(body: bytes) -> None:
    with pytest.raises(EndpointError, match="malformed"):
        read_answer(body, 0.0, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "text", "usage", "error", "x"]), inner)
    ),
)


@given(JSON, JSON)
def test_any_json_is_an_answer_or_an_error_of_its_request(choice: Any, usage: Any) -> None:
    import json

    try:
        answer = read_answer(json.dumps({"choices": [choice], "usage": usage}).encode(), 0.0, 1)
    except EndpointError:
        return
    assert isinstance(answer.text, str)


def test_the_key_comes_from_the_environment_and_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEESCAL_API_KEY", raising=False)
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")
    with FakeServer(reply(), reply(), fail(401, f"bad key {KEY}")) as server:
        chat(server)
        chat(server, key_env="OTHER_KEY")
        with pytest.raises(EndpointError) as caught:
            chat(server, key_env="OTHER_KEY")
    assert "authorization" not in server.seen[0][1]
    assert server.seen[1][1]["authorization"] == f"Bearer {KEY}"
    assert str(caught.value) == "HTTP 401: bad key ***"
    monkeypatch.setenv("OTHER_KEY", "käse")
    with FakeServer() as server, pytest.raises(UserError, match="OTHER_KEY") as refused:
        chat(server, key_env="OTHER_KEY")
    assert "käse" not in str(refused.value)


def test_a_stream_comes_in_pieces() -> None:
    with FakeServer(then=stream("I", "'m ", "fine")) as server:
        pieces, answer = asyncio.run(read(endpoint_of(server)))
    assert [text for _, text in pieces] == ["I", "'m ", "fine"]
    times = [seconds for seconds, _ in pieces]
    assert times == sorted(times)
    assert answer is not None
    assert (answer.text, answer.finish_reason, answer.n_completion_tokens) == ("I'm fine", "length", 3)
    assert answer.latency_s >= times[-1]
    assert server.seen[0][2] == {**CHAT, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("end", [{"done": False}, {"finish": False}, {"usage": False}])
def test_streams_end_in_different_ways(end: dict[str, bool]) -> None:
    with FakeServer(then=stream("a", "b", **end)) as server:
        for fields in (CHAT, {"model": "tiny", "prompt": "x"}):
            _, answer = asyncio.run(read(endpoint_of(server), fields))
            assert answer is not None
            assert answer.text == "ab"
            assert (answer.n_completion_tokens is None) == (not end.get("usage", True))


@pytest.mark.parametrize("trouble", [fail(503), drop, stream(done=False, finish=False), raw(b"data: hello\n\n")])
def test_a_stream_is_begun_again_until_its_first_piece(trouble: Any) -> None:
    with FakeServer(trouble, then=stream("a")) as server:
        pieces, answer = asyncio.run(read(endpoint_of(server)))
    assert [text for _, text in pieces] == ["a"]
    assert answer is not None
    assert answer.attempts == 2


def test_a_stream_that_breaks_off_is_an_error_and_not_begun_again() -> None:
    with FakeServer(then=stream("a", "b", done=False, finish=False)) as server:
        answer = endpoint_of(server).stream(CHAT)
        got: list[str] = []

        async def consume() -> None:
            async for _, text in answer:
                got.append(text)

        with pytest.raises(EndpointError, match="broke off"):
            asyncio.run(consume())
        assert len(server.seen) == 1
    assert got == ["a", "b"]
    assert answer.answer is None


def test_a_stream_of_another_vendor() -> None:
    body = b'event: x\ndata:{"id": 1}\r\n\r\ndata: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}'
    body += b'\n\ndata: {"usage": {"completion_tokens": 1, "prompt_tokens": "?"}}\n\n'
    with FakeServer(then=raw(body)) as server:
        _, answer = asyncio.run(read(endpoint_of(server)))
    assert answer is not None
    assert (answer.text, answer.n_completion_tokens, answer.n_prompt_tokens) == ("a", 1, None)


def test_an_error_in_a_stream_has_its_status() -> None:
    with FakeServer(then=raw(b'data: {"error": {"message": "too long", "code": 400}}\n\n')) as server:
        with pytest.raises(EndpointError, match="too long") as caught:
            asyncio.run(read(endpoint_of(server)))
        assert len(server.seen) == 1
    assert caught.value.status == 400


def test_connections_are_kept() -> None:
    async def five(server: FakeServer) -> None:
        async with endpoint_of(server) as endpoint:
            for _ in range(5):
                await endpoint.chat(CHAT)
                await read(endpoint, {**CHAT, "n": 1})

    answers = [act for _ in range(5) for act in (reply(), stream("a"))]
    with FakeServer(*answers) as server:
        asyncio.run(five(server))
    assert server.n_connections == 1


def test_all_are_answered_in_order_within_bounds() -> None:
    requests = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(40)]
    with FakeServer(then=echo) as server:
        endpoint = endpoint_of(server)
        done: list[int] = []
        for _ in range(2):  # each run has an event loop of its own
            results = asyncio.run(ask_all(endpoint, requests, 8, lambda i, _: done.append(i)))
            assert [r.text for r in results if isinstance(r, Answer)] == [str(i) for i in range(40)]
        assert sorted(done) == sorted([*range(40), *range(40)])
    assert 1 < server.n_most <= 8
    assert server.n_connections <= 16


def test_one_that_fails_does_not_take_the_others_with_it() -> None:
    with FakeServer(reply("a"), fail(400, "bad"), reply("c"), html(), drop, then=reply("d")) as server:
        told: dict[int, str] = {}
        results = asyncio.run(
            ask_all(endpoint_of(server, retries=0), [CHAT] * 6, 1, lambda i, r: told.setdefault(i, type(r).__name__))
        )
    assert [r.text if isinstance(r, Answer) else r.split(":")[0] for r in results] == [
        *("a", "HTTP 400", "c", "malformed answer", "no connection", "d")
    ]
    assert told == {i: "EndpointError" if i in (1, 3, 4) else "Answer" for i in range(6)}


def test_nothing_to_ask() -> None:
    assert asyncio.run(ask_all(Endpoint("http://127.0.0.1:1"), [], 4)) == []


def test_an_endpoint_travels_to_a_worker() -> None:
    endpoint = pickle.loads(pickle.dumps(Endpoint("http://127.0.0.1:1", retries=7)))
    assert (endpoint.url, endpoint.retries) == ("http://127.0.0.1:1/v1", 7)


def test_a_bug_in_a_job_ends_all_with_its_own_exception() -> None:
    async def job(i: int) -> None:
        await asyncio.sleep(0)
        if i == 3:
            raise KeyError("three")

    with pytest.raises(KeyError, match="three"):
        asyncio.run(bounded(10, 2, job))


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_base_urls(url: str, base: str) -> None:
    assert base_url(url) == base == base_url(base)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://u:pw@h", "http://h?x=1", "http://h:x"]
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(UserError, match="endpoint") as caught:
        base_url(url)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_endpoint_is_checked_before_heavy_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEESCAL_API_KEY", raising=False)
    with FakeServer(models=["tiny", "tiny:calm"]) as server:
        assert check_endpoint(server.url, "tiny:calm")["id"] == "tiny:calm"
        with pytest.raises(UserError, match=r"no model 'huge'; it serves tiny, tiny:calm$"):
            check_endpoint(server.url, "huge")
        with pytest.raises(UserError, match=r"HTTP 404: Not Found; expected an OpenAI-compatible API$"):
            check_endpoint(f"{server.url}/v2", "tiny")
    for models, told in {
        fail(401): "HTTP 401: put a key into DEESCAL_API_KEY",
        html(): "no JSON; expected",
        html(502): "HTTP 502: an HTML page",
        raw(b'{"models": []}'): "lists no models",
        raw(b'{"data": [1]}'): "lists no models",
        raw(b'["tiny"]'): "no JSON object; expected",
        raw(b"", 308, location="https://h/v1/models"): "moved to https://h/v1; give that",
    }.items():
        with FakeServer() as server:
            server.models = models
            with pytest.raises(UserError, match=told) as caught:
                check_endpoint(server.url, "tiny")
            assert "\n" not in str(caught.value)
    monkeypatch.setenv("DEESCAL_API_KEY", KEY)
    with FakeServer() as server:
        server.models = fail(401)
        with pytest.raises(UserError, match="the key in DEESCAL_API_KEY is not accepted"):
            check_endpoint(server.url, "tiny")
    with pytest.raises(UserError, match="cannot be reached"):
        check_endpoint(f"http://127.0.0.1:{free_port()}", "tiny")
