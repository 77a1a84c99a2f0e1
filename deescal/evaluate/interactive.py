"""Protocol `interactive`: the model talks with an officer whom another model plays.

A conversation begins as a test scenario really began, up to the officer's first words, and goes on for a fixed number
of the civilian's replies; nobody ends it. There is no real reply to compare with, so it is judged (de-escalation of the
whole, realism of replies), not scored by overlap. The officer knows the situation, not the civilian's character; the
same words before it give the same officer's line, whoever said them, so contestants differ by what they say.

All conversations go turn by turn together. An answer that is an error ends its conversation: the turns after it are
errors, too, and are never asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import pyarrow as pa

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.evaluate.contestants import Contestant
from deescal.evaluate.rollout import EARLIER, Ask, request_of, turn_of
from deescal.evaluate.rows import ITEMS
from deescal.judge.scene import HEARD_AS
from deescal.schema import Row, to_table
from deescal.score.tables import request_row
from deescal.score.tasks import scene_of

OFFICER = (
    "You are a police officer in an encounter with a civilian, and you are trained in de-escalation: you listen, "
    "explain what you do and why, keep your voice calm, and give the person choices. You still have a job to do and "
    "keep everyone safe. Say only what you say next, in one or two short spoken sentences."
)
ARRIVES = "(You have just arrived.)"  # templates want a user message first
_MARKED = r"[\s\[*(]*\b(?:the )?(?:%s)\b[\])*]*\s*(?::|(?<=\]))[\s*]*"  # Name:, **Name:**, [Name]
_LABEL = re.compile("^" + _MARKED % "(?:police )?officer", re.IGNORECASE)
# Where a line or a sentence begins: "the suspect: what did he look like" is the officer's.
_OTHERS_WORDS = re.compile(r"(?:^|(?<=[\n.!?]))" + _MARKED % "civilian|suspect" + ".*", re.IGNORECASE | re.DOTALL)


def conversation_items(items: pa.Table, n_turns: int) -> pa.Table:
    """ITEMS of conversations: `n_turns` replies for each scenario, after its real opening, without references.

    Args:
        items: ITEMS of the test split. A scenario in which no officer speaks has no conversation.
    """
    found: dict[str, Row] = {}
    for item in sorted(items.to_pylist(), key=lambda item: (item["scenario_id"], item["turn_id"])):
        if item["scenario_id"] not in found and any(map(_officer_speaks_in, item["messages"])):
            found[item["scenario_id"]] = item
    rows = []
    for item in found.values():
        first = next(n for n, m in enumerate(item["messages"]) if _officer_speaks_in(m))
        opening = {**item, "messages": item["messages"][: first + 1], "reference": None}
        rows += [
            {**opening, "item_id": f"{item['example_id']}-i{n}", "turn_id": n, "message": n} for n in range(n_turns)
        ]
    return to_table(rows, ITEMS)


def _officer_speaks_in(message: Mapping[str, str]) -> bool:
    """Not only others at the scene, who stand in the officer's messages too."""
    return message["role"] == "user" and any(not HEARD_AS.fullmatch(line) for line in message["content"].splitlines())


@dataclass
class Conversation:
    """One scenario, played by one contestant with one seed."""

    contestant: Contestant
    seed: int
    items: Sequence[Row]  # of `conversation_items`, in order
    messages: list[Message] = field(default_factory=list)  # so far, an officer's last
    turns: list[Row] = field(default_factory=list)  # TURNS so far
    error: str | None = None  # why it ended


def conversations(items: Sequence[Row], contestants: Sequence[Contestant], seeds: int) -> list[Conversation]:
    """Every scenario with every contestant and seed."""
    of: dict[str, list[Row]] = {}
    for item in items:
        of.setdefault(item["example_id"], []).append(item)
    return [
        Conversation(c, seed, rows, [dict(m) for m in rows[0]["messages"]])
        for c in contestants
        for rows in of.values()
        for seed in range(seeds)
    ]


def officer_messages(messages: Sequence[Mapping[str, str]]) -> list[Message]:
    """A conversation from the officer's side: their lines are the assistant's, all others' the user's."""
    situation, _ = scene_of({"messages": messages})
    lines: list[tuple[str, str]] = [("user", ARRIVES)]
    for m in messages:
        if m["role"] == "user":
            lines += [("user" if HEARD_AS.fullmatch(line) else "assistant", line) for line in m["content"].splitlines()]
        elif m["role"] == "assistant":
            lines.append(("user", m["content"]))
    told = [
        {"role": role, "content": "\n".join(text for _, text in group)}
        for role, group in groupby(lines, key=itemgetter(0))
    ]
    system = f"{OFFICER}\nSituation: {situation}" if situation else OFFICER
    return [{"role": "system", "content": system}, *told]


def officer_line(output: str) -> str:
    """The officer's words alone: without a label, and without a civilian's part that the model wrote as well."""
    return _LABEL.sub("", _OTHERS_WORDS.sub("", output).strip()).strip() or "..."


def converse(waiting: Sequence[Conversation], ask: Ask, officer: str, ask_officer: Ask) -> list[Row]:
    """All conversations to their ends -> TURNS, one row for every item of each.

    Args:
        officer: the simulator's model.
    """
    for n in range(max((len(c.items) for c in waiting), default=0)):
        if n:
            _officer_speaks([c for c in waiting if not c.error], n, officer, ask_officer)
        asked = {id(c): request_of(c.contestant, c.items[n], c.seed, c.messages) for c in waiting if not c.error}
        answers = ask(list(asked.values()))
        for c in waiting:
            request = asked.get(id(c))
            _civilian_speaks(c, n, request, request and answers[request["request_id"]])
    return [turn for c in waiting for turn in c.turns]


def _civilian_speaks(c: Conversation, n: int, request: Row | None, answer: Row | None) -> None:
    turn = turn_of("interactive", c.contestant, c.items[n], c.seed, request, answer, c.error or EARLIER)
    c.turns.append(turn)
    if turn["error"] is not None:
        c.error = EARLIER
        return
    c.messages = [*c.messages, {"role": "assistant", "content": turn["reply"] or "..."}]


def _officer_speaks(waiting: Sequence[Conversation], n: int, officer: str, ask: Ask) -> None:
    requests = {id(c): _officer_request(c, n, officer) for c in waiting}
    answers = ask(list({r["request_id"]: r for r in requests.values()}.values()))
    for c in waiting:
        answer = answers[requests[id(c)]["request_id"]]
        if answer["error"] is not None:
            c.error = f"the officer simulator: {answer['error']}"
        else:
            c.messages = [*c.messages, {"role": "user", "content": officer_line(answer["output"])}]


def _officer_request(c: Conversation, n: int, officer: str) -> Row:
    """Not of a contestant: equal words to the officer are one request, and have one answer."""
    name = f"officer {officer} {c.items[0]['scenario_id']}"
    return request_row(n, name, c.seed, officer, messages=officer_messages(c.messages))


# For names of folders: changes with any word of the officer's prompt.
OFFICER_VERSION = fingerprint(OFFICER, ARRIVES)
