"""A small OpenAI-compatible server in a thread that fails as its script says.

Each POST takes the next act of `script`, and `then` when the script is over. An act is a function of the request's
handler and its fields; the functions below make them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler", dict[str, Any]], None]


class FakeServer:
    """Serves while its context is open. `seen` are the POSTs so far: (path, headers, fields)."""

    def __init__(self, *script: Act, then: Act | None = None, models: Sequence[str] = ("tiny",)) -> None:
        self.script = list(script)
        self.then = then or reply()
        self.models: Act = raw(json.dumps({"object": "list", "data": [{"id": m} for m in models]}).encode())
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.n_connections = 0
        self.n_now, self.n_most = 0, 0  # requests under way, and the most there ever were
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def __enter__(self) -> FakeServer:
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def act(self, request: tuple[str, dict[str, str], dict[str, Any]]) -> Act:
        with self.lock:
            self.seen.append(request)
            return self.script.pop(0) if self.script else self.then


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: FakeServer

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.owner.lock:
            self.server.owner.n_connections += 1

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.server.owner.models(self, {"authorization": self.headers.get("authorization")})
        else:
            self.send(404, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        owner = self.server.owner
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with owner.lock:
            owner.n_now += 1
            owner.n_most = max(owner.n_most, owner.n_now)
        try:
            owner.act((self.path, {k.lower(): v for k, v in self.headers.items()}, fields))(self, fields)
        finally:
            with owner.lock:
                owner.n_now -= 1

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, *_: object) -> None: ...


def reply(text: str = "I'm fine.", delay_s: float = 0.0, **more: Any) -> Act:
    """A good answer of the path's kind; `more` goes into its body."""

    def act(handler: Handler, fields: dict[str, Any]) -> None:
        time.sleep(delay_s)
        chat = handler.path.endswith("/chat/completions")
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
        body = {"choices": [{"index": 0, "finish_reason": "stop", **said}], "usage": usage, **more}
        handler.send(200, json.dumps(body).encode())

    return act


def echo(handler: Handler, fields: dict[str, Any]) -> None:
    """Answers with the last message, later ones sooner than earlier ones."""
    text = fields["messages"][-1]["content"]
    reply(text, delay_s=0.002 * (int(text) % 3))(handler, fields)


def raw(body: bytes, status: int = 200, **headers: str) -> Act:
    """Just this; a header's `_` is a `-`."""
    return lambda handler, _: handler.send(status, body, {k.replace("_", "-"): v for k, v in headers.items()})


def fail(status: int, message: str = "no", **headers: str) -> Act:
    """An error as OpenAI words it."""
    return raw(json.dumps({"error": {"message": message, "code": None}}).encode(), status, **headers)


def html(status: int = 200) -> Act:
    return raw(b"<!DOCTYPE html><html><body>hello</body></html>", status, content_type="text/html")


def drop(handler: Handler, _: dict[str, Any]) -> None:
    """Closes in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def hang(handler: Handler, _: dict[str, Any]) -> None:
    """Says nothing until the server closes."""
    handler.server.owner.closing.wait(30)
    handler.close_connection = True


def stream(*pieces: str, gap_s: float = 0.0, done: bool = True, finish: bool = True, usage: bool = True) -> Act:
    """Server-sent events, one a piece, with a comment between; without `finish` and `done` it breaks off."""

    def act(handler: Handler, fields: dict[str, Any]) -> None:
        chat = handler.path.endswith("/chat/completions")
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()

        def event(value: dict[str, Any]) -> None:
            handler.chunk(f"data: {json.dumps(value)}\n\n".encode())

        if chat:
            event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for piece in pieces:
            handler.chunk(b": still here\n\n")
            event({"choices": [{"index": 0, "delta": {"content": piece}} if chat else {"index": 0, "text": piece}]})
            time.sleep(gap_s)
        if finish:
            event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if usage:
            event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(pieces)}})
        if done:
            handler.chunk(b"data: [DONE]\n\n")
        handler.chunk(b"")

    return act
