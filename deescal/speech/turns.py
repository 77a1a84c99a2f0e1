"""Words to speakers, and speakers' words to turns.

A word belongs to the speaker whose exclusive spans cover most of it. Spans and words both end a tenth of a second
early or late, so the margin is measured on a slightly longer stretch, and words that are not clearly anyone's may
follow their neighbours: a lone word inside another's speech, and a word that a sentence's end ties to the other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    owned = [_own(word, speaker_spans, exclusive_spans, config) for word in ordered]
    return _follow_sentences(_join_islands(owned, config), config)


def make_turns(owned: Sequence[OwnedWord], speaker_spans: Sequence[Span], config: TurnsConfig) -> list[Row]:
    """Consecutive words of one speaker -> schema.TURN dicts in order of start, role None."""
    groups: list[list[OwnedWord]] = []
    for word in owned:
        last = groups[-1] if groups else None
        if (
            last is not None
            and last[-1].speaker == word.speaker
            and word.word["start_s"] - max(w.word["end_s"] for w in last) <= config.max_gap_s
        ):
            last.append(word)
        else:
            groups.append([word])
    return [_turn(i, group, speaker_spans) for i, group in enumerate(groups)]


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


def _own(word: Word, spans: Sequence[Span], exclusive: Sequence[Span], config: TurnsConfig) -> OwnedWord:
    start_s, end_s = word["start_s"], max(word["end_s"], word["start_s"] + _MIN_WORD_S)
    for candidates in (exclusive, spans):
        seconds = _seconds_by_speaker(candidates, start_s, end_s)
        if seconds:
            # Of equals, the one who began first: max() keeps the first, and spans are sorted by start.
            speaker = max(seconds, key=lambda s: seconds[s])
            return OwnedWord(word, speaker, _margin(speaker, spans, exclusive, start_s, end_s, config.slack_s))
    distances: dict[str, float] = {}
    for span in [*exclusive, *spans]:
        away_s = max(span["start_s"] - end_s, start_s - span["end_s"], 0.0)
        distances[span["speaker"]] = min(away_s, distances.get(span["speaker"], away_s))
    near = sorted(distances.items(), key=lambda item: item[1])
    if not near or near[0][1] > config.max_distance_s:
        return OwnedWord(word, NOBODY, 0.0)
    (speaker, first_s), second_s = near[0], near[1][1] if len(near) > 1 else float("inf")
    margin = 1.0 if second_s == float("inf") else (second_s - first_s) / (second_s + first_s) if second_s > 0 else 0.0
    closeness = 1 - first_s / config.max_distance_s if config.max_distance_s > 0 else 1.0
    return OwnedWord(word, speaker, margin * closeness)


def _margin(
    speaker: str, spans: Sequence[Span], exclusive: Sequence[Span], start_s: float, end_s: float, slack_s: float
) -> float:
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


def _seconds_by_speaker(spans: Sequence[Span], start_s: float, end_s: float) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for span in spans:
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


def _turn(turn_id: int, group: Sequence[OwnedWord], speaker_spans: Sequence[Span]) -> Row:
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


def _overlap_share(speaker: str, start_s: float, end_s: float, spans: Sequence[Span]) -> float:
    """Share of [start_s, end_s] in which the speaker and someone else both speak, 0..1."""
    inside = [s for s in spans if s["end_s"] > start_s and s["start_s"] < end_s]
    edges = sorted({start_s, end_s, *(min(max(t, start_s), end_s) for s in inside for t in (s["start_s"], s["end_s"]))})
    shared_s = 0.0
    for left, right in pairwise(edges):
        speaking = {s["speaker"] for s in inside if s["start_s"] <= left and s["end_s"] >= right}
        if speaker in speaking and len(speaking) > 1:
            shared_s += right - left
    return min(1.0, shared_s / (end_s - start_s)) if end_s > start_s else 0.0
