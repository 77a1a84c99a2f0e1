"""Words to speakers, and speakers' words to turns.

A word belongs to the speaker whose exclusive spans cover most of it. Spans and words both end a tenth of a second
early or late, so the margin is measured on a slightly longer stretch, and words that are not clearly anyone's may
follow their neighbours: a lone word inside another's speech, and a word that a sentence's end ties to the other side.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from deescal.errors import ClipError
from deescal.schema import Row
from deescal.stage import Run, Stage, StageConfig

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Span = Mapping[str, Any]  # schema.SPAN
Word = Mapping[str, Any]  # schema.WORD

NOBODY = "?"
_MIN_WORD_S = 0.02  # a word of no length is taken as this long
_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
_CLOSERS = "\"'”’)]»"  # what may stand after the sentence's end


class TurnsConfig(StageConfig):
    max_gap_s: float = Field(default=2.0, gt=0)  # a longer silence inside one speaker's words starts a new turn
    max_distance_s: float = Field(default=1.0, ge=0)  # a word outside all spans goes to a speaker at most this far away
    slack_s: float = Field(
        default=0.15, ge=0
    )  # how far word times and span edges may be off; widens words for the margin
    unsure_margin: float = Field(default=0.5, ge=0, le=1)  # a word with less may be moved to its neighbours' speaker


@dataclass(frozen=True)
class OwnedWord:
    """A word, who said it ('?': nobody was near), and how clearly: 0 (tie) .. 1."""

    word: Word
    speaker: str
    margin: float


def assign_words(
    words: Sequence[Word], speaker_spans: Sequence[Span], exclusive_spans: Sequence[Span], config: TurnsConfig
) -> list[OwnedWord]:
    """Every word with its speaker, in order of start."""
    ordered = sorted(words, key=lambda w: (w["start_s"], w["end_s"]))
    spans, exclusive = _Spans(speaker_spans), _Spans(exclusive_spans)
    of_speaker: dict[str, list[Span]] = {}
    for span in (*exclusive_spans, *speaker_spans):
        of_speaker.setdefault(span["speaker"], []).append(span)
    everyone = {speaker: _Spans(own) for speaker, own in of_speaker.items()}
    owned = [_own(word, spans, exclusive, everyone, config) for word in ordered]
    return _follow_sentences(_join_islands(owned, config), config)


def make_turns(owned: Sequence[OwnedWord], speaker_spans: Sequence[Span], config: TurnsConfig) -> list[Row]:
    """Consecutive words of one speaker -> schema.TURN dicts in order of start, role None."""
    groups: list[list[OwnedWord]] = []
    ends_s = 0.0  # of the last group
    for word in owned:
        last = groups[-1] if groups else None
        if last and last[-1].speaker == word.speaker and word.word["start_s"] - ends_s <= config.max_gap_s:
            last.append(word)
            ends_s = max(ends_s, word.word["end_s"])
        else:
            groups.append([word])
            ends_s = word.word["end_s"]
    spans = _Spans(speaker_spans)
    return [_turn(i, group, spans) for i, group in enumerate(groups)]


def assign_turns(ds: ray.data.Dataset, config: TurnsConfig, run: Run) -> ray.data.Dataset:
    """The stage 'turns': sets `turns` from `words`, `speaker_spans` and `exclusive_spans`."""
    stage = run.stage("turns")

    def batch(table: pa.Table) -> pa.Table:
        return apply_turns(table, config, stage)

    return ds.map_batches(batch, batch_size=config.batch_size, batch_format="pyarrow", **config.resources.ray_options())


def apply_turns(table: pa.Table, config: TurnsConfig, stage: Stage) -> pa.Table:
    """The stage on one batch, without Ray."""
    return stage.apply(table, lambda row: process(row, config))


def process(row: Row, config: TurnsConfig) -> Row:
    """One clip's turns.

    Raises:
        ClipError: the clip has no words.
    """
    if not row["words"]:
        raise ClipError("no words to assign")
    spans, exclusive = row["speaker_spans"] or [], row["exclusive_spans"] or []
    return {"turns": make_turns(assign_words(row["words"], spans, exclusive, config), spans, config)}


class _Spans:
    """Spans in order of start, so that those near a time are found without a look at all of them."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans, key=lambda s: s["start_s"])
        self._starts = [s["start_s"] for s in self._spans]
        self._ends = list(accumulate((s["end_s"] for s in self._spans), max))  # up to each span, the last end

    def around(self, start_s: float, end_s: float) -> Sequence[Span]:
        """All that overlap the stretch, in order, and perhaps others that do not."""
        return self._spans[bisect_right(self._ends, start_s) : bisect_left(self._starts, end_s)]

    def distance_s(self, start_s: float, end_s: float) -> float:
        """From the stretch to the nearest span."""
        later = bisect_left(self._starts, end_s)
        after_s = self._starts[later] - end_s if later < len(self._starts) else float("inf")
        before_s = start_s - self._ends[later - 1] if later else float("inf")
        return max(0.0, min(before_s, after_s))


def _own(
    word: Word, spans: _Spans, exclusive: _Spans, everyone: Mapping[str, _Spans], config: TurnsConfig
) -> OwnedWord:
    start_s, end_s = word["start_s"], max(word["end_s"], word["start_s"] + _MIN_WORD_S)
    for candidates in (exclusive, spans):
        seconds = _seconds_by_speaker(candidates, start_s, end_s)
        if seconds:
            # Of equals, the one who began first: max() keeps the first, and spans are sorted by start.
            speaker = max(seconds, key=lambda s: seconds[s])
            return OwnedWord(word, speaker, _margin(speaker, spans, exclusive, start_s, end_s, config.slack_s))
    distances = ((speaker, own.distance_s(start_s, end_s)) for speaker, own in everyone.items())
    near = sorted(distances, key=lambda item: item[1])
    if not near or near[0][1] > config.max_distance_s:
        return OwnedWord(word, NOBODY, 0.0)
    (speaker, first_s), second_s = near[0], near[1][1] if len(near) > 1 else float("inf")
    margin = 1.0 if second_s == float("inf") else (second_s - first_s) / (second_s + first_s) if second_s > 0 else 0.0
    closeness = 1 - first_s / config.max_distance_s if config.max_distance_s > 0 else 1.0
    return OwnedWord(word, speaker, margin * closeness)


def _margin(speaker: str, spans: _Spans, exclusive: _Spans, start_s: float, end_s: float, slack_s: float) -> float:
    """(own - best other) / (own + best other) seconds around the word, 0..1.

    Both kinds of spans count half each: a word inside overlapping speech belongs less clearly to its speaker.
    """
    seconds: dict[str, float] = {}
    for candidates in (spans, exclusive):
        for other, value in _seconds_by_speaker(candidates, start_s - slack_s, end_s + slack_s).items():
            seconds[other] = seconds.get(other, 0.0) + value / 2
    own = seconds.pop(speaker, 0.0)
    rival = max(seconds.values(), default=0.0)
    return max(0.0, (own - rival) / (own + rival)) if own > 0 else 0.0


def _seconds_by_speaker(spans: _Spans, start_s: float, end_s: float) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for span in spans.around(start_s, end_s):
        shared_s = min(end_s, span["end_s"]) - max(start_s, span["start_s"])
        if shared_s > 0:
            seconds[span["speaker"]] = seconds.get(span["speaker"], 0.0) + shared_s
    return seconds


def _join_islands(owned: Sequence[OwnedWord], config: TurnsConfig) -> list[OwnedWord]:
    """A word that is unsure and alone between two words of one other speaker goes with them."""
    result = list(owned)
    for i in range(1, len(result) - 1):
        before, word, after = result[i - 1], result[i], result[i + 1]
        is_island = before.speaker == after.speaker != word.speaker and before.speaker != NOBODY
        if is_island and _may_move(word, before, config) and _may_move(word, after, config):
            result[i] = replace(word, speaker=before.speaker, margin=0.0)
    return result


def _follow_sentences(owned: Sequence[OwnedWord], config: TurnsConfig) -> list[OwnedWord]:
    """Where the speaker changes one word off a sentence's end, and that word is unsure, the change moves there."""
    result = list(owned)
    for i in range(1, len(result)):
        last, first = result[i - 1], result[i]
        if last.speaker == first.speaker or NOBODY in (last.speaker, first.speaker) or _ends_sentence(last.word):
            continue
        moves = []  # (margin of the moved word, its index, its new speaker)
        if _ends_sentence(first.word) and _may_move(first, last, config):
            moves.append((first.margin, i, last.speaker))
        if i >= 2 and _ends_sentence(result[i - 2].word) and _may_move(last, first, config):
            moves.append((last.margin, i - 1, first.speaker))
        if moves:
            _, k, speaker = min(moves)
            result[k] = replace(result[k], speaker=speaker, margin=0.0)
    return result


def _may_move(word: OwnedWord, neighbour: OwnedWord, config: TurnsConfig) -> bool:
    gap_s = max(
        word.word["start_s"] - neighbour.word["end_s"], neighbour.word["start_s"] - word.word["end_s"]
    )  # negative where they overlap
    return word.margin < config.unsure_margin and gap_s <= config.max_gap_s


def _ends_sentence(word: Word) -> bool:
    return word["text"].strip().rstrip(_CLOSERS).endswith(_SENTENCE_ENDS)


def _turn(turn_id: int, group: Sequence[OwnedWord], speaker_spans: _Spans) -> Row:
    words = [dict(w.word) for w in group]
    start_s, end_s = words[0]["start_s"], max(w["end_s"] for w in words)
    probabilities = [w["probability"] for w in words if w["probability"] is not None]
    return {
        "turn_id": turn_id,
        "start_s": start_s,
        "end_s": end_s,
        "speaker": group[0].speaker,
        "role": None,
        "text": " ".join(w["text"].strip() for w in words),
        "words": words,
        "overlap_share": _overlap_share(group[0].speaker, start_s, end_s, speaker_spans),
        "assignment_margin": sum(w.margin for w in group) / len(group),
        "asr_confidence": sum(probabilities) / len(probabilities) if probabilities else None,
    }


def _overlap_share(speaker: str, start_s: float, end_s: float, spans: _Spans) -> float:
    """Share of [start_s, end_s] in which the speaker and someone else both speak, 0..1."""
    inside = [s for s in spans.around(start_s, end_s) if s["end_s"] > start_s]
    edges = sorted({start_s, end_s, *(min(max(t, start_s), end_s) for s in inside for t in (s["start_s"], s["end_s"]))})
    shared_s = 0.0
    for left, right in pairwise(edges):
        speaking = {s["speaker"] for s in inside if s["start_s"] <= left and s["end_s"] >= right}
        if speaker in speaking and len(speaking) > 1:
            shared_s += right - left
    return min(1.0, shared_s / (end_s - start_s)) if end_s > start_s else 0.0
