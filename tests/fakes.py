"""Engines that need no weights, behind the production interfaces: fast, deterministic, and of known output.

The fake conversation: an officer ("A") and a driver ("B") speak in turns of two seconds, as long as the clip is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deescal.errors import ClipError
from tests.judge.fake_llm import FakeLlm

SAMPLE_RATE_HZ = 16_000
TURN_S = 2.0
LINES = (
    "Officer Lane with the city police please step out of the car.",
    "No I am not getting out what did I do.",
    "You are being detained sir I stopped you for speeding let me explain.",
    "You are lying and I am so angry right now.",
    "I understand take a breath may I see your license please.",
    "Okay I will come out here is my license.",
)


class FakeTranscriber:
    """Reads the lines above over the length of the audio; silence has no speech."""

    def __init__(self, config: object) -> None:
        self.config = config

    def transcribe(self, samples: np.ndarray) -> dict:
        _maybe_die("transcribe")
        if not np.any(np.abs(samples) > 1e-3):
            raise ClipError("no speech found")
        duration_s = len(samples) / SAMPLE_RATE_HZ
        words = []
        for turn in range(max(1, int(duration_s // TURN_S))):
            texts = LINES[turn % len(LINES)].split()
            step_s = (TURN_S - 0.2) / len(texts)
            for i, text in enumerate(texts):
                start_s = turn * TURN_S + i * step_s
                words.append({"start_s": start_s, "end_s": start_s + step_s, "text": text, "probability": 0.9})
        return {
            "language": "en",
            "language_probability": 1.0,
            "words": words,
            "speech_s": duration_s,
            "covered_share": 1.0,
            "redecoded_s": 0.0,
            "dropped_text": [],
        }


class FakeDiarizer:
    """Speakers A and B in turns of two seconds."""

    def __init__(self, config: object) -> None:
        self.config = config

    def diarize(self, samples: np.ndarray) -> dict:
        _maybe_die("diarize")
        duration_s = len(samples) / SAMPLE_RATE_HZ
        spans = [
            {"start_s": i * TURN_S, "end_s": min((i + 1) * TURN_S, duration_s), "speaker": "AB"[i % 2]}
            for i in range(max(1, int(duration_s // TURN_S)))
        ]
        return {"speaker_spans": spans, "exclusive_spans": spans}


class MortalLlm(FakeLlm):
    """The judge's fake, which can be killed like the others."""

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        _maybe_die("judge")
        return super().choose(prompts, choices)


def _maybe_die(stage: str) -> None:
    """With DEESCAL_TEST_DIE=<stage>:<marker file>, the first call after the marker appears kills its worker, once.

    A marker file that is read-only (mode 0o444) is never used up: the clip is poison.
    """
    spec = os.environ.get("DEESCAL_TEST_DIE", "")
    if not spec.startswith(stage + ":"):
        return
    marker = Path(spec.partition(":")[2])
    if marker.exists():
        if os.stat(marker).st_mode & 0o200:
            marker.unlink()
        time.sleep(0.1)
        os.kill(os.getpid(), 9)
