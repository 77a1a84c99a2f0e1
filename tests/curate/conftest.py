from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deescal.curate.config import CurateConfig

FAST = {
    "transcribe": {
        "engine": "tests.fakes:FakeTranscriber",
        "model": "fake/asr",
        "resources": {"num_cpus": 0.5, "memory_gib": 0.1},
    },
    "diarize": {
        "engine": "tests.fakes:FakeDiarizer",
        "pipeline": "fake/diarizer",
        "resources": {"num_cpus": 0.5, "memory_gib": 0.1},
    },
    "interpret": {
        "engine": "tests.fakes:MortalLlm",
        "llm": {"model": "fake/llm"},
        "judge": {"calibration": "none"},
        "resources": {"num_cpus": 0.5, "memory_gib": 0.1},
    },
    "ray": {"num_cpus": 4, "object_store_gib": 0.2},
}


@pytest.fixture
def fast_config() -> CurateConfig:
    """All stages with fake engines."""
    return CurateConfig.model_validate(FAST)


def write_wav(path: Path, seconds: float, seed: int) -> Path:
    """Noise of a seed: every seed is another content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 2000, int(seconds * 16_000)).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def make_clips(tmp_path: Path) -> Callable[[int], Path]:
    """n distinct clips of 12 s, the first also under another name, and one that is no media."""

    def make(n: int) -> Path:
        folder = tmp_path / "clips"
        for i in range(n):
            write_wav(folder / f"clip{i:03d}.wav", 12.0, i)
        (folder / "copy_of_000.wav").write_bytes((folder / "clip000.wav").read_bytes())
        (folder / "broken.mp4").write_text("not a video")
        return folder

    return make


@pytest.fixture
def ray_here() -> Iterator[None]:
    """Whatever Ray a test starts is stopped after it."""
    import ray

    yield
    ray.shutdown()


def comparable(rows) -> list[dict]:
    """Rows without what may differ between two right runs: seconds, and how often something was tried."""
    return [
        {
            **{key: value for key, value in row.items() if key not in ("stages", "attempts")},
            "stages": [(s["stage"], s["fingerprint"]) for s in row["stages"]],
        }
        for row in rows
    ]
