"""What a scoring run was asked for, checked before anything heavy starts; and what decides its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deescal.config import fingerprint
from deescal.dataset.chat import load_tokenizer
from deescal.errors import UserError
from deescal.models import identity
from deescal.schema import Row
from deescal.score.config import Contestant, SamplingConfig, ScoreConfig, parse_models
from deescal.score.source import Inputs, read_inputs
from deescal.score.tables import make_requests
from deescal.score.tasks import FEATURES, PLAUSIBILITY, Room, Task
from deescal.serve.adapters import check_adapter
from deescal.serve.client import base_url, check_endpoint

CHARACTERS_A_TOKEN = 3  # of English, at the least: for prompts to an endpoint whose tokenizer is not here


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs to know."""

    data: str
    task: Task
    contestants: list[Contestant]
    sampling: SamplingConfig  # with max_tokens
    config: ScoreConfig  # with the model
    endpoint: str | None
    inputs: Inputs
    room: Room
    served: tuple[str, ...] = ()  # of an endpoint: what tells the weights of each contestant

    @property
    def n_requests(self) -> int:
        return self.inputs.n_rows * len(self.contestants) * self.sampling.samples

    def requests(self) -> Iterator[Row]:
        return make_requests(self.inputs, self.task, self.contestants, self.sampling.samples, self.room)


def check_room(config: ScoreConfig, max_tokens: int) -> None:
    """Raises UserError unless a prompt fits beside an answer of so many tokens."""
    if max_tokens >= config.llm.max_model_len:
        raise UserError(
            f"sampling.max_tokens={max_tokens} leaves no room for a prompt in llm.max_model_len="
            f"{config.llm.max_model_len}"
        )


def make_plan(data: str, task: Task, models: Sequence[str], config: ScoreConfig, endpoint: str | None) -> Plan:
    """Check what was asked for, in the order of what is quick to know.

    Raises:
        UserError: models, data, sampling or endpoint that cannot work; one line.
    """
    contestants = parse_models(models)
    max_tokens = config.sampling.tokens_of(task.answer_tokens)
    sampling = config.sampling.model_copy(update={"max_tokens": max_tokens})
    config = config.model_copy(update={"llm": config.llm.model_copy(update={"model": contestants[0].model})})
    check_room(config, max_tokens)
    if task is PLAUSIBILITY and sampling.samples > 1:
        raise UserError(f"--task plausibility: nothing is drawn, so sampling.samples={sampling.samples} would be equal")
    inputs = read_inputs(data, task, config.split)
    served: tuple[str, ...] = ()
    if task is FEATURES:
        _check_features(contestants, sampling, endpoint)
        room = Room(len, config.llm.max_model_len, max_tokens)
    elif endpoint is not None:
        if task is PLAUSIBILITY:
            raise UserError("--task plausibility: reads probabilities from an engine of its own, not from an endpoint")
        cards = _check_served(contestants, endpoint, config.online.key_env)
        known = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
        max_model_len = min(known, default=config.llm.max_model_len)  # its own, where it says
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"max_model_len": max_model_len})})
        check_room(config, max_tokens)
        served = tuple(str(card.get("weights") or base_url(endpoint)) for card in cards)
        room = Room(_estimate_tokens, max_model_len, max_tokens)
    else:
        contestants = _check_models(contestants, config)
        room = Room(_token_counter(config.llm.model), config.llm.max_model_len, max_tokens)
    return Plan(data, task, contestants, sampling, config, endpoint, inputs, room, served)


def _check_features(contestants: Sequence[Contestant], sampling: SamplingConfig, endpoint: str | None) -> None:
    if endpoint is not None:
        raise UserError("--task features: the judge reads probabilities from its own engine, not from an endpoint")
    if len(contestants) > 1 or contestants[0].adapter:
        raise UserError("--task features: takes one --model without adapters, the judge")
    if sampling.samples > 1:
        raise UserError(f"sampling.samples={sampling.samples}: task features draws nothing")


def _check_served(contestants: Sequence[Contestant], endpoint: str, key_env: str) -> list[dict[str, Any]]:
    if named := next((c for c in contestants if c.adapter), None):
        raise UserError(f"--model '{named.name}': an endpoint serves adapters under their own names; give that name")
    return [check_endpoint(endpoint, contestant.model, key_env) for contestant in contestants]


def _check_models(contestants: Sequence[Contestant], config: ScoreConfig) -> list[Contestant]:
    bases = sorted({c.model for c in contestants})
    if len(bases) > 1:
        raise UserError(f"--model: one base a run, found {', '.join(bases)}; adapters of one base go together")
    names = [c.adapter.name for c in contestants if c.adapter]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"--model: two adapters have the name '{twice[0]}'")
    return [
        c.model_copy(update={"adapter": check_adapter(c.adapter, c.model, config.lora)}) if c.adapter else c
        for c in contestants
    ]


def _token_counter(model: str) -> Callable[[str], int]:
    tokenizer = load_tokenizer(model)
    return lru_cache(maxsize=100_000)(lambda text: len(tokenizer.encode(text, add_special_tokens=False)))


def _estimate_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


def run_identity(plan: Plan) -> str:
    """Fingerprint of what decides the answers: not where the models run, nor how fast."""
    asked: list[Any] = [
        [c.model if plan.endpoint else identity(c.model), c.adapter and [c.adapter.name, c.adapter.digest]]
        for c in plan.contestants
    ]
    if plan.served:
        asked.append(plan.served)
    parts = [
        plan.task.name,
        plan.task.version,
        asked,
        plan.inputs.version,  # not where they lie: a folder that was moved goes on
        plan.config.split,
        plan.sampling,
        None if plan.endpoint else plan.config.deciding["llm"],  # an endpoint's room is not ours to fix
    ]
    if plan.task is FEATURES:
        from deescal.judge.stage import judge_identity
        from deescal.score.features import judge_config

        parts.append(judge_identity(judge_config(plan.config.llm.model, plan.config)))
    return fingerprint(*parts)


def describe(plan: Plan) -> dict[str, Any]:
    return {
        "task": plan.task.name,
        "data": plan.data,
        "models": [c.model_dump(mode="json") for c in plan.contestants],
        "endpoint": plan.endpoint,
        "config": {**plan.config.model_dump(mode="json"), "sampling": plan.sampling.model_dump(mode="json")},
    }
