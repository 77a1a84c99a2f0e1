"""Protocol `rollout`: the model answers its own earlier replies, against the officer's lines as they really were.

What the officer says does not react to the model, so that a rollout shows how far a model drifts, not how an
encounter would end. It runs within a window of the dataset: what the window repeats from the one before is real.

All dialogues go turn by turn together: the second replies of all are asked for when their first ones are known. A
reply without an answer ends its dialogue: the turns after it are errors, too, and are never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from deescal.dataset.chat import Message
from deescal.evaluate.contestants import Contestant
from deescal.evaluate.rows import TURNS
from deescal.schema import Row
from deescal.score.tables import request_row

EARLIER = "an earlier reply of this dialogue has an error"
Ask = Callable[[Sequence[Row]], Mapping[str, Row]]  # REQUESTS -> request_id -> ANSWERS row


@dataclass
class Dialogue:
    """One window, played by one contestant with one seed."""

    contestant: Contestant
    seed: int
    items: Sequence[Row]  # ITEMS of the window, in order
    said: dict[int, str] = field(default_factory=dict)  # message -> reply
    turns: list[Row] = field(default_factory=list)  # TURNS so far

    @property
    def failed(self) -> bool:
        return bool(self.turns) and self.turns[-1]["error"] is not None


def dialogues(items: Sequence[Row], contestants: Sequence[Contestant], samples: int) -> list[Dialogue]:
    """Every window of every contestant and seed, what shares a prefix together."""
    ordered = sorted(items, key=lambda item: (item["scenario_id"], item["example_id"], item["message"]))
    windows = [list(of) for _, of in groupby(ordered, key=lambda item: item["example_id"])]
    return [Dialogue(c, seed, window) for c in contestants for window in windows for seed in range(samples)]


def rollout_messages(item: Row, said: Mapping[int, str]) -> list[Message]:
    """The real history of an item with the model's words in place of the civilian's, wherever it has said some.

    A model that said nothing is not quoted as silent: chat templates have no empty message, so it stands as "...".
    """
    return [
        {"role": m["role"], "content": said[n] or "..."} if n in said else {"role": m["role"], "content": m["content"]}
        for n, m in enumerate(item["messages"])
    ]


def play(waiting: Sequence[Dialogue], ask: Ask) -> list[Row]:
    """All dialogues to their ends -> TURNS, one row for every item of each.

    `model` is the name in `deescal.score`, as in the requests' ids: a label is another one beside other contestants.
    """
    for n in range(max((len(d.items) for d in waiting), default=0)):
        asked = [(d, _request(d, d.items[n])) for d in waiting if n < len(d.items) and not d.failed]
        answers = ask([request for _, request in asked])
        answered = {id(d): (request, answers[request["request_id"]]) for d, request in asked}
        for dialogue in waiting:
            if n < len(dialogue.items):
                _take(dialogue, dialogue.items[n], *answered.get(id(dialogue), (None, None)))
    return [turn for dialogue in waiting for turn in dialogue.turns]


def _request(dialogue: Dialogue, item: Row) -> Row:
    return request_of(dialogue.contestant, item, dialogue.seed, rollout_messages(item, dialogue.said))


def _take(dialogue: Dialogue, item: Row, request: Row | None, answer: Row | None) -> None:
    """The next turn of a dialogue, from its answer; without one it is an error."""
    turn = turn_of("rollout", dialogue.contestant, item, dialogue.seed, request, answer)
    if turn["reply"] is not None:
        dialogue.said[item["message"]] = turn["reply"]
    dialogue.turns.append(turn)


def request_of(contestant: Contestant, item: Row, seed: int, messages: Sequence[Message]) -> Row:
    """The REQUESTS row that asks for the reply to an item after these messages."""
    name, adapter = f"{contestant.asked_as} {item['item_id']}", contestant.adapter.name if contestant.adapter else None
    return request_row(item["turn_id"], name, seed, contestant.model, adapter, messages=list(messages))


def turn_of(
    protocol: str,
    contestant: Contestant,
    item: Row,
    seed: int,
    request: Row | None,
    answer: Row | None,
    error: str = EARLIER,
) -> Row:
    """The TURNS row of an item: from its answer, or with `error` where it was not asked."""
    turn: Row = dict.fromkeys(TURNS.names)
    turn |= {name: item[name] for name in ("item_id", "scenario_id", "incident_id", "turn_id", "reference")}
    turn |= {"protocol": protocol, "model": contestant.asked_as, "seed": seed}
    if request is None or answer is None:
        return turn | {"messages": [], "error": error}
    shared = ("finish_reason", "error", "asked_at_s", "latency_s", "n_prompt_tokens", "n_completion_tokens")
    turn |= {"messages": request["messages"], **{name: answer[name] for name in shared}}
    if answer["error"] is None:
        turn["reply"] = answer["output"].strip()
    return turn
