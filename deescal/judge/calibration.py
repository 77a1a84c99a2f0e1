"""From the model's thirty raw answers to calibrated probabilities.

A small model says yes too readily, and differently for each question; so each feature's probability is a
logistic regression on all thirty answers (log-odds of yes against no), on the counts of the features' cues,
and on who talks how much. Its weights come with the package (`calibration.json`), fitted by `bench/judge.py`
for one model and one version of the prompts. Any other judge needs a calibration of its own; without one, which has
to be asked for ("none"), a feature has its raw probability and is present from 0.5 on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deescal.errors import UserError
from deescal.judge.cues import SHAPE_NAMES, counts, shape
from deescal.judge.cues import VERSION as CUES_VERSION
from deescal.judge.prompts import PROMPT_VERSION
from deescal.judge.taxonomy import NAMES

PACKAGED = Path(__file__).with_name("calibration.json")
INPUTS = (
    tuple(f"answer:{n}" for n in NAMES) + tuple(f"cue:{n}" for n in NAMES) + tuple(f"shape:{n}" for n in SHAPE_NAMES)
)


@dataclass(frozen=True)
class Calibration:
    """Weights on INPUTS, (features, inputs), and what makes a feature present. `fitted` is False for the fallback."""

    weights: np.ndarray
    bias: np.ndarray  # (features,)
    thresholds: np.ndarray  # (features,), of the probability
    fitted: bool
    digest: str  # part of the stage's fingerprint

    def probabilities(self, answers: Sequence[float], turns: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Log-odds of the thirty answers and the turns (with roles) they are about -> (features,) in 0..1."""
        logits = self.weights @ inputs(answers, turns) + self.bias
        return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def inputs(answers: Sequence[float], turns: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The vector that the weights apply to, in order of INPUTS."""
    return np.asarray([*np.clip(answers, -10, 10), *counts(turns), *shape(turns)], dtype=float)


def uncalibrated() -> Calibration:
    """The raw probability of yes, at 0.5."""
    n = len(NAMES)
    return Calibration(np.eye(n, len(INPUTS)), np.zeros(n), np.full(n, 0.5), False, "none")


def load(model_identity: str, path: str | None = None, overrides: Mapping[str, float] | None = None) -> Calibration:
    """The calibration for this model; thresholds may be overridden by feature name.

    Args:
        path: a file written by `bench/judge.py calibrate`, "none" for no calibration, None for the packaged one.

    Raises:
        UserError: the file is missing, does not fit this model or these prompts, or an override is no feature.
    """
    overrides = overrides or {}
    if unknown := sorted(set(overrides) - set(NAMES)):
        raise UserError(f"judge.thresholds: unknown feature '{unknown[0]}' (allowed: {', '.join(NAMES)})")
    found = uncalibrated()
    if path != "none":
        file = PACKAGED if path is None else Path(path)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise UserError(f"judge.calibration {file}: {error.strerror}") from error
        try:
            data = json.loads(raw)
            problem = _mismatch(data, model_identity)
            if problem is None:
                found = _parse(data, hashlib.sha256(raw).hexdigest()[:12])
        except (KeyError, TypeError, ValueError) as error:  # ValueError: neither JSON nor UTF-8, or no numbers
            raise UserError(
                f"judge.calibration {file}: no calibration, as `bench/judge.py calibrate` writes it"
            ) from error
        if problem is not None and path is not None:
            raise UserError(f"judge.calibration {file}: {problem}")
        if problem is not None:
            raise UserError(
                f"judge.calibration: the packaged one does not fit ({problem}); fit one with `bench/judge.py calibrate`"
                " (docs/judge.md), or set interpret.judge.calibration=none for raw answers, which mean little"
            )
    thresholds = found.thresholds.copy()
    for name, value in overrides.items():
        thresholds[NAMES.index(name)] = value
    return Calibration(found.weights, found.bias, thresholds, found.fitted, found.digest)


def _mismatch(data: Mapping[str, Any], model_identity: str) -> str | None:
    if data["model"] != model_identity:
        return f"it was fitted for {data['model']}, the judge is {model_identity}"
    if data["prompt_version"] != PROMPT_VERSION:
        return f"it was fitted for prompts {data['prompt_version']}, these are {PROMPT_VERSION}"
    if data["cues_version"] != CUES_VERSION:
        return f"it was fitted for cues {data['cues_version']}, these are {CUES_VERSION}"
    if data["inputs"] != list(INPUTS) or list(data["features"]) != list(NAMES):
        return "it was fitted for other inputs or features"
    return None


def _parse(data: Mapping[str, Any], digest: str) -> Calibration:
    rows = [data["features"][name] for name in NAMES]
    weights = np.array([r["weights"] for r in rows], dtype=float)
    if weights.shape != (len(NAMES), len(INPUTS)):
        raise ValueError(f"weights of shape {weights.shape}")
    return Calibration(
        weights,
        np.array([r["bias"] for r in rows], dtype=float),
        np.array([r["threshold"] for r in rows], dtype=float),
        True,
        digest,
    )
