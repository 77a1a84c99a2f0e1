"""A judge's model without a model: it answers the same prompts from key words, deterministically and at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from deescal.judge import prompts
from deescal.judge.cues import hits
from deescal.judge.roles import ROLES, rule_prior
from deescal.judge.taxonomy import FEATURES

_LINE = re.compile(r"^\[\d+\] (\w+) ([A-Z]+): (.*)$", re.MULTILINE)
_SPOKEN = re.compile(r"^([A-Z]+): (.*)$", re.MULTILINE)


class FakeLlm:
    """Interface of `deescal.judge.llm.VllmEngine`; a token is a word. Counts its calls in `asked`."""

    def __init__(self, config: Any = None) -> None:
        self.config = config
        self.asked: list[str] = []

    def render(self, system: str, user: str, answer_prefix: str = "") -> str:
        return f"<system>{system}</system>\n{user}\n<answer>{answer_prefix}"

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        self.asked += prompts
        answer = _role if tuple(choices) == ROLES else _yes
        table = np.log(np.array([answer(prompt) for prompt in prompts]).reshape(len(prompts), len(choices)))
        return table - 0.1  # some probability is left for other tokens


def _role(prompt: str) -> list[float]:
    user = prompt.split("</system>")[1]
    letter = re.search(r"role of speaker ([A-Z]+)\?", user)[1]  # type: ignore[index]
    turns = [{"speaker": s, "text": t} for s, t in _SPOKEN.findall(user)]
    return [rule_prior(turns)[letter][role] + 1e-6 for role in ROLES]


def _yes(prompt: str) -> list[float]:
    user = prompt.split("</system>")[1]
    turns = [{"role": r.lower(), "speaker": s, "text": t} for r, s, t in _LINE.findall(user)]
    for feature in FEATURES:
        if user.split("\n<answer>")[0].endswith(prompts.ask(feature)):
            p = 0.95 if _shows(feature.name, turns) else 0.05
            return [p, 1 - p]
    return [0.5, 0.5]  # a question about a single line


def _shows(name: str, turns: list[dict[str, str]]) -> bool:
    roles = {t["role"] for t in turns}
    police = bool(roles & {"officer", "dispatcher"})
    several = len({t["speaker"] for t in turns}) > 1
    if name == "police_identified_by_role":
        return police
    if name == "no_police_presence":
        return not police
    if name == "conversation_present":
        return several
    if name == "no_conversation_detected":
        return not several
    if name == "non_relevant_crime_only_context" and police:
        return False
    return sum(hits(name, t) for t in turns) >= (2 if name == "training_range_context" else 1)
