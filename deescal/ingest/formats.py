"""The two formats of transcripts made elsewhere -> turns; every row of a file becomes a turn, whatever is odd about it.

CSV with the columns start_time, speaker_label, transcript (the published DeEscalWild form), and a line of JSON:
{"turns": [{"speaker", "text", optional start_s, end_s, role}]}, which `deescal export --format jsonl` writes too.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from deescal.errors import ClipError
from deescal.schema import Row

CSV_COLUMNS = ("start_time", "speaker_label", "transcript")

# Kind -> what it means for the rows it touched.
ODDITIES = {
    "encoding": "read as UTF-16 or Windows-1252, since it is not UTF-8",
    "stray_quote": "swallowed by a quote that nothing closes; recovered by reading the file line by line",
    "unquoted_comma": "more fields than columns; the surplus belongs to the transcript",
    "missing_field": "fewer fields than columns; the missing ones are empty, and without a time all is transcript",
    "empty_text": "nobody says anything; the turn is kept, without words",
    "unreadable_time": "no time, or none that can be read; the turn has no start",
    "decimal_comma": "01:14,000 for 01:14.000",
    "hours": "00:01:14 for 01:14",
    "backwards": "starts before the row above it; the order of rows is kept",
}

_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6}(?:[.,]\d{1,9})?)")
_ROW_START = re.compile(r'\s*"?\[?\d{1,6}(:\d{1,6}){1,2}([.,]\d+)?\]?"?\s*,')
_LINE_BREAK = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Parsed:
    """A transcript as it was read."""

    turns: list[Row]  # schema.TURN, in the order of the file; what only speech could tell is null
    n_rows: int  # rows found in the file; as many as turns
    oddities: dict[str, int]  # kind (of ODDITIES) -> rows it touched; only kinds that occur


def parse_csv(data: bytes) -> Parsed:
    """A published-format CSV; a turn ends where the next one starts.

    Raises:
        ClipError: not text, a column is missing, or no row has words.
    """
    text, encoding = _decode(data)
    header, records, recovered = _records(text)
    missing = [column for column in CSV_COLUMNS if column not in header]
    if missing:
        there = " ".join(", ".join(header).split())[:100] or "none"
        raise ClipError(f"no column {', '.join(missing)} (it has: {there})")
    odd = Counter({"encoding": 0 if encoding == "utf-8-sig" else len(records), "stray_quote": recovered})
    entries = []
    for record in records:
        if len(record) > len(header) == 3 and re.fullmatch(r"\d+\s*", record[1]):  # a decimal comma without quotes
            record = [f"{record[0]},{record[1]}", *record[2:]]
        odd["unquoted_comma"] += len(record) > len(header)
        odd["missing_field"] += len(record) < len(header)
        row = dict(zip(header, _fit(record, len(header), header.index("transcript")), strict=True))
        start_s, oddity = _read_time(row["start_time"])
        if len(record) < len(header) and start_s is None:  # the rest of a transcript with a line break, not quoted
            row = {**dict.fromkeys(header, ""), "transcript": ",".join(record)}
        if oddity:
            odd[oddity] += 1
        odd["hours"] += start_s is not None and row["start_time"].count(":") == 2
        entries.append({"speaker": row["speaker_label"], "text": row["transcript"], "start_s": start_s})
    return _parsed(entries, odd)


def parse_json(line: str | bytes) -> Parsed:
    """One line of JSON; a turn without `end_s` ends where the next one starts.

    Raises:
        ClipError: not JSON, no `turns` with `speaker` and `text`, a time that is none, or no turn has words.
    """
    try:
        turns = json.loads(line)["turns"]
        entries = [_entry(turn, f"turn {i}") for i, turn in enumerate(turns)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        raise ClipError('not a transcript: expected {"turns": [{"speaker": ..., "text": ...}]}') from error
    return _parsed(entries, Counter())


def parse_time(value: object, where: str) -> float:
    """75.2, '75.2', '01:15' or '00:01:15.2' -> seconds; a comma may stand for the point.

    Raises:
        ClipError: it is none of these, or negative, infinite or not a number.
    """
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e9 else math.inf
    elif isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]")
        if clock := _CLOCK.fullmatch(text):
            hours, minutes, rest = clock.groups()
            seconds = int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
        elif re.fullmatch(r"[\d.,e+-]{1,30}", text):
            try:
                seconds = float(text.replace(",", "."))
            except ValueError:
                seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ClipError(f"{where} {str(value)[:40]!r} is not a time (75.2, 01:15 or 00:01:15.2)")
    return seconds


def _decode(data: bytes) -> tuple[str, str]:
    """Bytes -> text and the name of its encoding."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), "utf-16"
        except UnicodeDecodeError as error:
            raise ClipError(f"not text: {error}") from error
    try:
        return data.decode("utf-8-sig"), "utf-8-sig"
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), "cp1252"


def _records(text: str) -> tuple[list[str], list[list[str]], int]:
    """CSV -> header, records (blank lines are none), and how many of them a stray quote had swallowed."""
    csv.field_size_limit(sys.maxsize)  # the default refuses a field of more than 131,072 characters
    try:
        found = [record for record in csv.reader(io.StringIO(text, newline="")) if record]
    except csv.Error as error:
        raise ClipError(f"not a CSV: {error}") from error
    if not found:
        return [], [], 0
    header, records = [name.strip() for name in found[0]], found[1:]
    swallowed = sum(bool(_ROW_START.match(line)) for r in records for f in r for line in _LINE_BREAK.split(f)[1:])
    return header, _line_by_line(text, len(header)) if swallowed else records, swallowed


def _line_by_line(text: str, n_columns: int) -> list[list[str]]:
    """Records of a CSV whose quotes cannot be trusted: a line that starts with a time starts a record."""
    records: list[list[str]] = []
    lines = [line for line in _LINE_BREAK.split(text) if line.strip()]
    for line in lines[1:]:
        if records and not _ROW_START.match(line):
            records[-1][-1] += "\n" + line
            continue
        fields = next(csv.reader([line]))
        if len(fields) < n_columns:  # the quote swallowed the commas, too
            fields = [field.strip('"') for field in line.split(",", n_columns - 1)]
        records.append(fields)
    return records


def _fit(record: list[str], n_columns: int, transcript: int) -> list[str]:
    """As many fields as columns: unquoted commas belong to the transcript, and what is missing is empty."""
    surplus = max(0, len(record) - n_columns)
    whole = ",".join(record[transcript : transcript + surplus + 1])
    fitted = [*record[:transcript], whole, *record[transcript + surplus + 1 :]]
    return fitted + [""] * (n_columns - len(fitted))


def _read_time(text: str) -> tuple[float | None, str | None]:
    """Seconds, and what is odd about the way they are written."""
    try:
        return parse_time(text, "start_time"), "decimal_comma" if "," in text else None
    except ClipError:
        return None, "unreadable_time"


def _entry(turn: Any, where: str) -> dict[str, Any]:
    """A turn of JSON, checked."""
    entry = {"speaker": turn["speaker"], "text": turn["text"], "role": turn.get("role")}
    for name, value in entry.items():
        if value is not None and not isinstance(value, str):
            raise ClipError(f"{where}: {name} {str(value)[:40]!r} is not text")
        # Half of a surrogate pair, which JSON can spell, is no character.
        entry[name] = value and value.encode(errors="replace").decode()
    for name in ("start_s", "end_s"):
        if (value := turn.get(name)) is not None:
            entry[name] = parse_time(value, f"{where}: {name}")
    if entry.get("end_s", math.inf) < entry.get("start_s", 0.0):
        raise ClipError(f"{where}: it ends at {entry['end_s']} s, before it starts")
    return entry


def _parsed(entries: Sequence[dict[str, Any]], odd: Counter[str]) -> Parsed:
    """Entries with speaker, text and perhaps start_s, end_s, role -> turns, and the oddities that both formats have."""
    texts = [(entry["text"] or "").strip() for entry in entries]
    if not any(texts):
        raise ClipError("no turn has words")
    odd["empty_text"] += texts.count("")
    starts = [entry.get("start_s") for entry in entries]
    odd["backwards"] += sum(b < a for a, b in pairwise(s for s in starts if s is not None))
    turns: list[Row] = []
    for i, (entry, text, start_s, next_s) in enumerate(zip(entries, texts, starts, [*starts[1:], None], strict=True)):
        follows = start_s is not None and next_s is not None and next_s > start_s
        turns.append(
            {
                "turn_id": i,
                "start_s": start_s,
                "end_s": entry.get("end_s", next_s if follows else None),
                "speaker": (entry["speaker"] or "").strip() or "?",
                "role": entry.get("role"),
                "text": text,
                "words": [],
                "overlap_share": None,
                "assignment_margin": None,
                "asr_confidence": None,
            }
        )
    return Parsed(turns, len(entries), {kind: odd[kind] for kind in ODDITIES if odd[kind]})
