"""Fitting the judge's calibration, for `bench/judge.py`: a logistic regression and a threshold a feature."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from deescal.judge import calibration, cues, prompts
from deescal.judge.taxonomy import NAMES

OWN_SCALE = 3.0  # own answer and own cue may weigh more than the other features' for the same penalty
STRENGTH = 0.1  # inverse of the penalty
FEW = 8  # positives under which a feature only gets its own answer, its own cue and the shape of the talk


def fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (excerpts, INPUTS) and labels (excerpts, features) -> weights (features, INPUTS) and biases."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(axis=0), x.std(axis=0) + 0.1
    z = (x - mean) / scale
    n = len(NAMES)
    weights, bias = np.zeros((n, x.shape[1])), np.zeros(n)
    for j in range(n):
        focus = np.ones(x.shape[1])
        focus[[j, n + j]] = OWN_SCALE
        if y[:, j].sum() < FEW:
            focus[np.setdiff1d(np.arange(2 * n), [j, n + j])] = 0.0
        if len(set(y[:, j])) == 1:  # nothing to learn from: its own answer, around the share seen
            weights[j, j] = 0.5
            bias[j] = np.log((y[:, j].sum() + 0.5) / (len(y) - y[:, j].sum() + 0.5)) - weights[j] @ mean
            continue
        model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(z * focus, y[:, j])
        weights[j] = model.coef_[0] * focus / scale
        bias[j] = model.intercept_[0] - weights[j] @ mean
    return weights, bias


def predict(weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(x @ weights.T + bias)))


def out_of_fold(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability of each excerpt by a fit that has not seen it (10 folds)."""
    probability = np.zeros(y.shape)
    for rest, held_out in folds(len(x)):
        probability[held_out] = predict(*fit(x[rest], y[rest]), x[held_out])
    return probability


def out_of_fold_with_thresholds(
    x: np.ndarray, y: np.ndarray, also_x: np.ndarray, also_y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and thresholds of each excerpt, both chosen as the shipped ones are, but without the excerpt.

    `also` is in every fit.
    """
    probability, thresholds = np.zeros(y.shape), np.zeros(y.shape)
    for rest, held_out in folds(len(x)):
        train_x, train_y = np.vstack([x[rest], also_x]), np.vstack([y[rest], also_y])
        probability[held_out] = predict(*fit(train_x, train_y), x[held_out])
        thresholds[held_out] = best_thresholds(train_y, out_of_fold(train_x, train_y))
    return probability, thresholds


def folds(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ten times (in the fit, held out), as masks."""
    fold = np.random.default_rng(0).permutation(n) % 10
    return [(fold != k, fold == k) for k in range(10)]


def best_thresholds(y: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Per feature the cut with the best kappa, drawn towards the common best one where positives are few."""
    grid = np.arange(0.1, 0.91, 0.02)
    common = max(grid, key=lambda t: kappa(y, probability >= t))
    thresholds = []
    for j in range(y.shape[1]):
        n_positive = int(min(y[:, j].sum(), len(y) - y[:, j].sum()))
        curve = [kappa(y[:, j], probability[:, j] >= t) for t in grid]
        best = grid[int(np.nanargmax(curve))] if n_positive >= FEW else common
        trust = n_positive / (n_positive + 30)
        thresholds.append(trust * best + (1 - trust) * common)
    return np.round(thresholds, 2)


def save(path: Path, model: str, weights: np.ndarray, bias: np.ndarray, thresholds: np.ndarray, note: dict) -> None:
    rows = {
        name: {
            "threshold": float(thresholds[j]),
            "bias": round(float(bias[j]), 4),
            "weights": [round(float(w), 4) for w in weights[j]],
        }
        for j, name in enumerate(NAMES)
    }
    data = {
        "model": model,
        "prompt_version": prompts.PROMPT_VERSION,
        "cues_version": cues.VERSION,
        "fitted_on": note,
        "inputs": list(calibration.INPUTS),
        "features": rows,
    }
    text = json.dumps(data, indent=1)
    path.write_text(_join_numbers(text) + "\n")


def _join_numbers(text: str) -> str:
    """Lists of numbers on one line."""
    return re.sub(r"\[\s*(-?[\d.]+(?:,\s*-?[\d.]+)*)\s*\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)


def auc(y: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC; nan when only one class is there."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, score)) if 0 < y.sum() < len(y) else float("nan")


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two yes/no answers beyond chance; nan when neither ever changes."""
    yes_a, yes_b, agreed = a.mean(), b.mean(), (a == b).mean()
    chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return float((agreed - chance) / (1 - chance)) if chance < 1 else float("nan")
