"""What an OpenAI-compatible API answers, read without trust: an answer, or an error that says whether to try again.

Whatever a server sends (a page, half of a JSON, an error under HTTP 200) is the error of that request, never a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

RETRYABLE = frozenset({429, 500, 502, 503, 504})
_SHOWN = 200  # characters of a server's own words in an error


class EndpointError(Exception):
    """A request that has no answer.

    Attributes:
        status: HTTP status; None where there is none to blame.
        retryable: whether another attempt may go well.
        kind: in a few words, to count errors by: "HTTP 503", "connection", "timeout", "malformed".
        retry_after_s: how long the server asks to wait.
        attempts: made until it was given up.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retryable: bool = False,
        *,
        kind: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retryable, self.retry_after_s = status, retryable, retry_after_s
        self.kind = kind or (f"HTTP {status}" if status else "malformed")
        self.attempts = 1


@dataclass(frozen=True)
class Answer:
    """What a request got; a count of tokens is None where the server does not tell."""

    text: str  # of the first choice
    finish_reason: str | None  # stop, length, ...
    n_prompt_tokens: int | None
    n_cached_tokens: int | None  # of the prompt's, found in the server's prefix cache
    n_completion_tokens: int | None
    latency_s: float  # from the first attempt on, waits included: what the caller waited
    attempts: int
    choices: list[dict[str, Any]]  # as they came; of a stream, the pieces put together


def read_answer(body: bytes, latency_s: float, attempts: int) -> Answer:
    """The body of a good response -> Answer. Raises: EndpointError: it is none."""
    value = json_object(body)
    check_body(value)
    choice = value["choices"][0] if value["choices"] else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(text, str):
        raise EndpointError("malformed answer: a choice without text", retryable=True)
    reason = choice.get("finish_reason")
    return Answer(text, reason, *counts_of(value.get("usage")), latency_s, attempts, value["choices"])


def check_status(response: httpx.Response, body: bytes) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    wait_s = seconds_asked(response.headers.get("retry-after", ""))
    words = _without_key(_words(body), response)
    message = f"HTTP {status}" + (f": {words}" if words else "") + (f"; try again in {wait_s:g} s" if wait_s else "")
    retryable = status in RETRYABLE or (status == HTTPStatus.NOT_FOUND and not _is_of_api(body))
    raise EndpointError(message, status, retryable=retryable, retry_after_s=wait_s)


def _is_of_api(body: bytes) -> bool:
    """Whether an error is an API's own; a proxy before one that is down or starting (Ray Serve's) says it in text."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _words(body: bytes) -> str:
    """What a server says of its error, in a line: JSON's message, else the text; of a page, that it is one."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode(errors="replace").strip()
        return "an HTML page" if text.lower().startswith(("<!doctype", "<html")) else text[:_SHOWN].partition("\n")[0]
    for name in ("error", "message", "detail"):  # OpenAI's, older vLLM's, FastAPI's
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return " ".join(str(value).split())[:_SHOWN]


def _without_key(words: str, response: httpx.Response) -> str:
    """Some servers repeat the key that they refuse."""
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    return words.replace(key, "***") if key else words


def seconds_asked(retry_after: str) -> float | None:
    """The header Retry-After (RFC 9110, 10.2.3), seconds or a date, in seconds from now; None where it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def json_object(body: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EndpointError("malformed answer: no JSON", retryable=True) from error
    if not isinstance(value, dict):
        raise EndpointError("malformed answer: no JSON object", retryable=True)
    return value


def check_body(value: Mapping[str, Any]) -> None:
    """Raises: EndpointError: an error under HTTP 200, as in the middle of a stream, or no list of choices."""
    if error := value.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) else None
        told = f"error in the answer: {_words(json.dumps(value).encode())}"
        raise EndpointError(told, status, retryable=status is None or status in RETRYABLE, kind="error in the answer")
    choices = value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise EndpointError("malformed answer: no choices", retryable=True)


def piece_of(event: Mapping[str, Any]) -> tuple[str, str | None]:
    """(text, finish reason) of an event; the last one, with the usage, has no choice."""
    choice = event["choices"][0] if event["choices"] else {}
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else "", choice.get("finish_reason")


def counts_of(usage: Any) -> tuple[int | None, int | None, int | None]:
    """Tokens of the prompt, of them cached, of the completion."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    found = (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"))
    prompt_tokens, cached_tokens, completion_tokens = (n if isinstance(n, int) else None for n in found)
    return prompt_tokens, cached_tokens, completion_tokens
