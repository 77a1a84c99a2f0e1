"""Does selection favour some kind of talk? Accepted against rejected clips, and source against source.

Measures of a clip: words, turns, moving-average type-token ratio (Covington & McFall 2010, window of 50 words;
unlike the plain ratio it does not fall with length), perplexity under a small base model, and feature scores.
Groups are compared by Mann-Whitney's U test and Cliff's delta, its effect size.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deescal.config import Config
from deescal.models import resolve

MATTR_WINDOW = 50
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class BiasConfig(Config):
    """How predictability is measured; perplexity is null where `perplexity_share` leaves a clip out."""

    model: str = "smollm2-135m"  # base model: registry name, folder or hub id
    perplexity_tokens: int = 256  # read from the beginning of a clip
    perplexity_share: float = 0.1  # of all clips, chosen by their id; 0: none, and the model is not loaded


def type_token_ratio(words: Sequence[str]) -> float | None:
    """Different words divided by words, 0..1; None without words."""
    return len(set(words)) / len(words) if words else None


def moving_average_ttr(words: Sequence[str], window: int = MATTR_WINDOW) -> float | None:
    """Mean type-token ratio over all stretches of `window` words; None for fewer words than that."""
    if len(words) < window:
        return None
    counts: Counter[str] = Counter()
    inside: deque[str] = deque()
    total = 0.0
    for word in words:
        inside.append(word)
        counts[word] += 1
        if len(inside) > window:
            left = inside.popleft()
            counts[left] -= 1
            if not counts[left]:
                del counts[left]
        if len(inside) == window:
            total += len(counts) / window
    return total / (len(words) - window + 1)


def measure(texts: Sequence[str], scores: Mapping[str, int] | None = None) -> dict[str, float | None]:
    """A clip's turn texts and feature scores -> its measures (perplexity apart)."""
    words = [w.lower() for text in texts for w in _WORD.findall(text)]
    return {
        "turns": float(len(texts)),
        "words": float(len(words)),
        "words_per_turn": len(words) / len(texts) if texts else None,
        "type_token_ratio": type_token_ratio(words),
        "moving_average_ttr": moving_average_ttr(words),
        **{f"score_{group}": float(score) for group, score in (scores or {}).items()},
    }


def is_sampled(scenario_id: str, share: float) -> bool:
    """Whether a clip is in the sample; depends on its id alone, which is a hash already."""
    return int(scenario_id[:8], 16) / 16**8 < share


class Perplexity:
    """exp of the mean negative log-likelihood a token, under a causal base model."""

    def __init__(self, config: BiasConfig) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = resolve(config.model)
        self._config = config
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        if torch.cuda.is_available():
            self._model.cuda()

    def __call__(self, texts: Sequence[str]) -> float | None:
        """Of the first `perplexity_tokens` tokens of the turns, one a line; None for fewer than two tokens."""
        import torch

        # A token is no longer than its characters: what lies beyond cannot be among the first tokens.
        text = "\n".join(texts)[: 16 * self._config.perplexity_tokens]
        ids = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._config.perplexity_tokens)
        ids = ids["input_ids"].to(self._model.device)
        if ids.shape[1] < 2:
            return None
        with torch.inference_mode():
            return math.exp(self._model(input_ids=ids, labels=ids).loss.item())


def describe(values: Sequence[float]) -> dict[str, float]:
    """n, mean, median and the 10th and 90th percentiles.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    p10, median, p90 = np.percentile(values, (10, 50, 90))
    return {
        "n": len(values),
        "mean": float(np.mean(values)),
        "median": float(median),
        "p10": float(p10),
        "p90": float(p90),
    }


def compare(accepted: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """Two-sided Mann-Whitney p and Cliff's delta (-1..1, above 0 where accepted clips have more); or the reason
    why there is none.
    """
    from scipy.stats import mannwhitneyu

    if min(len(accepted), len(rejected)) < 2:
        return {"p": None, "cliffs_delta": None, "reason": "fewer than two clips in a group"}
    result = mannwhitneyu(accepted, rejected, alternative="two-sided")
    delta = 2 * float(result.statistic) / (len(accepted) * len(rejected)) - 1
    return {"p": float(result.pvalue), "cliffs_delta": delta, "reason": None}


def bias_report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures of all clips -> the section `bias` of stats.json.

    Args:
        rows: a clip each, with `status` (accepted, rejected), `source` and `measures` (name -> number or None).
    """

    def values(chosen: Sequence[Mapping[str, Any]], name: str) -> list[float]:
        return [r["measures"][name] for r in chosen if r["measures"].get(name) is not None]

    def described(chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: describe(found) for name in names if (found := values(chosen, name))}

    names = list(dict.fromkeys(name for r in rows for name in r["measures"]))
    groups = {status: [r for r in rows if r["status"] == status] for status in ("accepted", "rejected")}
    return {
        "groups": {status: described(chosen) for status, chosen in groups.items()},
        "tests": {name: compare(values(groups["accepted"], name), values(groups["rejected"], name)) for name in names},
        "by_source": {
            source: described([r for r in rows if r["source"] == source and r["status"] == "accepted"])
            for source in sorted({r["source"] for r in rows})
        },
    }
