"""The judge: thirty features of a transcript, each with a probability, a verdict, and the turns that show it.

A transcript is read in windows that fit the model; a feature of the clip is its maximum over them, but for
the features that say something is missing, which must hold in every window. Each window is asked thirty
one-word questions after a shared beginning (see prompts.py); nothing the model says has to be parsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from deescal.config import Config
from deescal.judge import evidence as evidence_of
from deescal.judge import prompts
from deescal.judge.calibration import Calibration
from deescal.judge.llm import Llm
from deescal.judge.taxonomy import BY_GROUP, FEATURES, NAMES
from deescal.judge.windows import windows

Turn = Mapping[str, Any]  # at least turn_id, speaker, role, text
Share = Annotated[float, Field(ge=0, le=1)]

# True of a clip only when true of all its parts: an intro without police does not make a clip without police.
ABSENCES = ("no_police_presence", "no_conversation_detected", "non_relevant_crime_only_context")


class JudgeConfig(Config):
    """How transcripts are cut and answers become verdicts."""

    window_tokens: int = Field(default=1500, ge=32)  # of transcript in one prompt
    overlap_turns: int = Field(default=4, ge=0)  # shared by neighbouring windows
    calibration: str | None = None  # a file of `bench/judge.py calibrate`; null: the packaged one; "none": raw answers
    thresholds: Mapping[str, Share] = Field(default_factory=dict)  # feature -> present from this probability on
    max_evidence: int = Field(default=3, ge=1)  # turns named per feature
    evidence_candidates: int = Field(default=6, ge=1)  # turns the model is asked about where no phrase tells


def answers(parts: Sequence[Sequence[Turn]], engine: Llm) -> np.ndarray:
    """Log-odds of yes against no: (windows, features). One question per window first, which computes its prefix."""
    system = prompts.system()
    heads = [prompts.head(part) for part in parts]
    asked = [[engine.render(system, head + prompts.ask(f)) for f in FEATURES] for head in heads]
    first = engine.choose([row[0] for row in asked], prompts.ANSWERS)
    rest = engine.choose([prompt for row in asked for prompt in row[1:]], prompts.ANSWERS)
    odds = np.concatenate([first[:, None, :], rest.reshape(len(parts), len(FEATURES) - 1, 2)], axis=1)
    return odds[..., 0] - odds[..., 1]


def judge(
    clips: Sequence[Sequence[Turn]], engine: Llm, config: JudgeConfig, calibration: Calibration
) -> list[tuple[list[dict[str, Any]], dict[str, int]]]:
    """Transcripts (turns with roles) -> (features as schema.FEATURE in order of NAMES, scores by group), in order."""
    cut = [windows(turns, config.window_tokens, config.overlap_turns, engine.count_tokens) for turns in clips]
    flat = [part for parts in cut for part in parts]
    raw = answers(flat, engine)
    by_window = [calibration.probabilities(row, part) for row, part in zip(raw, flat, strict=True)]
    results = []
    for turns, parts in zip(clips, cut, strict=True):
        own, by_window = np.array(by_window[: len(parts)]), by_window[len(parts) :]
        probability = merge(own)
        present = probability >= calibration.thresholds
        shown = evidence_of.find(
            turns,
            [n for n, yes in zip(NAMES, present, strict=True) if yes],
            engine,
            config.max_evidence,
            config.evidence_candidates,
            config.window_tokens,
        )
        features = [
            {"name": n, "probability": float(p), "present": bool(yes), "evidence": shown.get(n, [])}
            for n, p, yes in zip(NAMES, probability, present, strict=True)
        ]
        results.append((features, group_scores(features)))
    return results


def merge(by_window: np.ndarray) -> np.ndarray:
    """(windows, features) -> (features,): the maximum, or for ABSENCES the minimum."""
    absence = np.isin(NAMES, ABSENCES)
    return np.where(absence, by_window.min(axis=0), by_window.max(axis=0))


def group_scores(features: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Group -> number of its features present."""
    there = {f["name"] for f in features if f["present"]}
    return {group: sum(name in there for name in names) for group, names in BY_GROUP.items()}
