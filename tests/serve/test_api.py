"""The API as clients see it: OpenAI's own client over a real socket, and its schema put to the test by Schemathesis."""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest
import uvicorn

from tests.conftest import free_port
from tests.serve.fake_backend import CARDS, CONTEXT_TOKENS, KEY, Server, keys_for_tests

HI = [{"role": "user", "content": "how are you"}]
PATHS = {"/health", "/v1/models", "/v1/models/{id}", "/v1/chat/completions", "/v1/completions", "/v1/rehearse"}


def test_models():
    server = Server()
    assert server.ask("GET", "/v1/models").json() == {"object": "list", "data": CARDS}
    assert server.ask("GET", "/v1/models/tuned").json() == CARDS[1]
    unknown = server.ask("GET", "/v1/models/some/thing%00else")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "model 'some/thing?else' is not served (there are: base, tuned)"


def test_routes_there_are_not():
    server = Server()
    for method, path, status, code in [
        ("GET", "/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/models/", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
    ]:
        response = server.ask(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), path
    assert server.ask("GET", "/v1/rehearse").headers["allow"] == "POST"


def test_the_tokens_of_a_stream_are_told_to_who_asks():
    server = Server()
    body = {"model": "base", "messages": HI, "stream": True}
    assert "usage" not in server.post("/v1/chat/completions", body).text
    with_usage = server.post("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    *_, usage, done, _ = with_usage.text.split("\n\n")
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 3
    assert done == "data: [DONE]"
    assert with_usage.headers["content-type"].startswith("text/event-stream")
    completion = server.post("/v1/completions", {"model": "base", "prompt": "a b", "stream": True})
    assert '"text": "a "' in completion.text
    assert server.records[-1].first_token_s is not None


def test_too_long_is_refused_before_a_stream_starts():
    long = [{"role": "user", "content": "word " * 2 * CONTEXT_TOKENS}]
    for stream in (False, True):
        response = Server().post("/v1/chat/completions", {"model": "base", "messages": long, "stream": stream})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_the_schema_has_every_route_and_how_it_refuses(monkeypatch):
    schema = Server().ask("GET", "/openapi.json").json()
    assert set(schema["paths"]) == PATHS
    assert "securitySchemes" not in schema["components"]
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat) == {"200", "4XX", *map(str, (400, 401, 403, 404, 408, 413, 429, 500, 503, 504))}
    assert "text/event-stream" in chat["200"]["content"]
    server = Server(keys_for_tests(monkeypatch))
    schema = server.ask("GET", "/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert schema["paths"]["/v1/rehearse"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in schema["paths"]["/health"]["get"]


@pytest.fixture(scope="module")
def running():
    """A server with a key on a free port, and its URL."""
    with pytest.MonkeyPatch.context() as patch:
        server = Server(keys_for_tests(patch), limits={"requests_per_minute": 0})
    port = free_port()
    web = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="error"))
    thread = threading.Thread(target=web.run)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield server, f"http://127.0.0.1:{port}"
    web.should_exit = True
    thread.join()


def client(running, key=KEY):
    return openai.OpenAI(base_url=f"{running[1]}/v1", api_key=key, max_retries=0, timeout=20)


def test_openai_client_chat_and_completions(running):
    ours = client(running)
    chat = ours.chat.completions.create(model="tuned", messages=HI, temperature=0.5, n=2, max_completion_tokens=2)
    assert [c.message.content for c in chat.choices] == ["how are", "how are"]
    assert chat.usage.total_tokens == 6
    again = ours.chat.completions.create(model="base", messages=[*HI, chat.choices[0].message, *HI])
    assert again.choices[0].message.content == "how are you"
    assert ours.completions.create(model="base", prompt="a b").choices[0].text == "a b"


def test_openai_client_streams(running):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client(running).chat.completions.create(model="base", messages=HI, **options))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "how are you "
    assert chunks[-1].usage.completion_tokens == 3


def test_openai_client_models(running):
    ours = client(running)
    assert [m.id for m in ours.models.list()] == ["base", "tuned"]
    assert ours.models.retrieve("tuned").model_extra["parent"] == "base"


def test_openai_client_gets_its_own_errors(running):
    ours = client(running)
    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
        client(running, "not-the-key-of-this-server").models.list()
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served") as unknown:
        ours.chat.completions.create(model="gpt-4", messages=HI)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
        ours.chat.completions.create(model="base", messages=HI, tools=[])
    with pytest.raises(openai.BadRequestError, match="more than the model's"):
        ours.chat.completions.create(model="base", messages=[{"role": "user", "content": "a " * CONTEXT_TOKENS}])
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        ours.chat.completions.create(model="base", messages=[{"role": "user", "content": "!bug"}])
    with pytest.raises(openai.APIError, match="the server failed"):
        list(ours.chat.completions.create(model="base", messages=[{"role": "user", "content": "!break"}], stream=True))
    with pytest.raises(openai.APIStatusError) as large:
        ours.chat.completions.create(model="base", messages=[{"role": "user", "content": "a" * 2**21}])
    assert large.value.status_code == 413
    assert ours.models.list()


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_client_that_leaves_in_mid_stream_stops_the_engine(running):
    server, _ = running
    stream = client(running).chat.completions.create(
        model="base", messages=[{"role": "user", "content": "!endless"}], stream=True
    )
    for _ in range(5):
        next(stream)
    assert server.backend.running == 1
    stream.close()
    wait_until(lambda: server.backend.running == 0)
    wait_until(lambda: server.records[-1].end == "client left")
    assert client(running).models.list()


def test_a_client_that_does_not_wait_stops_the_engine(running):
    server, url = running
    body = {"model": "base", "messages": [{"role": "user", "content": "!wait"}]}

    async def leave():
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as http:
            asked = asyncio.create_task(http.post(f"{url}/v1/chat/completions", json=body))
            while not server.backend.running:
                await asyncio.sleep(0.01)
            asked.cancel()
            await asyncio.wait([asked])

    asyncio.run(leave())
    wait_until(lambda: server.backend.running == 0)
    wait_until(lambda: server.records[-1].status == 499)


def test_many_at_once_each_get_their_own(running):
    _, url = running

    async def ask_all():
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(headers=headers, base_url=url, timeout=20) as http:
            bodies = [{"model": "base", "prompt": f"number {i}", "stream": i % 2 == 0} for i in range(60)]
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))

    for i, response in enumerate(asyncio.run(ask_all())):
        assert response.status_code == 200
        assert f"{i} " in response.text or f"number {i}" in response.text
