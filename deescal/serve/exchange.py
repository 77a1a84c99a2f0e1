"""One request and what became of it, as the access log and the metrics tell it: never a word of a prompt or a reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deescal.serve.errors import shown

EXCHANGE = "deescal.exchange"  # key in the ASGI scope
access_log = logging.getLogger("deescal.serve.access")


@dataclass
class Exchange:
    """Filled by the guard, and by what answers; times in seconds since the request arrived."""

    request_id: str
    method: str
    path: str
    key_name: str | None = None
    route: str = "other"  # as the schema has it, so that there are few
    model: str | None = None  # one that is served
    status: int = 0  # as sent; 499: the client left before there was one
    end: Literal["done", "client left", "timed out", "failed"] = "done"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None  # of a stream, until its first text
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def seconds_per_token(self) -> float | None:
        """Of a stream that ended well, over the tokens after the first."""
        if self.first_token_s is None or self.end != "done" or (self.completion_tokens or 0) < 2:
            return None
        return (self.seconds - self.first_token_s) / (self.completion_tokens - 1)  # type: ignore[operator]

    def note_usage(self, usage: Mapping[str, Any] | None) -> None:
        """OpenAI's `usage` of an answer."""
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")

    def log(self) -> None:
        """Its line in the access log."""
        told = {
            "request": self.request_id,
            "status": self.status,
            "model": self.model,
            "key": self.key_name,
            "seconds": f"{self.seconds:.3f}",
            "first_token_s": None if self.first_token_s is None else f"{self.first_token_s:.3f}",
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "end": None if self.end == "done" else repr(self.end),
        }
        pairs = " ".join(f"{name}={value}" for name, value in told.items() if value is not None)
        access_log.info("%s %s %s", self.method, shown(self.path), pairs)


Recorder = Callable[[Exchange], None]  # gets every request when it is over, for metrics


def ignore(exchange: Exchange) -> None:
    """A recorder that records nothing."""
