"""Clips in the formats of other tools: the published corpus' CSV, SubRip, WebVTT, RTTM, JSON lines.

One file a clip, `<clip_id>.<ext>`; JSON lines hold a thousand clips a file, one a line, so that neither the number of
files nor the memory for one of them grows without need.
"""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from deescal.errors import UserError, one_line
from deescal.schema import Row
from deescal.storage import STORAGE_ERRORS, join, locate, write_bytes

Format = Literal["csv", "srt", "vtt", "rttm", "jsonl"]
Include = Literal["accepted", "rejected", "failed", "all"]
FORMATS: tuple[str, ...] = get_args(Format)
INCLUDES: tuple[str, ...] = get_args(Include)
SECONDS_PER_WORD = 0.4  # of a turn that has no end, and no turn after it
LINE_CHARACTERS, LINES = 42, 2  # of a subtitle: what broadcasters allow
CLIPS_PER_FILE = 1000  # of JSON lines
_JSON_LEAVES_OUT = ("words", "exclusive_spans")  # a turn has its words; spans of one speaker at a time follow from both


def export_run(
    rows: Iterable[Row],
    fmt: str,
    out_uri: str,
    include: str = "accepted",
    mute: Callable[[Row], tuple[Row, bytes | None]] | None = None,
) -> int:
    """Write the clips of one status (or all) into the folder `out_uri`; returns the number of files written.

    A clip that a format has nothing of (no turns, or no speaker spans for RTTM) gets no file in that format; JSON
    lines have every clip. Files of that format that an earlier export left there are deleted first.

    Args:
        mute: row -> the row as it is to be written, and its sound, written beside as `<clip_id>.flac`.

    Raises:
        UserError: an unknown format or status, or a folder that cannot be written.
    """
    if fmt not in FORMATS:
        raise UserError(f"format '{fmt}' is not known (allowed: {', '.join(FORMATS)})")
    if include not in INCLUDES:
        raise UserError(f"include '{include}' is not known (allowed: {', '.join(INCLUDES)})")
    try:
        _clear(out_uri, fmt)
        chosen: Iterable[Row] = (row for row in rows if include in ("all", row["status"]))
        if mute is not None:
            _clear(out_uri, "flac")
            chosen = _with_sound(chosen, out_uri, mute)
        return _write(chosen, fmt, out_uri)
    except STORAGE_ERRORS as error:
        raise UserError(f"export to '{out_uri}': {one_line(error)}") from error


def _clear(out_uri: str, fmt: str) -> None:
    """Delete what an earlier export wrote, by its name: a clip of today may have another status."""
    ours = re.compile(r"clips-\d{5}\.jsonl" if fmt == "jsonl" else rf"[0-9a-f]{{32}}\.{fmt}")
    filesystem, folder = locate(out_uri)
    try:
        files = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return
    for file in files:
        if ours.fullmatch(file.rpartition("/")[2]):
            filesystem.rm_file(file)


def _with_sound(rows: Iterable[Row], out_uri: str, mute: Callable[[Row], tuple[Row, bytes | None]]) -> Iterator[Row]:
    for original in rows:
        row, flac = mute(original)
        if flac is not None:
            write_bytes(join(out_uri, f"{row['clip_id']}.flac"), flac)
        yield row


def _write(chosen: Iterable[Row], fmt: str, out_uri: str) -> int:
    if fmt == "jsonl":
        return _write_jsonl(chosen, out_uri)
    written = 0
    for row in chosen:
        if row["speaker_spans" if fmt == "rttm" else "turns"] is not None:
            write_bytes(join(out_uri, f"{row['clip_id']}.{fmt}"), RENDER[fmt](row).encode())
            written += 1
    return written


def speaker_names(row: Row) -> dict[tuple[str | None, str | None], str]:
    """(speaker, role) of each turn -> 'Officer', or 'Officer 1', 'Officer 2' where several share a role.

    Numbers follow the order in which the speakers first speak; without a role the name is 'Speaker A', or the label of
    a transcript made elsewhere, and of words that belong to nobody it is 'Unidentified speaker', as in the published
    corpus.
    """
    keys = list(dict.fromkeys((turn["speaker"], turn["role"]) for turn in row["turns"] or ()))
    by_role: dict[str, list[tuple[str | None, str | None]]] = {}
    for speaker, role in keys:
        if role and speaker and speaker != "?":
            by_role.setdefault(role, []).append((speaker, role))
    names = {}
    for key in keys:
        speaker, role = key
        if not speaker or speaker == "?":
            names[key] = "Unidentified speaker"
        elif not role:
            names[key] = f"Speaker {speaker}" if speaker.isupper() and len(speaker) <= 2 else speaker.strip("[]")
        else:
            alike = by_role[role]
            names[key] = role.capitalize() + (f" {alike.index(key) + 1}" if len(alike) > 1 else "")
    return names


def to_csv(row: Row) -> str:
    """start_time (MM:SS, minutes beyond 59 go on), speaker_label ('[Officer]'), transcript; one line a turn.

    A time that is not known is empty. Line ends are CRLF, as in the published corpus (and RFC 4180).
    """
    names = speaker_names(row)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["start_time", "speaker_label", "transcript"])
    for turn in row["turns"] or ():
        time = "" if turn["start_s"] is None else "{:02d}:{:02d}".format(*divmod(int(turn["start_s"]), 60))
        writer.writerow([time, f"[{names[turn['speaker'], turn['role']]}]", turn["text"] or ""])
    return buffer.getvalue()


@dataclass(frozen=True)
class Cue:
    """A subtitle: who says which lines from when to when."""

    start_ms: int
    end_ms: int
    speaker: str
    lines: tuple[str, ...]


def to_srt(row: Row) -> str:
    """SubRip; the speaker's name stands before the first line of each of their turns' cues."""
    blocks = []
    for number, cue in enumerate(cues(row, lambda name: f"{name}: "), start=1):
        times = f"{_timestamp(cue.start_ms, ',')} --> {_timestamp(cue.end_ms, ',')}"
        lines = (line.replace("-->", "->") for line in cue.lines)  # an arrow would start a new cue
        blocks.append("\n".join([str(number), times, *lines]) + "\n")
    return "\n".join(blocks)


def to_vtt(row: Row) -> str:
    """WebVTT; the speaker is a voice tag."""
    blocks = ["WEBVTT\n"]
    for cue in cues(row, lambda name: ""):
        times = f"{_timestamp(cue.start_ms, '.')} --> {_timestamp(cue.end_ms, '.')}"
        first, *others = (_escape(line) for line in cue.lines)
        blocks.append("\n".join([times, f"<v {_escape(cue.speaker)}>{first}", *others]) + "\n")
    return "\n".join(blocks)


def to_rttm(row: Row) -> str:
    """NIST RTTM: one SPEAKER line a span, times in seconds to the millisecond; empty spans are left out."""
    lines = []
    for span in row["speaker_spans"] or ():
        start_ms, end_ms = _ms(span["start_s"]), _ms(span["end_s"])
        if end_ms > start_ms:
            times = f"{start_ms / 1000:.3f} {(end_ms - start_ms) / 1000:.3f}"
            lines.append(f"SPEAKER {row['clip_id']} 1 {times} <NA> <NA> {span['speaker']} <NA> <NA>\n")
    return "".join(lines)


def to_json(row: Row) -> str:
    """A clip as one line: the row without what its turns hold already."""
    kept = {key: value for key, value in row.items() if key not in _JSON_LEAVES_OUT}
    for name in ("source", "oddities", "scores"):
        kept[name] = None if kept[name] is None else dict(kept[name])
    return json.dumps(kept, ensure_ascii=False) + "\n"


RENDER: Mapping[str, Callable[[Row], str]] = {"csv": to_csv, "srt": to_srt, "vtt": to_vtt, "rttm": to_rttm}


def cues(row: Row, prefix: Callable[[str], str]) -> list[Cue]:
    """Turns -> subtitles of at most two lines of 42 characters, cut between words, in order of start.

    A turn whose start is not known has none.

    Args:
        prefix: the speaker's name -> what stands before the first line; it counts among the characters.
    """
    names = speaker_names(row)
    found = []
    for turn in _timed(row["turns"] or ()):
        name = names[turn["speaker"], turn["role"]]
        for words in _chunks(_timed_words(turn), prefix(name)):
            text = " ".join(word for _, _, word in words)
            start_ms, end_ms = _ms(words[0][0]), _ms(words[-1][1])
            lines = tuple(_wrap(prefix(name) + text))
            found.append(Cue(start_ms, max(end_ms, start_ms + 1), name, lines))  # a player drops an empty cue
    return sorted(found, key=lambda cue: (cue.start_ms, cue.end_ms))


def _timed(turns: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The turns that have a start, all with an end: transcripts made elsewhere may lack either."""
    for i, turn in enumerate(turns):
        if (start_s := turn["start_s"]) is None:
            continue
        if turn["end_s"] is None:
            later = (t["start_s"] for t in turns[i + 1 :] if t["start_s"] is not None and t["start_s"] > start_s)
            said_s = SECONDS_PER_WORD * len((turn["text"] or "").split())
            turn = {**turn, "end_s": next(later, start_s + said_s)}
        yield turn


def _chunks(words: list[tuple[float, float, str]], prefix: str) -> Iterator[list[tuple[float, float, str]]]:
    """Cut words into runs that fit a cue; a word that alone is too long has a cue of its own."""
    run: list[tuple[float, float, str]] = []
    for word in words:
        text = prefix + " ".join(w for _, _, w in [*run, word])
        if run and len(_wrap(text)) > LINES:
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _timed_words(turn: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    """(start_s, end_s, word) of a turn; where words carry no times, they share the turn's seconds."""
    words = [w for w in turn["words"] or () if w["text"].strip()]
    if words and all(w["start_s"] is not None and w["end_s"] is not None for w in words):
        return [part for w in words for part in _spread(w["start_s"], w["end_s"], w["text"])]
    return _spread(turn["start_s"], turn["end_s"], turn["text"] or "")


def _spread(start_s: float, end_s: float, text: str) -> list[tuple[float, float, str]]:
    """The words of a text, each with its share of the seconds by its length."""
    words = text.split()
    per_character = (end_s - start_s) / max(sum(len(word) for word in words), 1)
    timed, at = [], start_s
    for word in words:
        timed.append((at, at + per_character * len(word), word))
        at = timed[-1][1]
    return timed


def _write_jsonl(rows: Iterable[Row], out_uri: str) -> int:
    written = 0
    lines: list[str] = []

    def flush() -> None:
        nonlocal written
        write_bytes(join(out_uri, f"clips-{written:05d}.jsonl"), "".join(lines).encode())
        written += 1
        lines.clear()

    for row in rows:
        lines.append(to_json(row))
        if len(lines) == CLIPS_PER_FILE:
            flush()
    if lines:
        flush()
    return written


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _timestamp(ms: int, decimal: str) -> str:
    """3723004 -> '01:02:03,004'."""
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal}{ms:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
