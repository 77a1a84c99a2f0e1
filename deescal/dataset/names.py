"""Names of people in a scenario: in its labels, in its turns, and which are the same person; how one spells aloud."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

_WORDS: dict[str, list[str]] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
TITLES = frozenset(_WORDS["titles"])
ROLES = TITLES | frozenset(_WORDS["roles"])  # of speaker labels: what somebody is; never names, also with a capital
NOT_NAMES = frozenset(_WORDS["not_names"])  # capitalised in transcripts, and the model takes them for names
# In lower case in ten or more of the published scenarios (bench/redact.py words); some, such as 'will', are names too.
ORDINARY = frozenset(_WORDS["ordinary"])
NOT_PEOPLE = re.compile("|".join(rf"\b{re.escape(name)}" for name in _WORDS["not_people"]), re.IGNORECASE)
FUNCTION_WORDS = frozenset(_WORDS["function"])  # begin a sentence with a capital, so are no name after 'Officer' either
PHONETIC = (
    "adam|alpha|alfa|boy|bravo|charles|charlie|david|delta|edward|echo|frank|foxtrot|george|golf|henry|hotel|ida|"
    "india|john|juliett?|king|kilo|lincoln|lima|mary|mike|nora|november|ocean|oscar|paul|papa|queen|quebec|robert|"
    "romeo|sam|sierra|tom|tango|union|uniform|victor|william|whiskey|x-?ray|young|yankee|zebra|zulu"
)
_DIGITS = {
    w: d
    for d, words in enumerate(("zero oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
    for w in words.split()
}
DIGIT = "|".join(_DIGITS)


def spelled(text: str) -> str | None:
    """'S M I T H' or 'Sierra, Mike, India' -> 'smith', 'smi'; None where the text is words."""
    words = re.findall(r"[^\W\d_]+(?:-ray)?", re.sub(r" as in \w+", "", text).lower())
    if len(words) >= 3 and all(len(w) == 1 or re.fullmatch(PHONETIC, w) for w in words):
        return "".join(w[0] for w in words)
    return None


def digits_of(text: str) -> str:
    """'five 5 five, one-two' -> '55512'."""
    words: list[str] = re.findall(rf"\d|\b(?:{DIGIT})\b", text.lower())
    return "".join(w if w.isdigit() else str(_DIGITS[w]) for w in words)


def words_of(text: str) -> Iterator[re.Match[str]]:
    """Words with their places; a possessive 's is no part of the word."""
    return re.finditer(r"[^\W\d_]+(?:['’-](?!s\b)[^\W\d_]+)*", text)


def label_names(label: str) -> list[tuple[int, int]]:
    """Places of the words of a speaker label that are names: 'Deputy Lane' -> Lane, "[Ana's mother]" -> Ana.

    Without brackets a label is a name but for titles and roles. In brackets it is a description, and a word is a name
    where it stands after a title, has a possessive or follows a word in lower case, or where nothing else is there.
    """
    described = label.lstrip().startswith("[")
    words = list(words_of(label))
    told = any(w[0].casefold() in ROLES - TITLES for w in words)
    plain = all(_capital(w[0]) and w[0].casefold() not in ROLES | ORDINARY for w in words)
    names: list[tuple[int, int]] = []
    for before, word in zip([None, *words], words, strict=False):
        low = word[0].casefold()
        if not _capital(word[0]) or len(low) == 1 or low in ROLES:
            continue
        led = before is not None and (
            before[0].casefold() in TITLES or bool(names and names[-1][1] == before.end()) or len(before[0]) == 1
        )
        owner = label[word.end() : word.end() + 2] in ("'s", "’s") or label[word.end() : word.end() + 1] in ("'", "’")
        if low in ORDINARY:
            named = led or (not described and (owner or not told))
        else:
            after_small = before is not None and before[0].islower()
            named = led or owner or plain or after_small or not described
        if named:
            names.append(word.span())
    return names


def name_words(text: str, start: int, end: int, sure: bool) -> list[tuple[int, int]]:
    """Places of the words of a found span that can be a name; none where the model took something else for one.

    Args:
        sure: a cue says that a name stands here ('Deputy Brown'), so that an ordinary word is one too.
    """
    barred = ROLES | NOT_NAMES | FUNCTION_WORDS
    words = [w for w in words_of(text[start:end]) if _capital(w[0]) and w[0].casefold() not in barred]
    if not sure and (_AT.search(text[:start][-12:]) or _is_code(text, start, end)):
        return []
    if not sure and words and _PLACE.match(text, start + words[-1].end()):
        return []
    acronyms = {w[0] for w in words if not sure and len(w[0]) <= 4 and w[0].isupper()}
    rare = [w for w in words if sure or not (w[0].casefold() in ORDINARY or w[0] in acronyms)]
    if not any(len(w[0]) > 1 for w in rare):
        return []
    return [(start + w.start(), start + w.end()) for w in words]


_AT = re.compile(r"\b(?:on|onto|(?:north|south|east|west|corner|block) of) $", re.IGNORECASE)  # a street's name follows
# What makes a name before it one of a place or an office.
_PLACE = re.compile(
    r"(?:'s)? (?:Police|County|Department|Sheriff|PD|High|School|Middle|Elementary|Hospital|University|College|Church|"
    r"Park|Beach|City|Township|Street|Road|Avenue|Drive|Lane|Boulevard|Highway|Bridge|Creek|River|Lake|Island|Hills?|"
    r"Springs|Law|Act|Hotel|Inn|Apartments|Center|Airport)\b"
)


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether a name is one of the phonetic alphabet, said in a code: '3 Charles', 'Mike 12', 'Sierra Tango'."""
    said = rf"(?:\d[\d ,-]*|(?:{PHONETIC}) )"
    return re.fullmatch(PHONETIC, text[start:end].lower()) is not None and (
        re.search(rf"\b{said}$", text[max(0, start - 20) : start].lower()) is not None
        or re.match(rf"[ ,-]*{said}", text[end : end + 20].lower() + " ") is not None
    )


def find_names(text: str, known: Mapping[str, bool], here: Collection[int]) -> Iterator[tuple[int, int]]:
    """Places of the words of a text that are names.

    A rare word counts in any case where a label or cue made it known, else with a capital. An ordinary word ('will',
    'Hope') counts with a capital inside a sentence, when spoken to ('Hope, stop'), or beside another name.

    Args:
        known: word in small letters -> whether a label or a cue made it known.
        here: starts of words that were found in this very place.
    """
    words = [w for w in words_of(text) if w.start() in here or w[0].casefold() in known]
    ends: set[int] = set()
    for word in words:
        low, capital = word[0].casefold(), _capital(word[0])
        if word.start() in here:
            named = True
        elif low not in ORDINARY | NOT_NAMES:
            named = capital or (known[low] and len(low) > 2)
        else:
            opening = re.search(r"(?:^|[.?!\n:\"]\s*)$", text[: word.start()][-3:]) is not None
            spoken_to = re.match(r"\s*(?:[,.!?]|$)", text[word.end() : word.end() + 2]) is not None
            titled = re.search(r"([A-Za-z]+)\.? $", text[max(0, word.start() - 14) : word.start()])
            beside = word.start() - 1 in ends or (titled is not None and titled[1].casefold() in TITLES)
            named = capital and (beside or not opening or spoken_to) and low not in FUNCTION_WORDS
        if named:
            ends.add(word.end())
            yield word.span()


def people(names: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Full names, in order of appearance: those whose words are not all in another's."""
    seen = list(dict.fromkeys(n for n in names if n))
    return [n for n in seen if not any(set(n) < set(other) for other in seen)]


def person_of(words: Sequence[str], persons: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Whom a name means: the person all whose words fit; of several ('Ana' of two Anas), the first to appear."""
    return next((p for p in persons if set(words) <= set(p)), None)


def _capital(word: str) -> bool:
    return word[:1].isupper()
