"""Exports: what is written is read back with the tools that read such files."""

import csv
import html
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.errors import UserError
from deescal.export import cues, export_run, speaker_names, to_csv, to_json, to_rttm, to_srt, to_vtt
from deescal.ingest.formats import parse_csv, parse_json
from deescal.schema import empty_row, to_table

TIMES = re.compile(r"(\d\d+):(\d\d):(\d\d)[.,](\d{3})")
printable = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=60)


def turn(turn_id, start_s, end_s, speaker, role, text, timed=True):
    texts = text.split()
    step = (end_s - start_s) / max(len(texts), 1)
    words = [
        {"start_s": start_s + i * step, "end_s": start_s + (i + 1) * step, "text": f" {w}", "probability": 0.9}
        for i, w in enumerate(texts)
    ]
    trust = {"overlap_share": 0.0, "assignment_margin": 1.0, "asr_confidence": 0.9}
    who = {"turn_id": turn_id, "start_s": start_s, "end_s": end_s, "speaker": speaker, "role": role}
    return {**who, "text": text, "words": words if timed else None, **trust}


def clip(*turns, clip_id="ab12", status="accepted", **columns):
    values = {"aliases": [], "stages": [], "turns": list(turns), "source": {"city": "X"}, "scores": {"escalation": 1}}
    return empty_row(clip_id=clip_id, uri=f"{clip_id}.mp4", status=status, **{**values, **columns})


TALK = clip(
    turn(0, 0.4, 4.0, "A", "officer", 'Step out, "sir", please.'),
    turn(1, 4.2, 6.0, "B", "civilian", "Why?\nWhat <i>did</i> I do --> & why"),
    turn(2, 75.9, 80.0, "C", "officer", "Hands up, " * 20),
    turn(3, 3700.0, 3701.0, "?", None, "Hey!"),
    speaker_spans=[
        {"start_s": 0.4, "end_s": 4.0, "speaker": "A"},
        {"start_s": 3.5, "end_s": 6.0004, "speaker": "B"},
        {"start_s": 7.0, "end_s": 7.0001, "speaker": "B"},
    ],
)


def read_csv(text):
    return list(csv.reader(io.StringIO(text, newline="")))


def test_names_number_speakers_of_one_role():
    assert list(speaker_names(TALK).values()) == ["Officer 1", "Civilian", "Officer 2", "Unidentified speaker"]


def test_csv_is_the_published_format():
    assert to_csv(TALK).startswith("start_time,speaker_label,transcript\r\n00:00,[Officer 1],")
    rows = read_csv(to_csv(TALK))[1:]
    assert [r[0] for r in rows] == ["00:00", "00:04", "01:15", "61:40"]
    assert rows[1][1] == "[Civilian]"
    assert rows[3][1] == "[Unidentified speaker]"


@given(st.lists(printable | st.just('say "no", and\ngo'), max_size=6))
def test_csv_read_back_equals_the_turns(texts):
    turns = [turn(i, float(i), i + 0.5, "A", "officer", text) for i, text in enumerate(texts)]
    assert [r[2] for r in read_csv(to_csv(clip(*turns)))[1:]] == texts


def test_rttm_read_back_equals_the_spans(tmp_path):
    from pyannote.database.util import load_rttm

    path = tmp_path / "a.rttm"
    path.write_text(to_rttm(TALK))
    read = load_rttm(path)["ab12"]
    found = [(round(s.start, 3), round(s.end, 3), label) for s, _, label in read.itertracks(yield_label=True)]
    assert found == [(0.4, 4.0, "A"), (3.5, 6.0, "B")]  # what rounds to nothing is left out
    assert all(len(line.split()) == 10 for line in path.read_text().splitlines())


def milliseconds(stamp):
    hours, minutes, seconds, ms = map(int, TIMES.fullmatch(stamp).groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + ms


def read_cues(text):
    """The cues of an SRT or VTT file as (start_ms, end_ms, lines), by the blank lines and arrows."""
    found = []
    for block in re.split(r"\n\n+", text.strip()):
        lines = block.split("\n")
        if lines[0] == "WEBVTT":
            assert lines == ["WEBVTT"]
            continue
        if "-->" not in lines[0]:
            assert lines.pop(0) == str(len(found) + 1)
        start, arrow, end = lines[0].split(" ")
        assert arrow == "-->"
        assert lines[1:]
        assert not any("-->" in line for line in lines[1:])
        found.append((milliseconds(start), milliseconds(end), lines[1:]))
    return found


def test_srt_and_vtt_structure():
    assert to_vtt(TALK).startswith("WEBVTT\n\n00:00:00.400 --> 00:00:04.000\n<v Officer 1>Step out,")
    assert to_srt(TALK).startswith("1\n00:00:00,400 --> 00:00:04,000\nOfficer 1: Step out,")
    assert "01:01:40.000 --> 01:01:41.000\n<v Unidentified speaker>Hey!" in to_vtt(TALK)
    for text in (to_srt(TALK), to_vtt(TALK)):
        assert len(read_cues(text)) > 4


def test_vtt_escapes_markup():
    assert "What &lt;i&gt;did&lt;/i&gt; I do --&gt; &amp; why" in " ".join(to_vtt(TALK).split("\n"))


@settings(deadline=None)
@given(
    st.lists(st.text("ab-<>&é", min_size=1, max_size=42), min_size=1, max_size=80),
    st.booleans(),
    st.floats(0.001, 500),
)
def test_subtitles_keep_every_word_in_lines_that_fit(words, timed, seconds):
    row = clip(turn(0, 1.0, 1.0 + seconds, "A", "officer", " ".join(words), timed))
    said = []
    for start_ms, end_ms, lines in read_cues(to_vtt(row)):
        lines[0] = lines[0].removeprefix("<v Officer>")
        lines = [html.unescape(line) for line in lines]
        assert len(lines) <= 2
        assert all(len(line) <= 42 for line in lines)
        assert 1000 <= start_ms < end_ms <= 1000 + round(seconds * 1000) + 1
        said += " ".join(lines).split()
    assert said == words


def test_a_long_turn_is_cut_at_its_words_times():
    parts = cues(clip(turn(0, 10.0, 30.0, "A", "officer", "word " * 40)), lambda name: "")
    assert parts[0].start_ms == 10_000
    assert parts[-1].end_ms == 30_000
    assert [a.end_ms for a in parts[:-1]] == [b.start_ms for b in parts[1:]]


def test_a_word_that_holds_a_whole_turn_is_spread_over_its_seconds():
    whole = turn(0, 0.0, 60.0, "A", "officer", "word " * 40)
    whole["words"] = [{"start_s": 0.0, "end_s": 60.0, "text": whole["text"], "probability": None}]
    starts = [cue.start_ms for cue in cues(clip(whole), lambda name: "")]
    assert len(set(starts)) == len(starts) > 1


def test_turns_without_times_are_exported_as_far_as_times_go():
    """Of a published CSV the last turn has no end; JSON lines may have no times at all."""
    parsed = parse_csv(
        b"start_time,speaker_label,transcript\n00:01,[Officer],Stop there.\nsoon,[Officer],Now.\n00:01,A,Why me?\n"
        b"00:03,Sam,I did nothing at all\n"
    )
    row = to_table([clip(*parsed.turns, oddities=parsed.oddities)]).to_pylist(maps_as_pydicts="strict")[0]
    assert [r[:2] for r in read_csv(to_csv(row))[1:]] == [
        ["00:01", "[Officer]"],
        ["", "[Officer]"],
        ["00:01", "[Speaker A]"],
        ["00:03", "[Sam]"],
    ]
    for text in (to_srt(row), to_vtt(row)):
        assert [(start_ms, end_ms) for start_ms, end_ms, _ in read_cues(text)] == [
            (1000, 3000),
            (1000, 3000),
            (3000, 5000),
        ]
        assert "Now." not in text
    assert to_rttm(row) == ""
    assert json.loads(to_json(row))["oddities"] == {"unreadable_time": 1}
    timeless = clip(*parse_json('{"turns": [{"speaker": "A", "text": "Hello."}]}').turns)
    assert read_csv(to_csv(timeless))[1:] == [["", "[Speaker A]", "Hello."]]
    assert (to_srt(timeless), to_vtt(timeless)) == ("", "WEBVTT\n")


@pytest.mark.parametrize("fmt", ["csv", "jsonl"])
def test_an_export_leaves_nothing_of_an_earlier_one(fmt, tmp_path):
    ids = [f"{i:032x}" for i in range(3)]
    rows = [clip(turn(0, 0.0, 1.0, "A", "officer", "Hello."), clip_id=i) for i in ids]
    kept = ["notes.csv", "clips-1.jsonl", f"{ids[0]}.srt", f"x{ids[0]}.csv"]
    for name in kept:
        (tmp_path / name).write_text("")
    export_run(rows, fmt, str(tmp_path))
    export_run([{**rows[0], "status": "rejected"}, rows[1]], fmt, str(tmp_path))
    new = f"{ids[1]}.csv" if fmt == "csv" else "clips-00000.jsonl"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, new])
    assert ids[0] not in (tmp_path / new).read_text()


@pytest.mark.parametrize("fmt", ["csv", "srt", "vtt", "rttm"])
def test_one_file_a_clip_of_the_wanted_status(fmt, tmp_path):
    spans = [{"start_s": 0.0, "end_s": 1.0, "speaker": "A"}]
    said = turn(0, 0.0, 1.0, "A", "officer", "Hello.")
    rows = [
        clip(said, clip_id="a", speaker_spans=spans),
        clip(said, clip_id="b", status="rejected", speaker_spans=spans),
        clip(clip_id="c", status="failed", turns=None),
    ]
    assert export_run(rows, fmt, str(tmp_path / "one")) == 1
    assert [p.name for p in (tmp_path / "one").iterdir()] == [f"a.{fmt}"]
    assert export_run(iter(rows), fmt, str(tmp_path / "all"), include="all") == 2


def test_jsonl_has_every_clip_once_in_bounded_files(tmp_path):
    rows = [clip(turn(0, 0.0, 1.0, "A", "officer", "Hé <b>"), clip_id=f"{i:04x}") for i in range(2500)]
    table_rows = to_table(rows[:1]).to_pylist()  # maps as lists of pairs, as Arrow gives them
    assert export_run([*table_rows, *rows[1:]], "jsonl", str(tmp_path)) == 3
    lines = [json.loads(line) for p in sorted(tmp_path.iterdir()) for line in p.read_text().splitlines()]
    assert [line["clip_id"] for line in lines] == [row["clip_id"] for row in rows]
    assert lines[0] == {**lines[1], "clip_id": "0000", "uri": "0000.mp4"}
    assert lines[0]["scores"] == {"escalation": 1}
    assert "words" not in lines[0]


@pytest.mark.parametrize(("fmt", "include"), [("docx", "accepted"), ("csv", "good")])
def test_unknown_words_are_the_users_mistake(fmt, include, tmp_path):
    with pytest.raises(UserError, match="allowed: "):
        export_run([], fmt, str(tmp_path), include)


def test_muted_clips_are_redacted_and_have_their_sound_beside(tmp_path):
    said = turn(0, 0.0, 1.0, "A", "officer", "Hello Zelda.")
    rows = [clip(said, clip_id="a" * 32), clip(said, clip_id="b" * 32, status="rejected")]

    def mute(row):
        return {**row, "turns": [{**row["turns"][0], "text": "Hello [PERSON_1]."}]}, b"sound"

    (tmp_path / f"{'b' * 32}.flac").write_bytes(b"of an earlier export")
    assert export_run(rows, "csv", str(tmp_path), mute=mute) == 1
    assert {p.name for p in tmp_path.iterdir()} == {f"{'a' * 32}.csv", f"{'a' * 32}.flac"}
    assert (tmp_path / f"{'a' * 32}.flac").read_bytes() == b"sound"
    assert "Hello [PERSON_1]." in (tmp_path / f"{'a' * 32}.csv").read_text()
