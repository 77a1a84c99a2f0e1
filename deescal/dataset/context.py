"""Scenario context and civilian character, written by the judge's model: structured, short, from the beginning only.

A reply must not be foretold by the prompt it is trained or tested with, so the model reads the opening of a scenario,
never its end, and at most half of it. It reads redacted turns, so it cannot repeat a name. What it writes is marked
as generated: in the columns' documentation and on the dataset card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from deescal.config import Config, ImportPath, fingerprint, load_engine
from deescal.engine import LlmConfig

Turn = Mapping[str, Any]  # DIALOGUE, redacted


class Generator(Protocol):
    """What is needed of a model; `deescal.judge.llm.VllmEngine` has it."""

    def render(self, system: str, user: str, answer_prefix: str = "") -> str: ...
    def count_tokens(self, text: str) -> int: ...
    def generate(
        self, prompts: Sequence[str], *, max_tokens: int, json_schema: dict[str, Any] | None = None
    ) -> list[str]: ...


class ContextConfig(Config):
    """Off by default: it costs a model call a scenario."""

    enabled: bool = False
    llm: LlmConfig = LlmConfig()
    engine: ImportPath = "deescal.judge.llm:VllmEngine"
    opening_civilian_turns: int = Field(default=6, ge=1)  # the opening ends with this civilian turn
    opening_tokens: int = Field(default=1500, ge=50)  # and holds no more than this
    answer_tokens: int = Field(default=320, ge=50)

    def models(self) -> list[str]:
        return [self.llm.model] if self.enabled else []


@dataclass(frozen=True)
class Generated:
    """What a model wrote of one scenario; null where its answer could not be used."""

    context: str | None
    character: str | None


PLACES = (
    "roadside",
    "street or public space",
    "home",
    "shop or business",
    "school or office",
    "police station or jail",
    "hospital",
    "phone call",
    "unknown",
)
EMOTIONS = ("calm", "nervous", "afraid", "confused", "annoyed", "angry", "distressed", "intoxicated", "unclear")
TEMPERAMENTS = ("cooperative", "polite but firm", "talkative", "evasive", "argumentative", "hostile", "unclear")
_SENTENCE = {"type": "string", "minLength": 3, "maxLength": 160}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"enum": list(PLACES)},
        "reason_of_contact": _SENTENCE,
        "stakes": _SENTENCE,
        "emotional_state": {"enum": list(EMOTIONS)},
        "temperament": {"enum": list(TEMPERAMENTS)},
        "goal": _SENTENCE,
        "way_of_speaking": _SENTENCE,
    },
    "required": ["place", "reason_of_contact", "stakes", "emotional_state", "temperament", "goal", "way_of_speaking"],
    "additionalProperties": False,
}

SYSTEM = (
    "You brief an actor who will play the civilian in an encounter with the police. You are given only the beginning "
    "of the transcript. Describe the situation as it stands at the beginning. Never say or guess what happens later "
    "or how it ends. Use only what the lines show, no names, and one short sentence for each text."
)
QUESTION = (
    "Answer in JSON. place: where it is. reason_of_contact: why the police talk to the civilian. stakes: what could "
    "go wrong for the civilian. emotional_state, temperament: of the civilian at the beginning. goal: what the "
    "civilian wants. way_of_speaking: how the civilian talks."
)
PROMPT_VERSION = fingerprint(SYSTEM, QUESTION, SCHEMA)


class ContextWriter:
    """A worker's model, loaded once."""

    def __init__(self, config: ContextConfig) -> None:
        self._config = config
        self._llm = load_engine(config.engine)(config.llm)

    def __call__(self, scenarios: Sequence[Sequence[Turn]]) -> list[Generated]:
        """The turns of each scenario, redacted -> what the model wrote of each, in order."""
        return write_contexts(scenarios, self._llm, self._config)


def write_contexts(scenarios: Sequence[Sequence[Turn]], llm: Generator, config: ContextConfig) -> list[Generated]:
    """All scenarios in one call of the model; one without a civilian in its opening is not asked about."""
    openings = [opening(turns, llm, config) for turns in scenarios]
    asked = [i for i, lines in enumerate(openings) if any(line.startswith("Civilian") for line in lines)]
    prompts = [llm.render(SYSTEM, "Transcript:\n" + "\n".join(openings[i]) + f"\n\n{QUESTION}") for i in asked]
    answers = llm.generate(prompts, max_tokens=config.answer_tokens, json_schema=SCHEMA) if prompts else []
    written = [Generated(None, None) for _ in scenarios]
    for i, answer in zip(asked, answers, strict=True):
        written[i] = parse(answer)
    return written


def opening(turns: Sequence[Turn], llm: Generator, config: ContextConfig) -> list[str]:
    """The first lines, 'Officer: ...', up to a number of civilian turns and of tokens, and at most half of all."""
    lines: list[str] = []
    civilian = tokens = 0
    for turn in turns[: (len(turns) + 1) // 2]:
        line = f"{(turn['role'] or 'other').capitalize()}: {turn['text']}"
        tokens += llm.count_tokens(line) + 1
        civilian += turn["role"] == "civilian"
        if tokens > config.opening_tokens:
            break
        lines.append(line)
        if civilian == config.opening_civilian_turns:
            break
    return lines


def parse(answer: str) -> Generated:
    """The model's JSON -> two short texts; nulls where it broke off or says nothing."""
    try:
        said = json.loads(answer)
        context = _join(
            ("Place", said["place"]),
            ("Why the police are there", said["reason_of_contact"]),
            ("Stakes", said["stakes"]),
        )
        character = _join(
            ("Feels", said["emotional_state"]),
            ("Temperament", said["temperament"]),
            ("Wants", said["goal"]),
            ("Speaks", said["way_of_speaking"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return Generated(None, None)
    return Generated(context, character)


def _join(*parts: tuple[str, str]) -> str | None:
    told = [(name, " ".join(text.split()).rstrip(".")) for name, text in parts]
    return " ".join(f"{name}: {text}." for name, text in told if text and text not in ("unknown", "unclear")) or None
