"""A run's folder: one Parquet file a clip, written whole or not at all, so that any kill leaves a sound table.

<out>/clips/<clip_id>.parquet   a finished clip; the name makes it exist exactly once
<out>/aliases/<hash>.json       another name of a clip, until `settle` puts it into the clip's row
<out>/audio/<clip_id>.flac      16 kHz mono
<out>/job.json                  sources, config and fingerprints, written first; what --resume needs
<out>/run.json                  counts, versions and times, written last: its presence says complete
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from deescal.curate.plan import names
from deescal.schema import CLIPS, Row, to_table
from deescal.storage import exists, join, locate, read_bytes, read_json, resolve, write_bytes, write_json

INDEX_COLUMNS = ["clip_id", "uri", "source_version", "aliases", "source", "status", "failed_stage", "stages"]
_PARALLEL_READS = 16


def clip_uri(out: str, clip_id: str) -> str:
    return join(out, "clips", f"{clip_id}.parquet")


def write_clip(out: str, row: Row) -> None:
    buffer = io.BytesIO()
    pq.write_table(to_table([row]), buffer, compression="zstd")
    write_bytes(clip_uri(out, row["clip_id"]), buffer.getvalue())


def read_clip(out: str, clip_id: str, origin: str | None = None) -> Row:
    """The row of a clip in a run; where it is not there yet, from the run it starts from.

    Raises:
        FileNotFoundError: neither has it.
    """
    if origin is None or origin == out or exists(clip_uri(out, clip_id)):
        return _read(clip_uri(out, clip_id), None)
    row = _read(clip_uri(origin, clip_id), None)
    return {**row, "audio": row["audio"] and resolve(origin, row["audio"])}  # the sound stays where it is


def write_alias(out: str, row: Row) -> None:
    """Remember that `row["uri"]` is another name of the content `row["clip_id"]`."""
    record = {key: row[key] for key in ("clip_id", "uri", "source_version", "source")}
    name = hashlib.sha256(row["uri"].encode()).hexdigest()[:32]
    write_json(join(out, "aliases", f"{name}.json"), record)


def read_clips(out: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """All rows of a run in order of clip_id, a few in memory at a time.

    Args:
        columns: the columns to read; all of CLIPS when None.
    """
    files = _list(out, "clips", ".parquet")
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for start in range(0, len(files), 256):
            yield from pool.map(lambda uri: _read(uri, columns), files[start : start + 256])


def read_index(out: str) -> list[Row]:
    """The columns that planning needs, of every row."""
    return list(read_clips(out, INDEX_COLUMNS))


def settle(out: str, fresh: Mapping[str, str]) -> list[Row]:
    """Give every name to exactly one row, and return the index as it then is.

    Names found to be the same content go into the row's `aliases`; the alphabetically first name is its `uri`,
    so that the table does not depend on which copy was met first. A name whose content changed leaves its old
    row, and a row without names goes. Safe to repeat after a kill.

    Args:
        fresh: URI -> clip_id, as found in this run; these override what older rows say.
    """
    alias_files = _list(out, "aliases", ".json")
    records = [read_json(uri) for uri in alias_files]
    found: dict[str, list[Row]] = {}
    for record in records:
        found.setdefault(record["clip_id"], []).append(record)
    settled = []
    for row in read_index(out):
        clip_id = row["clip_id"]
        known = [*names(row), *found.get(clip_id, [])]
        by_uri = {n["uri"]: n for n in known if fresh.get(n["uri"], clip_id) == clip_id}
        if not by_uri:
            forget(clip_uri(out, clip_id))
            continue
        first, *others = (by_uri[uri] for uri in sorted(by_uri))
        update = {
            **{key: first[key] for key in ("uri", "source_version", "source")},
            "aliases": [{key: o[key] for key in ("uri", "source_version", "source")} for o in others],
        }
        if any(row[key] != value for key, value in update.items()):
            write_clip(out, {**read_clip(out, clip_id), **update})
        settled.append({**row, **update})
    for uri in alias_files:
        forget(uri)
    return settled


def _read(uri: str, columns: Sequence[str] | None) -> Row:
    table = pq.read_table(io.BytesIO(read_bytes(uri)), columns=columns)
    wanted = pa.schema([CLIPS.field(name) for name in columns]) if columns else CLIPS
    return table.cast(wanted).to_pylist(maps_as_pydicts="strict")[0]


def _list(out: str, folder: str, suffix: str) -> list[str]:
    filesystem, path = locate(join(out, folder))
    try:
        names = [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)]
    except FileNotFoundError:
        return []
    return [join(out, folder, name) for name in sorted(names) if name.endswith(suffix) and not name.startswith(".")]


def forget(uri: str) -> None:
    """Delete a file; one that is not there is no error."""
    filesystem, path = locate(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)
