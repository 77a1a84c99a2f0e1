"""What Presidio does not know of spoken, transcribed police talk: numbers said digit by digit, plates in a phonetic
alphabet, dates of birth in the answer to a question, names as they are told over the radio.

They read the turns of a scenario joined by line ends, so a cue ("date of birth?") reaches into the next turn.
Patterns are for the `regex` package: `\\K` drops the cue before it from the match.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import regex as re

from deescal.dataset.names import DIGIT, PHONETIC, TITLES, digits_of

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

WEAK = 0.85  # score of a guess, as the model's
LIKELY = 0.9  # of an ordinary word too, unless the model says that it is a place
SURE = 0.95  # score of what a cue or its form gives away; above the model's

_NAME = r"(?:[A-ZÀ-Þ][\w'’]*[a-zà-ÿ][\w'’-]*)"  # a word in title case
_NAMES = rf"{_NAME}(?: (?:[A-Z]\. )?{_NAME}){{0,3}}"
_ALSO_WORDS = {"chief", "agent", "miss", "judge"}  # titles only where they have a capital
_MONTH = "jan(?:uary)?|feb(?:ruary)?|march|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
_MONTH += "nov(?:ember)?|dec(?:ember)?"
_SPOKEN = (
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth|fifteenth|"
    "sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    f"sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|{DIGIT}"
)
_YEAR = r"(?:(?:19|20)\d\d|'?\d\d)"
_DATE = (
    rf"(?:(?:{_MONTH})\.?,? (?:the )?(?:\d{{1,2}}(?:st|nd|rd|th)?|(?:{_SPOKEN})(?:[ -](?:{_SPOKEN}))?)\b"
    rf"(?:,? (?:of )?(?:{_YEAR}|(?:{_SPOKEN})(?:[ -](?:{_SPOKEN}|thousand|and))+))?"
    rf"|\d{{1,2}}[/ .,-]+\d{{1,2}}[/ .,-]+(?:of )?{_YEAR}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? of (?:{_MONTH})(?:,? {_YEAR})?|(?:{_SPOKEN})(?:[ ,-]+(?:{_SPOKEN}|of|and|thousand))"
    r"{2,}|(?:19|20)\d\d|\d{6}|\d{8})\b"
)
_BORN = r"\b(?:dates? of births?|birth ?dates?|birth ?days?|year of birth|d\.?o\.?b\b\.?|(?:was|were|you|i'm) born)"
_SPOKEN_TO = (
    "put|get|drop|stop|show|let|come|look|listen|turn|step|don't|are|is|do|did|where|what|why|how|can|will|i|i'm|i've|I|"
    "you|you're|we|we're|it's|just|please|talk|tell|relax|calm|sit|stay|give|keep|open|stand|take|hold|wait"
)
_STREET = "street|avenue|ave|road|rd|drive|lane|court|boulevard|blvd|circle|terrace|place|parkway|trail|way|highway"
_SIDE = "north|south|east|west|northeast|northwest|southeast|southwest|[nsew]"
_STOP = (
    "a an the this that down up in on off to of from at for with by my your his her our their its right left "
    "wrong same other whole next way feet foot miles? minutes? mins? hours? seconds? yards? people cars? times? "
    "years? days? weeks? months? ago and or is was are it he she they we you i who what where when there here out "
    "over under into across along through just like blocks? percent degrees? dollars? units? am pm o'clock guys "
    "kids any every each "
)
_NO_STOP = rf"(?!(?:{'|'.join(_STOP.split())})\b)"
_STATES = (
    "Alabama|Arizona|Arkansas|California|Colorado|Florida|Georgia|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|"
    "Maryland|Michigan|Minnesota|Mississippi|Missouri|Nevada|Ohio|Oklahoma|Oregon|Tennessee|Texas|Utah|Virginia|Wisconsin"
)
_TITLED = rf"(?:\b(?i:{'|'.join(sorted(TITLES))})\b\.? )"
_TAIL = r"(?:,? (?:apartment|apt\.?|unit|lot|suite|number|#)\s?#?\w+)?(?:,? (?:[A-Z]\w+,? ){1,3}\d{5}\b)?"
_ASKED = r"(?:(?:uh|um|it's|it is|my name is|my name's|yeah|yes|sir|ma'am|okay)[,.]? +)*"

# entity, name, pattern, score, whether capitals matter
_PATTERNS: tuple[tuple[str, str, str, bool], ...] = (
    ("EMAIL", "written", r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b", False),
    (
        "EMAIL",
        "spoken",
        r"\b[\w.-]+(?: (?:dot|underscore|dash|hyphen) [\w-]+)* at (?:[\w-]+ dot (?:com|net|org|edu|gov|us)|"
        r"(?:gmail|g mail|yahoo|hotmail|outlook|icloud|aol|msn|live|protonmail|comcast)(?: dot |\.)(?:com|net))\b",
        False,
    ),
    ("SSN", "written", r"(?<![\d-])\d{3}[- ]\d{2}[- ]\d{4}(?![\d-])", False),
    ("PHONE", "written", r"(?<![\d.$-])(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\d-])", False),
    ("PHONE", "seven digits", r"(?<![\d.$-])\d{3}-\d{4}(?![\d-])", False),
    ("BIRTH_DATE", "after a cue", rf"{_BORN}(?:(?!expir|court).){{0,70}}?\K(?<![\d:$]){_DATE}(?!:)", False),
    (
        "BIRTH_DATE",
        "some turns after a cue",
        rf"{_BORN}(?:(?!expir|court).){{0,200}}?\K(?<![\d:$])\d{{1,2}}[/ .,-]+\d{{1,2}}[/ .,-]+(?:of )?{_YEAR}\b",
        False,
    ),
    ("BIRTH_DATE", "again", rf"{_BORN}[^\d]{{0,70}}{_DATE}[^\d]{{0,30}}\K(?<![\d:$]){_DATE}(?!:)", False),
    ("BIRTH_DATE", "before a cue", rf"\b{_DATE}(?= (?:is|was|as) (?:my|his|her|your|the|a)\W+{_BORN[2:]})", False),
    ("BIRTH_DATE", "as read out", r"(?<![\d:$])\d{1,2} \d{1,2} of \d{2,4}\b", False),
    (
        "ADDRESS",
        "number and street",
        rf"(?<![\d:$.-])\b\d{{1,5}}(?: (?:{_SIDE})\b\.?)?(?: {_NO_STOP}[\w'’]+){{1,3}}? (?:{_STREET})\b{_TAIL}",
        False,
    ),
    (
        "ADDRESS",
        "street",
        rf"(?<!{_TITLED})(?:\b(?:{_NAME}|\d{{1,3}}(?:st|nd|rd|th)) ){{0,2}}(?!{_TITLED}|Justice|Municipal|"
        r"Supreme|Superior|District|County|Circuit|Federal|Criminal|Family|Traffic|Magistrate|City|State|Drug|The|No|Test)"
        rf"\b(?:{_NAME}|\d{{1,3}}(?:st|nd|rd|th)) (?:Street|Avenue|Road|Drive|Lane|Court|Boulevard|Circle|Terrace)\b",
        True,
    ),
    ("ADDRESS", "after a cue", rf"(?:(?:the|your|his|her|my|home) address (?:is |was )?|live at |lives at )\K\d{{1,5}}"
     rf"(?: {_NO_STOP}[\w'’]+){{1,4}}", False),
    ("PLATE", "letters and digits", r"\b(?=[A-Z\d]*\d)(?=(?:\d*[A-Z]){3})[A-Z\d]{6,8}\b", True),
    (
        "PLATE",
        "after a state",
        rf"\b(?:{_STATES}),? (?:tag|plate)?s?(?: of)? ?\K(?:\d{{2,3}} [a-z]+ \d{{2,3}}|(?=[A-Z]*\d)[A-Z\d]{{5,8}})\b",
        True,
    ),
    (
        "PLATE",
        "phonetic",
        rf"\b(?:\d{{1,4}}[ ,]+|(?:{DIGIT})[ ,]+)*(?:{PHONETIC})[ ,-]+(?:(?:{PHONETIC})[ ,-]+)"
        rf"(?:(?:{PHONETIC}|\d{{1,4}}|{DIGIT})[ ,-]+){{0,5}}(?:\d{{1,4}}|{DIGIT})\b(?:[ ,-]+(?:{PHONETIC})\b)*"
        rf"|\b(?:\d{{1,4}}|{DIGIT})(?:[ ,-]+(?:{PHONETIC})){{2,4}}(?:[ ,-]+(?:\d{{1,4}}|{DIGIT}))*\b",
        False,
    ),
    (
        "PLATE",
        "after a cue",
        r"\b(?:plates?|tags?|registration|license number)\b[^\d\n?]{0,40}?\K\b(?:"
        rf"(?=[A-Z]{{0,4}}\d*[A-Z])(?=[A-Z]*\d)[A-Z\d]{{5,8}}"
        rf"|(?:(?:[A-Z]|(?i:{PHONETIC}))[ ,-]+){{1,4}}\d[\d ]{{1,6}}\d"
        rf"|\d[\d ]{{0,4}}(?:[ ,-]+(?:[A-Z]|(?i:{PHONETIC})|\d{{1,3}})){{2,5}}|[A-Z]{{2,3}}[ -]\d{{3,5}})\b",
        True,
    ),
    ("LICENCE", "after a cue", r"(?i:\b(?:driver'?s? licen[sc]e|licen[sc]e number|OLN|D\.?L\.?|ID number)\b)"
     r"[^\d\n]{0,40}\n?[^\d\n]{0,20}?\K\b(?=(?:\w[ -]?){6})[A-Z]{0,2}[ -]?\d(?:[ -]?\d){5,12}\b", True),
    ("PERSON", "title", rf"\b(?i:{'|'.join(sorted(TITLES - _ALSO_WORDS))})\.? \K{_NAMES}", True),
    ("PERSON", "title, capital", rf"\b(?:{'|'.join(w.title() for w in sorted(_ALSO_WORDS))})\.? \K{_NAMES}", True),
    ("PERSON", "name is", rf"\b(?i:(?:name|named)(?:'s| is| was|s are)?(?: going to be| of)?),? \K{_NAMES}", True),
    ("PERSON", "radio", rf"\b(?i:(?:last|first|middle|surname)(?: name)?(?: is| of|'s)?|calls? (?:me|him|her)|goes by)"
     rf",? \K{_NAMES}", True),
    ("PERSON", "introduction", rf"\b(?i:i'm|i am|this is) \K{_NAMES}(?=[,.!?\n]| with\b| from\b)", True),
    ("PERSON", "spoken to", rf"(?<=[a-z'’]), \K{_NAME}(?=[,.!?]|$)", True),
    ("PERSON", "greeted", rf"(?:^|[.!?] )(?:Hey|Hi|Hello|Thanks|Okay|Sorry|Bye|Yes|No|Please),? "
     rf"\K{_NAME}(?=[,.!?]|$)", True),
    ("PERSON", "spoken to first", rf"(?:^|[.!?] )\K{_NAME}(?=, (?:{_SPOKEN_TO})\b)", True),
    ("PERSON", "possessive", rf"(?<=[a-z,] ){_NAME}(?=['’]s [a-z])", True),
    ("PERSON", "asked", rf"\b(?i:names?\b[^.?!\n]{{0,30}}\?) *\n(?i:{_ASKED})\K{_NAMES}(?=[,.!?]|$)", True),
)  # fmt: skip
_SCORES = {
    **dict.fromkeys(("spoken to", "greeted", "introduction"), LIKELY),
    **dict.fromkeys(("spoken to first", "possessive"), WEAK),
}


class Hit(NamedTuple):
    """Characters [start, end) of a text that are a kind of personal data."""

    entity: str
    start: int
    end: int
    score: float


def find_spoken(text: str) -> Iterator[Hit]:
    """All that the patterns, runs of digits and spelled names give; hits may overlap."""
    for entity, pattern, score in _compiled():
        for m in pattern.finditer(text):
            yield Hit(entity, m.start(), m.end(), score)
    for m in _RUN.finditer(text):
        if kind := kind_of_number(m[0], text[max(0, m.start() - 90) : m.start()]):
            yield Hit(kind, m.start(), m.end(), SURE)
    for m in _SPELLED.finditer(text):
        told = _SPELLING.search(text, max(0, m.start() - 80), m.start())
        yield Hit("PERSON", m.start(), m.end(), SURE if told else WEAK)


@cache
def recognizer() -> EntityRecognizer:
    """`find_spoken` for Presidio, which takes seconds to import."""
    from presidio_analyzer import EntityRecognizer, RecognizerResult

    class Spoken(EntityRecognizer):
        def load(self) -> None:
            pass

        def analyze(self, text: str, entities: list[str], nlp_artifacts: object) -> list[RecognizerResult]:
            return [RecognizerResult(*hit) for hit in find_spoken(text) if hit.entity in entities]

    return Spoken(sorted({entity for entity, *_ in _compiled()}), name="spoken")


@cache
def _compiled() -> tuple[tuple[str, re.Pattern[str], float], ...]:
    flags = re.MULTILINE | re.DOTALL
    return tuple(
        (
            entity,
            re.compile(pattern, flags if capitals_matter else flags | re.IGNORECASE),
            _SCORES.get(name, SURE),
        )
        for entity, name, pattern, capitals_matter in _PATTERNS
    )


def is_count(digits: str) -> bool:
    """Whether somebody counts ('one two three ...' or backwards), as in a sobriety test."""
    steps = [int(b) - int(a) for a, b in pairwise(digits)]
    return bool(steps) and max(steps.count(1), steps.count(-1), steps.count(0)) >= 0.75 * len(steps)


def kind_of_number(run: str, before: str) -> str | None:
    """Which number a run of digits is, by what was said before it and by its length; None: no such number."""
    digits = digits_of(run)
    if is_count(digits):
        return None
    for kind, cue, lengths in _NUMBER_CUES:
        if len(digits) in lengths and cue.search(before):
            return kind
    said = len(re.findall(r"[A-Za-z]+", run))
    if len(digits) in (10, 11) and (said >= 7 or re.fullmatch(r"(1 )?\d{3} \d{3} \d{4}", run)):
        return "PHONE"
    return "PHONE" if len(digits) == 7 and said == 7 else None


_RUN = re.compile(rf"\b(?:\d+|{DIGIT})(?:[ ,.-]{{1,2}}(?:\d+|{DIGIT})\b)+|\b\d{{4,}}\b", re.IGNORECASE)
_NUMBER_CUES = (
    ("SSN", re.compile(r"social security|\bsocial\b|\bssn\b", re.IGNORECASE), (4, 9)),
    (
        "LICENCE",
        re.compile(r"driver'?s? licen[sc]e|licen[sc]e number|\boln\b|\bid number", re.IGNORECASE),
        range(6, 14),
    ),
    (
        "PHONE",
        re.compile(r"\b(?:phone|cell|call|callback|contact|reach|telephone)\b[^?]*number|phone", re.IGNORECASE),
        (7, 10, 11),
    ),
)
_SPELLED = re.compile(  # 'S M I T H', 'M as in Mary, O E', 'Sierra, Mike, India'
    r"\b(?:(?!([A-Z])(?:[ ,.-]+\1\b)+)[A-Z](?: as in \w+)?(?:[ ,.-]{1,2}[A-Z]\b(?: as in \w+)?){2,}"  # not 'I I I'
    rf"|(?i:(?:{PHONETIC})(?:[ ,.-]+(?:{PHONETIC})\b){{2,}}))(?![ ,]+\d)"
)
_SPELLING = re.compile(r"spell|name|\blast\b|\bfirst\b|lieutenant|officer|deputy|sergeant", re.IGNORECASE)
