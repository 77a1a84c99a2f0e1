"""A judge's model without a model: it answers the same prompts from key words, deterministically and at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deescal.judge import prompts
from deescal.judge.cues import hits
from deescal.judge.roles import ROLES
from deescal.judge.taxonomy import FEATURES

_LINE = re.compile(r"^\[\d+\] (\w+) ([A-Z]+): (.*)$", re.MULTILINE)


class FakeLlm:
    """Interface of `deescal.judge.llm.VllmEngine`; a token is a word. Keeps its prompts in `asked`.

    A prompt of more than `max_tokens` is an error, as it is for vLLM beyond max_model_len. Asked about a speaker's
    role it answers with the log-probabilities that `roles` has for the letter, else with even ones, which say nothing.
    """

    def __init__(
        self, config: Any = None, max_tokens: int = 10**9, roles: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        self.config = config
        self.max_tokens = max_tokens
        self.roles = roles or {}
        self.asked: list[str] = []

    def render(self, system: str, user: str) -> str:
        return f"<system>{system}</system>\n{user}\n<answer>"

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        if too_long := [n for n in map(self.count_tokens, prompts) if n > self.max_tokens]:
            raise ValueError(f"a prompt of {too_long[0]} tokens, at most {self.max_tokens} are possible")
        self.asked += prompts
        answer = self._role if tuple(choices) == ROLES else _yes
        table = np.array([answer(prompt) for prompt in prompts]).reshape(len(prompts), len(choices))
        return table - 0.1  # some probability is left for other tokens

    def _role(self, prompt: str) -> Sequence[float]:
        letter = re.search(r"role of speaker ([A-Z]+)\?", prompt)[1]  # type: ignore[index]
        return self.roles.get(letter, [-1.8] * len(ROLES))


def _yes(prompt: str) -> list[float]:
    user = prompt.split("</system>")[1]
    turns = [{"role": r.lower(), "speaker": s, "text": t} for r, s, t in _LINE.findall(user)]
    for feature in FEATURES:
        if user.split("\n<answer>")[0].endswith(prompts.ask(feature)):
            p = 0.95 if _shows(feature.name, turns) else 0.05
            return [math.log(p), math.log(1 - p)]
    return [-0.7, -0.7]  # a question about a single line


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
