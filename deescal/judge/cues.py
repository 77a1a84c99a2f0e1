"""What words alone say: phrases that typically show a feature, and a few numbers about who talks how much.

Cues serve twice: their counts stand beside the model's answers in the calibration, and the turns they occur
in are the first candidates for a feature's evidence. A cue only counts in the mouth of its side, see cues.yaml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from deescal.config import fingerprint
from deescal.judge.taxonomy import NAMES

Turn = Mapping[str, Any]  # speaker, role, text
SIDES = {"officer": "police", "dispatcher": "police", "narrator": "presenter"}

_TABLE = Path(__file__).with_name("cues.yaml").read_text()

# feature -> (side, expression) pairs
_CUES: dict[str, list[tuple[str, re.Pattern[str]]]] = {
    name: [(side, re.compile("|".join(patterns), re.IGNORECASE)) for side, patterns in sides.items()]
    for name, sides in yaml.safe_load(_TABLE).items()
}

SHAPE_NAMES = (
    "officer_turn_share",
    "presenter_word_share",
    "log_speakers",
    "alternation",
    "log_turns",
    "log_words_per_turn",
    "question_share",
)


# Transcribers write "I am" or "I'm" at will; the cues are written for the short forms.
_SHORT = {
    "do not": "don't",
    "did not": "didn't",
    "was not": "wasn't",
    "will not": "won't",
    "cannot": "can't",
    "can not": "can't",
    "i am": "i'm",
    "you are": "you're",
    "we are": "we're",
    "they are": "they're",
    "it is": "it's",
    "that is": "that's",
    "what is": "what's",
    "i will": "i'll",
    "we will": "we'll",
    "you will": "you'll",
}
_LONG = re.compile(rf"\b({'|'.join(_SHORT)})(?= \w)", re.IGNORECASE)


VERSION = fingerprint(_TABLE, _SHORT)


@lru_cache(maxsize=4096)
def short_forms(text: str) -> str:
    return _LONG.sub(lambda match: _SHORT[match[1].lower()], text.replace("’", "'"))


def side_of(turn: Turn) -> str:
    return SIDES.get(turn["role"], "public")


def hits(name: str, turn: Turn) -> int:
    """Occurrences of a feature's cues in one turn."""
    side, text = side_of(turn), short_forms(turn["text"])
    return sum(len(pattern.findall(text)) for who, pattern in _CUES[name] if who in (side, "any"))


def sides_of(name: str) -> set[str]:
    """Whose words can show the feature; empty for anyone's."""
    sides = {side for side, _ in _CUES[name]}
    return set() if "any" in sides else sides


def shape(turns: Sequence[Turn]) -> list[float]:
    """Who talks how much, in order of SHAPE_NAMES, each about 0..3."""
    n = len(turns)
    words = [len(t["text"].split()) for t in turns]
    total = max(1, sum(words))
    sides = [side_of(t) for t in turns]
    switches = sum(a["speaker"] != b["speaker"] for a, b in pairwise(turns))
    return [
        sides.count("police") / n,
        sum(w for w, s in zip(words, sides, strict=True) if s == "presenter") / total,
        math.log(len({t["speaker"] for t in turns})),
        switches / max(1, n - 1),
        math.log10(n),
        math.log10(1 + total / n),
        sum("?" in t["text"] for t in turns) / n,
    ]


def counts(turns: Sequence[Turn]) -> list[float]:
    """log(1 + occurrences of the feature's cues), in order of NAMES."""
    return [math.log1p(sum(hits(name, t) for t in turns)) for name in NAMES]
