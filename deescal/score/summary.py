"""What a scoring run came to, from its answers: counts, errors by cause, tokens, speed, latency, cache."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from deescal.schema import Row


def summarize(answers: Sequence[Row]) -> dict[str, Any]:
    """ANSWERS, one a request -> the summary of run.json; a figure that the answers do not tell is None.

    `busy_s` are the seconds in which any answer was awaited, over all invocations: speed is per these.
    """
    good = [a for a in answers if a["error"] is None]
    timed = [a for a in answers if a["asked_at_s"] is not None and a["latency_s"] is not None]
    busy_s = covered_s((a["asked_at_s"], a["asked_at_s"] + a["latency_s"]) for a in timed)
    prompt, cached, completion = (
        _total(good, name) for name in ("n_prompt_tokens", "n_cached_tokens", "n_completion_tokens")
    )
    latencies = [a["latency_s"] for a in good if a["latency_s"] is not None]
    return {
        "requests": len(answers),
        "answered": len(good),
        "errors": dict(Counter(cause(a["error"]) for a in answers if a["error"] is not None).most_common()),
        "finish_reasons": dict(Counter(a["finish_reason"] for a in good if a["finish_reason"]).most_common()),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": completion,
        "cache_hit_share": cached / prompt if prompt and cached is not None else None,
        "busy_s": busy_s,
        "completion_tokens_per_s": completion / busy_s if completion is not None and busy_s else None,
        "requests_per_s": len(good) / busy_s if busy_s else None,
        "latency_p50_s": float(np.percentile(latencies, 50)) if latencies else None,
        "latency_p95_s": float(np.percentile(latencies, 95)) if latencies else None,
    }


def cause(error: str) -> str:
    """An error without its numbers, so that errors of one kind are counted together."""
    return re.sub(r"\d+(?:[.,]\d+)*", "N", error)[:120]


def covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that at least one of the spans (start, end) covers."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _total(answers: Sequence[Mapping[str, Any]], column: str) -> int | None:
    """None where an answer does not say."""
    values = [a[column] for a in answers]
    return sum(values) if values and None not in values else None
