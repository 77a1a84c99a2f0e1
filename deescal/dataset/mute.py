"""Clips for others to hear: their turns redacted, and the same places silent in their sound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from deescal.dataset.redact import Redactor, muted_spans, word_places
from deescal.dataset.redaction_plan import Redaction
from deescal.schema import Row
from deescal.speech.audio import SAMPLE_RATE_HZ, load_audio, write_flac

# Columns of a clip that may name people and are no turns: what was heard but refused, and where the clip comes from.
_UNREDACTED = ("words", "dropped_text", "uri", "aliases", "source")


class Muter:
    """Redacts a clip of a run and silences its sound."""

    def __init__(self, run: str, redactor: Redactor | None = None) -> None:
        self._run = run
        self._redactor = redactor or Redactor()

    def __call__(self, row: Row) -> tuple[Row, bytes | None]:
        """A CLIPS row -> the row redacted, and its sound as FLAC; None where it has none.

        Words of a redacted place become one word, the placeholder. The columns `words`, `dropped_text`, `uri`,
        `aliases` and `source` are emptied.
        """
        turns = row["turns"] or []
        redacted, redactions = self._redactor.redact(turns)
        for turn, was in zip(redacted, turns, strict=True):
            turn["words"] = redact_words(was, [r for r in redactions if r.turn_id == was["turn_id"]])
        clean = {**row, **dict.fromkeys(_UNREDACTED), "turns": None if row["turns"] is None else redacted}
        if not row["audio"]:
            return clean, None
        samples = np.round(load_audio(self._run, row["audio"]) * 32768).astype(np.int16)
        spans = muted_spans(turns, redactions, self._redactor.config.mute_pad_s)
        return clean, write_flac(silence(samples, spans))


def silence(samples: np.ndarray, spans: Iterable[tuple[float, float]]) -> np.ndarray:
    """A copy of the samples, zero in the spans (seconds)."""
    quiet = samples.copy()
    for start_s, end_s in spans:
        end = len(quiet) if end_s == float("inf") else int(np.ceil(end_s * SAMPLE_RATE_HZ))
        quiet[int(start_s * SAMPLE_RATE_HZ) : end] = 0
    return quiet


def redact_words(turn: Row, redactions: Sequence[Redaction]) -> list[Row] | None:
    """The words of a turn after redaction; None where it is redacted and its words do not make up its text."""
    changes = sorted((r for r in redactions if r.field == "text"), key=lambda r: r.start)
    if not changes:
        return turn["words"]
    if (places := word_places(turn)) is None:
        return None
    words: list[Row] = []
    at = 0  # text before this character is in `words` already
    for begin, end, word in places:
        inside = [r for r in changes if r.start < end and begin < r.end]
        pieces, position = [], max(begin, at)
        for r in inside:
            if r.start >= begin:  # a redaction is said by the first of its words
                pieces += [turn["text"][position : r.start], r.placeholder]
            position = max(position, r.end)
        at = max(at, position)
        text = "".join(pieces) + turn["text"][position:end]
        if inside and inside[0].start < begin:
            words[-1] = {**words[-1], "end_s": word["end_s"], "text": words[-1]["text"] + text}
        else:
            words.append({**word, "text": text})
    return words
