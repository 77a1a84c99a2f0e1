"""Redaction: what is found in spoken text, who is whom, and that what is replaced is gone and nothing else changes."""

import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deescal.dataset.mute import Muter, redact_words, silence
from deescal.dataset.names import NOT_NAMES, ORDINARY, ROLES, label_names
from deescal.dataset.recognizers import find_spoken
from deescal.dataset.redact import CHUNK_CHARACTERS, RedactConfig, Redactor, apply, cut, locate, muted_spans
from deescal.dataset.redaction_plan import PLACEHOLDER, SURE_SCORE, Found, plan
from deescal.schema import empty_row


def turns_of(*lines):
    return [
        {"turn_id": i, "speaker": speaker, "text": text}
        for i, (speaker, text) in enumerate(line.split("|") for line in lines)
    ]


def redacted(turns, found=()):
    return [f"{t['speaker']}|{t['text']}" for t in apply(turns, plan(turns, found))]


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("Deputy Lane", ["Lane"]),
        ("Maria", ["Maria"]),
        ("Officer J. Smith", ["Smith"]),
        ("Jordan's mother", ["Jordan"]),
        ("[Jordan's mother]", ["Jordan"]),
        ("[Deputy Lane]", ["Lane"]),
        ("[Bystander who drove Zelda home]", ["Zelda"]),
        ("Hope", ["Hope"]),
        ("Officer Price", ["Price"]),
        ("April White", ["April", "White"]),
        ("Dr. O'Neill-Vance", ["O'Neill-Vance"]),
        *((role, []) for role in ("Officer", "Driver", "Voice 2", "[Police Officer]", "911 Dispatcher", "Speaker A")),
        *((role, []) for role in ("[Store employee]", "Animal Control Officer", "Female 2", "?", "A", "")),
    ],
)
def test_names_in_labels(label, names):
    assert [label[start:end] for start, end in label_names(label)] == names


def test_a_person_is_one_number_in_labels_and_texts():
    turns = turns_of(
        "[Deputy Lane]|Morning.",
        "Maria Gomez|I am here. GOMEZ, yes.",
        "Jordan's mother|Deputy Lane, is jordan's car there? Ask maria.",
    )
    assert redacted(turns) == [
        "[Deputy PERSON_1]|Morning.",
        "[PERSON_2]|I am here. [PERSON_2], yes.",
        "[PERSON_3]'s mother|Deputy [PERSON_1], is [PERSON_3]'s car there? Ask [PERSON_2].",
    ]


def test_a_first_name_of_two_people_goes_to_the_first():
    turns = turns_of("Ana Ruiz|Hi.", "Ana Weber|Hi.", "[Officer]|Ana? Weber?")
    assert redacted(turns)[2] == "[Officer]|[PERSON_1]? [PERSON_2]?"


def test_ordinary_words_stay_where_they_are_words():
    turns = turns_of("Hope|I hope so. Hope is lost.", "Will|Will you stop? I will.", "[Officer]|Hope, stop. Get Will.")
    assert redacted(turns) == [
        "[PERSON_1]|I hope so. Hope is lost.",
        "[PERSON_2]|Will you stop? I will.",
        "[Officer]|[PERSON_1], stop. Get [PERSON_2].",
    ]


def test_a_name_found_once_is_redacted_everywhere():
    turns = turns_of("[Officer]|Name?", "[Driver]|Zelda Quist.", "[Officer]|Get out, zelda. Quist's car. Quisted.")
    found = [Found(1, 0, 11, "PERSON", SURE_SCORE)]
    assert redacted(turns, found)[2] == "[Officer]|Get out, [PERSON_1]. [PERSON_1]'s car. Quisted."


def test_the_model_is_outvoted_by_itself():
    turns = turns_of("[A]|Back to Quistville. Quistville!")
    found = [Found(0, 8, 18, "PERSON", 0.85), Found(0, 20, 30, "LOCATION", 0.85)]
    assert plan(turns, found) == []


# Rare names, so that case does not matter, and words that are no names.
NAMES = ("Zelda", "Quist", "Oduya", "Brannigan", "Xiomara", "Tavish")
WORDS = ("the", "car", "stop", "Where", "is", "10-4", "code", "4.", "at", "7:12", "p.m.", "Officer", "hands,")
assert not {n.casefold() for n in NAMES} & (ORDINARY | ROLES | NOT_NAMES)
labels = st.one_of(
    st.sampled_from(["[Officer]", "Driver", "[Voice 2]"]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(" ".join),
    st.sampled_from(NAMES).map(lambda name: f"[Deputy {name}]"),
    st.sampled_from(NAMES).map(lambda name: f"{name}'s mother"),
)
texts = st.lists(
    st.sampled_from(WORDS) | st.sampled_from(NAMES) | st.sampled_from(NAMES).map(lambda n: f"{n.upper()}'s"),
    max_size=12,
).map(" ".join)
scenarios = st.lists(st.tuples(labels, texts), min_size=1, max_size=6).map(
    lambda rows: [{"turn_id": 10 * i, "speaker": s, "text": t, "role": "x"} for i, (s, t) in enumerate(rows)]
)


@st.composite
def with_found(draw):
    """A scenario, and spans that a model might find in it: some right, some odd, some overlapping."""
    turns = draw(scenarios)
    kinds = st.sampled_from(["PERSON", "PHONE", "PLATE", "ADDRESS", "LOCATION"])
    found = []
    for _ in range(draw(st.integers(0, 4))):
        turn = draw(st.integers(0, len(turns) - 1))
        length = len(turns[turn]["text"])
        start, end = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        found.append(Found(turn, start, end, draw(kinds), draw(st.sampled_from([0.85, 0.95]))))
    return turns, found


@given(with_found())
def test_offsets_are_right_and_the_rest_is_untouched(case):
    turns, found = case
    redactions = plan(turns, found)
    rows = apply(turns, redactions)
    for turn, row in zip(turns, rows, strict=True):
        assert row["role"] == turn["role"]
        for field in ("speaker", "text"):
            mine = sorted(
                (r for r in redactions if (r.turn_id, r.field) == (turn["turn_id"], field)), key=lambda r: r.start
            )
            assert all(a.end <= b.start for a, b in pairwise(mine))
            at, rebuilt = 0, ""
            for r in mine:
                assert r.start < r.end <= len(turn[field])
                rebuilt += turn[field][at : r.start] + r.placeholder
                at = r.end
            assert row[field] == rebuilt + turn[field][at:]


@given(with_found())
def test_no_name_is_left(case):
    turns, found = case
    redactions = plan(turns, found)
    texts = {(t["turn_id"], f): t[f] for t in turns for f in ("speaker", "text")}
    gone = {
        word.casefold()
        for r in redactions
        if r.entity == "PERSON"
        for word in re.findall(r"\w+", texts[r.turn_id, r.field][r.start : r.end])
    }
    named = {n.casefold() for n in NAMES}
    left = " ".join(f"{row['speaker']} {row['text']}" for row in apply(turns, redactions))
    assert not gone & named & {word.casefold() for word in re.findall(r"\w+", left)}


@given(with_found())
def test_redacting_again_changes_nothing(case):
    turns, found = case
    rows = apply(turns, plan(turns, found))
    assert plan(rows, []) == []
    in_placeholders = [
        Found(i, m.start(), m.end(), "PERSON", SURE_SCORE)
        for i, row in enumerate(rows)
        for m in PLACEHOLDER.finditer(row["text"])
    ]
    assert plan(rows, in_placeholders) == []


@given(scenarios)
def test_equal_names_have_equal_numbers_by_first_appearance(turns):
    redactions = plan(turns, [])
    numbers = [int(re.search(r"\d+", r.placeholder)[0]) for r in redactions]
    first = list(dict.fromkeys(numbers))
    assert first == list(range(1, len(first) + 1))
    texts = {(t["turn_id"], f): t[f] for t in turns for f in ("speaker", "text")}
    whose = {}
    for r, number in zip(redactions, numbers, strict=True):
        assert whose.setdefault(texts[r.turn_id, r.field][r.start : r.end].casefold(), number) == number


def test_numbering_goes_on_after_placeholders_that_are_there():
    turns = turns_of("[PERSON_4]|[PHONE_1], Zelda.", "Zelda|Hi.")
    assert redacted(turns) == ["[PERSON_4]|[PHONE_1], [PERSON_5].", "[PERSON_5]|Hi."]


def test_kinds_can_be_chosen():
    turns = turns_of("Zelda|5551234")
    found = [Found(0, 0, 7, "PHONE", 0.9)]
    assert [r.entity for r in plan(turns, found, ["PHONE"])] == ["PHONE"]
    assert [r.entity for r in plan(turns, found)] == ["PERSON", "PHONE"]


@given(st.text("ab \n", max_size=3 * CHUNK_CHARACTERS), st.text("a", max_size=2 * CHUNK_CHARACTERS))
def test_chunks_cover_the_text_and_are_short(text, long_word):
    whole = text + long_word
    end = 0
    for start, chunk in cut(whole):
        assert start <= end
        assert whole[start : start + len(chunk)] == chunk
        assert len(chunk) <= CHUNK_CHARACTERS
        end = start + len(chunk)
    assert end == len(whole)


def test_a_span_over_two_turns_is_two():
    assert list(locate([0, 4, 10], 1, 7, "PHONE", 1.0)) == [Found(0, 1, 3, "PHONE", 1.0), Found(1, 0, 3, "PHONE", 1.0)]


def spoken(text, start_s=0.0, timed=True):
    words = [
        {"start_s": start_s + i, "end_s": start_s + i + 0.5, "text": f" {w}", "probability": 1.0}
        for i, w in enumerate(text.split())
    ]
    return {
        "turn_id": 3,
        "speaker": "A",
        "text": text,
        "start_s": start_s,
        "end_s": start_s + len(words),
        "words": words if timed else [],
    }


def test_the_words_of_a_redacted_place_are_muted():
    turn = spoken("I am Zelda Quist, sir.", 10.0)
    redactions = plan([turn], [Found(0, 5, 16, "PERSON", SURE_SCORE)])
    assert muted_spans([turn], redactions, 0.1) == [(11.9, 12.6), (12.9, 13.6)]
    assert muted_spans([turn], redactions, 0.3) == [(11.7, 13.8)]
    assert [w["text"].strip() for w in redact_words(turn, redactions)] == ["I", "am", "[PERSON_1],", "sir."]
    untimed = spoken("I am Zelda Quist, sir.", 10.0, timed=False)
    assert muted_spans([untimed], redactions, 0.1) == [(9.9, 15.1)]
    assert redact_words(untimed, redactions) is None
    assert muted_spans([turn], []) == []


@given(with_found())
def test_words_after_redaction_make_up_the_text_after_redaction(case):
    turns, found = case
    turns = [{**spoken(turn["text"]), "turn_id": turn["turn_id"], "speaker": turn["speaker"]} for turn in turns]
    redactions = plan(turns, found)
    for turn, row in zip(turns, apply(turns, redactions), strict=True):
        words = redact_words(turn, [r for r in redactions if r.turn_id == turn["turn_id"]])
        assume(turn["text"])
        assert "".join(w["text"] for w in words).replace(" ", "") == row["text"].replace(" ", "")
        assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(words))


def test_silence_is_zero_in_the_spans_only():
    import numpy as np

    quiet = silence(np.ones(32000, np.int16), [(0.5, 1.0), (1.5, float("inf"))])
    assert quiet[8000:16000].max() == 0
    assert quiet[24000:].max() == 0
    assert quiet[:8000].min() == quiet[16000:24000].min() == 1


class LabelsOnly:
    """A redactor without a model."""

    config = RedactConfig(mute_pad_s=0.1)

    def redact(self, turns):
        redactions = plan(turns, [])
        return apply(turns, redactions), redactions


def test_a_clip_is_redacted_and_silent_where_names_are_said(tmp_path):
    import numpy as np

    from deescal.speech.audio import load_audio, write_flac

    loud = np.full(5 * 16000, 9000, np.int16)
    (tmp_path / "a.flac").write_bytes(write_flac(loud))
    turn = {**spoken("Stop, Zelda, stop.", 1.0), "speaker": "Zelda"}
    row = empty_row(clip_id="a", uri="Zelda.mp4", audio="a.flac", turns=[turn], dropped_text=["loop: Zelda"])
    clean, flac = Muter(str(tmp_path), LabelsOnly())(row)
    assert "zelda" not in str(clean).casefold()
    (tmp_path / "b.flac").write_bytes(flac)
    heard = load_audio(str(tmp_path), "b.flac") * 32768
    silent = np.zeros(len(loud), bool)
    silent[int(1.9 * 16000) : int(2.6 * 16000)] = True
    assert not heard[silent].any()
    assert (heard[~silent] == 9000).all()
    assert Muter(str(tmp_path), LabelsOnly())({**row, "audio": None, "turns": None})[1] is None


def patterns(text):
    """The text, redacted by what needs no model."""
    turns = turns_of(*(f"[A]|{line}" for line in text.split("\n")))
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    found = [f for hit in find_spoken(text) for f in locate(starts, hit.start, hit.end, hit.entity, hit.score)]
    return "\n".join(t["text"] for t in apply(turns, plan(turns, found)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's five five five, one two two, four five six seven.", "It's [PHONE_1]."),
        ("My phone number is 555 0142.", "My phone number is [PHONE_1]."),
        ("Call (555) 010-4477 or 555-010-4477.", "Call [PHONE_1] or [PHONE_1]."),
        ("What's your date of birth?\n3 14 of 92.", "What's your date of birth?\n[BIRTH_DATE_1]."),
        ("Date of birth?\nUh, March third, 1992.", "Date of birth?\nUh, [BIRTH_DATE_1]."),
        ("Birthday?\nEleven twenty four seventy nine.", "Birthday?\n[BIRTH_DATE_1]."),
        ("Born?\n1987.\n1987?", "Born?\n1987.\n1987?"),
        ("You were born when?\n1987.\n1987?", "You were born when?\n[BIRTH_DATE_1].\n[BIRTH_DATE_1]?"),
        ("Plate is Adam Boy Charles 123.", "Plate is [PLATE_1]."),
        ("Run 4 Tango Kilo 9 7 Victor.", "Run [PLATE_1]."),
        ("Tag number KXR4471.", "Tag number [PLATE_1]."),
        ("I live at 1420 maple street, apartment 4.", "I live at [ADDRESS_1]."),
        ("52 North Quarry Road", "[ADDRESS_1]"),
        ("zelda dot quist at gmail dot com", "[EMAIL_1]"),
        ("zelda@example.org", "[EMAIL_1]"),
        ("Social? 123-45-6789.", "Social? [SSN_1]."),
        ("Last four of your social?\nOne nine four two.", "Last four of your social?\n[SSN_1]."),
        ("Driver's license number is Q 1 2 3 4 5 6 7.", "Driver's license number is [LICENCE_1]."),
        ("Last of Quist, first of Zelda.", "Last of [PERSON_1], first of [PERSON_2]."),
        ("What's your name?\nUh, Zelda Quist.", "What's your name?\nUh, [PERSON_1]."),
        ("Last name Quist. Q U I S T.", "Last name [PERSON_1]. [PERSON_1]."),
        ("Your name?\nZ as in zebra, E L D A.", "Your name?\n[PERSON_1]."),
        ("Dispatch, Ohio 482 purple 19.", "Dispatch, Ohio [PLATE_1]."),
        (
            "Date of birth?\nWhat is that for?\nFor the report.\n11 30 78.",
            "Date of birth?\nWhat is that for?\nFor the report.\n[BIRTH_DATE_1].",
        ),
        ("I'm with Deputy Brown.", "I'm with Deputy [PERSON_1]."),
    ],
)
def test_what_is_found_in_spoken_text(text, expected):
    assert patterns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "10-4, code 4. Show me 10-8 at 7:12 p.m.",
        "One, two, three, four, five, six, seven, eight, nine, ten.",
        "Statute 316.193, $1,500, 45 in a 30, 911.",
        "733 1072, 1 Adam 12.",
        "He went 20 feet down the road and 2 blocks up the street.",
        "I'm going to the municipal court in Ohio at 9:00 a.m. on October 24th.",
        "I will hope so. Officer, please. Sir, stop.",
        "Go to example.com today.",
        "I I I did not.",
    ],
)
def test_what_must_stay(text):
    assert patterns(text) == text


@pytest.mark.engine
def test_real_model():
    redactor = Redactor()
    turns = turns_of(
        "[Officer]|Good evening. What is your name?",
        "[Driver]|My name is Peter Hallberg, and this is Susan.",
        "[Officer]|Date of birth, Peter?",
        "[Driver]|4 12 of 85. I live in Ohio.",
    )
    rows, redactions = redactor.redact(turns)
    assert [r["text"] for r in rows] == [
        "Good evening. What is your name?",
        "My name is [PERSON_1], and this is [PERSON_2].",
        "Date of birth, [PERSON_1]?",
        "[BIRTH_DATE_1]. I live in Ohio.",
    ]
    assert redactor.redact(rows) == (rows, [])
    long = turns_of("[A]|" + "Susan went home and nobody was there. " * 2000, "[A]|")
    assert redactor.redact_batch([turns, [], long])[0] == (rows, redactions)
    assert "Susan" not in redactor.redact(long)[0][0]["text"]
