"""Archives of transcripts -> folders, since workers cannot read the members of a compressed archive at random."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, Self

from deescal.errors import UserError, one_line
from deescal.ingest.transcripts import SUFFIXES
from deescal.storage import (
    STORAGE_ERRORS,
    exists,
    join,
    locate,
    read_bytes,
    read_json,
    version,
    write_bytes,
    write_json,
)

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")
_DAMAGED = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error)


def unpack_archives(sources: Sequence[str], folder_uri: str) -> list[str]:
    """Sources with every archive replaced by a folder `<folder_uri>/<its name>` that holds its .csv and .jsonl files.

    What was unpacked already is left as it is, and members that are gone from a changed archive are deleted.

    Raises:
        UserError: an archive that is damaged, cannot be reached, holds no transcript, has the name of another one, or
            has a member that would land outside the folder.
    """
    folders: dict[str, str] = {}
    places = []
    for source in sources:
        stem = _stem(source)
        if stem is None:
            places.append(source)
            continue
        if folders.setdefault(stem, source) != source:
            raise UserError(f"archives '{folders[stem]}' and '{source}': both would be unpacked as '{stem}'")
        places.append(join(folder_uri, stem))
        try:
            _unpack(source, places[-1])
        except _DAMAGED as error:
            raise UserError(f"archive '{source}': damaged: {one_line(error)}") from error
        except STORAGE_ERRORS as error:
            raise UserError(f"archive '{source}': cannot be unpacked to '{places[-1]}': {one_line(error)}") from error
    return places


def _stem(source: str) -> str | None:
    name = source.rstrip("/").rpartition("/")[2]
    suffix = max((s for s in ARCHIVES if name.lower().endswith(s)), key=len, default=None)
    stem = name[: -len(suffix)] if suffix else ""
    return stem if stem.strip(".") else None


def _unpack(source: str, folder: str) -> None:
    """Write what is not there; the note of what it came from goes last, so that it says complete."""
    filesystem, path = locate(source)
    note, origin = join(folder, "archive.json"), {"archive": source, "version": version(filesystem.info(path))}
    if exists(note) and read_json(note) == origin:
        return
    target, root = locate(folder)
    old = {name for name in target.find(root) if name.lower().endswith(SUFFIXES)} if target.exists(root) else set()
    new = set()
    with filesystem.open(path, "rb") as file:
        for member, content in _members(file, source):
            uri = join(folder, member)
            new.add(locate(uri)[1])
            if locate(uri)[1] not in old or read_bytes(uri) != content:  # an unchanged file keeps its version
                write_bytes(uri, content)
    if not new:
        raise UserError(f"archive '{source}': no .csv or .jsonl file in it")
    for name in old - new:
        target.rm_file(name)
    write_json(note, origin)


class _Member(tarfile.TarInfo):
    """A member of an archive that must not end before its end mark; tarfile takes a cut one for complete."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise EOFError("it is cut off")
        return super().frombuf(buf, encoding, errors)


def _members(file: BinaryIO, source: str) -> Iterator[tuple[str, bytes]]:
    """Relative path and content of every transcript, in one pass."""
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.name.lower().endswith(SUFFIXES):
                continue
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"archive '{source}': member '{member.name}' would land outside its folder")
            content = archive.extractfile(member)
            assert content is not None  # of a file it never is
            yield str(path), content.read()
