"""The config of an evaluation. Defaults are the `local` profile: SmolLM2-135M on CPU, greedy, nothing judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from deescal.config import Config, ImportPath, Resources
from deescal.engine import LlmConfig
from deescal.evaluate.metrics import MetricsConfig
from deescal.score.config import SamplingConfig, ScoreConfig

ProtocolName = Literal["teacher_forced", "rollout", "interactive"]
PROTOCOLS: tuple[ProtocolName, ...] = ("teacher_forced", "rollout", "interactive")
Rubric = Literal["realism", "plausibility", "deescalation"]
StepName = Literal["generate", "score", "judge", "test", "report"]
STEPS: tuple[StepName, ...] = ("generate", "score", "judge", "test", "report")


def _repeatable(score: ScoreConfig) -> ScoreConfig:
    """With float32 for `dtype=auto` of an engine on a CPU.

    In bfloat16, nearly twice as fast where the processor has it, an answer depends on what the engine computes beside
    it, so that an evaluation that was killed would go on to other tables than one that was not.
    """
    if score.llm.dtype != "auto" or score.workers.num_gpus:
        return score
    return score.model_copy(update={"llm": score.llm.model_copy(update={"dtype": "float32"})})


# Of an engine with a model of 1.5B, as the packaged judge's.
LARGER = Resources(num_cpus=2, memory_gib=8)
RepeatableScore = Annotated[ScoreConfig, Field(validate_default=True), AfterValidator(_repeatable)]


class OfficerConfig(Config):
    """The officer simulator of protocol `interactive`."""

    model: str | None = None  # registry name, folder or Hugging Face id; of an endpoint, a name that it serves
    endpoint: str | None = None  # URL of an OpenAI-compatible API, in place of an engine of our own
    n_turns: int = Field(default=6, ge=1)  # replies of the civilian in a conversation
    # `sampling.samples` are the conversations of each scenario; drawn, since a greedy officer soon repeats itself.
    score: RepeatableScore = ScoreConfig(
        sampling=SamplingConfig(temperature=0.7, top_p=0.95, max_tokens=64), workers=LARGER
    )


class JudgingConfig(Config):
    """Who judges, and how much of it; a judge reads slowly, so replies to a sample of the officer's lines."""

    model: str | None = None  # registry name, folder or Hugging Face id; of an endpoint, a name that it serves
    endpoint: str | None = None  # URL of an OpenAI-compatible API, in place of an engine of our own
    # Which; None: all that can be asked. An endpoint's API gives no probabilities, which plausibility is.
    rubrics: tuple[Rubric, ...] | None = None
    allow_contestant: bool = False  # a judge that is also one of the contestants, or the base of one
    n_items: int = Field(default=50, ge=1)  # officer's lines, of each protocol, and rollouts; of every contestant
    # The real replies among those judged, unknown to the judge: its calibration. Without, it is told them to compare.
    include_reference: bool = True
    pairwise: bool = False  # also ask which of two replies is more real, in both orders, for each of `pairs`
    seed: int = 0  # of the sample
    score: RepeatableScore = ScoreConfig(llm=LlmConfig(max_model_len=4096, max_num_seqs=16), workers=LARGER)

    @model_validator(mode="after")
    def _can_be_asked(self) -> JudgingConfig:
        if self.endpoint is not None and "plausibility" in (self.rubrics or ()):
            raise ValueError("judge.rubrics: plausibility reads probabilities, which no endpoint gives")
        return self

    @property
    def asked(self) -> tuple[Rubric, ...]:
        """The rubrics that are asked about."""
        if self.rubrics is not None:
            return self.rubrics
        return ("realism", "deescalation") if self.endpoint else ("realism", "plausibility", "deescalation")


class TestConfig(Config):
    """Intervals and tests."""

    __test__ = False  # no test class of pytest's

    n_resamples: int = Field(default=10_000, ge=100)
    seed: int = 0


class EvaluateConfig(Config):
    """All of an evaluation but the data and the contestants."""

    protocols: tuple[ProtocolName, ...] = ("teacher_forced",)
    generate: RepeatableScore = ScoreConfig()  # sampling, split, engine, endpoint
    rollout_engine: ImportPath = "deescal.evaluate.rollout_engine:RolloutEngine"
    officer: OfficerConfig = OfficerConfig()
    keys: Mapping[str, str] = {}  # host of an endpoint -> environment variable with its key; others: DEESCAL_API_KEY
    metrics: MetricsConfig = MetricsConfig()
    judge: JudgingConfig = JudgingConfig()
    pairs: tuple[tuple[str, str], ...] = ()  # labels compared; none: see `contestants.pairs_to_compare`
    test: TestConfig = TestConfig()
    examples: int = Field(default=4, ge=0)  # on the page, of the best and of the worst replies of each contestant

    @field_validator("protocols")
    @classmethod
    def _some(cls, protocols: tuple[ProtocolName, ...]) -> tuple[ProtocolName, ...]:
        if not protocols or len(set(protocols)) < len(protocols):
            raise ValueError(f"expected some of {', '.join(PROTOCOLS)}, each once")
        return protocols

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> EvaluateConfig:
        if "interactive" in self.protocols and self.officer.model is None:
            raise ValueError("protocol interactive needs officer.model, who plays the officer")
        if self.judge.model and self.judge.asked == ("deescalation",) and self.protocols == ("teacher_forced",):
            raise ValueError("judge.rubrics=[deescalation] is of dialogues: add protocol rollout or interactive")
        if self.judge.pairwise and "teacher_forced" not in self.protocols:
            raise ValueError("judge.pairwise needs protocol teacher_forced: elsewhere two replies answer other words")
        return self

    def samples(self, protocol: str) -> int:
        """Seeds of each item."""
        return (self.officer.score if protocol == "interactive" else self.generate).sampling.samples

    def with_room(self) -> EvaluateConfig:
        """The same with a Ray on this machine that has CPUs for the engines of contestants, officer and judge.

        One job starts Ray once, and it does not grow: sized for the first of them it could refuse the second.
        """
        at_once = [self.generate]  # a conversation has both engines loaded
        if "interactive" in self.protocols and self.officer.endpoint is None:
            at_once.append(self.officer.score)
        groups = [at_once]
        if self.judge.model is not None and self.judge.endpoint is None:
            groups.append([self.judge.score])
        cpus = math.ceil(max(sum(s.demand["CPU"] for s in group) + 1 for group in groups))

        def roomy(score: ScoreConfig) -> ScoreConfig:
            return score.model_copy(
                update={"ray": score.ray.model_copy(update={"num_cpus": score.ray.num_cpus or cpus})}
            )

        return self.model_copy(
            update={
                "generate": roomy(self.generate),
                "officer": self.officer.model_copy(update={"score": roomy(self.officer.score)}),
                "judge": self.judge.model_copy(update={"score": roomy(self.judge.score)}),
            }
        )
