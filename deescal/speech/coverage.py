"""Pure decisions of transcription: what to decode, what was missed, what not to believe.

Words are WORD structs of the schema (start_s, end_s, text, probability), spans are (start_s, end_s), both in
order of start. Nothing here knows an engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

Word = dict[str, Any]
Span = tuple[float, float]

MAX_WORD_S = 1.0  # alignment stretches a word over a pause or over dropped speech: it vouches for no more than this
WORD_MARGIN_S = 0.3  # a word vouches for so much before and after it: alignment is that inexact
UTTERANCE_GAP_S = 0.7  # a longer pause starts a new utterance

# What Whisper has learnt to write under music and silence, from subtitles of videos.
STOCK_PHRASES = frozenset(
    phrase.strip()
    for line in (
        "applause; bye; bye bye; music; okay; so; thank you; thank you very much; thanks; the end; you",
        "dont forget to subscribe; like and subscribe; please subscribe; please subscribe to my channel",
        "see you next time; see you in the next video; well be right back",
        "thanks for watching; thank you for watching; thank you so much for watching",
        "subtitles by the amaraorg community; transcription by castingwords",
    )
    for phrase in line.split(";")
)


def seconds(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def union(spans: Iterable[Span], gap_s: float = 0.0) -> list[Span]:
    """Spans in order, those closer than `gap_s` joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + gap_s:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif end > start:
            joined.append((start, end))
    return joined


def intersect(a: Sequence[Span], b: Sequence[Span]) -> list[Span]:
    """What is in both; each must be free of overlap and in order."""
    both, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if end > start:
            both.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return both


def subtract(a: Sequence[Span], b: Sequence[Span]) -> list[Span]:
    """What is in `a` and not in `b`; each must be free of overlap and in order."""
    left: list[Span] = []
    first = 0
    for start, end in a:
        while first < len(b) and b[first][1] <= start:
            first += 1
        i = first
        while i < len(b) and b[i][0] < end:
            if b[i][0] > start:
                left.append((start, b[i][0]))
            start = max(start, b[i][1])
            i += 1
        if end > start:
            left.append((start, end))
    return left


def pack_windows(
    speech: Sequence[Span], duration_s: float, window_s: float, pad_s: float, pause_s: float
) -> list[list[Span]]:
    """Speech -> windows to decode at once, each a list of pieces that last `window_s` at most together.

    A pause longer than `pause_s` is cut out, since the decoder tends to stop there; a shorter one is kept, since
    context helps. A span of speech is never cut, so none may be longer than `window_s - 2 * pad_s`.
    """
    windows: list[list[Span]] = []
    for start, end in _padded(speech, duration_s, pad_s):
        if windows:
            window = windows[-1]
            last_start, last_end = window[-1]
            joined = start - last_end <= pause_s
            added = end - (last_end if joined else start)
            if seconds(window) + added <= window_s:
                if joined:
                    window[-1] = (last_start, end)
                else:
                    window.append((start, end))
                continue
        windows.append([(start, end)])
    return windows


def _padded(speech: Sequence[Span], duration_s: float, pad_s: float) -> list[Span]:
    """The spans with `pad_s` on both sides, or half of the pause where that is less: none reaches into another."""
    cuts = [0.0, *((a[1] + b[0]) / 2 for a, b in pairwise(speech)), duration_s]
    return [
        (max(start - pad_s, before), min(end + pad_s, after))
        for (start, end), before, after in zip(speech, cuts, cuts[1:], strict=False)
    ]


def clip_time(pieces: Sequence[Span], window_time_s: float) -> float:
    """A time within the joined pieces of a window -> the time within the clip."""
    for start, end in pieces:
        if window_time_s <= end - start:
            return start + max(0.0, window_time_s)
        window_time_s -= end - start
    return pieces[-1][1]


def place_words(words: Sequence[Word], pieces: Sequence[Span]) -> list[Word]:
    """Words with times within a window -> within the clip; a word stays within the piece that holds its middle."""
    placed = []
    for word in words:
        middle_s = clip_time(pieces, (word["start_s"] + word["end_s"]) / 2)
        low, high = next(p for p in pieces if p[0] <= middle_s <= p[1])
        half_s = (word["end_s"] - word["start_s"]) / 2
        placed.append({**word, "start_s": max(low, middle_s - half_s), "end_s": min(high, middle_s + half_s)})
    return placed


def vouched(words: Iterable[Word]) -> list[Span]:
    """The seconds that words account for: each one's own, at most MAX_WORD_S, and a margin on both sides."""
    return union(
        (w["start_s"] - WORD_MARGIN_S, min(w["end_s"], w["start_s"] + MAX_WORD_S) + WORD_MARGIN_S) for w in words
    )


def coverage(words: Iterable[Word], speech: Sequence[Span]) -> float:
    """Share of the seconds of speech that words account for, 0..1; 1 where there is no speech."""
    total_s = seconds(speech)
    return seconds(intersect(union(speech), vouched(words))) / total_s if total_s > 0 else 1.0


def uncovered_spans(words: Iterable[Word], speech: Sequence[Span], min_s: float) -> list[Span]:
    """Stretches of speech of `min_s` and more that no word accounts for; those with a short pause between joined."""
    missed = union(subtract(union(speech), vouched(words)), gap_s=2 * WORD_MARGIN_S)  # merge_words takes in as much
    return [span for span in missed if seconds([span]) >= min_s]


def plain(text: str) -> str:
    """For comparison: lower case, letters and digits only, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def find_loops(
    words: Sequence[Word], speech: Sequence[Span], max_repeats: int, max_words_per_s: float, max_ngram: int = 20
) -> list[range]:
    """Where a decoder repeats itself: ranges of words to refuse, the first occurrence of the phrase not among them.

    People do repeat themselves, in an arrest above all ("drop the knife, drop the knife"), so four times the same
    is a loop only where nobody could speak so fast, or on more than `max_repeats` occurrences.
    """
    texts = [plain(w["text"]) for w in words]
    loops: list[range] = []
    i = 0
    while i < len(texts):
        found = None
        for n in range(1, min(max_ngram, (len(texts) - i) // 4) + 1):
            repeats = 1
            while texts[i + repeats * n : i + (repeats + 1) * n] == texts[i : i + n]:
                repeats += 1
            if repeats >= 4 and (
                repeats > max_repeats or _words_per_s(words[i : i + repeats * n], speech) > max_words_per_s
            ):
                found = range(i + n, i + repeats * n)
                break
        if found is not None:
            loops.append(found)
        i = found.stop if found is not None else i + 1
    return loops


def _words_per_s(words: Sequence[Word], speech: Sequence[Span]) -> float:
    stretch = [(words[0]["start_s"], words[-1]["end_s"])]
    return len(words) / max(seconds(intersect(stretch, union(speech))), 1e-3)


def utterances(words: Sequence[Word]) -> list[list[Word]]:
    """Words grouped at pauses longer than UTTERANCE_GAP_S."""
    groups: list[list[Word]] = []
    for word in words:
        if groups and word["start_s"] - groups[-1][-1]["end_s"] <= UTTERANCE_GAP_S:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def hallucination(utterance: Sequence[Word], speech: Sequence[Span], min_overlap: float) -> str | None:
    """Why an utterance is not believed, or None: nobody speaks there, or a stock phrase where hardly anybody does."""
    said = union((w["start_s"], max(w["end_s"], w["start_s"] + 0.02)) for w in utterance)
    overlap = seconds(intersect(said, union(speech, gap_s=2 * WORD_MARGIN_S))) / seconds(said)
    if overlap < min_overlap:
        return "outside speech"
    probability = sum(w["probability"] for w in utterance) / len(utterance)
    if join_text(utterance, plain) in STOCK_PHRASES and (overlap < 0.5 or probability < 0.4):
        return "stock phrase"
    return None


def join_text(words: Iterable[Word], change: Any = str) -> str:
    return str(change(" ".join(w["text"] for w in words)))


def merge_words(words: Sequence[Word], extra: Sequence[Word], span: Span) -> list[Word]:
    """Words found by decoding one span again, put among the others in order of time.

    A span is decoded with some sound around it, so an extra word is taken only where its middle is in the span
    (give or take the margin), and not where the same word is there already or where another word holds that time.
    """
    low_s, high_s = span[0] - WORD_MARGIN_S, span[1] + WORD_MARGIN_S
    taken = []
    for word in extra:
        middle_s = (word["start_s"] + word["end_s"]) / 2
        if low_s <= middle_s <= high_s and not any(_clashes(word, middle_s, other) for other in words):
            taken.append(word)
    return sorted([*words, *taken], key=lambda w: (w["start_s"], w["end_s"]))


def _clashes(word: Word, middle_s: float, other: Word) -> bool:
    end_s = min(other["end_s"], other["start_s"] + MAX_WORD_S)
    if other["start_s"] <= middle_s <= end_s:
        return True
    gap_s = max(other["start_s"] - word["end_s"], word["start_s"] - other["end_s"])
    return gap_s <= WORD_MARGIN_S and plain(word["text"]) == plain(other["text"])


def tidy(words: Iterable[Word], duration_s: float) -> list[Word]:
    """Words in order of start, within the clip, each ending before the next one starts, in whole milliseconds.

    Alignment may stretch a word over many seconds of speech that it dropped: the word is cut short, never the
    others pushed aside, or all that was recovered there would end up in one instant.
    """
    tidied: list[Word] = []
    for word in sorted(words, key=lambda w: (w["start_s"], w["end_s"])):
        start_s = round(min(max(word["start_s"], 0.0), duration_s), 3)
        end_s = round(min(max(word["end_s"], start_s), start_s + 2 * MAX_WORD_S, duration_s), 3)
        if tidied:
            tidied[-1]["end_s"] = min(tidied[-1]["end_s"], start_s)
        tidied.append({**word, "start_s": start_s, "end_s": max(start_s, end_s)})
    return tidied
