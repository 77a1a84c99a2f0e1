"""What stands before the API: who may ask, how much, how long; one line of log a request, and no traceback outside.

Plain ASGI, so that a stream passes it chunk by chunk. It reads the whole (bounded) body first and then watches the
connection: when the client leaves, or time is up, what works for it is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import traceback
import uuid
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deescal.serve.errors import SERVER, RequestRefused, server_error
from deescal.serve.exchange import EXCHANGE, Exchange, Recorder, ignore
from deescal.serve.keys import KeyRing, RateLimit
from deescal.serve.limits import Limits

OPEN_PATHS = frozenset({"/health"})  # for load balancers: need no key
CLIENT_LEFT = 499  # nginx's number for a client that did not wait
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware; see the module."""

    def __init__(
        self, app: ASGIApp, limits: Limits, keys: KeyRing, record: Recorder = ignore, rate: RateLimit | None = None
    ) -> None:
        """
        Args:
            keys: where there are none, clients of this machine only are served.
            rate: of each key; None: no limit.
        """
        self._app, self._limits, self._keys, self._record, self._rate = app, limits, keys, record, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        is_given = _REQUEST_ID.fullmatch(given) is not None
        exchange = Exchange(given if is_given else uuid.uuid4().hex, scope["method"], scope["path"])
        scope[EXCHANGE] = exchange
        # Who gave an id (Ray's proxy does) writes it into the answer, too.
        answer = _Answer(send, exchange, None if given else exchange.request_id)
        try:
            self._admit(scope, headers, exchange)
            await self._serve(scope, headers, receive, answer)
        except RequestRefused as refused:
            await answer.fail(refused)
        except asyncio.CancelledError:  # by Ray, whose proxy saw the client leave
            answer.leave()
            raise
        finally:
            exchange.seconds = exchange.elapsed_s
            exchange.route = getattr(scope.get("route"), "path", exchange.route)
            exchange.log()
            self._record(exchange)

    def _admit(self, scope: Scope, headers: Headers, exchange: Exchange) -> None:
        """Raises RequestRefused where this client may not ask, or not now."""
        if scope["path"] in OPEN_PATHS:
            return
        if not self._keys:
            check_local(scope, headers)
            return
        given = headers.get("authorization")
        exchange.key_name = self._keys.match(given)
        if exchange.key_name is None:
            why = "wrong API key" if given else "no API key: send the header Authorization: Bearer KEY"
            challenge = 'Bearer error="invalid_token"' if given else "Bearer"
            raise RequestRefused(401, why, code="invalid_api_key", headers={"WWW-Authenticate": challenge})
        if self._rate is not None and (wait_s := self._rate.take(exchange.key_name)) > 0:
            whole_s = math.ceil(wait_s)
            raise RequestRefused(
                429,
                f"too many requests with this key: the next one in {whole_s} s",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(whole_s)},
            )

    async def _serve(self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer) -> None:
        limit_s = self._limits.request_timeout_s
        deadline = asyncio.timeout(limit_s)
        watch = None
        gone = asyncio.Event()
        body = None
        try:
            async with deadline:
                body = await _read(receive, headers, self._limits.max_body_bytes)
                watch = asyncio.create_task(_watch(receive, deadline, gone, answer))
                await self._app(scope, _replay(body, gone), answer.send)
        except _ClientLeft:
            answer.leave()
        except TimeoutError as error:
            if gone.is_set():
                answer.leave()
            elif not deadline.expired():  # one of the engine's own
                await self._fail(error, answer)
            else:
                answer.exchange.end = "timed out"
                status, what = (504, "no answer") if body is not None else (408, "no whole request")
                raise RequestRefused(status, f"{what} within {limit_s:g} s", None, SERVER, "timeout") from error
        except RequestRefused:
            raise
        except Exception as error:
            await self._fail(error, answer)
        finally:
            if watch is not None:
                watch.cancel()

    async def _fail(self, error: Exception, answer: _Answer) -> None:
        """A bug of ours or the engine's: told in the log without its message, which may repeat the prompt."""
        answer.exchange.end = "failed"
        names = []
        cause: BaseException | None = error
        while cause is not None:
            names.append(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
        lines = "".join(traceback.format_tb(error.__traceback__))
        logger.error("request %s failed: %s\n%s", answer.exchange.request_id, " from ".join(names), lines.rstrip())
        await answer.fail(server_error(answer.exchange.request_id))


class _ClientLeft(Exception):
    """Found out by reading or writing; not OSError, which the engine may raise for reasons of its own."""


class _Answer:
    """The way to the client, and how far the answer has come on it."""

    def __init__(self, send: Send, exchange: Exchange, request_id: str | None) -> None:
        self.exchange, self.ended = exchange, False
        self._send, self._request_id = send, request_id
        self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.exchange.status = message["status"]
            headers = MutableHeaders(scope=message)
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
            if self._request_id:
                headers["x-request-id"] = self._request_id
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        try:
            await self._send(message)
        except OSError as error:
            raise _ClientLeft from error

    async def fail(self, refused: RequestRefused) -> None:
        """The error, in the status where none is sent yet; a stream ends with an event that tells it, and [DONE]."""
        response, status = refused.response(), refused.status
        try:
            if not self.exchange.status:
                await self.send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
                await self.send({"type": "http.response.body", "body": response.body})
            elif self._is_stream and not self.ended:
                event = f"data: {json.dumps(refused.body())}\n\ndata: [DONE]\n\n"
                await self.send({"type": "http.response.body", "body": event.encode()})
        except _ClientLeft:
            self.leave()

    def leave(self) -> None:
        """Note that nobody waits any longer."""
        self.exchange.end = "client left"
        self.exchange.status = self.exchange.status or CLIENT_LEFT


def check_local(scope: Scope, headers: Headers) -> None:
    """Raises RequestRefused for a client of another machine, or one that calls this machine by a foreign name.

    The latter is a browser that a page of somebody's has led here (DNS rebinding).
    """
    host = re.sub(r":\d+$", "", headers.get("host", "localhost")).strip("[]")
    if not (is_loopback((scope.get("client") or [""])[0]) and is_local_host(host)):
        raise RequestRefused(
            403, "no API key is configured, so only clients of this machine are served", code="loopback_only"
        )


def is_local_host(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    return host == "localhost" or is_loopback(host)


def is_loopback(address: str) -> bool:
    """Whether an IP address, v4 or v6, is of this machine; False for a name."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


async def _read(receive: Receive, headers: Headers, limit: int) -> bytes:
    too_large = RequestRefused(413, f"the body is larger than {limit} bytes", code="body_too_large")
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    parts = [body]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def _watch(receive: Receive, deadline: asyncio.Timeout, gone: asyncio.Event, answer: _Answer) -> None:
    """End the request's time when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not answer.ended and not deadline.expired():  # a server also says so when all is sent
        gone.set()
        deadline.reschedule(asyncio.get_running_loop().time())
