"""Sources on the command line -> the list of inputs, without reading a byte of media."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from deescal.errors import UserError, one_line
from deescal.storage import STORAGE_ERRORS, is_local, join, locate, parse_table, read_bytes, version

# fmt: off
MEDIA_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp",
    ".mp3", ".m4a", ".aac", ".wav", ".flac", ".ogg", ".opus",
})
# fmt: on
MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})


@dataclass(frozen=True)
class Input:
    """One video or recording to curate."""

    uri: str  # absolute
    version: str | None  # None where the file could not be found: it will become a failed row
    extra: dict[str, str] = field(default_factory=dict)  # other columns of its manifest


def list_inputs(sources: Sequence[str]) -> list[Input]:
    """Files, folders, globs, `s3://` prefixes and manifests -> inputs, each URI once, in order of URI.

    A folder or prefix is searched to any depth for media by file name; a file named outright is taken
    whatever its name. A manifest (.csv, .jsonl, .parquet) has a column `uri`; relative ones are relative to
    the manifest, and its other columns are carried through, whether or not another source names the file, too.

    Raises:
        UserError: a source that does not exist, holds no media, or cannot be reached; a manifest without `uri`, with
            a row that does not fit its columns, or that says of a file what another one contradicts.
    """
    found: dict[str, Input] = {}
    for source in sources:
        for item in _expand(source):
            known = found.get(item.uri)
            if known and known.extra and item.extra and known.extra != item.extra:
                raise UserError(f"source '{source}': '{item.uri}' was named before with other columns: {known.extra}")
            if known is None or item.extra:
                found[item.uri] = item
    return [found[uri] for uri in sorted(found)]


def _expand(source: str) -> Iterator[Input]:
    filesystem, path = locate(source)
    prefix = "" if is_local(source) else source.partition("://")[0] + "://"
    try:
        if any(character in path for character in "*?[") and not filesystem.exists(path):
            files = {p: i for p, i in filesystem.glob(path, detail=True).items() if i["type"] == "file"}
            if not files:
                raise UserError(f"source '{source}': the pattern matches no file")
        elif filesystem.isfile(path):
            if PurePosixPath(path).suffix.lower() in MANIFEST_SUFFIXES:
                yield from _manifest(source)
                return
            files = {path: filesystem.info(path)}
        elif filesystem.isdir(path):
            listing = filesystem.find(path, detail=True)
            files = {p: i for p, i in listing.items() if PurePosixPath(p).suffix.lower() in MEDIA_SUFFIXES}
            if not files:
                raise UserError(
                    f"source '{source}': no media among its {len(listing)} files (by name: .mp4, .mkv, ...)"
                )
        else:
            raise UserError(f"source '{source}': no such file, folder or prefix")
    except STORAGE_ERRORS as error:
        raise UserError(f"source '{source}': cannot be reached: {one_line(error)}") from error
    for name, info in files.items():
        yield Input(prefix + name, version(info))


def _manifest(source: str) -> Iterator[Input]:
    rows = read_rows(source)
    if not rows:
        raise UserError(f"manifest '{source}': no rows")
    if "uri" not in rows[0]:
        raise UserError(f"manifest '{source}': no column 'uri' (it has: {', '.join(rows[0])})")
    folder = source.rpartition("/")[0] or "."
    for number, row in enumerate(rows, start=1):
        if not row.get("uri"):
            raise UserError(f"manifest '{source}': row {number} has no uri")
        uri = str(row["uri"])
        if is_local(uri) and not uri.startswith(("/", "file://")):
            uri = join(folder, uri)
        filesystem, path = locate(uri)
        uri = path if is_local(uri) else uri
        try:
            known: str | None = version(filesystem.info(path))
        except (OSError, ValueError):  # missing or forbidden; a server that cannot be reached is not of this row
            known = None
        extra = {key: _as_text(value) for key, value in row.items() if key != "uri" and value is not None}
        yield Input(uri, known, extra)


def read_rows(uri: str) -> list[dict[str, Any]]:
    """Rows of a .csv, .jsonl or .parquet file as dictionaries.

    Raises:
        UserError: the file cannot be read as what its name says.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    try:
        data = read_bytes(uri)
        if suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in data.split(b"\n") if line.strip()]
        else:
            rows = parse_table(data).to_pylist()
    except Exception as error:  # decoding, JSON, CSV, Arrow: all mean the same to the user
        raise UserError(f"'{uri}': cannot be read as {suffix}: {one_line(error)}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"'{uri}': row {number} is not a JSON object")
        if None in row:  # where csv puts what has no column
            raise UserError(f"'{uri}': row {number} has more fields than columns (a comma outside quotes?)")
    return rows


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode(errors="replace").decode()  # half of a surrogate pair, which JSON can spell, is no character
