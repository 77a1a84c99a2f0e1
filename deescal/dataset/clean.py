"""Turns that nobody spoke: what a transcriber or a language model left behind when it derailed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deescal.speech.whisper import compression_ratio

Turn = Mapping[str, Any]  # DIALOGUE

NO_WORDS, MARKUP, LOOP = "no words", "markup", "loop"

# In the published corpus nobody says the same more than 13 times in a row, and its loops begin at 40 times.
MAX_REPEATS = 20
MAX_COMPRESSION_RATIO = 10.0  # speech there ends at 5.5, loops begin at 12; needed for loops without spaces
_SUSPECT_RATIO = 2.4  # Whisper's own limit: below it a text is not searched for loops
_MAX_UNIT_WORDS = 32  # of the phrase that a loop repeats

# Code fences, subtitle arrows, control tokens of chat templates, and JSON of a transcript inside the text.
_MARKUP = re.compile(r"```|-->|<\|\w+\|?>|</?s>|\{\s*\"?(start|end|text|speaker|role|transcript)\w*\"?\s*:")


@dataclass(frozen=True)
class Cleaned:
    """Every turn is in `kept`, or its turn_id is in `dropped` with the reason."""

    kept: list[Turn]
    dropped: dict[int, str]


def clean_turns(turns: Iterable[Turn]) -> Cleaned:
    """Leave out turns without words, with leaked markup, and with a transcriber's loop.

    A turn that holds a loop goes as a whole: what stands around the loop was written by the same derailed decoder, and
    its time and speaker cannot be trusted.
    """
    kept, dropped = [], {}
    for turn in turns:
        why = fault(turn["text"] or "")
        if why is None:
            kept.append(turn)
        else:
            dropped[turn["turn_id"]] = why
    return Cleaned(kept, dropped)


def fault(text: str) -> str | None:
    """Why this is nobody's speech, or None."""
    if not any(character.isalnum() for character in text):
        return NO_WORDS
    if _MARKUP.search(text):
        return MARKUP
    ratio = compression_ratio(text)
    if ratio > MAX_COMPRESSION_RATIO or (ratio > _SUSPECT_RATIO and most_repeats(text) > MAX_REPEATS):
        return LOOP
    return None


def most_repeats(text: str) -> int:
    """How often a phrase of up to 32 words follows itself, at most: 'no, no, no more' -> 3."""
    import numpy as np

    ids: dict[str, int] = {}
    plain = (re.sub(r"\W", "", word).casefold() for word in text.split())
    words = np.array([ids.setdefault(word, len(ids)) for word in plain])
    most = min(len(words), 1)
    for unit in range(1, min(_MAX_UNIT_WORDS, len(words) // 2) + 1):
        same = np.concatenate([[False], words[:-unit] == words[unit:], [False]])
        edges = np.flatnonzero(np.diff(same))
        if len(edges):
            most = max(most, int((edges[1::2] - edges[::2]).max()) // unit + 1)
    return most
