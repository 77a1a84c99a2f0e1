"""The guard: who is let in, how much, how long, and what the log and the metrics tell of it."""

import asyncio
import json
import logging

import pytest

from deescal.serve.guard import is_loopback
from deescal.serve.limits import Limits
from tests.serve.fake_backend import KEY, Server, keys_for_tests

CHAT = "/v1/chat/completions"
BEARER = {"Authorization": f"Bearer {KEY}"}


def chat(text="hello there", **fields):
    return {"model": "base", "messages": [{"role": "user", "content": text}], **fields}


def error(response):
    return response.json()["error"]


@pytest.fixture
def guarded(monkeypatch):
    def make(**limits):
        return Server(keys_for_tests(monkeypatch), limits=Limits(**limits))

    return make


def test_a_key_is_asked_for(guarded):
    server = guarded()
    missing = server.ask("GET", "/v1/models")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert error(missing)["code"] == "invalid_api_key"
    assert "no API key" in error(missing)["message"]
    wrong = server.ask("GET", "/v1/models", headers={"Authorization": "Bearer something-else-here"})
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert "something" not in wrong.text
    assert server.ask("GET", "/v1/models", headers=BEARER).status_code == 200
    assert server.ask("GET", "/openapi.json").status_code == 401
    assert server.ask("GET", "/nothing/here").status_code == 401
    assert server.ask("GET", "/health").status_code == 200


def test_with_a_key_other_machines_are_served(guarded):
    assert guarded().ask("GET", "/v1/models", client="203.0.113.7", headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.9.9.9", "127.0.0.1", 200),
        ("::1", "[::1]:8000", 200),
        ("::ffff:127.0.0.1", "localhost", 200),
        ("10.0.0.7", "localhost", 403),
        ("::ffff:10.0.0.7", "localhost", 403),
        ("127.0.0.1", "rebound.example:8000", 403),
        ("127.0.0.1", "127.0.0.1.example", 403),
        ("unknown", "localhost", 403),
    ],
)
def test_without_keys_this_machine_only(client, host, status):
    response = Server().ask("GET", "/v1/models", client=client, headers={"Host": host})
    assert response.status_code == status
    if status == 403:
        assert error(response)["code"] == "loopback_only"


def test_loopback():
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("localhost")
    assert not is_loopback("")


def test_rate_limit_says_when_to_come_back(guarded):
    server = guarded(requests_per_minute=6, burst=2)
    statuses = [server.ask("GET", "/v1/models", headers=BEARER).status_code for _ in range(2)]
    assert statuses == [200, 200]
    refused = server.ask("GET", "/v1/models", headers=BEARER)
    assert (refused.status_code, error(refused)["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert server.ask("GET", "/health").status_code == 200  # is not counted


def test_a_body_too_large_is_refused_declared_or_not(guarded):
    server = guarded(max_body_bytes=2048)
    large = json.dumps(chat("x" * 3000)).encode()
    headers = {**BEARER, "Content-Type": "application/json"}

    async def chunks():
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    assert server.ask("POST", CHAT, content=large, headers=headers).status_code == 413
    chunked = server.ask("POST", CHAT, content=chunks(), headers=headers)
    assert (chunked.status_code, error(chunked)["code"]) == (413, "body_too_large")
    assert server.backend.asked == []
    lied = {**headers, "Content-Length": "x"}
    assert server.ask("POST", CHAT, content=json.dumps(chat()).encode(), headers=lied).status_code == 200


def test_time_ends_before_the_first_byte(guarded):
    server = guarded(request_timeout_s=0.05)
    late = server.post(CHAT, chat("!wait"), headers=BEARER)
    assert (late.status_code, error(late)["code"]) == (504, "timeout")
    assert server.backend.running == 0
    assert server.records[-1].end == "timed out"


def test_time_ends_in_mid_stream(guarded):
    server = guarded(request_timeout_s=0.1)
    response = server.post(CHAT, chat("!endless", stream=True), headers=BEARER)
    assert response.status_code == 200
    *events, last, done, empty = response.text.split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert "word" in events[-1]
    assert server.backend.running == 0
    assert server.records[-1].end == "timed out"


def receiver(messages):
    """What `receive` gives, then it waits."""

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(3600)

    return receive


def run_raw(server, scope, messages):
    """The app by hand, without a client library: the messages that it sends."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(asyncio.wait_for(server.app(scope, receiver(messages), send), 5))
    return sent


def scope(path=CHAT, **values):
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        **values,
    }


def body(text, more=False):
    return {"type": "http.request", "body": text, "more_body": more}


def test_a_body_that_never_comes_ends_in_time():
    server = Server(limits=Limits(request_timeout_s=0.05))
    start, *_ = run_raw(server, scope(), [body(b"{", more=True)])
    assert start["status"] == 408


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engine(stream):
    server = Server()
    text = "!endless" if stream else "!wait"
    sent = run_raw(server, scope(), [body(json.dumps(chat(text, stream=stream)).encode()), {"type": "http.disconnect"}])
    assert server.backend.running == 0
    assert server.records[-1].end == "client left"
    if not stream:
        assert sent == []
        assert server.records[-1].status == 499


def test_a_client_that_leaves_while_it_sends():
    server = Server()
    assert run_raw(server, scope(), [body(b"{", more=True), {"type": "http.disconnect"}]) == []
    assert (server.records[-1].status, server.records[-1].end) == (499, "client left")


def test_cancelled_from_outside_as_by_ray():
    server = Server()

    async def send(message):
        raise AssertionError("nothing is sent")

    async def run():
        receive = receiver([body(json.dumps(chat("!wait")).encode())])
        task = asyncio.create_task(server.app(scope(), receive, send))
        while not server.backend.running:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert server.backend.running == 0
    assert server.records[-1].end == "client left"


def test_websockets_are_closed():
    (message,) = run_raw(Server(), scope(type="websocket"), [{"type": "websocket.connect"}])
    assert message["type"] == "websocket.close"


def test_a_bug_is_a_500_and_the_log_has_no_prompt(caplog):
    server = Server()
    failed = server.post(CHAT, chat("!bug"))
    assert (failed.status_code, error(failed)["type"]) == (500, "server_error")
    request_id = failed.headers["x-request-id"]
    assert request_id in error(failed)["message"]
    (logged,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert request_id in logged.getMessage()
    assert "KeyError" in logged.getMessage()
    assert "!bug" not in caplog.text
    assert server.records[-1].end == "failed"
    assert server.post(CHAT, chat()).status_code == 200


def test_a_dead_engine_is_a_503():
    server = Server()
    server.backend.alive = False
    failed = [server.post(CHAT, chat(text)) for text in ("!bug", "!error")]
    for response in (*failed, server.ask("GET", "/health")):
        assert (response.status_code, error(response)["code"]) == (503, "engine_down")
        assert response.headers["retry-after"]


def test_a_bug_in_mid_stream_is_an_event(caplog):
    response = Server().post(CHAT, chat("!break", stream=True))
    *_, half, told, done, _ = response.text.split("\n\n")
    assert "half" in half
    assert json.loads(told.removeprefix("data: "))["error"]["type"] == "server_error"
    assert done == "data: [DONE]"
    assert "!break" not in caplog.text


def test_a_connection_that_the_engine_lost_is_not_the_clients():
    server = Server()
    assert server.post(CHAT, chat("!reset")).status_code == 500
    assert server.records[-1].end == "failed"


def test_a_refusal_in_mid_stream_is_an_event():
    *_, told, done, _ = Server().post(CHAT, chat("!change", stream=True)).text.split("\n\n")
    assert json.loads(told.removeprefix("data: "))["error"]["message"] == "the model was unloaded"
    assert done == "data: [DONE]"


def test_an_error_that_cannot_be_sent_is_no_error():
    async def send(message):
        raise OSError("the socket is closed")

    server = Server()
    asyncio.run(server.app(scope("/nothing"), receiver([body(b"")]), send))
    asyncio.run(server.app(scope(client=("10.0.0.7", 1)), receiver([body(b"")]), send))
    assert [e.end for e in server.records] == ["client left"] * 2


@pytest.mark.parametrize("n_sent", [0, 1, 2])
def test_a_stream_that_cannot_be_sent_stops_the_engine(n_sent):
    server = Server()
    left = [n_sent]

    async def send(message):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionResetError

    async def run():
        await server.app(scope(), receiver([body(json.dumps(chat("!endless", stream=True)).encode())]), send)
        return server.backend.running

    assert asyncio.run(run()) == 0
    assert server.records[-1].end == "client left"


def test_one_line_of_log_a_request_without_a_word_said(guarded, caplog):
    caplog.set_level(logging.INFO, "deescal.serve")
    server = guarded()
    server.post(CHAT, chat("a secret matter", stream=True), headers=BEARER)
    server.ask("GET", "/v1/models/a%0Ab", headers=BEARER)
    lines = [r.getMessage() for r in caplog.records if r.name == "deescal.serve.access"]
    assert len(lines) == 2
    assert lines[0].startswith("POST /v1/chat/completions request=")
    for part in ("status=200", "model=base", "key=alice", "first_token_s=", "prompt_tokens=4", "completion_tokens=3"):
        assert part in lines[0]
    assert lines[1].startswith("GET /v1/models/a?b request=")
    assert "secret" not in caplog.text
    assert KEY not in caplog.text


def test_prompts_are_logged_when_asked_for(caplog):
    caplog.set_level(logging.INFO, "deescal.serve")
    Server(log_prompts=True).post(CHAT, chat("a secret matter"))
    assert "a secret matter" in caplog.text


def test_what_the_recorder_gets():
    server = Server()
    server.post(CHAT, chat("one two three", stream=True))
    server.ask("GET", "/v1/models/base")
    server.ask("GET", "/nothing")
    stream, model, nothing = server.records
    assert (stream.route, stream.status, stream.model) == (CHAT, 200, "base")
    assert stream.completion_tokens == 3
    assert 0 < stream.first_token_s <= stream.seconds
    assert stream.seconds_per_token == pytest.approx((stream.seconds - stream.first_token_s) / 2)
    assert (model.route, model.seconds_per_token) == ("/v1/models/{id:path}", None)
    assert (nothing.route, nothing.status) == ("other", 404)


def test_the_request_id_of_a_proxy_is_kept():
    server = Server()
    kept = server.ask("GET", "/health", headers={"X-Request-ID": "from-ray-1"})
    assert server.records[-1].request_id == "from-ray-1"
    assert "x-request-id" not in kept.headers  # who gave it writes it
    server.ask("GET", "/health", headers={"X-Request-ID": "x" * 1000})
    assert len(server.records[-1].request_id) == 32


def test_cross_origin_is_off_unless_allowed():
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert Server().ask("OPTIONS", CHAT, headers=asked).status_code == 405
    assert "access-control-allow-origin" not in Server().ask("GET", "/health", headers=asked).headers
    server = Server(http={"cors_origins": ["https://page.example"]})
    assert server.ask("OPTIONS", CHAT, headers=asked).headers["access-control-allow-origin"] == "https://page.example"
    refused = server.ask("OPTIONS", CHAT, headers={**asked, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in refused.headers


def test_a_page_cannot_post_without_preflight():
    """A browser sends text/plain across origins without asking; JSON it must ask for."""
    server = Server()
    plain = server.ask("POST", CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400
    assert server.backend.asked == []
