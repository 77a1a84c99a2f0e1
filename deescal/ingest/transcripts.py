"""Transcripts made elsewhere -> rows of the CLIPS table with their turns filled in.

Two formats: a CSV a clip with the columns start_time, speaker_label, transcript (the published DeEscalWild
form), and JSON Lines with a clip a line: {"turns": [{"speaker", "text", optional start_s, end_s, role}]}, which
is also what `deescal export --format jsonl` writes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deescal.errors import ClipError, UserError
from deescal.ingest.sources import Input
from deescal.schema import Row, to_table
from deescal.stage import Run, Stage
from deescal.storage import is_local, locate, read_bytes, version

if TYPE_CHECKING:
    import ray.data

CSV_COLUMNS = ("start_time", "speaker_label", "transcript")
_CLOCK = re.compile(r"^\s*\[?(?:(\d+):)?(\d+):(\d+(?:[.,]\d+)?)\]?\s*$")


def list_transcripts(sources: Sequence[str]) -> list[Input]:
    """Files, folders and globs -> one input a clip; a clip in a .jsonl file is named `file#line`.

    Raises:
        UserError: a source without a .csv or .jsonl file, or that cannot be reached.
    """
    found: dict[str, Input] = {}
    for source in sources:
        filesystem, path = locate(source)
        prefix = "" if is_local(source) else source.partition("://")[0] + "://"
        try:
            names = filesystem.find(path) if filesystem.isdir(path) else filesystem.glob(path)
            names = [n for n in names if PurePosixPath(n).suffix.lower() in (".csv", ".jsonl")]
            infos = {name: filesystem.info(name) for name in names}
        except Exception as error:  # botocore and OS errors of many kinds, all meaning: cannot be listed
            raise UserError(f"source '{source}': cannot be reached: {str(error).splitlines()[0]}") from error
        if not names:
            raise UserError(f"source '{source}': no .csv or .jsonl transcript there")
        for name in names:
            uri, tag = prefix + name, version(infos[name])
            if name.lower().endswith(".csv"):
                found[uri] = Input(uri, tag)
                continue
            lines = read_bytes(uri).decode(errors="replace").splitlines()
            found.update(
                {f"{uri}#{n}": Input(f"{uri}#{n}", tag) for n, line in enumerate(lines, start=1) if line.strip()}
            )
    return [found[uri] for uri in sorted(found)]


def parse_csv(data: bytes) -> list[Row]:
    """A published-format CSV -> turns. Rows without words are left out.

    Raises:
        ClipError: not text, a column is missing, a time is not one, or no row has words.
    """
    csv.field_size_limit(sys.maxsize)  # a stray quote can make one field of half a file
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ClipError(f"not a CSV in UTF-8: {error}") from error
    missing = [column for column in CSV_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ClipError(f"no column {', '.join(missing)} (it has: {', '.join(reader.fieldnames or ()) or 'none'})")
    entries = []
    for number, row in enumerate(rows, start=2):
        if (row["transcript"] or "").strip():
            start_s = parse_time(row["start_time"] or "", f"line {number}")
            entries.append({"speaker": row["speaker_label"], "text": row["transcript"], "start_s": start_s})
    return make_turns(entries)


def parse_json(line: str) -> list[Row]:
    """One line of JSON -> turns.

    Raises:
        ClipError: not JSON, or no `turns` with `speaker` and `text`.
    """
    try:
        turns = json.loads(line)["turns"]
        return make_turns([t for t in turns if str(t["text"]).strip()])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ClipError('not a transcript: expected {"turns": [{"speaker": ..., "text": ...}]}') from error


def parse_time(text: str, where: str) -> float:
    """'75.2', '01:15' or '00:01:15.2' -> seconds.

    Raises:
        ClipError: it is none of these.
    """
    clock = _CLOCK.match(text)
    if clock:
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    try:
        return float(text)
    except ValueError:
        raise ClipError(f"{where}: start_time {text!r} is not a time (75.2, 01:15 or 00:01:15.2)") from None


def make_turns(entries: Sequence[dict[str, Any]]) -> list[Row]:
    """Entries with speaker, text and perhaps start_s, end_s -> TURN rows; what only speech could tell is null.

    Raises:
        ClipError: no entry.
    """
    if not entries:
        raise ClipError("no turn has words")
    starts = [e.get("start_s") for e in entries] + [None]
    return [
        {
            "turn_id": i,
            "start_s": starts[i],
            "end_s": entry.get("end_s", starts[i + 1]),
            "speaker": str(entry["speaker"] or "?").strip(),
            "role": None,
            "text": str(entry["text"]).strip(),
            "words": [],
            "overlap_share": None,
            "assignment_margin": None,
            "asr_confidence": None,
        }
        for i, entry in enumerate(entries)
    ]


def import_transcripts(seeds: ray.data.Dataset, run: Run) -> ray.data.Dataset:
    """Stage 'import': rows with a `uri` -> rows with `clip_id` (of the content) and `turns`."""
    return seeds.map_batches(
        partial(_import, stage=run.stage("import")), batch_size=1, batch_format="pyarrow", num_cpus=0.1
    )


def _import(table: pa.Table, stage: Stage) -> pa.Table:
    rows: list[Row] = []
    for row in table.to_pylist(maps_as_pydicts="strict"):
        rows.append(row if row["clip_id"] else _import_one(row, stage))  # it has an id: an earlier run imported it
    return stage.apply(to_table(rows), lambda row: {})


def _import_one(row: Row, stage: Stage) -> Row:
    try:
        content, turns = _read(row["uri"])
    except ClipError as error:
        failed = {**row, "clip_id": hashlib.sha256(row["uri"].encode()).hexdigest()[:32]}
        return stage.record(failed, error, 0.0)
    clip_id = hashlib.sha256(content).hexdigest()[:32]
    if not stage.ledger.claim(clip_id, row["uri"]):
        return {**row, "clip_id": clip_id, "status": "duplicate"}
    return {**row, "clip_id": clip_id, "turns": turns, "duration_s": turns[-1]["end_s"] or turns[-1]["start_s"]}


def _read(uri: str) -> tuple[bytes, list[Row]]:
    file, _, line = uri.partition("#")
    try:
        data = read_bytes(file)
    except OSError as error:
        raise ClipError(f"cannot be read: {error}") from error
    if not line:
        return data, parse_csv(data)
    text = data.decode(errors="replace").splitlines()[int(line) - 1]
    return text.encode(), parse_json(text)
