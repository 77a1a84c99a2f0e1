"""What a fine-tune came to: the few numbers that its page, its run.json and the table of a sweep show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deescal.schema import Row
from deescal.train.tracking import Metrics

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 9999
CONFIDENCE = 0.95


def outcome(
    metrics: Metrics, validation: Sequence[Row] = (), parity: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The dict that run.json keeps as `result`; every value can be written as JSON.

    Args:
        metrics: of the run.
        validation: a held-out scenario each: scenario_id, n_target_tokens, base_nll and tuned_nll (nats, summed over
            its target tokens).
        parity: of the export: good, reason.

    Returns:
        steps, epochs, tokens, target_tokens, seconds, tokens_per_s and target_tokens_per_s (over all seconds, steps
            that were repeated included), peak_memory_gib, mfu (median of the rows), restarts, repeated_steps;
        best_step: the step with the lowest validation loss;
        base_loss, tuned_loss: nats a target token, over the scenarios, or as the run measured them where none are
            given;
        scenarios: as `compare_scenarios` gives it, or None;
        export: {good, reason}, or None.
    """
    last = metrics.training[-1] if metrics.training else {}
    best, base = metrics.best, metrics.base
    scenarios = compare_scenarios(validation)
    seconds = last.get("seconds") or 0.0
    return {
        "steps": last.get("step", 0),
        "epochs": last.get("epoch", 0.0),
        "tokens": last.get("tokens", 0),
        "target_tokens": last.get("target_tokens", 0),
        "seconds": seconds,
        "tokens_per_s": last["tokens"] / seconds if seconds else None,
        "target_tokens_per_s": last["target_tokens"] / seconds if seconds else None,
        "peak_memory_gib": max(_known(metrics, "memory_gib"), default=None),
        "mfu": _median(_known(metrics, "mfu")),
        "restarts": len(metrics.restarts),
        "repeated_steps": sum(restart.repeated for restart in metrics.restarts),
        "best_step": best["step"] if best else None,
        "base_loss": scenarios["base"]["estimate"] if scenarios else base and base["validation_loss"],
        "tuned_loss": scenarios["tuned"]["estimate"] if scenarios else best and best["validation_loss"],
        "scenarios": scenarios,
        "export": {"good": parity["good"], "reason": parity["reason"]} if parity else None,
    }


def compare_scenarios(validation: Sequence[Row]) -> dict[str, Any] | None:
    """Base against tuned on held-out scenarios: {n, better, base, tuned, change}; None without any target token.

    `better` counts the scenarios whose loss fell. The other three are means over target tokens, in nats, each
    {estimate, low, high, reason}: a 95 % percentile bootstrap interval over scenarios, which are what was sampled, not
    tokens (Efron & Tibshirani 1993, chapter 13); low and high are None, and `reason` says why, where there is none.
    """
    import numpy as np

    rows = [row for row in validation if row["n_target_tokens"] > 0]
    if not rows:
        return None
    tokens = np.array([row["n_target_tokens"] for row in rows], dtype=float)
    base = np.array([row["base_nll"] for row in rows], dtype=float)
    tuned = np.array([row["tuned_nll"] for row in rows], dtype=float)
    return {
        "n": len(rows),
        "better": int((tuned < base).sum()),
        "base": _interval(base, tokens),
        "tuned": _interval(tuned, tokens),
        "change": _interval(tuned - base, tokens),
    }


def _interval(nll: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    from scipy.stats import bootstrap

    def mean(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
        return nll.sum(axis=axis) / tokens.sum(axis=axis)

    estimate = float(mean(nll, tokens))
    if len(nll) < 2:
        return {"estimate": estimate, "low": None, "high": None, "reason": "fewer than two scenarios"}
    # Percentiles rather than BCa, which has no answer where all scenarios are alike, as when nothing was learnt.
    found = bootstrap(
        (nll, tokens),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,  # bounds the memory
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    ).confidence_interval
    return {"estimate": estimate, "low": float(found.low), "high": float(found.high), "reason": None}


def _known(metrics: Metrics, name: str) -> list[float]:
    return [row[name] for row in metrics.training if row.get(name) is not None]


def _median(values: Sequence[float]) -> float | None:
    from statistics import median

    return median(values) if values else None
