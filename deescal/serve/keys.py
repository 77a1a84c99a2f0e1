"""Who may ask, and how often: API keys, of which only digests are kept, and a token bucket for each.

Keys come from the environment or a file, never from a config or an argument; no error, log or repr tells one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from deescal.errors import UserError, one_line
from deescal.storage import STORAGE_ERRORS, read_bytes

VARIABLE = "DEESCAL_API_KEYS"
MIN_LENGTH = 16  # characters; 16 random letters and digits have 95 bits
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class KeyRing:
    """Names of keys and the SHA-256 of each, which a replica replaces when the file does; false where there is none."""

    digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def match(self, header: str | None) -> str | None:
        """An Authorization header, `Bearer KEY` -> the key's name; None where it is no key of ours.

        Compares digests, all of them: how long it takes tells nothing about any key.
        """
        scheme, _, key = (header or "").strip().partition(" ")
        given = _digest(key.strip())
        found = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def read_keys(file: str | None = None) -> KeyRing:
    """Keys of DEESCAL_API_KEYS (`name:key` or a bare key, by commas or lines) and of a file (one a line, `#` comments).

    A bare key has no name but its place, `key-2`.

    Raises:
        UserError: the file cannot be read or has no key; a key is short, twice there or holds characters that a
            header cannot; two have one name. The message has the place of the key, never the key.
    """
    digests: dict[str, bytes] = {}
    _add(digests, re.split(r"[,\n]", os.environ.get(VARIABLE, "")), VARIABLE, "entry")
    if file is not None:
        try:
            lines = read_bytes(file).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"keys {file}: not text in UTF-8") from error
        except STORAGE_ERRORS as error:
            raise UserError(f"keys {file}: {getattr(error, 'strerror', None) or one_line(error)}") from error
        before = len(digests)
        _add(digests, ("" if line.lstrip().startswith("#") else line for line in lines), f"keys {file}", "line")
        if len(digests) == before:  # else whoever meant to protect an endpoint would have opened it
            raise UserError(f"keys {file}: no key in it")
    return KeyRing(digests)


def _add(digests: dict[str, bytes], entries: Iterable[str], source: str, unit: str) -> None:
    for number, entry in enumerate(entries, start=1):
        if not entry.strip():
            continue
        where = f"{source}, {unit} {number}"
        first, colon, second = (part.strip() for part in entry.strip().partition(":"))
        name, key = (first, second) if colon else (f"key-{len(digests) + 1}", first)
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: a key's name has letters, digits, '.', '-' and '_' only, 1 to 64 of them")
        if len(key) < MIN_LENGTH:
            raise UserError(f"{where}: a key of {len(key)} characters, it must have {MIN_LENGTH} at least")
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError(f"{where}: a key has visible ASCII characters only, and no space")
        if name in digests:
            raise UserError(f"{where}: a second key named '{name}'")
        if _digest(key) in digests.values():
            raise UserError(f"{where}: the same key as another entry")
        digests[name] = _digest(key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class RateLimit:
    """A token bucket for each name: `burst` requests at once, then `per_minute`. Of this process only."""

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_minute / 60, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> requests left, when

    def take(self, name: str) -> float:
        """Take one request's worth: 0.0, or the seconds until there is one, and nothing was taken."""
        now = self._clock()
        left, then = self._buckets.get(name, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[name] = (left - 1 if wait_s == 0 else left, now)
        return wait_s
