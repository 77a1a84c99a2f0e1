from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.errors import ClipError, UserError
from deescal.ingest.transcripts import list_transcripts, parse_csv, parse_json, parse_time

CSV = """start_time,speaker_label,transcript
00:01,[Officer],Step out.
00:04,[Driver],"Why, though?"
00:05,[Driver],
"""


def test_a_published_csv_becomes_turns() -> None:
    turns = parse_csv(("\ufeff" + CSV).encode())
    assert [(t["turn_id"], t["start_s"], t["end_s"], t["speaker"], t["text"]) for t in turns] == [
        (0, 1.0, 4.0, "[Officer]", "Step out."),
        (1, 4.0, None, "[Driver]", "Why, though?"),
    ]


def test_json_lines_become_turns() -> None:
    line = json.dumps({"turns": [{"speaker": "A", "text": "Hello.", "start_s": 0.5, "end_s": 1.0}]})
    (turn,) = parse_json(line)
    assert (turn["speaker"], turn["start_s"], turn["end_s"]) == ("A", 0.5, 1.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"start_time,text\n1,x\n", "no column speaker_label, transcript"),
        (b"", "no column"),
        (b"\xff\xfe\x00", "not a CSV"),
        (b"start_time,speaker_label,transcript\nsoon,A,hi\n", "line 2: start_time 'soon'"),
        (b"start_time,speaker_label,transcript\n1,A,\n", "no turn has words"),
    ],
)
def test_a_bad_csv_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(ClipError, match=words):
        parse_csv(data)


@pytest.mark.parametrize("line", ["{", "[]", '{"turns": [{"text": "x"}]}', "3"])
def test_a_bad_json_line_says_what_is_expected(line: str) -> None:
    with pytest.raises(ClipError, match="not a transcript"):
        parse_json(line)


@given(st.integers(0, 9), st.integers(0, 59), st.floats(0, 59.9))
def test_times_read_as_written(hours: int, minutes: int, seconds: float) -> None:
    assert parse_time(f"{hours}:{minutes:02d}:{seconds:04.1f}", "") == pytest.approx(
        hours * 3600 + minutes * 60 + round(seconds, 1), abs=0.051
    )
    assert parse_time(f"{seconds:.2f}", "") == pytest.approx(seconds, abs=0.006)


def test_a_jsonl_file_is_a_clip_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.jsonl").write_text('{"turns": []}\n\n{"turns": []}\n')
    uris = [item.uri.removeprefix(str(tmp_path)) for item in list_transcripts([str(tmp_path)])]
    assert uris == ["/a.csv", "/b.jsonl#1", "/b.jsonl#3"]
    with pytest.raises(UserError, match=r"no \.csv or \.jsonl"):
        list_transcripts([str(tmp_path / "none")])


def test_the_whole_published_corpus_reads(shared_data: Path) -> None:
    import tarfile

    failures, turns = 0, 0
    with tarfile.open(shared_data / "deescalwild" / "deescalwild-csv.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".csv"):
                try:
                    turns += len(parse_csv(archive.extractfile(member).read()))
                except ClipError:
                    failures += 1
    assert failures == 0
    assert turns > 150_000
