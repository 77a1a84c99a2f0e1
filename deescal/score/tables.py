"""The tables of a scoring run: REQUESTS to models, their ANSWERS, and how both become SCORES, one row a request.

A request's id says what is asked of whom: of the row's number, the model, the sample and the words of the prompt. A
run that was stopped thus knows its answers again, and a row that occurs twice in the data is asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from deescal.schema import MESSAGE, Row
from deescal.score.config import Contestant, SamplingConfig
from deescal.score.source import Inputs
from deescal.score.tasks import Room, RowError, Task
from deescal.stage import digest

TRANSCRIPT_TURN = pa.struct({"turn_id": pa.int32(), "speaker": pa.string(), "role": pa.string(), "text": pa.string()})

REQUESTS = pa.schema(
    {
        "request_id": pa.string(),
        "row": pa.int64(),  # of the input
        "sample": pa.int32(),  # 0, 1, ...
        "model": pa.string(),  # the base
        "adapter": pa.string(),  # null: the base itself
        "messages": pa.list_(MESSAGE),  # the prompt
        "json_schema": pa.string(),  # that the answer is held to, as JSON; null: free text
        "choices": pa.list_(pa.string()),  # the answer is a JSON list of their log-probabilities; null: words
        "turns": pa.list_(TRANSCRIPT_TURN),  # task `features`, in place of messages
        "error": pa.string(),  # why it cannot be asked
        "attempts": pa.int32(),  # of earlier invocations
    }
)

ANSWERS = pa.schema(
    {
        "request_id": pa.string(),
        "output": pa.string(),  # null where there is an error
        "finish_reason": pa.string(),  # stop: the model ended; length: it was cut
        "n_prompt_tokens": pa.int32(),
        "n_cached_tokens": pa.int32(),  # of the prompt's, taken from the prefix cache
        "n_completion_tokens": pa.int32(),
        "asked_at_s": pa.float64(),  # since 1970
        "latency_s": pa.float64(),  # from then to the whole answer, waits in the engine's queue included
        "error": pa.string(),
        "attempts": pa.int32(),  # over all invocations
    }
)

IDENTITY = pa.schema([REQUESTS.field(name) for name in ("request_id", "model", "adapter", "sample")])
PAGE = 512  # rows of the input in memory at once


def make_requests(
    inputs: Inputs, task: Task, contestants: Sequence[Contestant], samples: int, room: Room
) -> Iterator[Row]:
    """REQUESTS in the order in which they are best asked: what shares a prefix and an adapter is together."""
    for contestant in contestants:
        for start in range(0, inputs.n_rows, PAGE):
            numbers = inputs.order[start : start + PAGE]
            for number, row in zip(numbers, inputs.take(numbers).to_pylist(maps_as_pydicts="strict"), strict=True):
                yield from _requests_of(number, row, task, contestant, samples, room)


def _requests_of(number: int, row: Row, task: Task, contestant: Contestant, samples: int, room: Room) -> Iterator[Row]:
    try:
        asked = task.ask(row, room)
    except RowError as error:
        asked = {"error": str(error)}
    adapter = contestant.adapter.name if contestant.adapter else None
    for sample in range(samples):
        yield request_row(number, contestant.name, sample, contestant.model, adapter, **asked)


def request_row(row: int, name: str, sample: int, model: str, adapter: str | None = None, **asked: Any) -> Row:
    """A REQUESTS row, null but for these values and not asked yet. Args: name: of who is asked, for the id."""
    empty: Row = dict.fromkeys(REQUESTS.names)
    asked = {**empty, **asked, "row": row, "sample": sample, "model": model, "adapter": adapter, "attempts": 0}
    return {**asked, "request_id": request_id(row, name, sample, asked)}


def request_id(row: int, name: str, sample: int, asked: Mapping[str, Any]) -> str:
    """32 hex digits; the same in every run with the same data, model name and prompt."""
    words = [asked[name] for name in ("messages", "turns", "json_schema", "choices")]
    return digest(json.dumps([row, name, sample, words], sort_keys=True).encode())


def merge_answers(rows: Iterable[Row]) -> dict[str, Row]:
    """request_id -> its ANSWERS row: one that is no error where there is one, else the last attempt."""

    def worth(row: Row) -> tuple[bool, int]:
        return row["error"] is None, row["attempts"]

    found: dict[str, Row] = {}
    for row in rows:
        there = found.get(row["request_id"])
        if there is None or worth(row) > worth(there):
            found[row["request_id"]] = row
    return found


def pending(requests: Iterable[Row], answers: Mapping[str, Row], retry_failed: bool) -> Iterator[Row]:
    """The requests that are still to be asked."""
    for request in requests:
        answer = answers.get(request["request_id"])
        if answer is None or (retry_failed and answer["error"] is not None):
            yield {**request, "attempts": answer["attempts"] if answer else 0}


def answer_row(request: Mapping[str, Any], **values: Any) -> Row:
    """An ANSWERS row, null but for these values; an attempt more than the request has had, unless they say."""
    empty: Row = dict.fromkeys(ANSWERS.names)
    return {**empty, "request_id": request["request_id"], "attempts": request["attempts"] + 1, **values}


def seed_of(request_id: str, sampling: SamplingConfig) -> int | None:
    """Of one request, whatever else is asked beside it; greedy answers need none."""
    return (int(request_id[:8], 16) + sampling.seed) % 2**31 if sampling.temperature else None


def scores_schema(inputs: pa.Schema, task: Task) -> pa.Schema:
    """SCORES: the input's columns, then who was asked, the answer, and what the task reads from it."""
    ours = [*IDENTITY, *(field for field in ANSWERS if field.name != "request_id"), *task.columns]
    taken = {field.name for field in ours}
    return pa.schema([*(f.with_name(input_name(f.name, taken)) for f in inputs), *ours])


def input_name(name: str, taken: Collection[str]) -> str:
    """A column of the input keeps its name, unless scoring has one of that name (as in the scores of another run)."""
    while name in taken:
        name = f"input_{name}"
    return name


def score_rows(
    inputs: Inputs,
    task: Task,
    contestants: Sequence[Contestant],
    samples: int,
    room: Room,
    answers: Mapping[str, Row],
) -> Iterator[pa.Table]:
    """SCORES in the order of the input, a page at a time.

    Raises:
        RuntimeError: a request has no answer, which is a bug.
    """
    schema = scores_schema(inputs.schema, task)
    renamed = schema.names[: len(inputs.schema)]
    for start in range(0, inputs.n_rows, PAGE):
        numbers = range(start, min(start + PAGE, inputs.n_rows))
        page = inputs.take(numbers)
        rows = []
        for number, row in zip(numbers, page.to_pylist(maps_as_pydicts="strict"), strict=True):
            kept = dict(zip(renamed, row.values(), strict=True))
            for contestant in contestants:
                for request in _requests_of(number, row, task, contestant, samples, room):
                    answer = answers.get(request["request_id"])
                    if answer is None:
                        raise RuntimeError(f"row {number} of the input has no answer of {contestant.name}")
                    read = dict.fromkeys(task.columns.names)
                    if answer["error"] is None:
                        read |= task.read(answer["output"], row, room)
                    rows.append({**kept, **{n: request[n] for n in IDENTITY.names}, **answer, **read})
        yield pa.Table.from_pylist(rows, schema=schema)
