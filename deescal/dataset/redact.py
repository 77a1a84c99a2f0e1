"""Redaction: who and what could tell a person is replaced by placeholders, the same one for the same person.

Presidio finds spans (spaCy's names and our `recognizers`), the speaker labels tell more names; what was found anywhere
in a scenario is redacted everywhere in it. The decision from spans to redactions is `plan`, without a model.
Nothing is kept of what stood there: placeholders are numbered by first appearance within the scenario, so that they
cannot be turned back, nor joined across scenarios.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field as Limits

from deescal.config import Config
from deescal.dataset.redaction_plan import ENTITIES, MODEL_SCORE, Entity, Found, Redaction, plan
from deescal.models import resolve
from deescal.schema import Row

CHUNK_CHARACTERS = 4000  # turns are joined to this length for the model; a longer turn is cut between words
OVERLAP_CHARACTERS = 200  # that two chunks share, so that no question is parted from its answer
_IGNORED = (
    *("CARDINAL", "DATE", "EVENT", "FAC", "LANGUAGE", "LAW", "MONEY", "ORDINAL"),
    *("ORG", "PERCENT", "PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART"),
)


class RedactConfig(Config):
    """What is redacted and how sure one must be."""

    enabled: bool = True
    model: str = "spacy-en-md"
    entities: tuple[Entity, ...] = ENTITIES
    score_threshold: float = Limits(default=0.5, ge=0, le=1)
    mute_pad_s: float = Limits(default=0.1, ge=0)  # silenced before and after a redacted word


def apply(turns: Sequence[Row], redactions: Iterable[Redaction]) -> list[Row]:
    """Copies of the turns with placeholders in `speaker` and `text`; all else as it was, `words` too."""
    by_field: dict[tuple[int, str], list[Redaction]] = {}
    for redaction in redactions:
        by_field.setdefault((redaction.turn_id, redaction.field), []).append(redaction)
    rows = []
    for turn in turns:
        row = dict(turn)
        for field in ("speaker", "text"):
            for r in sorted(by_field.get((turn["turn_id"], field), ()), key=lambda r: -r.start):
                row[field] = row[field][: r.start] + r.placeholder + row[field][r.end :]
        rows.append(row)
    return rows


class Redactor:
    """Finds and replaces; holds spaCy's model, of which only the names are computed, and needs no network."""

    def __init__(self, config: RedactConfig | None = None) -> None:
        self.config = config or RedactConfig()
        if not self.config.enabled:
            return
        from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer

        from deescal.dataset.recognizers import recognizer

        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # warns of every kind that it does not map
        ner = NerModelConfiguration(default_score=MODEL_SCORE, labels_to_ignore=_IGNORED)
        engine = SpacyNlpEngine([{"lang_code": "en", "model_name": resolve(self.config.model)}], ner)
        engine.load()
        engine.get_nlp("en").select_pipes(enable=["ner"])
        names = SpacyRecognizer(supported_entities=["PERSON", "LOCATION", "NRP"])
        registry = RecognizerRegistry([names, recognizer()], supported_languages=["en"])
        self._analyzer = BatchAnalyzerEngine(AnalyzerEngine(registry, engine, supported_languages=["en"]))

    def redact(self, turns: Sequence[Row]) -> tuple[list[Row], list[Redaction]]:
        """The turns of one scenario, redacted, and what was done."""
        return self.redact_batch([turns])[0]

    def redact_batch(self, scenarios: Sequence[Sequence[Row]]) -> list[tuple[list[Row], list[Redaction]]]:
        """The same for several scenarios; faster where they are short."""
        if not self.config.enabled:
            return [([dict(t) for t in turns], []) for turns in scenarios]
        joined = ["\n".join((t["text"] or "").replace("\n", " ") for t in turns) for turns in scenarios]
        chunks = [(i, start, text) for i, whole in enumerate(joined) for start, text in cut(whole)]
        results = self._analyzer.analyze_iterator(
            [text for _, _, text in chunks], "en", batch_size=16, score_threshold=self.config.score_threshold
        )
        found: list[list[Found]] = [[] for _ in scenarios]
        for (i, start, _), spans in zip(chunks, results, strict=True):
            turn_starts = [0, *(m.end() for m in re.finditer("\n", joined[i]))]
            for span in spans:
                found[i] += locate(turn_starts, start + span.start, start + span.end, span.entity_type, span.score)
        plans = [plan(turns, f, self.config.entities) for turns, f in zip(scenarios, found, strict=True)]
        return [(apply(turns, p), p) for turns, p in zip(scenarios, plans, strict=True)]


def cut(text: str) -> Iterator[tuple[int, str]]:
    """(start, chunk) of a long text, cut at line ends or else blanks; neighbours share OVERLAP_CHARACTERS."""
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        limit = start + CHUNK_CHARACTERS
        middle = start + CHUNK_CHARACTERS // 2
        end = max(text.rfind("\n", middle, limit), 0) or max(text.rfind(" ", middle, limit), 0) or limit
        yield start, text[start:end]
        back = text.find(" ", end - OVERLAP_CHARACTERS, end)
        start = back + 1 if back >= 0 else end
    yield start, text[start:]


def locate(turn_starts: Sequence[int], start: int, end: int, entity: str, score: float) -> Iterator[Found]:
    """A span of the joined turns -> one span for each turn it reaches into."""
    turn = bisect_right(turn_starts, start) - 1
    while turn < len(turn_starts) and turn_starts[turn] < end:
        after = turn_starts[turn + 1] - 1 if turn + 1 < len(turn_starts) else end
        first, last = max(start, turn_starts[turn]), min(end, after)
        if first < last:
            yield Found(turn, first - turn_starts[turn], last - turn_starts[turn], entity, score)
        turn += 1


def muted_spans(
    turns: Sequence[Row], redactions: Iterable[Redaction], pad_s: float = RedactConfig().mute_pad_s
) -> list[tuple[float, float]]:
    """Seconds (start, end) of the clip in which a redacted word of a text is spoken, padded and merged.

    A turn whose words have no times, or do not make up its text, is muted as a whole.
    """
    by_turn = {turn["turn_id"]: turn for turn in turns}
    spans: list[tuple[float, float]] = []
    for r in redactions:
        turn = by_turn[r.turn_id]
        if r.field != "text":
            continue
        if (places := word_places(turn)) is None:
            end_s = turn["end_s"]
            spans.append((turn["start_s"] or 0.0, math.inf if end_s is None else end_s))
        else:
            spans += [(w["start_s"], w["end_s"]) for begin, end, w in places if begin < r.end and r.start < end]
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted((max(0.0, start_s - pad_s), end_s + pad_s) for start_s, end_s in spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_s, merged[-1][1]))
        else:
            merged.append((start_s, end_s))
    return merged


def word_places(turn: Row) -> list[tuple[int, int, Row]] | None:
    """(first character, end, word) of a turn's words in its text; None where they are not its text, or not timed."""
    text, at, places = turn["text"] or "", 0, []
    for word in turn["words"] or ():
        spoken = word["text"].strip()
        begin = text.find(spoken, at)
        if begin < 0 or text[at:begin].strip() or word["start_s"] is None or word["end_s"] is None:
            return None
        at = begin + len(spoken)
        places.append((begin, at, word))
    return None if text[at:].strip() or not places else places
