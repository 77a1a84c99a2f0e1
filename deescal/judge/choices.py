"""An answer that is one of a few words, by the probability of its first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def first_tokens(tokenizer: Any, choices: Sequence[str]) -> list[set[int]]:
    """The tokens that each choice may begin with, in its spellings ("yes", " Yes", "YES", ...).

    Raises:
        ValueError: two choices begin with the same token, so one token cannot tell them apart.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    groups = []
    for choice in choices:
        spellings = {s for c in (choice, choice.capitalize(), choice.upper()) for s in (c, f" {c}")}
        encoded = [encode(s) for s in spellings]
        whole = {e[0] for e in encoded if len(e) == 1}
        groups.append(whole or {encode(choice)[0], encode(f" {choice}")[0]})
    for i, group in enumerate(groups):
        for other in groups[i + 1 :]:
            if group & other:
                raise ValueError(f"choices {tuple(choices)} share a first token")
    return groups


def choice_logprobs(logprobs: Mapping[int, Any], groups: Sequence[Sequence[int]]) -> list[float]:
    """Of vLLM's log-probabilities of the answer's first token: each choice's, the sum over its spellings."""
    return [float(np.logaddexp.reduce([logprobs[int(i)].logprob for i in group])) for group in groups]
