"""A backend that needs no engine: it repeats the last message's words, and does on request what engines do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx

from deescal.serve.api import build_api
from deescal.serve.config import ServeConfig
from deescal.serve.errors import RequestRefused
from deescal.serve.exchange import Exchange
from deescal.serve.keys import KeyRing, read_keys

KEY = "a-key-for-tests-only"
CONTEXT_TOKENS = 4096
CARDS = [
    {"id": name, "object": "model", "created": 0, "owned_by": "deescal", "max_model_len": CONTEXT_TOKENS, **about}
    for name, about in {
        "base": {"root": "base", "parent": None},
        "tuned": {"root": "runs/tuned", "parent": "base"},
    }.items()
]


class FakeBackend:
    """What a message says decides: `!bug`, `!error`, `!reset`, `!wait`; of a stream `!endless`, `!break`, `!change`."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.alive = True
        self.running = 0  # calls and streams that have not ended
        self.n_sent = 0  # events

    def models(self) -> list[dict[str, Any]]:
        return CARDS

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        return sum(len(m["content"].split()) + 1 for m in messages)

    async def healthy(self) -> bool:
        return self.alive

    async def chat(self, fields: dict[str, Any]) -> dict[str, Any] | AsyncGenerator[str, None]:
        def choice(text: str) -> dict[str, Any]:
            message = {"role": "assistant", "content": text, "refusal": None, "tool_calls": []}
            return {"message": message, "logprobs": None}

        def delta(text: str | None) -> dict[str, Any]:
            return {"delta": {"role": "assistant", "content": ""} if text is None else {"content": text}}

        said = fields["messages"][-1]["content"]
        n_prompt = self.count_tokens(fields["messages"])
        return await self._reply(fields, said, n_prompt, fields["max_completion_tokens"], choice, delta)

    async def completions(self, fields: dict[str, Any]) -> dict[str, Any] | AsyncGenerator[str, None]:
        def choice(text: str | None) -> dict[str, Any]:
            return {"text": text or "", "logprobs": None}

        said = str(fields["prompt"])
        return await self._reply(fields, said, len(said.split()), fields["max_tokens"], choice, choice)

    async def _reply(
        self,
        fields: dict[str, Any],
        said: str,
        n_prompt: int,
        n_reply: int,
        choice: Callable[[str], dict[str, Any]],
        delta: Callable[[str | None], dict[str, Any]],
    ) -> dict[str, Any] | AsyncGenerator[str, None]:
        self.asked.append(fields)
        if n_prompt + n_reply > CONTEXT_TOKENS:
            told = f"{n_prompt} tokens of prompt and {n_reply} of reply are more than the model's {CONTEXT_TOKENS}"
            raise RequestRefused(400, told, "messages", code="context_length_exceeded")
        if said == "!bug":
            raise KeyError(said)
        if said == "!reset":
            raise ConnectionResetError("of the engine's own socket")
        if said == "!error":
            raise RequestRefused(500, "the engine says so", type="server_error")
        if said == "!wait":
            await self._wait()
        words = said.split()[:n_reply]
        usage = {"prompt_tokens": n_prompt, "completion_tokens": len(words), "total_tokens": n_prompt + len(words)}
        kind = "chat.completion" if "messages" in fields else "text_completion"
        head = {"id": "fake-1", "object": kind, "created": 0, "model": fields["model"]}
        if fields.get("stream"):
            if kind == "chat.completion":
                head["object"] += ".chunk"
            return self._stream(head, said, words, usage, delta)
        choices = [{"index": i, **choice(" ".join(words)), "finish_reason": "stop"} for i in range(fields.get("n", 1))]
        return {**head, "choices": choices, "usage": usage}

    async def _wait(self) -> None:
        self.running += 1
        try:
            await asyncio.sleep(3600)
        finally:
            self.running -= 1

    async def _stream(
        self,
        head: dict[str, Any],
        said: str,
        words: list[str],
        usage: dict[str, int],
        delta: Callable[[str | None], dict[str, Any]],
    ) -> AsyncGenerator[str, None]:
        def event(text: str | None, finish: str | None = None) -> str:
            self.n_sent += 1
            chunk = {**head, "choices": [{"index": 0, **delta(text), "finish_reason": finish}]}
            return f"data: {json.dumps(chunk)}\n\n"

        self.running += 1
        try:
            yield event(None)
            while said == "!endless":
                yield event("word ")
                await asyncio.sleep(0.001)
            if said == "!break":
                yield event("half")
                raise KeyError(said)
            if said == "!change":
                raise RequestRefused(404, "the model was unloaded", "model")
            for word in words:
                yield event(f"{word} ")
            yield event("", "stop")
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1


def keys_for_tests(monkeypatch: Any, text: str = f"alice:{KEY}") -> KeyRing:
    """A key ring out of the environment, as servers read it."""
    monkeypatch.setenv("DEESCAL_API_KEYS", text)
    return read_keys()


class Server:
    """The app over a fake backend, and what the recorder got."""

    def __init__(self, keys: KeyRing | None = None, **config: Any) -> None:
        self.backend, self.records = FakeBackend(), list[Exchange]()
        self.app = build_api(self.backend, ServeConfig(**config), keys or KeyRing(), self.records.append)

    async def send(self, method: str, path: str, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
        """One request, without a socket."""
        transport = httpx.ASGITransport(app=self.app, client=(client, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, **options)

    def ask(self, method: str, path: str, client: str = "127.0.0.1", **options: Any) -> httpx.Response:
        """The same, outside any event loop."""
        return asyncio.run(self.send(method, path, client, **options))

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **options)
