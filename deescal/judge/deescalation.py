"""Rubric: how well did a whole interaction go? The outcome sets a band of the score, two faults cost points.

The judge chooses one of four outcomes and where in its band the interaction stands, so that a small model's poor sense
of numbers can move a score within a quarter of the scale only.
"""

from __future__ import annotations

from collections.abc import Sequence

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.judge.scene import QUOTED_NOTE, Turn, chat, head
from deescal.judge.verdict import (
    Criterion,
    Deduction,
    Schema,
    UnreadError,
    Verdict,
    deducted,
    form,
    read_answer,
    unread,
)

OUTCOMES: dict[str, tuple[int, int]] = {  # band of the score, both ends included
    "escalation": (0, 25),
    "containment": (26, 50),
    "de_escalation": (51, 75),
    "resolution": (76, 100),
}
DEFINITIONS = {
    "escalation": "it ends worse than it began: more anger, threats, resistance or force.",
    "containment": "the situation is held, by orders, waiting, restraint or an arrest, but tension has not fallen.",
    "de_escalation": "tension has visibly fallen through what was said; the matter itself is still open.",
    "resolution": "the matter is settled in words: an agreement, free compliance, a calm parting.",
}
STEPS = 10  # of the position within a band
MAX_NAMED_TURNS = 4
MAX_TURN_NUMBER = 9999

OFFICER_LOOPS = Criterion(
    "officer_loops",
    (15,),
    "the officer repeats the same order or question again and again, without explaining, listening or trying "
    "something else.",
)
UNREALISTIC = Criterion(
    "unrealistic_dialogue",
    (20,),
    "the talk as a whole could not be real: written rather than spoken language, moods that turn without a cause, "
    "people who pass over what is said to them.",
)
CRITERIA = (OFFICER_LOOPS, UNREALISTIC)

SYSTEM = (
    "You judge how an encounter between police and a civilian went, from its transcript. Each line is a turn: "
    f"[number] who speaks: what is said. {QUOTED_NOTE}\n"
    "Judge what is said and done in the transcript, not what you would expect. The outcomes:\n"
    + "\n".join(f"- {name}: {DEFINITIONS[name]}" for name in OUTCOMES)
    + "\n"
    f"`position` says how good it is of its kind: 0 nearly the outcome below, {STEPS} nearly the one above.\n"
    "Two faults cost points:\n" + "\n".join(c.rule for c in CRITERIA) + "\n"
    f"`turns` are the numbers of up to {MAX_NAMED_TURNS} turns that show the outcome or the fault; empty where there "
    "is no fault, and then `points` is 0."
)
QUESTION = (
    "Answer in JSON: turns that show the outcome, outcome, position from 0 to 10; then for each fault turns and points."
)

_TURNS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TURN_NUMBER},
    "maxItems": MAX_NAMED_TURNS,
}
SCHEMA = form(
    {
        "turns": _TURNS,
        "outcome": {"enum": list(OUTCOMES)},
        "position": {"type": "integer", "minimum": 0, "maximum": STEPS},
        **{c.name: form({"turns": _TURNS, "points": c.allowed}) for c in CRITERIA},
    }
)


def deescalation_messages(context: str | None, character: str | None, turns: Sequence[Turn]) -> list[Message]:
    """System and user message that ask about a whole interaction.

    Args:
        turns: as `scene.numbered` writes and `scene.fit` cuts them.
    """
    return chat(SYSTEM, head(context, character, turns) + "\n" + QUESTION)


def deescalation_verdict(answer: str, turns: Sequence[Turn]) -> Verdict:
    """The judge's answer about `turns`, those that it read -> score, with the outcome as its band.

    `base` lies in the outcome's band; deductions may take the score below it. Evidence counts as there when all turns
    that are named were read; of an officer's loop, at least two must be the officer's.
    """
    try:
        found = read_answer(answer, SCHEMA)
    except UnreadError as error:
        return unread(error)
    read = {turn.number: turn for turn in turns}

    def there(named: Sequence[int]) -> bool:
        return bool(named) and all(n in read for n in named)

    deductions = []
    for criterion in CRITERIA:
        fault = found[criterion.name]
        if not fault["points"]:
            continue
        named = _numbers(fault["turns"])
        supported = there(named)
        if criterion is OFFICER_LOOPS:
            supported = supported and sum(read[n].by_officer for n in named) > 1
        deductions.append(Deduction(criterion.name, int(fault["points"]), "", named, supported))
    named = _numbers(found["turns"])
    base = base_score(found["outcome"], int(found["position"]))
    return Verdict(
        deducted(base, deductions),
        found["outcome"],
        base,
        tuple(deductions),
        tuple(n for n in named if n in read),
        unsupported=sum(not d.supported for d in deductions) + (not there(named)),
    )


def base_score(outcome: str, position: int) -> int:
    """The point of the outcome's band at `position` of STEPS."""
    low, high = OUTCOMES[outcome]
    return low + round((high - low) * position / STEPS)


def _numbers(named: Sequence[float]) -> tuple[int, ...]:
    """Each once, in order; JSON's 3.0 is an integer, too."""
    return tuple(sorted({int(n) for n in named}))


# For tables: changes with any word of the prompts, the form of the answer, the points and the bands.
DEESCALATION_VERSION = fingerprint(deescalation_messages("", "", []), SCHEMA, OUTCOMES)
