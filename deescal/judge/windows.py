"""Cutting transcripts to what a model can read at once. A turn that is too long for that is read in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Turn = Mapping[str, Any]  # at least text

LINE_OVERHEAD = 10  # tokens of "[12] Civilian B: " and the line break


def windows(
    turns: Sequence[Turn], max_tokens: int, overlap_turns: int, count_tokens: Callable[[str], int]
) -> list[list[Turn]]:
    """Consecutive runs of turns, each within `max_tokens`, neighbours sharing up to `overlap_turns` turns.

    No word is left out.

    Raises:
        ValueError: `max_tokens` leaves no room for even one character.
    """
    cut = [piece for turn in turns for piece in pieces(turn, max_tokens, count_tokens)]
    costs = [count_tokens(piece["text"]) + LINE_OVERHEAD for piece in cut]
    found: list[list[Turn]] = []
    start = 0
    while start < len(cut):
        end, used = start, 0
        while end < len(cut) and used + costs[end] <= max_tokens:
            used += costs[end]
            end += 1
        found.append(cut[start:end])
        if end == len(cut):
            break
        # Step back for the overlap, but never so far that the next window would bring nothing new.
        start = max(start + 1, end - overlap_turns)
        while start < end and sum(costs[start : end + 1]) > max_tokens:
            start += 1
    return found


def pieces(turn: Turn, max_tokens: int, count_tokens: Callable[[str], int]) -> list[Turn]:
    """The turn itself where its line fits into `max_tokens`, else its halves (same turn_id), halved until they fit.

    Raises:
        ValueError: `max_tokens` leaves no room for even one character.
    """
    text = turn["text"]
    if count_tokens(text) + LINE_OVERHEAD <= max_tokens:
        return [turn]
    if len(text) < 2:
        raise ValueError(f"{max_tokens} tokens leave no room for a line of the transcript")
    words = text.split()
    if len(words) > 1:
        halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    else:  # not every language has spaces
        halves = [text[: len(text) // 2], text[len(text) // 2 :]]
    return [piece for half in halves for piece in pieces({**turn, "text": half}, max_tokens, count_tokens)]
