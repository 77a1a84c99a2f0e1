"""Requests to a running endpoint, many at once; the same answers as offline, stored every few of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa

from deescal.schema import Row, to_table
from deescal.score.config import OnlineConfig, SamplingConfig
from deescal.score.store import write_part
from deescal.score.tables import ANSWERS, answer_row, seed_of
from deescal.serve.answers import Answer, EndpointError
from deescal.serve.client import Endpoint, ask_all

WINDOW = 4096  # requests in memory at once


def ask_online(
    requests: Iterable[Row],
    out: str,
    url: str,
    sampling: SamplingConfig,
    config: OnlineConfig,
    on_answers: Callable[[pa.Table], None] = lambda answers: None,
) -> None:
    """Ask them all, and store the answers; a request that fails after all retries has its error for an answer.

    Args:
        requests: REQUESTS without errors, in the order to ask.
        sampling: with `max_tokens`.
        on_answers: is handed the ANSWERS of a file when it is stored.
    """
    endpoint = Endpoint(url, config.key_env, config.timeout_s, config.retries)
    rows = iter(requests)
    while window := list(islice(rows, WINDOW)):
        _ask_window(endpoint, window, out, sampling, config, on_answers)


def _ask_window(
    endpoint: Endpoint,
    window: list[Row],
    out: str,
    sampling: SamplingConfig,
    config: OnlineConfig,
    on_answers: Callable[[pa.Table], None],
) -> None:
    done: list[Row] = []

    def flush() -> None:
        if not done:
            return
        answers = to_table(done, ANSWERS)
        done.clear()
        write_part(out, answers)
        on_answers(answers)

    def on_done(number: int, answer: Answer | EndpointError) -> None:
        done.append(read_answer(window[number], answer, time.time()))
        if len(done) >= config.part_requests:
            flush()

    asyncio.run(ask_all(endpoint, [fields(row, sampling) for row in window], config.concurrency, on_done))
    flush()


def fields(request: Mapping[str, Any], sampling: SamplingConfig) -> dict[str, Any]:
    """A REQUESTS row as the chat API has it."""
    asked = {
        "model": request["adapter"] or request["model"],
        "messages": request["messages"],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if (seed := seed_of(request["request_id"], sampling)) is not None:
        asked["seed"] = seed
    if request["json_schema"]:
        form = {"name": "answer", "schema": json.loads(request["json_schema"]), "strict": True}
        asked["response_format"] = {"type": "json_schema", "json_schema": form}
    return asked


def read_answer(request: Mapping[str, Any], answer: Answer | EndpointError, now_s: float) -> Row:
    """What the client got -> ANSWERS; attempts are those at the server."""
    if isinstance(answer, EndpointError):
        return answer_row(request, error=str(answer), attempts=request["attempts"] + answer.attempts)
    return answer_row(
        request,
        output=answer.text,
        finish_reason=answer.finish_reason,
        n_prompt_tokens=answer.n_prompt_tokens,
        n_cached_tokens=answer.n_cached_tokens,
        n_completion_tokens=answer.n_completion_tokens,
        asked_at_s=now_s - answer.latency_s,
        latency_s=answer.latency_s,
        attempts=request["attempts"] + answer.attempts,
    )
