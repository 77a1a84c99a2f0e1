"""A client of any OpenAI-compatible API: retries, streams, and many requests at once without losing one.

Bulk scoring, evaluation and the load generator all ask through it, our own endpoint and outside vendors' alike. What
is sent is the caller's (`max_tokens` or `max_completion_tokens`, sampling, a vendor's own fields); unknown fields of
an answer are ignored. The key comes from the environment, and is in no error.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from deescal.errors import UserError, one_line
from deescal.serve.answers import (
    Answer,
    EndpointError,
    check_body,
    check_status,
    counts_of,
    json_object,
    piece_of,
    read_answer,
)

if TYPE_CHECKING:
    import httpx

KEY_ENV = "DEESCAL_API_KEY"
MAX_WAIT_S = 30.0  # between two attempts, unless the server asks for more
PATIENCE = 10.0  # times the timeout of an attempt, for which a rate limit is waited out
_CHECK_TIMEOUT_S = 10.0

Fields = Mapping[str, Any]  # of a request, as the API has them: model, messages or prompt, max_tokens, ...
T = TypeVar("T")


class Endpoint:
    """An API at a base URL. Connections are kept while it is open (`async with`); else a call opens and closes its own.

    Open it in one event loop at a time. While closed it can be pickled. How many requests are in flight is the
    caller's to bound: there is no limit on connections.

    Args:
        url: with the version's path (`https://host/v1`), as OpenAI's client takes it; without a path, /v1 is added.
        key_env: environment variable that has the key; unset or empty: no key is sent.
        timeout_s: of one attempt; of a stream, until the next piece.
        retries: attempts after the first.
        backoff_s: the first retry comes after a random wait of up to this, each further one of up to twice the wait
            before, at most 30 s: exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter",
            AWS Architecture Blog, 2015).
        seed: of the waits.

    Raises:
        UserError: no http(s) URL, or one with a password in it.
    """

    def __init__(
        self,
        url: str,
        key_env: str = KEY_ENV,
        timeout_s: float = 120.0,
        retries: int = 4,
        backoff_s: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.url, self.key_env = base_url(url), key_env
        self.timeout_s, self.retries, self.backoff_s = timeout_s, retries, backoff_s
        self._random = random.Random(seed)
        self._http: httpx.AsyncClient | None = None
        self._users = 0

    async def __aenter__(self) -> Endpoint:
        if self._http is None:
            import httpx

            self._http = httpx.AsyncClient(
                headers=_headers(self.key_env),
                timeout=httpx.Timeout(self.timeout_s),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users and (http := self._http) is not None:
            self._http = None
            await http.aclose()

    async def chat(self, fields: Fields) -> Answer:
        """POST /chat/completions. Raises: EndpointError."""
        return await self._ask("/chat/completions", fields)

    async def complete(self, fields: Fields) -> Answer:
        """POST /completions. Raises: EndpointError."""
        return await self._ask("/completions", fields)

    async def ask(self, fields: Fields) -> Answer:
        """`chat` where the fields have messages, else `complete`."""
        return await self._ask(_path(fields), fields)

    def stream(self, fields: Fields) -> Stream:
        """The same, in pieces as they are made."""
        return Stream(self, fields)

    async def _ask(self, path: str, fields: Fields) -> Answer:
        start = time.perf_counter()

        async def attempt(n: int) -> Answer:
            try:
                async with asyncio.timeout(self.timeout_s):
                    response = await self._client.post(self.url + path, content=json.dumps(fields))
            except TimeoutError as error:
                raise _timeout(self.timeout_s) from error
            check_status(response, response.content)
            return read_answer(response.content, time.perf_counter() - start, n)

        async with self:
            return await self._retrying(attempt)

    @property
    def _client(self) -> httpx.AsyncClient:
        assert self._http is not None  # callers have opened it
        return self._http

    async def _retrying(self, attempt: Callable[[int], Awaitable[T]]) -> T:
        """`attempt(1)`, `attempt(2)`, ... until one goes well, or none is left or of use.

        To be told when to come back, by a rate limit, is no failure: such attempts are not counted for a while.
        """
        n, n_failed, began = 1, 0, time.monotonic()
        while True:
            try:
                return await self._translated(attempt(n))
            except EndpointError as error:
                limited = error.status == HTTPStatus.TOO_MANY_REQUESTS and error.retry_after_s is not None
                n_failed += not limited or time.monotonic() - began > PATIENCE * self.timeout_s
                wait_s = self._wait_s(n_failed, error)
                if wait_s is None:
                    error.attempts = n
                    if n > 1:
                        error.args = (f"{error} (after {n} attempts)",)
                    raise
            await asyncio.sleep(wait_s)
            n += 1

    def _wait_s(self, n: int, error: EndpointError) -> float | None:
        """Seconds until the next attempt after `n` that failed; None: no more.

        One that asks to come back later than an attempt may last is given up: a quota of a day is not waited for.
        """
        asked_s = error.retry_after_s or 0.0
        if not error.retryable or n > self.retries or asked_s > self.timeout_s:
            return None
        # On top of what is asked, so that not all come back at one moment.
        return asked_s + self._random.uniform(0, min(MAX_WAIT_S, self.backoff_s * 2.0 ** min(max(n - 1, 0), 30)))

    async def _translated(self, work: Awaitable[T]) -> T:
        """Await it; httpx's errors become ours."""
        import httpx

        try:
            return await work
        except httpx.TimeoutException as error:
            raise _timeout(self.timeout_s) from error
        except httpx.DecodingError as error:
            raise EndpointError(f"malformed answer: {one_line(error)}", retryable=True) from error
        except httpx.RequestError as error:
            raise EndpointError(f"no connection: {one_line(error)}", retryable=True, kind="connection") from error


class Stream:
    """An answer in pieces: iterate over it for (seconds from the start, text); then `answer` has the whole.

    Attempts are repeated until the first piece is there, after that no more: half an answer cannot be taken back.
    The seconds count from the first attempt on.
    """

    def __init__(self, endpoint: Endpoint, fields: Fields) -> None:
        self._endpoint = endpoint
        # Servers leave the number of tokens out of a stream unless asked.
        self._fields = {"stream_options": {"include_usage": True}, **fields, "stream": True}
        self.answer: Answer | None = None

    async def __aiter__(self) -> AsyncIterator[tuple[float, str]]:
        """Raises: EndpointError."""
        endpoint, start, attempts = self._endpoint, time.perf_counter(), 0
        parts: list[str] = []
        usage: Fields = {}
        finish_reason: str | None = None
        events: AsyncIterator[dict[str, Any]]

        async def first(n: int) -> tuple[AsyncIterator[dict[str, Any]], list[dict[str, Any]]]:
            """The events, and those up to the first that has text."""
            nonlocal attempts
            attempts = n
            events, before = self._events(), []
            async for event in events:
                before.append(event)
                if piece_of(event)[0]:
                    break
            return events, before

        async with endpoint:
            events, before = await endpoint._retrying(first)
            try:
                while True:
                    for event in before:
                        text, reason = piece_of(event)
                        finish_reason = reason or finish_reason
                        usage = event.get("usage") or usage
                        if text:
                            parts.append(text)
                            yield time.perf_counter() - start, text
                    try:
                        before = [await endpoint._translated(anext(events))]
                    except StopAsyncIteration:
                        break
                    except EndpointError as error:
                        error.attempts = attempts
                        raise
            finally:
                await events.aclose()  # type: ignore[attr-defined]
        text = "".join(parts)
        choices = [{"text": text, "finish_reason": finish_reason}]
        seconds = time.perf_counter() - start
        self.answer = Answer(text, finish_reason, *counts_of(usage), seconds, attempts, choices)

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events of one attempt."""
        endpoint, content = self._endpoint, json.dumps(self._fields)
        ended = False  # by [DONE] or, as some servers leave it out, by a finish reason
        async with endpoint._client.stream("POST", endpoint.url + _path(self._fields), content=content) as response:
            if response.status_code != HTTPStatus.OK:
                check_status(response, await response.aread())
            async for line in response.aiter_lines():
                name, _, data = line.partition(":")
                if name != "data":
                    continue  # a comment, a blank line, or a field that this API does not use
                if data.strip() == "[DONE]":
                    ended = True
                    continue  # to the body's end: a connection whose answer was not read cannot be used again
                event = {"choices": [], **json_object(data)}  # some leave them out where they only count tokens
                check_body(event)
                ended = ended or piece_of(event)[1] is not None
                yield event
        if not ended:
            raise EndpointError("malformed answer: the stream broke off", retryable=True)


async def ask_all(
    endpoint: Endpoint,
    requests: Sequence[Fields],
    concurrency: int,
    on_done: Callable[[int, Answer | EndpointError], None] | None = None,
) -> list[Answer | str]:
    """Ask all, at most `concurrency` at once, started in order -> for each, in order, its answer or its error's text.

    Args:
        on_done: is told the place of each request and what it got, as they end.
    """
    results: list[Answer | str] = [""] * len(requests)

    async def job(i: int) -> None:
        result: Answer | EndpointError
        try:
            result = await endpoint.ask(requests[i])
        except EndpointError as error:
            result = error
        results[i] = str(result) if isinstance(result, EndpointError) else result
        if on_done:
            on_done(i, result)

    async with endpoint:
        await bounded(len(requests), concurrency, job)
    return results


async def bounded(n: int, concurrency: int, job: Callable[[int], Awaitable[None]]) -> None:
    """Run `job(0)` to `job(n - 1)`, at most `concurrency` at once, started in order; the first exception ends all."""
    numbers = iter(range(n))

    async def work() -> None:
        for i in numbers:
            await job(i)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, n)):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def check_endpoint(url: str, model: str, key_env: str = KEY_ENV) -> dict[str, Any]:
    """Before heavy work: is there an API at this address, does it take our key, has it this model? -> the model's card.

    A card has the model's `id`; ours and vLLM's also `max_model_len`, ours `weights`, which change when they do.

    Raises:
        UserError: it cannot be reached, refuses the key, is no such API, or does not serve the model (with what it
            does serve).
    """
    import httpx

    where = f"{base_url(url)}/models"
    try:
        response = httpx.get(where, headers=_headers(key_env), timeout=_CHECK_TIMEOUT_S)
    except httpx.TimeoutException as error:
        raise UserError(f"endpoint {url}: no answer within {_CHECK_TIMEOUT_S:g} s; is it still starting?") from error
    except httpx.RequestError as error:
        raise UserError(f"endpoint {url}: cannot be reached: {one_line(error)}") from error
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        how = f"the key in {key_env} is not accepted" if os.environ.get(key_env) else f"put a key into {key_env}"
        raise UserError(f"endpoint {url}: HTTP {response.status_code}: {how}")
    if response.has_redirect_location:
        raise UserError(f"endpoint {url}: moved to {response.headers['location'].removesuffix('/models')}; give that")
    try:
        check_status(response, response.content)
        cards = {str(card["id"]): dict(card) for card in json_object(response.content)["data"]}
    except EndpointError as error:
        raise UserError(f"endpoint {url}: {where}: {error}; expected an OpenAI-compatible API") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"endpoint {url}: {where} lists no models; expected an OpenAI-compatible API") from error
    if model not in cards:
        raise UserError(f"endpoint {url}: no model '{model}'; it serves {', '.join(sorted(cards)) or 'none'}")
    return cards[model]


def base_url(url: str) -> str:
    """'http://host:8000' -> 'http://host:8000/v1'; one with a path stays, without a slash at its end.

    Raises:
        UserError: no http(s) URL, or one with a password, query or fragment.
    """
    import httpx

    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UserError(f"endpoint '{url}': {one_line(error)}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"endpoint '{url}': expected http://host:port or https://host/v1")
    if parsed.userinfo:
        raise UserError("endpoint: a name or password in the URL; put the key into the environment instead")
    if parsed.query or parsed.fragment:
        raise UserError(f"endpoint '{url}': a base URL has no '?' and no '#'")
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path or "/v1"))


def _path(fields: Fields) -> str:
    return "/chat/completions" if "messages" in fields else "/completions"


def _headers(key_env: str) -> dict[str, str]:
    key = os.environ.get(key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{key_env}: the key has characters that no key has")
    accepted = {"Content-Type": "application/json"}
    return {**accepted, "Authorization": f"Bearer {key}"} if key else accepted


def _timeout(timeout_s: float) -> EndpointError:
    return EndpointError(f"no answer within {timeout_s:g} s", retryable=True, kind="timeout")
