"""A run's folder: one Parquet file a clip, written whole or not at all, so that any kill leaves a sound table.

<out>/clips/<clip_id>.parquet   a finished clip; the name makes it exist exactly once
<out>/names/<hash of URI>.json  which clip an input turned out to be, until `settle` puts the name into its row
<out>/audio/<clip_id>.flac      16 kHz mono
<out>/job.json                  sources, config and fingerprints, written first; what --resume needs
<out>/run.json                  counts, versions and times, written last: its presence says complete
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from deescal.curate.plan import NAME, names
from deescal.schema import CLIPS, Row, to_table
from deescal.stage import digest
from deescal.storage import exists, join, locate, read_json, read_table, write_json, write_table

INDEX_COLUMNS = ["clip_id", "uri", "source_version", "aliases", "source", "status", "failed_stage", "stages"]
_AT_ONCE = 16

T = TypeVar("T")


def clip_uri(out: str, clip_id: str) -> str:
    return join(out, "clips", f"{clip_id}.parquet")


def write_clip(out: str, row: Row) -> None:
    write_table(clip_uri(out, row["clip_id"]), to_table([row]))


def list_clips(out: str) -> list[str]:
    """The files of a run's clips, in order of clip_id."""
    return _list(out, "clips", ".parquet")


def read_uri(uri: str, columns: Sequence[str] | None = None) -> Row:
    """The row in the file of a clip.

    Args:
        columns: the columns to decode; all of CLIPS when None.
    """
    table = read_table(uri, columns)
    wanted = pa.schema([CLIPS.field(name) for name in columns]) if columns else CLIPS
    return table.cast(wanted).to_pylist(maps_as_pydicts="strict")[0]


def read_clip(out: str, clip_id: str) -> Row:
    """The row of a clip.

    Raises:
        FileNotFoundError: the run has none.
    """
    return read_uri(clip_uri(out, clip_id))


def finish_clip(out: str, row: Row) -> None:
    """Store a finished row, or what is known of a duplicate: its name.

    The name is written first, so that after a kill between the two the next `settle` still knows which row an input
    belongs to. A row that takes the place of another keeps its names: they are inputs of this run too.
    """
    file = digest(row["uri"].encode())
    write_json(join(out, "names", f"{file}.json"), {key: row[key] for key in ("clip_id", *NAME)})
    if row["status"] == "duplicate":
        return
    if exists(clip_uri(out, row["clip_id"])):
        known = {n["uri"]: _plain(n) for old in (read_clip(out, row["clip_id"]), row) for n in names(old)}
        row = {**row, "aliases": [name for uri, name in known.items() if uri != row["uri"]]}
    write_clip(out, row)


def is_settled(out: str) -> bool:
    """Whether no run is under way at `out`, and none was cut off."""
    return not _list(out, "names", ".json")


def read_clips(out: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """All rows of a run in order of clip_id, a few in memory at a time.

    Args:
        columns: the columns to read; all of CLIPS when None.
    """
    yield from _parallel(lambda uri: read_uri(uri, columns), list_clips(out))


def read_index(out: str) -> list[Row]:
    """The columns that planning needs, of every row."""
    return list(read_clips(out, INDEX_COLUMNS))


def settle(out: str, sources: Mapping[str, Mapping[str, str]] | None = None) -> list[Row]:
    """Give every name to exactly one row, and return the index as it then is.

    Names found to be the same content go into the row's `aliases`; the alphabetically first name is its `uri`,
    so that the table does not depend on which copy was met first. A name whose content changed leaves its old
    row, and a row without names goes. Safe to repeat after a kill.

    Args:
        sources: URI -> the columns of its manifest as they are now.
    """
    files = _list(out, "names", ".json")
    index = read_index(out)
    stored = {row["clip_id"] for row in index}
    # What was found last counts. A record whose clip was never written was cut off: the input is still to do.
    found = {record["uri"]: record for record in _parallel(read_json, files) if record["clip_id"] in stored}
    by_clip: dict[str, list[Row]] = {}
    for record in found.values():
        by_clip.setdefault(record["clip_id"], []).append(record)
    settled = []
    for row in index:
        clip_id = row["clip_id"]
        known = [*names(row), *by_clip.get(clip_id, [])]
        mine = {n["uri"]: _plain(n) for n in known if found.get(n["uri"], row)["clip_id"] == clip_id}
        if not mine:
            forget(clip_uri(out, clip_id))
            continue
        for uri, name in mine.items():
            name["source"] = dict((sources or {}).get(uri) or name["source"] or {})
        first, *others = (mine[uri] for uri in sorted(mine))
        update = {**first, "aliases": others}
        if any(row[key] != value for key, value in update.items()):
            write_clip(out, {**read_clip(out, clip_id), **update})
        settled.append({**row, **update})
    for _ in _parallel(forget, files):
        pass
    return settled


def _plain(name: Row) -> Row:
    return {key: name[key] for key in NAME}


def _parallel(read: Callable[[str], T], uris: Sequence[str]) -> Iterator[T]:
    """In order, a few at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(uris), 256):
            yield from pool.map(read, uris[start : start + 256])


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
