"""Files by URI: a local path, `file://` or `s3://`, the same calls for all of them.

S3 takes its key, secret and endpoint from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION), never from a config.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import fsspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError

from deescal.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# What any call below may raise: missing, forbidden, unreachable. Anything else is a bug.
STORAGE_ERRORS = (OSError, BotoCoreError, ClientError, HttpError)


@lru_cache
def _filesystem(scheme: str) -> fsspec.AbstractFileSystem:
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        return fsspec.filesystem("s3", endpoint_url=endpoint, use_listings_cache=False)
    return fsspec.filesystem(scheme)


def locate(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """URI -> its file system and the path within it.

    Raises:
        UserError: a scheme other than file and s3.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _filesystem("file"), os.path.abspath(uri)
    if scheme == "file":
        return _filesystem("file"), os.path.abspath(rest)
    if scheme == "s3":
        return _filesystem("s3"), rest
    raise UserError(f"{uri}: scheme '{scheme}' is not known (allowed: a path, file://, s3://)")


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The same place whatever the working directory becomes: local paths from the root, others as they are."""
    return locate(uri)[1] if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def resolve(folder: str, reference: str) -> str:
    """A reference relative to a folder -> its URI; an absolute one stays."""
    return reference if reference.startswith("/") or "://" in reference else join(folder, reference)


def read_bytes(uri: str) -> bytes:
    filesystem, path = locate(uri)
    return filesystem.cat_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write so that a reader sees the whole new file or the old one, never a part, even after kill -9.

    An object store's PUT is atomic; on a local disk it is a temporary file beside it, then a rename.
    """
    filesystem, path = locate(uri)
    if not is_local(uri):
        filesystem.pipe_file(path, data)
        return
    with writing(uri) as file:
        file.write(data)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=1) + "\n").encode())


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file; only the given columns, where they are given."""
    return parse_table(read_bytes(uri), columns)


def parse_table(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file's bytes. Raises: ArrowInvalid: it is none, or a column is not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not pq.read_table: threads of its scanner outlive it, and of processes that gave it bytes every second aborted at
    # the end ("terminate called without an active exception", pyarrow 26).
    file = pq.ParquetFile(pa.BufferReader(content))
    if missing := [name for name in columns or () if name not in file.schema_arrow.names]:
        raise pa.ArrowInvalid(f"no column {', '.join(missing)}")
    return file.read(list(columns) if columns else None)


def write_table(uri: str, table: pa.Table) -> None:
    """A Parquet file, whole or not at all; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(uri, buffer.getvalue())


@contextmanager
def writing(uri: str) -> Iterator[IO[bytes]]:
    """A file to write piece by piece; it appears whole when the block ends, and not at all when it raises."""
    filesystem, path = locate(uri)
    if not is_local(uri):
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            filesystem.put_file(file.name, path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_folder(uri: str) -> None:
    """Delete a folder or prefix with all in it; one that is not there is no error."""
    filesystem, path = locate(uri)
    with suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)


def put_folder(folder: str, uri: str) -> None:
    """Copy a local folder to a path or s3:// prefix, in place of what is there."""
    filesystem, path = locate(uri)
    remove_folder(uri)
    filesystem.put(f"{folder.rstrip('/')}/", path, recursive=True)


def get_folder(uri: str, folder: str) -> None:
    """Copy a path or s3:// prefix to a local folder that is not there yet."""
    filesystem, path = locate(uri)
    filesystem.get(f"{path}/", folder, recursive=True)


def exists(uri: str) -> bool:
    filesystem, path = locate(uri)
    return filesystem.exists(path)


def version(info: dict[str, Any]) -> str:
    """What tells whether a file changed, from its listing: the ETag, else size and modification time."""
    if info.get("ETag"):
        return str(info["ETag"]).strip('"')
    return f"{info['size']}-{info.get('mtime', 0)}"
