"""Which turns show a feature that was found present.

A small model cannot point at a turn by its number (asked so, it names the first turn whatever the feature),
so turns are found by the feature's cues, most occurrences first, and where no cue occurs the model is asked
about single lines and the likeliest is named. Only turns that exist can come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from deescal.judge import prompts
from deescal.judge.cues import hits, side_of, sides_of
from deescal.judge.llm import Llm
from deescal.judge.taxonomy import BY_NAME
from deescal.judge.windows import pieces
from deescal.speech.diarize import letters

Turn = Mapping[str, Any]  # turn_id, speaker, role, text

# Of these no single turn is the evidence: they are about what the whole lacks.
WITHOUT = ("no_police_presence", "no_conversation_detected")


def find(
    turns: Sequence[Turn],
    names: Sequence[str],
    engine: Llm,
    max_evidence: int,
    candidates: int,
    max_tokens: int,
) -> dict[str, list[int]]:
    """Feature -> turn_ids in order, at most `max_evidence`; at least one unless nobody on its side speaks.

    Args:
        candidates: lines that the model is asked about, a feature.
        max_tokens: of one such line; a longer turn is asked about in pieces.
    """
    found: dict[str, list[int]] = {}
    asked: list[tuple[str, Turn, str]] = []
    speakers = letters(t["speaker"] for t in turns)
    cut = [piece for turn in turns for piece in pieces(turn, max_tokens, engine.count_tokens)]
    for name in names:
        if name in WITHOUT:
            continue
        best = by_structure(name, turns) or by_cues(name, turns, max_evidence)
        if best:
            found[name] = sorted(best[:max_evidence])
            continue
        for piece in _likely(name, cut, candidates):
            line = prompts.lines([piece], speakers)[0].partition("] ")[2]
            asked.append((name, piece, prompts.ask_line(BY_NAME[name], line)))
    if asked:
        table = engine.choose([engine.render(prompts.LINE_SYSTEM, text) for _, _, text in asked], prompts.ANSWERS)
        best_odds: dict[str, float] = {}
        for (name, piece, _), (yes, no) in zip(asked, table, strict=True):
            if yes - no > best_odds.get(name, float("-inf")):
                best_odds[name] = yes - no
                found[name] = [piece["turn_id"]]
    return found


def by_cues(name: str, turns: Sequence[Turn], limit: int) -> list[int]:
    """turn_ids with the feature's cues, most occurrences first, then the earlier."""
    counted = [(-hits(name, turn), i) for i, turn in enumerate(turns)]
    return [turns[i]["turn_id"] for n, i in sorted(counted)[:limit] if n < 0]


def by_structure(name: str, turns: Sequence[Turn]) -> list[int]:
    """Features that show in who speaks: the officer's turns, the first exchange between participants."""
    if name == "police_identified_by_role":
        named = by_cues(name, turns, 2)
        police = [t["turn_id"] for t in turns if side_of(t) == "police" and t["turn_id"] not in named]
        return named + police[:1]
    if name == "conversation_present":
        for first, second in pairwise(turns):
            if first["speaker"] != second["speaker"] and "presenter" not in (side_of(first), side_of(second)):
                return [first["turn_id"], second["turn_id"]]
    return []


def _likely(name: str, turns: Sequence[Turn], limit: int) -> list[Turn]:
    """The longest turns of the feature's side: more words, more to show."""
    sides = sides_of(name)
    own = [t for t in turns if not sides or side_of(t) in sides]
    return sorted(own, key=lambda t: -len(t["text"]))[:limit]
