"""WordNet and Punkt are found where they lie, or the error says how to get them."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from deescal.errors import UserError
from deescal.evaluate.nltk_data import load_wordnet
from deescal.models import cache_folder

SET_UP = cache_folder() / "nltk_data" / "corpora" / "wordnet"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without NLTK's data; returns where set-up would put it."""
    import nltk

    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path))
    monkeypatch.setattr(nltk.data, "path", [])
    return tmp_path / "nltk_data"


def test_its_absence_says_how_to_get_it(nowhere: Path) -> None:
    with pytest.raises(
        UserError, match=r"WordNet.*bash scripts/nltk_data\.sh.*nltk\.downloader wordnet punkt_tab"
    ) as error:
        load_wordnet()
    assert "\n" not in str(error.value)


def test_it_is_found_zipped_as_nltk_leaves_it(nowhere: Path) -> None:
    if not SET_UP.is_dir():
        pytest.skip("no WordNet: bash scripts/nltk_data.sh")
    (nowhere / "corpora").mkdir(parents=True)
    with zipfile.ZipFile(nowhere / "corpora" / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/", "")
        for file in SET_UP.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    with pytest.raises(UserError, match=r"METEOR needs Punkt"):
        load_wordnet()
    shutil.copytree(SET_UP.parents[1] / "tokenizers", nowhere / "tokenizers")
    assert load_wordnet().get_version() == "3.0"


def test_what_set_up_brings_is_whole() -> None:
    if not SET_UP.is_dir():
        pytest.skip("no WordNet: bash scripts/nltk_data.sh")
    reader = load_wordnet()
    synonyms = {name for synset in reader.synsets("car") for name in synset.lemma_names()}
    assert {"auto", "automobile", "machine"} <= synonyms
    assert reader.synsets("dog")[0].lexname() == "noun.animal"
    assert reader.synsets("participating")[0].lexname() == "verb.social"
