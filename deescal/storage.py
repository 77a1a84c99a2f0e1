"""Files by URI: a local path, `file://` or `s3://`, the same calls for all of them.

S3 takes its key, secret and endpoint from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, AWS_REGION), never from a config.
"""

from __future__ import annotations

import json
import os
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from deescal.errors import UserError


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
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=1) + "\n").encode())


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def exists(uri: str) -> bool:
    filesystem, path = locate(uri)
    return filesystem.exists(path)


def version(info: dict[str, Any]) -> str:
    """What tells whether a file changed, from its listing: the ETag, else size and modification time."""
    if info.get("ETag"):
        return str(info["ETag"]).strip('"')
    return f"{info['size']}-{info.get('mtime', 0)}"
