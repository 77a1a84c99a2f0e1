"""Both formats: every row is a turn, whatever is odd about it, and each oddity is counted."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deescal.errors import ClipError
from deescal.ingest.formats import ODDITIES, Parsed, parse_csv, parse_json, parse_time
from deescal.schema import empty_row, to_table

HEADER = "start_time,speaker_label,transcript\n"
CSV = HEADER + '00:01,[Officer],Step out.\n00:04,[Driver],"Why, though?"\n00:05,[Driver],\n'


def read(text: str, encoding: str = "utf-8") -> Parsed:
    return parse_csv((HEADER + text).encode(encoding))


def texts(parsed: Parsed) -> list[str]:
    return [turn["text"] for turn in parsed.turns]


def starts(parsed: Parsed) -> list[float | None]:
    return [turn["start_s"] for turn in parsed.turns]


def test_a_published_csv_becomes_turns() -> None:
    parsed = parse_csv(("\ufeff" + CSV).encode())
    assert [(t["turn_id"], t["start_s"], t["end_s"], t["speaker"], t["text"]) for t in parsed.turns] == [
        (0, 1.0, 4.0, "[Officer]", "Step out."),
        (1, 4.0, 5.0, "[Driver]", "Why, though?"),
        (2, 5.0, None, "[Driver]", ""),
    ]
    assert (parsed.n_rows, parsed.oddities) == (3, {"empty_text": 1})


@pytest.mark.parametrize(
    ("rows", "kind", "wanted_starts", "wanted_texts"),
    [
        ("01:14,500,A,no, sir\n", "decimal_comma", [74.5], ["no, sir"]),
        ('"01:14,500",A,hi\n', "decimal_comma", [74.5], ["hi"]),
        ("1:01:14,A,hi\n", "hours", [3674.0], ["hi"]),
        ("soon,A,hi\n,A,ho\n", "unreadable_time", [None, None], ["hi", "ho"]),
        ("-5,A,hi\nnan,A,ho\ninf,A,he\n", "unreadable_time", [None] * 3, ["hi", "ho", "he"]),
        ("00:09,A,hi\n00:03,A,ho\n00:04,A,he\n", "backwards", [9.0, 3.0, 4.0], ["hi", "ho", "he"]),
        ("00:01,A,well, no, sir\n", "unquoted_comma", [1.0], ["well, no, sir"]),
        ("00:01,A\n00:02,B,hi\n", "missing_field", [1.0, 2.0], ["", "hi"]),
        ("00:01,A,well,\nno, sir\n", "missing_field", [1.0, None], ["well,", "no, sir"]),  # a break without quotes
    ],
)
def test_an_odd_row_is_kept_and_counted(rows: str, kind: str, wanted_starts: list, wanted_texts: list[str]) -> None:
    parsed = read(rows)
    assert starts(parsed) == wanted_starts
    assert texts(parsed) == wanted_texts
    assert parsed.oddities[kind] > 0
    assert parsed.oddities.keys() <= ODDITIES.keys()


def test_a_turn_does_not_end_before_it_starts() -> None:
    assert [turn["end_s"] for turn in read("00:09,A,hi\n00:03,A,ho\nsoon,A,he\n").turns] == [None, None, None]


def test_surplus_fields_go_to_the_transcript_wherever_its_column_is() -> None:
    (turn,) = parse_csv(b"start_time,transcript,speaker_label\n00:01,no, sir,A\n").turns
    assert (turn["speaker"], turn["text"]) == ("A", "no, sir")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings_are_read_and_counted(encoding: str) -> None:
    parsed = read("00:01,A,Señor “please”\n00:02,B,hi\n", encoding)
    assert texts(parsed) == ["Señor “please”", "hi"]
    assert parsed.oddities == {"encoding": 2}


def test_rows_that_a_stray_quote_swallowed_are_recovered() -> None:
    parsed = read('00:01,A,one\n00:02,B,"two\n00:03,A,three, and more\nnext line\n00:04,"B,four\n00:05,A,five\n')
    assert texts(parsed) == ["one", "two", "three, and more\nnext line", "four", "five"]
    assert [turn["speaker"] for turn in parsed.turns] == ["A", "B", "A", "B", "A"]
    assert parsed.n_rows == 5
    assert parsed.oddities["stray_quote"] == 2


def test_a_line_break_inside_quotes_is_text() -> None:
    parsed = read('00:01,A,"one\ntwo, three"\n00:02,B,hi\n')
    assert texts(parsed) == ["one\ntwo, three", "hi"]
    assert parsed.oddities == {}


def test_a_field_over_the_limit_of_csv_is_read() -> None:
    assert len(texts(read("00:01,A," + "word " * 100_000 + "\n"))[0]) > 131_072


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=("Cs",)), max_size=30)] * 3), min_size=1))
def test_as_many_turns_as_rows(rows: list[tuple[str, str, str]]) -> None:
    assume(any(text.strip() for _, _, text in rows))
    buffer = io.StringIO()
    csv.writer(buffer).writerows([HEADER.strip().split(","), *rows])
    parsed = parse_csv(buffer.getvalue().encode())
    assert len(parsed.turns) == parsed.n_rows == len(rows)
    assert texts(parsed) == [text.strip() for _, _, text in rows]
    to_table([empty_row(turns=parsed.turns, oddities=parsed.oddities)])


@given(st.lists(st.text(st.sampled_from('ab," '), max_size=12), min_size=1, max_size=8))
def test_no_letter_is_lost_however_broken_the_quotes_are(lines: list[str]) -> None:
    body = "".join(f"0:{i:02d},A,x{line}\n" for i, line in enumerate(lines))
    parsed = read(body)
    assert len(parsed.turns) == parsed.n_rows == len(lines)
    assert starts(parsed) == [float(i) for i in range(len(lines))]
    kept = "".join(turn["speaker"] + turn["text"] for turn in parsed.turns)
    assert all(kept.count(letter) == body.count(letter) for letter in "abAx")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"start_time,text\n1,x\n", "no column speaker_label, transcript"),
        (b"", "no column"),
        (b"\xff\xfe\x00", "not text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "no column"),
        (b"start_time,speaker_label,transcript\n1,A,\n", "no turn has words"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(ClipError, match=words) as caught:
        parse_csv(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_json_lines_become_turns() -> None:
    said = [
        {"speaker": "A", "text": "Hello.", "start_s": "00:01", "role": "officer"},
        {"speaker": None, "text": None, "start_s": 3},
        {"speaker": "B", "text": "Half \ud800 a pair", "start_s": 2.5, "end_s": 9},
    ]
    parsed = parse_json(json.dumps({"turns": said}))
    assert [(t["speaker"], t["role"], t["start_s"], t["end_s"]) for t in parsed.turns] == [
        ("A", "officer", 1.0, 3.0),
        ("?", None, 3.0, None),
        ("B", None, 2.5, 9.0),
    ]
    assert parsed.oddities == {"empty_text": 1, "backwards": 1}
    to_table([empty_row(turns=parsed.turns, oddities=parsed.oddities)])


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"turns": [{"text": "x"}]}', "3", '{"turns": 3}', '{"turns": ["x"]}', "[" * 100_000, b"\xff"]
)
def test_a_bad_json_line_says_what_is_expected(line: str | bytes) -> None:
    with pytest.raises(ClipError, match="not a transcript"):
        parse_json(line)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"start_s": "soon"}, "turn 0: start_s 'soon' is not a time"),
        ({"start_s": -1}, "is not a time"),
        ({"end_s": float("nan")}, "turn 0: end_s 'nan'"),
        ({"end_s": 10**400}, "is not a time"),
        ({"start_s": True}, "is not a time"),
        ({"start_s": [1]}, "is not a time"),
        ({"start_s": 3, "end_s": 2}, "before it starts"),
        ({"text": 5}, "text '5' is not text"),
        ({"role": {}}, "is not text"),
        ({"text": " "}, "no turn has words"),
    ],
)
def test_a_json_turn_that_does_not_fit_is_named(more: dict, words: str) -> None:
    with pytest.raises(ClipError, match=words):
        parse_json(json.dumps({"turns": [{"speaker": "A", "text": "x", **more}]}))


@given(st.integers(0, 9), st.integers(0, 59), st.floats(0, 59.9))
def test_times_read_as_written(hours: int, minutes: int, seconds: float) -> None:
    assert parse_time(f"{hours}:{minutes:02d}:{seconds:04.1f}", "") == pytest.approx(
        hours * 3600 + minutes * 60 + round(seconds, 1), abs=0.051
    )
    assert parse_time(f"{seconds:.2f}", "") == pytest.approx(seconds, abs=0.006)
    assert parse_time(seconds, "") == seconds


@given(st.text() | st.text("0123456789:.,-+enaif ", max_size=20) | st.integers() | st.floats())
def test_a_time_is_a_number_of_seconds_or_refused(value: str | int | float) -> None:
    with contextlib.suppress(ClipError):
        assert 0 <= parse_time(value, "start_time") < float("inf")


def test_the_published_corpus_is_read_whole(shared_data: Path) -> None:
    """Beside an independent count with pandas."""
    import pandas as pd

    odd: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    files = turns = words = expected_words = 0
    with tarfile.open(shared_data / "deescalwild" / "deescalwild-csv.tar.xz") as archive:
        for member in archive:
            if not member.name.endswith(".csv"):
                continue
            data = archive.extractfile(member).read()
            parsed = parse_csv(data)
            files, turns = files + 1, turns + len(parsed.turns)
            assert parsed.n_rows == len(parsed.turns)
            odd.update(parsed.oddities)
            words += sum(len(t["text"].split()) for t in parsed.turns)

            frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
            assert len(frame) == parsed.n_rows
            expected_words += int(frame["transcript"].str.split().str.len().sum())
            clock = frame["start_time"].str.replace(",", ".").str.split(":", expand=True).astype(float)
            assert clock.shape[1] == 2
            expected["backwards"] += int(((clock[0] * 60 + clock[1]).diff() < 0).sum())
            expected["decimal_comma"] += int(frame["start_time"].str.contains(",").sum())
            expected["empty_text"] += int((frame["transcript"].str.strip() == "").sum())
    assert (files, turns) == (1048, 199_512)
    assert words == expected_words
    assert odd == +expected


def test_the_documentation_names_every_oddity() -> None:
    page = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()
    assert [line for kind, means in ODDITIES.items() if (line := f"| `{kind}` | {means} |") not in page] == []
