"""Which of two replies is more real? Asked in both orders, since judges favour a place (Zheng et al. 2023, MT-Bench).

A reply wins only when it is preferred in both orders; everything else is a tie, with what went wrong beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.judge.scene import QUOTED_NOTE, Turn, chat, head, quoted, section
from deescal.judge.verdict import EVIDENCE, UnreadError, form, read_answer

SYSTEM = (
    "You compare two replies of a civilian in an encounter with the police. You read the situation, the civilian's "
    "character, the transcript so far, and two candidates for what the civilian says next. Which is more likely what a "
    f"real person says there? {QUOTED_NOTE}\n"
    "Real people in such recordings speak in fragments, repeat themselves, swear, refuse and break off; they answer "
    "what was just said, in their own mood, and change it only for a cause. Length, politeness, grammar and "
    "helpfulness count for nothing, and neither does which reply comes first.\n"
    "Say in `because`, in a few words, what decides; then `better`: first, second, or tie where neither is more real."
)
QUESTION = "Which reply is more real, the one in <first> or the one in <second>? Answer in JSON: because, better."


SCHEMA = form({"because": EVIDENCE, "better": {"enum": ["first", "second", "tie"]}})


Winner = Literal["a", "b", "tie"]
WORTH: dict[Winner, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}  # of a decision, to a
A_FIRST: dict[str, Winner] = {"first": "a", "second": "b", "tie": "tie"}
B_FIRST: dict[str, Winner] = {"first": "b", "second": "a", "tie": "tie"}


@dataclass(frozen=True)
class Preference:
    """Of replies a and b, from both orders. Where `error` is set, at least one was not read and there is no winner."""

    winner: Winner | None
    agreed: bool  # both orders say the same
    order_bias: Literal["first", "second"] | None = None  # the place that was preferred, whichever reply stood there
    because: tuple[str, ...] = ()  # of a before b, of b before a
    error: str | None = None


def pairwise_messages(
    context: str | None, character: str | None, history: Sequence[Turn], first: str, second: str
) -> list[Message]:
    """System and user message for one order; to be asked again with the replies swapped.

    Args:
        history: before the replies, as `scene.numbered` writes and `scene.fit` cuts it.
    """
    candidates = section("first", quoted(first)) + section("second", quoted(second))
    return chat(SYSTEM, head(context, character, history) + candidates + "\n" + QUESTION)


def choice(answer: str) -> dict[str, str | None]:
    """One answer -> better (first, second, tie) and because; or `unread`, why there is neither."""
    try:
        found = read_answer(answer, SCHEMA)
    except UnreadError as error:
        return {"better": None, "because": None, "unread": str(error)}
    return {"better": found["better"], "because": found["because"], "unread": None}


def prefer(forward: Mapping[str, Any], swapped: Mapping[str, Any]) -> Preference:
    """What `choice` read with a first and with b first -> who wins."""
    if (error := forward["unread"] or swapped["unread"]) is not None:
        return Preference(None, agreed=False, error=error)
    because = (forward["because"], swapped["because"])
    one, other = A_FIRST[forward["better"]], B_FIRST[swapped["better"]]
    if one == other:
        return Preference(one, agreed=True, because=because)
    bias = forward["better"] if forward["better"] == swapped["better"] else None
    return Preference("tie", agreed=False, order_bias=bias, because=because)


# For tables: changes with any word of the prompts and the form of the answer.
PAIRWISE_VERSION = fingerprint(pairwise_messages("", "", [], "", ""), SCHEMA)
