"""What comparing needs of one scenario: a sample of its words by hash, and its title's.

Every word shingle whose hash lies under a limit is kept: the mod-m sketch of Broder, "On the resemblance and
containment of documents", 1997; FracMinHash in Irber et al., "Lightweight compositional analysis of metagenomes with
FracMinHash", 2022. Unlike the k minima of MinHash, it answers for containment as well as for similarity when one text
is much longer than the other: `docs/splits.md`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
from pydantic import Field

from deescal.config import Config

if TYPE_CHECKING:
    import numpy as np

N_HASHES = 2**32


class DedupConfig(Config):
    """How scenarios are compared. The defaults were measured on the published corpus: `docs/splits.md`."""

    shingle_words: int = Field(default=3, ge=1)
    sample_every: int = Field(default=4, ge=1)  # one shingle in so many is kept
    min_sample: int = Field(default=128, ge=1)  # but so many at least, where the text has them
    min_matches: int = Field(default=8, ge=1)  # sampled shingles two texts must share to be linked at all
    duplicate_share: float = Field(default=0.58, gt=0, le=1)  # of the shorter text's shingles that the other has
    near_jaccard: float = Field(default=0.4, gt=0, le=1)  # a duplicate is 'near' from here on, an excerpt below
    overlap_share: float = Field(default=0.2, gt=0, le=1)  # of the shorter text's specific shingles
    max_spread: int = Field(default=5, ge=1)  # shingles in more clusters are boilerplate (sponsors, legal formulas)
    max_same_title: int = Field(default=50, ge=2)  # a title of more scenarios is a programme's name, not an incident's
    seed: int = 0


SIGNATURE = pa.schema(
    {
        "text_hash": pa.binary(),  # of all words in order; null without words
        "n_shingles": pa.int64(),  # distinct ones of the whole text
        "limit": pa.int64(),  # every shingle whose hash is smaller is in `shingles`
        "shingles": pa.binary(),  # little-endian uint32, ascending
        "title_hash": pa.binary(),  # of `incident_title`; null where there is none
    }
)


@dataclass(frozen=True)
class Signature:
    """What comparing needs of a scenario; its fields are the columns of `SIGNATURE`. Holds hashes, no words."""

    text_hash: bytes | None
    n_shingles: int
    limit: int
    shingles: bytes
    title_hash: bytes | None = None


def signature(texts: Sequence[str], title: str, config: DedupConfig) -> Signature:
    """The turns' texts in order (before redaction) and the title -> signature.

    Speakers, turn boundaries, case and punctuation make no difference.
    """
    import numpy as np

    words = _words(" ".join(texts))
    hashes = _shingle_hashes(words, config)
    limit = N_HASHES // config.sample_every
    if np.searchsorted(hashes, limit) < config.min_sample:
        limit = int(hashes[config.min_sample - 1]) + 1 if len(hashes) >= config.min_sample else N_HASHES
    key = incident_title(title)
    return Signature(
        text_hash=_digest(" ".join(words), config.seed, 16) if words else None,
        n_shingles=len(hashes),
        limit=limit,
        shingles=hashes[: np.searchsorted(hashes, limit)].astype("<u4").tobytes(),
        title_hash=_digest(key, config.seed, 8) if key else None,
    )


# Chinese and Japanese are written without spaces: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("\u2019", ""))


def _digest(text: str, seed: int, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size, key=str(seed).encode()).digest()


@lru_cache(maxsize=2**17)
def _word_hash(word: str, seed: int) -> int:
    return int.from_bytes(_digest(word, seed, 8), "little")


def _shingle_hashes(words: Sequence[str], config: DedupConfig) -> np.ndarray:
    """Distinct 32-bit hashes of all runs of `shingle_words` words, ascending, as uint64."""
    import numpy as np

    n = len(words) - config.shingle_words + 1
    if n < 1:
        return np.zeros(0, dtype=np.uint64)
    each = np.array([_word_hash(word, config.seed) for word in words], dtype=np.uint64)
    mixed = np.zeros(n, dtype=np.uint64)
    for offset in range(config.shingle_words):  # the finalizer of SplitMix64 after each word: order counts
        mixed = (mixed ^ each[offset : offset + n]) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.unique(mixed >> np.uint64(32))


_PREFIX = re.compile(r"^([a-z]+)_(\d+)(?:_|$)", re.IGNORECASE)  # platform and number: 'tiktok_1025_...'
_HASH = re.compile(r"_[0-9a-f]{8}$")
_PART = re.compile(
    r"(?:^|(?<=[\W_]))(?:part|pt|p)[\W_]*(?:\d{1,2}|[ivx]{1,4}|one|two|three|four|five)(?=[\W_]|$)|\(\d{1,2}/\d{1,2}\)",
    re.IGNORECASE,
)
_GENERIC = re.compile(  # also as the beginning of a hashtag
    r"arrest|body|cam|clip|cop|dash|drunk|dui|episode|footage|foryou|fyp|full|img|interrogat|officer|police"
    r"|shorts|stop|tiktok|traffic|unedited|vid|youtube"
)
_MIN_LETTERS, _MIN_WORDS = 10, 3  # of a title that names an incident, generic words not counted


def incident_title(title: str) -> str | None:
    """Title or file name -> what titles of one incident share, or None where it does not name one.

    Platform, number, trailing hash and part marker are stripped. What is left counts when it is distinctive:
    three words (two beside a part marker) and ten letters that are not generic. Where a part marker has less
    beside it, the parts that one platform has under one number (on TikTok: the day) go together.
    """
    stem = re.sub(r"\.\w{2,4}$", "", title.strip())
    prefix = _PREFIX.match(stem)
    platform, number = (prefix[1].casefold(), prefix[2]) if prefix else ("", "")
    body = _HASH.sub("", stem[prefix.end() :] if prefix else stem)
    has_part = _PART.search(body) is not None
    words = _words(re.sub(r"[\W_]+", " ", _PART.sub(" ", body)))
    telling = [w for w in words if not _GENERIC.match(w) and not any(c.isdigit() for c in w)]
    if len(telling) >= _MIN_WORDS - has_part and sum(map(len, telling)) >= _MIN_LETTERS:
        return " ".join([platform, *words])
    # Titles are cut short: a last word of a letter or two is no word.
    return " ".join([platform, number, "part", *(w for w in telling if len(w) > 2)]) if has_part and number else None
