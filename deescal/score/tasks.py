"""What can be asked of a row, and what is read from the answer: pure functions, one pair a task.

A row that cannot be asked (no messages, a role that nobody knows) raises RowError, which becomes its error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.errors import UserError
from deescal.judge.deescalation import DEESCALATION_VERSION, deescalation_messages, deescalation_verdict
from deescal.judge.deescalation import SCHEMA as DEESCALATION_SCHEMA
from deescal.judge.pairwise import PAIRWISE_VERSION, choice, pairwise_messages
from deescal.judge.pairwise import SCHEMA as PAIRWISE_SCHEMA
from deescal.judge.plausibility import (
    CHOICES,
    PLAUSIBILITY_VERSION,
    plausibility_messages,
    plausibility_score,
)
from deescal.judge.prompts import PROMPT_VERSION
from deescal.judge.realism import REALISM_VERSION, realism_messages, realism_verdict
from deescal.judge.realism import SCHEMA as REALISM_SCHEMA
from deescal.judge.scene import Turn, fit, numbered
from deescal.judge.verdict import VERDICT, Verdict
from deescal.schema import FEATURE, Row
from deescal.score.config import TASKS

TEMPLATE_TOKENS = 64  # more than any family's chat template puts around a system and a user message


class RowError(Exception):
    """One row cannot be asked; the message is one line."""


@dataclass(frozen=True)
class Room:
    """How long a prompt may be. Where the model's tokenizer is not here, `count_tokens` errs on the long side."""

    count_tokens: Callable[[str], int]
    max_model_len: int  # tokens of prompt and answer
    answer_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return self.max_model_len - self.answer_tokens


@dataclass(frozen=True)
class Task:
    """One kind of scoring.

    `ask` is row, room -> the columns messages and json_schema or choices (or turns) of REQUESTS, or RowError. `read` is
    output, row, room -> `columns`.
    """

    name: str
    needs: tuple[str, ...]  # columns of the input
    answer_tokens: int  # that an answer may have where the config does not say
    ask: Callable[[Row, Room], Row]
    read: Callable[[str, Row, Room], Row]
    columns: pa.Schema
    version: str  # changes with prompts and what is read from answers


def ask_reply(row: Row, room: Room) -> Row:
    """The civilian's next words: what comes before the last message where that is the assistant's already."""
    messages = _before_reply(row)
    if not any(m["role"] == "user" for m in messages):
        raise RowError("messages: nobody has spoken to the civilian yet")
    return {"messages": messages}


def read_reply(output: str, row: Row, room: Room) -> Row:
    return {"reply": output.strip()}


def ask_features(row: Row, room: Room) -> Row:
    if not row["turns"]:
        raise RowError("turns: empty")
    turns = [{name: turn.get(name) for name in ("turn_id", "speaker", "role", "text")} for turn in row["turns"]]
    if any(turn["text"] is None for turn in turns):
        raise RowError("turns: one has no text")
    for number, turn in enumerate(turns):
        turn["turn_id"] = number if turn["turn_id"] is None else turn["turn_id"]
        turn["speaker"] = turn["speaker"] or "?"
    return {"turns": turns}


def read_features(output: str, row: Row, room: Room) -> Row:
    """The judge's columns, which its worker hands over as JSON; of CLIPS' types."""
    found = json.loads(output)
    return {"features": found["features"], "scores": list(found["scores"].items())}


def ask_realism(row: Row, room: Room) -> Row:
    """A judge's opinion of `reply` after `messages`; `reference` is shown where there is one."""
    messages = _before_reply(row)
    if row["reply"] is None:
        raise RowError("reply: null")
    scene = scene_of(row)

    def ask(history: Sequence[Turn]) -> list[Message]:
        return realism_messages(*scene, history, row.get("reference"), row["reply"])

    return {"messages": _fitted(messages, ask, room)[0], "json_schema": json.dumps(REALISM_SCHEMA)}


def read_realism(output: str, row: Row, room: Room) -> Row:
    return _verdict_columns(realism_verdict(output, row["reply"]))


def ask_plausibility(row: Row, room: Room) -> Row:
    """How likely a judge finds it that `reply` after `messages` is real."""
    messages = _before_reply(row)
    if row["reply"] is None:
        raise RowError("reply: null")
    scene = scene_of(row)
    asked = _fitted(messages, lambda history: plausibility_messages(*scene, history, row["reply"]), room)[0]
    return {"messages": asked, "choices": list(CHOICES)}


def read_plausibility(output: str, row: Row, room: Room) -> Row:
    return {"score": plausibility_score(output)}


def ask_pairwise(row: Row, room: Room) -> Row:
    """Which of two replies to `messages` is more real, in this order; to be asked in both."""
    messages = _before_reply(row)
    if row["first"] is None or row["second"] is None:
        raise RowError("first or second: null")
    scene = scene_of(row)

    def ask(history: Sequence[Turn]) -> list[Message]:
        return pairwise_messages(*scene, history, row["first"], row["second"])

    return {"messages": _fitted(messages, ask, room)[0], "json_schema": json.dumps(PAIRWISE_SCHEMA)}


def read_pairwise(output: str, row: Row, room: Room) -> Row:
    return choice(output)


def ask_deescalation(row: Row, room: Room) -> Row:
    """A judge's opinion of the whole dialogue."""
    return {"messages": _deescalation(row, room)[0], "json_schema": json.dumps(DEESCALATION_SCHEMA)}


def read_deescalation(output: str, row: Row, room: Room) -> Row:
    return _verdict_columns(deescalation_verdict(output, _deescalation(row, room)[1]))


def _deescalation(row: Row, room: Room) -> tuple[list[Message], list[Turn]]:
    scene = scene_of(row)
    return _fitted(checked_messages(row["messages"]), lambda turns: deescalation_messages(*scene, turns), room)


def _before_reply(row: Row) -> list[Message]:
    """A row's messages without the assistant's where they end with it."""
    messages = checked_messages(row["messages"])
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _fitted(
    messages: Sequence[Message], ask: Callable[[Sequence[Turn]], list[Message]], room: Room
) -> tuple[list[Message], list[Turn]]:
    """The judge's prompt with as many of the turns as there is room for, and those turns."""
    around = sum(room.count_tokens(m["content"]) for m in ask([])) + TEMPLATE_TOKENS
    try:
        turns = numbered(messages)
        turns = fit(turns, room.count_tokens, room.prompt_tokens - around)
    except ValueError as error:
        raise RowError(str(error)) from error
    return ask(turns), turns


def scene_of(row: Row) -> tuple[str | None, str | None]:
    """Situation and character: columns `context` and `character`, else what `chat.system_prompt` made of them."""
    context, character = row.get("context"), row.get("character")
    if context or character:
        return context, character
    messages = row["messages"]
    lines = messages[0]["content"].splitlines() if messages[0]["role"] == "system" else []

    def after(label: str) -> str | None:
        return next((line.removeprefix(label) for line in lines if line.startswith(label)), None)

    return after("Situation: "), after("Who you are: ")


def checked_messages(messages: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """Raises RowError unless there are messages, of known roles and with text."""
    if not messages:
        raise RowError("messages: empty")
    for number, message in enumerate(messages):
        if message is None or message["role"] not in ("system", "user", "assistant"):
            role = message and message["role"]
            raise RowError(f"messages: role '{role}' of message {number}, expected system, user or assistant")
        if message["content"] is None:
            raise RowError(f"messages: message {number} has no content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _verdict_columns(verdict: Verdict) -> Row:
    found = asdict(verdict)
    return {name: found[field] for name, field in _VERDICT_COLUMNS.items()}


# `turns` and `error` would be taken for the dialogue's turns and the request's error.
_VERDICT_COLUMNS = {
    **{name: name for name in ("score", "band", "base", "deductions", "unsupported")},
    "evidence_turns": "turns",
    "unread": "error",
}
_JUDGED = pa.schema([VERDICT.field(field).with_name(name) for name, field in _VERDICT_COLUMNS.items()])

REPLIES = Task(
    "replies", ("messages",), 128, ask_reply, read_reply, pa.schema({"reply": pa.string()}), fingerprint("replies 1")
)
FEATURES = Task(
    "features",
    ("turns",),
    1,
    ask_features,
    read_features,
    pa.schema({"features": pa.list_(FEATURE), "scores": pa.map_(pa.string(), pa.int32())}),
    PROMPT_VERSION,
)
REALISM = Task("realism", ("messages", "reply"), 512, ask_realism, read_realism, _JUDGED, REALISM_VERSION)
DEESCALATION = Task(
    "deescalation", ("messages",), 256, ask_deescalation, read_deescalation, _JUDGED, DEESCALATION_VERSION
)
PAIRWISE = Task(
    "pairwise",
    ("messages", "first", "second"),
    128,
    ask_pairwise,
    read_pairwise,
    pa.schema({"better": pa.string(), "because": pa.string(), "unread": pa.string()}),  # better: first, second, tie
    PAIRWISE_VERSION,
)
PLAUSIBILITY = Task(
    "plausibility",
    ("messages", "reply"),
    1,
    ask_plausibility,
    read_plausibility,
    pa.schema({"score": pa.float64()}),
    PLAUSIBILITY_VERSION,
)
_ALL = (REPLIES, FEATURES, REALISM, PLAUSIBILITY, DEESCALATION, PAIRWISE)


def find_task(name: str) -> Task:
    """Raises UserError where there is none of this name."""
    for task in _ALL:
        if task.name == name:
            return task
    raise UserError(f"--task '{name}': allowed are {', '.join(TASKS)}")
