"""Rehearsal: a dialogue so far -> the prompt from which the civilian's next reply is generated.

The prompt is built by the code that built the training examples (`deescal.dataset`), so that the model reads what it
was tuned on. Dials of temperament are sentences added to the character; at their middle they add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from deescal.dataset.chat import Message, system_prompt, to_messages
from deescal.dataset.examples import ExamplesConfig, to_lines
from deescal.serve.errors import RequestRefused
from deescal.serve.limits import Limits
from deescal.serve.requests import INT64, Name, Strict, Text, bounded_tokens

LEVELS = ("very low", "low", "neutral", "high", "very high")  # 1 to 5
NEUTRAL = 3
Level = Annotated[int, Field(ge=1, le=5)] | Literal["very low", "low", "neutral", "high", "very high"]

# What a level of a dial adds to the character. docs/rehearse.md shows this table; a test keeps them equal.
DIALS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "agitation": {
            1: "You are completely calm and stay calm.",
            2: "You are fairly calm.",
            4: "You are upset and raise your voice.",
            5: "You are very agitated: you shout, interrupt and cannot keep still.",
        },
        "cooperation": {
            1: "You refuse whatever the officer asks.",
            2: "You argue before you do what the officer asks.",
            4: "You do what the officer asks.",
            5: "You do at once whatever the officer asks.",
        },
        "talkativeness": {
            1: "You answer with a word or two, or not at all.",
            2: "You say little.",
            4: "You talk a lot.",
            5: "You talk without pause and tell more than was asked.",
        },
        "trust": {
            1: "You are sure that the officer means you harm.",
            2: "You distrust the officer.",
            4: "You trust the officer.",
            5: "You trust the officer completely.",
        },
    }
)


def _spoken(text: str) -> str:
    if not text.strip():
        raise ValueError("holds no words")
    return text


Spoken = Annotated[Text, Field(min_length=1), AfterValidator(_spoken)]


class Temperament(Strict):
    """Dials, 1 to 5 or by name; a dial that is not given is neutral."""

    agitation: Level | None = Field(default=None, description=f"expected 1 to 5, or one of: {', '.join(LEVELS)}")
    cooperation: Level | None = Field(default=None, description=f"expected 1 to 5, or one of: {', '.join(LEVELS)}")
    talkativeness: Level | None = Field(default=None, description=f"expected 1 to 5, or one of: {', '.join(LEVELS)}")
    trust: Level | None = Field(default=None, description=f"expected 1 to 5, or one of: {', '.join(LEVELS)}")

    def sentences(self) -> list[str]:
        """What the dials add to the character, in the table's order."""
        said = []
        for dial, by_level in DIALS.items():
            level = getattr(self, dial)
            number = LEVELS.index(level) + 1 if isinstance(level, str) else level or NEUTRAL
            if number != NEUTRAL:
                said.append(by_level[number])
        return said


class RehearseTurn(Strict):
    """Something said."""

    who: Literal["officer", "civilian", "bystander", "dispatcher", "medic", "other"]
    text: Spoken
    speaker: Name | None = None  # tells several of one kind apart


class RehearseRequest(Strict):
    """Body of POST /v1/rehearse."""

    model: Name
    scenario: Text | None = None  # the situation, as the civilian knows it
    character: Text | None = None  # who the civilian is
    temperament: Temperament | None = None
    turns: Annotated[list[RehearseTurn], Field(min_length=1)]
    keep: Literal["all", "newest"] = "all"  # newest: where the dialogue is too long, leave out its oldest turns
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stream: bool | None = None
    echo_prompt: bool | None = None

    @field_validator("turns")
    @classmethod
    def _civilian_is_between(cls, turns: list[RehearseTurn]) -> list[RehearseTurn]:
        if turns[-1].who == "civilian":
            raise ValueError("the last turn is the civilian's, whose reply is asked for: end with somebody else's")
        if turns[0].who == "civilian":
            raise ValueError("the first turn is the civilian's: models are tuned on dialogues that the officer begins")
        return turns

    @model_validator(mode="after")
    def _stream_has_no_prompt(self) -> RehearseRequest:
        if self.stream and self.echo_prompt:
            raise ValueError("echo_prompt does not go with stream")
        return self


def rehearse_messages(request: RehearseRequest, first_turn: int = 0) -> list[Message]:
    """The prompt, as `deescal.dataset.examples.make_examples` has it for the same turns.

    Args:
        first_turn: turns before it are left out.
    """
    turns = [
        {"turn_id": i, "speaker": turn.speaker or turn.who, "role": turn.who, "text": turn.text}
        for i, turn in enumerate(request.turns)
    ]
    stretches, _ = to_lines(turns[first_turn:], ExamplesConfig())
    return to_messages(stretches[0], system_prompt(request.scenario, _character(request)))


def _character(request: RehearseRequest) -> str | None:
    sentences = request.temperament.sentences() if request.temperament else []
    return " ".join([*([request.character] if request.character else []), *sentences]) or None


def fit_turns(request: RehearseRequest, n_tokens: int, count: Callable[[Sequence[Message]], int]) -> int:
    """Index of the oldest turn to keep, so that the prompt has at most so many tokens and begins with no civilian.

    Args:
        n_tokens: of the prompt.
        count: tokens of a prompt; called O(log turns) times, as fewer turns are fewer tokens.

    Raises:
        RequestRefused: the last turn alone is too long.
    """
    starts = [i for i, turn in enumerate(request.turns) if turn.who != "civilian"]
    low, high = 0, len(starts) - 1  # the answer is starts[low..high]
    if count(rehearse_messages(request, starts[high])) > n_tokens:
        raise RequestRefused(
            400,
            f"the scenario, the character and the last turn alone are more than the {n_tokens} tokens there are",
            "turns",
            code="context_length_exceeded",
        )
    while low < high:
        middle = (low + high) // 2
        if count(rehearse_messages(request, starts[middle])) <= n_tokens:
            high = middle
        else:
            low = middle + 1
    return starts[high]


def rehearse_fields(request: RehearseRequest, messages: Sequence[Message], limits: Limits) -> dict[str, Any]:
    """A request and its prompt -> fields of vLLM's ChatCompletionRequest.

    Raises:
        RequestRefused: more tokens than the server allows.
    """
    fields = request.model_dump(include={"model", "top_p", "seed", "stream"}, exclude_none=True)
    fields |= {"messages": list(messages), "temperature": request.temperature or 0.0}
    fields["max_completion_tokens"] = bounded_tokens(request.max_tokens, limits, "max_tokens")
    if request.stream:
        fields["stream_options"] = {"include_usage": True}
    return fields
