"""A stream of server-sent events on its way from the engine to the client, and what it tells of itself."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deescal.serve.errors import RequestRefused
from deescal.serve.exchange import Exchange

DONE = "data: [DONE]\n\n"


class EventStream(Response):
    """Passes events on as they come, and closes their source whatever happens: the engine must not go on for nobody.

    Starlette's StreamingResponse leaves a source that was cancelled while it was not waiting for it to the garbage
    collector.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: str,
        rest: AsyncGenerator[str, None],
        exchange: Exchange,
        *,
        include_usage: bool,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._first, self._rest, self._exchange, self._include_usage = first, rest, exchange, include_usage
        self.status_code = 200
        self.background = None
        # Some proxies collect a stream unless told not to (nginx).
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(event: str) -> None:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})

        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                if self._passes(self._first):
                    await write(self._first)
                async for event in self._rest:
                    if self._passes(event):
                        await write(event)
            except RequestRefused as refused:  # in mid-stream
                await write(f"data: {json.dumps(refused.body())}\n\n{DONE}")
            await send({"type": "http.response.body", "body": b""})

    def _passes(self, event: str) -> bool:
        """Note what an event tells, and whether the client shall have it. Reads only those that can tell anything."""
        exchange = self._exchange
        has_usage = '"usage":{' in event or '"usage": {' in event
        if not has_usage and exchange.first_token_s is not None:
            return True
        try:
            chunk = json.loads(event.removeprefix("data:"))
        except ValueError:  # [DONE]
            return True
        choices = chunk.get("choices") or []
        texts = (choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices)
        if exchange.first_token_s is None and any(texts):
            exchange.first_token_s = exchange.elapsed_s
        if has_usage:
            exchange.note_usage(chunk["usage"])
        return self._include_usage or not has_usage or bool(choices)


async def start_stream(
    source: AsyncGenerator[str, None],
    exchange: Exchange,
    *,
    include_usage: bool,
    headers: Mapping[str, str] | None = None,
) -> EventStream:
    """Wait for the first event, so that an error before it is an error status, and then for the others.

    Args:
        source: one event at a time.
        include_usage: pass on the last event, which has no text and tells the tokens.
    """
    return EventStream(await anext(source, DONE), source, exchange, include_usage=include_usage, headers=headers)
