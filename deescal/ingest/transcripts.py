"""Transcripts made elsewhere (see `formats`) -> rows of the CLIPS table with their turns filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa

from deescal.errors import ClipError, UserError, one_line
from deescal.ingest.formats import parse_csv, parse_json
from deescal.ingest.sources import Input
from deescal.schema import Row, to_table
from deescal.stage import Run, Stage, digest
from deescal.storage import STORAGE_ERRORS, is_local, locate, read_bytes, version

if TYPE_CHECKING:
    import ray.data

SUFFIXES = (".csv", ".jsonl")
PLATFORMS = ("youtube", "tiktok", "facebook", "instagram", "x", "twitter", "vimeo", "rumble")
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_LINE = re.compile(r"(.+\.jsonl)#(\d+)", re.IGNORECASE | re.DOTALL)  # a clip in a .jsonl file


def list_transcripts(sources: Sequence[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Input]:
    """Files, folders and globs -> one input a clip; a clip in a .jsonl file is named `file#line`.

    What a file's name and folder tell is carried in `extra`: `platform` (youtube_1.csv), and `official_split` (train,
    validation or test, by the folder it lies in).

    Args:
        suffixes: of the files that are taken, of those in SUFFIXES.

    Raises:
        UserError: a source without such a file, or that cannot be reached.
    """
    found: dict[str, Input] = {}
    for source in sources:
        try:
            items = [item for uri, tag in _list(source, suffixes) for item in _inputs(uri, tag)]
        except STORAGE_ERRORS as error:
            raise UserError(f"source '{source}': cannot be reached: {one_line(error)}") from error
        if not items:
            raise UserError(f"source '{source}': no {' or '.join(suffixes)} transcript there")
        found.update((item.uri, item) for item in items)
    return [found[uri] for uri in sorted(found)]


def _list(source: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """URI and version of every transcript file."""
    filesystem, path = locate(source)
    prefix = "" if is_local(source) else source.partition("://")[0] + "://"
    if filesystem.isdir(path):
        infos = filesystem.find(path, detail=True)
    elif filesystem.exists(path):
        infos = {path: filesystem.info(path)}
    else:
        infos = filesystem.glob(path, detail=True)
    return [(prefix + name, version(info)) for name, info in infos.items() if name.lower().endswith(suffixes)]


def _inputs(uri: str, tag: str) -> list[Input]:
    extra = _named(PurePosixPath(uri))
    if uri.lower().endswith(".csv"):
        return [Input(uri, tag, extra)]
    lines = read_bytes(uri).split(b"\n")
    return [Input(f"{uri}#{n}", tag, extra) for n, line in enumerate(lines, start=1) if line.strip()]


def _named(path: PurePosixPath) -> dict[str, str]:
    """What the names of the file and of its folder tell."""
    platform, separator, _ = path.name.lower().replace("-", "_").partition("_")
    split = SPLITS.get(path.parent.name.lower())
    extra = {"platform": platform} if separator and platform in PLATFORMS else {}
    return {**extra, "official_split": split} if split else extra


def import_transcripts(seeds: ray.data.Dataset, run: Run, accept: bool = False) -> ray.data.Dataset:
    """Stage 'import': rows with a `uri` -> rows with `clip_id` (of the content), `turns` and `oddities`.

    Args:
        seeds: rows under way.
        run: the run they belong to.
        accept: the rows are finished with this stage: accepted as published, without being judged.
    """
    batch = partial(_import, stage=run.stage("import"), accept=accept)
    return seeds.map_batches(batch, batch_size=1, batch_format="pyarrow", num_cpus=0.5)


def _import(table: pa.Table, stage: Stage, accept: bool) -> pa.Table:
    rows = table.to_pylist(maps_as_pydicts="strict")

    def fetch(row: Row) -> tuple[str, bytes]:
        content = _read(row["uri"], row["source_version"])
        return digest(content), content

    contents = stage.identify(rows, fetch)

    def process(row: Row) -> Row:
        content = contents[row["clip_id"]]
        if isinstance(content, ClipError):
            raise content
        parsed = parse_json(content) if _LINE.fullmatch(row["uri"]) else parse_csv(content)
        times = [t for turn in parsed.turns for t in (turn["start_s"], turn["end_s"]) if t is not None]
        filled = {"turns": parsed.turns, "oddities": parsed.oddities, "duration_s": max(times, default=None)}
        return {**filled, "status": "accepted", "reason": "as published"} if accept else filled

    return stage.apply(to_table(rows), process)


def _read(uri: str, tag: str | None) -> bytes:
    """The content of a clip: a file, or a line of one."""
    line = _LINE.fullmatch(uri)
    try:
        if line is None:
            return read_bytes(uri)
        return _lines(line[1], tag)[int(line[2]) - 1]
    except FileNotFoundError:
        raise ClipError("file not found") from None
    except STORAGE_ERRORS as error:
        raise ClipError(f"cannot be read: {one_line(error)}") from error
    except IndexError:
        raise ClipError("the file has no such line any more") from None


@lru_cache(maxsize=1)  # a worker takes the lines of a file one after another
def _lines(uri: str, tag: str | None) -> list[bytes]:
    return read_bytes(uri).split(b"\n")
