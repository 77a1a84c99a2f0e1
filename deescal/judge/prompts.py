"""The words that the judge's model reads, and their version.

What is shared comes first, so that its prefix is computed once: the instruction and the rubric of all thirty
definitions (the same for every clip), then the transcript (the same for its thirty questions), then the
question, which is all that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deescal.config import fingerprint
from deescal.judge.taxonomy import FEATURES, Feature, rubric
from deescal.speech.diarize import letters

Turn = Mapping[str, Any]  # speaker, role, text

SYSTEM = (
    "You judge transcripts of encounters between police and civilians. Each line is: [number] role and letter of "
    "the speaker: what is said. A property holds only if the transcript itself shows it. The properties:\n"
)
ANSWERS = ("yes", "no")


def system() -> str:
    return SYSTEM + rubric()


def lines(turns: Sequence[Turn], names: Mapping[str, str]) -> list[str]:
    """'[0] Officer A: ...': roles and letters only, so that labels of transcripts made elsewhere do not matter."""
    return [
        f"[{i}] {(turn['role'] or 'other').capitalize()} {names[turn['speaker']]}: {turn['text']}"
        for i, turn in enumerate(turns)
    ]


def head(turns: Sequence[Turn]) -> str:
    """The user's text up to the question."""
    return "Transcript:\n" + "\n".join(lines(turns, letters(t["speaker"] for t in turns))) + "\n\n"


def ask(feature: Feature) -> str:
    return f"Question: {feature.question} Answer yes or no."


def ask_line(feature: Feature, line: str) -> str:
    """Whether one line alone shows the feature: for evidence where no phrase gives it away."""
    return f"Line of a transcript: {line}\n\nQuestion: Does this line show that {feature.definition}? Answer yes or no."


LINE_SYSTEM = "You judge single lines of encounters between police and civilians."

PROMPT_VERSION = fingerprint(system(), LINE_SYSTEM, [ask(f) for f in FEATURES], head([]), ask_line(FEATURES[0], ""))
