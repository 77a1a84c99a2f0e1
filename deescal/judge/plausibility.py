"""How likely a judge finds it that a reply is real: the probability of Yes to one question, 0 to 100.

A small model that fills in a rubric's form (`realism`) may be no better than chance and still rank replies well by the
probability of its first word, as for the thirty features (`deescal.judge.features`). It says nothing of why. Measured
by `python -m bench.judge_replies`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.judge.scene import QUOTED_NOTE, Turn, chat, head, quoted, section

CHOICES = ("Yes", "No")
SYSTEM = (
    "You judge whether a reply could be the real words of a civilian in an encounter with the police. You read the "
    f"situation, the civilian's character, the transcript so far, and the reply. {QUOTED_NOTE}"
)
QUESTION = "Could the reply be the real next words of this person at this moment? Answer Yes or No."


def plausibility_messages(
    context: str | None, character: str | None, history: Sequence[Turn], reply: str
) -> list[Message]:
    """System and user message that ask about one reply.

    Args:
        history: before the reply, as `scene.numbered` writes and `scene.fit` cuts it.
    """
    return chat(SYSTEM, head(context, character, history) + section("reply", quoted(reply)) + "\n" + QUESTION)


def plausibility_score(answer: str) -> float | None:
    """Log-probabilities of CHOICES as a JSON list -> 100 P(Yes) / (P(Yes) + P(No)); None where it is no such list.

    To two decimals: beyond them, an engine in float32 does not repeat itself either when other prompts stand beside.
    """
    try:
        yes, no = (float(x) for x in json.loads(answer))
    except (ValueError, TypeError):
        return None
    return round(100 / (1 + math.exp(min(no - yes, 700))), 2)


# For tables: changes with any word of the prompt.
PLAUSIBILITY_VERSION = fingerprint(plausibility_messages("", "", [], ""), CHOICES)
