"""What NLTK needs for METEOR: found where set-up or NLTK's own downloader puts it, or an error that says how."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deescal.errors import UserError
from deescal.models import cache_folder

if TYPE_CHECKING:
    from nltk.corpus import WordNetCorpusReader


def load_wordnet() -> WordNetCorpusReader:
    """WordNet 3.0, loaded once a process (a second, 70 MB); `nltk.word_tokenize` then finds its sentences' Punkt, too.

    Raises:
        UserError: one of the two is not on this machine.
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
    # As set up, and as NLTK's downloader leaves it.
    root = _find("corpora/wordnet", "corpora/wordnet.zip/wordnet/")
    punkt = _find("tokenizers/punkt_tab/english")
    if root is None or punkt is None:
        missing = "Punkt" if root else "WordNet"
        raise UserError(
            f"METEOR needs {missing}, which is not on this machine: run `bash scripts/nltk_data.sh` or "
            "`python -m nltk.downloader wordnet punkt_tab`, or leave meteor out of the metrics"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        return EnglishReader(root, None)


def _find(*names: str) -> Any:
    """Where the first of these is below NLTK's data path; None: nowhere."""
    import nltk

    for name in names:
        try:
            return nltk.data.find(name)
        except LookupError:
            continue
    return None
