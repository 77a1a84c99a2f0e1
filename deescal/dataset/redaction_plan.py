"""The decision of redaction, without a model: spans that were found -> what is replaced by which placeholder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deescal.dataset.names import (
    NOT_PEOPLE,
    digits_of,
    find_names,
    label_names,
    name_words,
    people,
    person_of,
    spelled,
    words_of,
)
from deescal.schema import Row

Field = Literal["speaker", "text"]
Entity = Literal["PERSON", "PHONE", "ADDRESS", "PLATE", "BIRTH_DATE", "EMAIL", "LICENCE", "SSN"]
# Where spans overlap, the first of these wins: the letters of a plate are no name.
ENTITIES: tuple[Entity, ...] = ("EMAIL", "SSN", "LICENCE", "BIRTH_DATE", "PHONE", "PLATE", "ADDRESS", "PERSON")
PLACEHOLDER = re.compile(rf"\[?\b({'|'.join(ENTITIES)})_(\d+)\b\]?")
MODEL_SCORE = 0.85  # what Presidio gives spaCy's entities; what scores higher may be an ordinary word
SURE_SCORE = 0.95  # of a cue that outweighs what the model says


@dataclass(frozen=True)
class Redaction:
    """A place that is redacted: characters [start, end) of the original string become `placeholder`."""

    turn_id: int
    field: Field
    start: int
    end: int
    entity: str
    placeholder: str


@dataclass(frozen=True)
class Found:
    """A span of a turn's text as a recognizer found it; `turn` counts from 0 in the scenario."""

    turn: int
    start: int
    end: int
    entity: str  # an Entity, or another kind of the model (LOCATION, NRP): evidence against a name
    score: float


@dataclass(frozen=True)
class _Place:
    turn: int
    field: Field
    start: int
    end: int
    entity: str
    same_as: tuple[str, ...]  # places with equal entity and key have one placeholder


def plan(turns: Sequence[Row], found: Iterable[Found], entities: Sequence[str] = ENTITIES) -> list[Redaction]:
    """Spans found in the texts of one scenario, and the names of its labels -> redactions, in order of appearance.

    Persons: all that fit one full name are one person (first name, last name, in any case; titles stay outside); a name
    that fits two full names goes to the one that appears first. Placeholders that are there already stay, and
    numbering goes on after them.

    Args:
        turns: rows with turn_id, speaker, text, in order.
    """
    texts = [_blank(turn["text"] or "") for turn in turns]
    labels = [_blank(turn["speaker"] or "") for turn in turns]
    whole = [_whole_words(f, texts[f.turn]) for f in found]
    spans = [f for f in whole if f.start < f.end and "\0" not in texts[f.turn][f.start : f.end]]  # in no placeholder
    numbers = list(_number_places(texts, [f for f in spans if f.entity in entities and f.entity != "PERSON"]))
    places = numbers
    if "PERSON" in entities:
        masked = [NOT_PEOPLE.sub(lambda m: "\0" * len(m[0]), text) for text in texts]
        for place in numbers:
            masked[place.turn] = _mask(masked[place.turn], place.start, place.end)
        places = [*numbers, *_person_places(labels, masked, spans)]
    return _number(turns, places)


def _whole_words(found: Found, text: str) -> Found:
    """Without blanks at its ends, and no word cut in two: half a name would be redacted and half left."""
    said = text[found.start : found.end]
    start, end = found.start + len(said) - len(said.lstrip()), found.end - len(said) + len(said.rstrip())
    left = max(0, start - 40)
    for word in re.finditer(r"\w+(?:['’]\w+)*", text[left : end + 40]) if start < end else ():
        if word.start() < start - left < word.end():
            start = left + word.start()
        if word.start() < end - left < word.end():
            end = left + word.end()
    return replace(found, start=start, end=end)


def _blank(text: str) -> str:
    """The text with placeholders blanked out, so that nothing is found in them."""
    return PLACEHOLDER.sub(lambda m: "\0" * len(m[0]), text)


def _mask(text: str, start: int, end: int) -> str:
    return text[:start] + "\0" * (end - start) + text[end:]


def _number_places(texts: Sequence[str], found: Sequence[Found]) -> Iterator[_Place]:
    """All but persons: overlapping spans joined, and what has four digits or letters found in every turn again."""
    surfaces = {texts[f.turn][f.start : f.end].casefold(): f.entity for f in found}
    again = [s for s in surfaces if len(re.findall(r"\w", s)) >= 4]
    pattern = re.compile(
        rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(again, key=len, reverse=True)))})(?!\w)", re.IGNORECASE
    )
    spans = {(f.turn, f.start, f.end, f.entity) for f in found}
    if again:
        for i, text in enumerate(texts):
            spans |= {(i, *m.span(), surfaces.get(m[0].casefold(), "")) for m in pattern.finditer(text)}
    for turn, start, end, entity in _joined(sorted(s for s in spans if s[3])):
        yield _Place(turn, "text", start, end, entity, (_plain(texts[turn][start:end], entity),))


def _joined(spans: Iterable[tuple[int, int, int, str]]) -> Iterator[tuple[int, int, int, str]]:
    """Overlapping spans of a turn as one, of the kind that comes first in ENTITIES."""
    order: Sequence[str] = ENTITIES
    last: tuple[int, int, int, str] | None = None
    for span in spans:
        if last is not None and last[0] == span[0] and span[1] < last[2]:
            last = (last[0], last[1], max(last[2], span[2]), min(last[3], span[3], key=order.index))
        else:
            if last is not None:
                yield last
            last = span
    if last is not None:
        yield last


def _plain(text: str, entity: str) -> str:
    """What makes two surfaces the same number: the digits, spoken or written, or else the letters and digits."""
    if entity in ("PHONE", "SSN"):
        return digits_of(text)
    return re.sub(r"[\W_]", "", text).casefold()


def _person_places(labels: Sequence[str], texts: list[str], found: Sequence[Found]) -> Iterator[_Place]:
    """Every name in labels and texts, with whom it means."""
    in_labels = {label: label_names(label) for label in dict.fromkeys(labels)}
    full = [  # (where it appears, its words)
        ((i, 0, run[0][0]), _words(label, run))
        for i, label in enumerate(labels)
        for run in _runs(label, in_labels[label])
    ]
    known = {word: True for _, words in full for word in words}
    letters = [f for f in found if f.entity == "PERSON" and spelled(texts[f.turn][f.start : f.end])]
    here: dict[int, set[int]] = {}
    for f, names in _believed([f for f in found if f not in letters], texts, known):
        here.setdefault(f.turn, set()).update(start for start, _ in names)
        for run in _runs(texts[f.turn], names):
            words = _words(texts[f.turn], run)
            full.append(((f.turn, 1, run[0][0]), words))
            for word in words:
                known[word] = known.get(word, False) or f.score >= SURE_SCORE
    persons = people(words for _, words in sorted(full))
    for f in letters:
        word = spelled(texts[f.turn][f.start : f.end]) or ""
        if f.score > MODEL_SCORE or person_of((word,), persons):
            yield _Place(f.turn, "text", f.start, f.end, "PERSON", person_of((word,), persons) or (word,))
            texts[f.turn] = _mask(texts[f.turn], f.start, f.end)
    for i, label in enumerate(labels):
        yield from _persons_of(i, "speaker", label, in_labels[label], persons)
    for i, text in enumerate(texts):
        yield from _persons_of(i, "text", text, list(find_names(text, known, here.get(i, ()))), persons)


def _believed(
    found: Sequence[Found], texts: Sequence[str], known: Mapping[str, bool]
) -> list[tuple[Found, list[tuple[int, int]]]]:
    """Spans of persons with the places of their names.

    A cue is believed, and a name that a label has; a guess only where the model takes the word for a name more often
    than for a place or a nationality.
    """
    votes, against = Counter[str](), Counter[str]()
    told = []
    for f in found:
        text = texts[f.turn]
        if f.entity == "PERSON" and (names := name_words(text, f.start, f.end, sure=f.score > MODEL_SCORE)):
            told.append((f, names))
            votes.update(_words(text, names))
        elif f.entity not in ENTITIES:
            against.update(w[0].casefold() for w in words_of(text[f.start : f.end]))

    def believed(f: Found, place: tuple[int, int]) -> bool:
        word = texts[f.turn][slice(*place)].casefold()
        return f.score >= SURE_SCORE or word in known or votes[word] > against[word]

    return [(f, [n for n in names if believed(f, n)]) for f, names in told]


def _persons_of(
    turn: int, field: Field, text: str, names: Sequence[tuple[int, int]], persons: Sequence[tuple[str, ...]]
) -> Iterator[_Place]:
    """Neighbouring names as one place as long as they fit one person."""
    for run in _runs(text, names):
        while run:
            size = next((n for n in range(len(run), 1, -1) if person_of(_words(text, run[:n]), persons)), 1)
            words = _words(text, run[:size])
            yield _Place(turn, field, run[0][0], run[size - 1][1], "PERSON", person_of(words, persons) or words)
            run = run[size:]


def _runs(text: str, places: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Places with nothing between them but a blank, or an initial."""
    run: list[tuple[int, int]] = []
    for place in sorted(places):
        if run and not re.fullmatch(r"(?: [A-Z]\.?)?[ -]['\"]?", text[run[-1][1] : place[0]]):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _words(text: str, places: Iterable[tuple[int, int]]) -> tuple[str, ...]:
    words = tuple(text[start:end].casefold() for start, end in places)
    return tuple(w for w in words if len(w) > 1) or words


def _number(turns: Sequence[Row], places: Iterable[_Place]) -> list[Redaction]:
    """Placeholders by first appearance, after those that the turns already have."""
    used: Counter[str] = Counter()
    for turn in turns:
        for m in PLACEHOLDER.finditer(f"{turn['speaker']}\n{turn['text']}"):
            used[m[1]] = max(used[m[1]], int(m[2]))
    numbers: dict[tuple[str, tuple[str, ...]], int] = {}
    redactions = []
    for place in sorted(places, key=lambda p: (p.turn, p.field, p.start)):  # 'speaker' comes before 'text'
        key = (place.entity, place.same_as)
        if key not in numbers:
            used[place.entity] += 1
            numbers[key] = used[place.entity]
        turn = turns[place.turn]
        name = f"{place.entity}_{numbers[key]}"
        bracketed = place.field == "speaker" and turn["speaker"].lstrip().startswith("[")
        redactions.append(
            Redaction(
                turn["turn_id"], place.field, place.start, place.end, place.entity, name if bracketed else f"[{name}]"
            )
        )
    return redactions
