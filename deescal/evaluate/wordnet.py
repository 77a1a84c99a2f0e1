"""WordNet for METEOR: found where set-up puts it or where NLTK's own downloader does, or an error that says how."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deescal.errors import UserError
from deescal.models import cache_folder

if TYPE_CHECKING:
    from nltk.corpus import WordNetCorpusReader


def load_wordnet() -> WordNetCorpusReader:
    """WordNet 3.0, loaded once a process (a second, 70 MB).

    Raises:
        UserError: it is not on this machine.
    """
    return _load(cache_folder() / "nltk_data")


@lru_cache(maxsize=1)
def _load(folder: Path) -> WordNetCorpusReader:
    import nltk
    from nltk.corpus import WordNetCorpusReader

    class EnglishReader(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """The map to other languages takes most of the time and memory of loading, and METEOR is English here."""

    if str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))  # NLTK reads below its data path only
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):  # as set up, as NLTK's downloader leaves it
        try:
            root = nltk.data.find(name)
        except LookupError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that other languages are missing
            return EnglishReader(root, None)
    raise UserError(
        "METEOR needs WordNet, which is not on this machine: run `bash scripts/wordnet.sh` or "
        "`python -m nltk.downloader wordnet`, or leave meteor out of the metrics"
    )
