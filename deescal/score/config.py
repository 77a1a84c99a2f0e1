"""The config of bulk scoring, and how its models are named. Defaults are the `local` profile: SmolLM2-135M on CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from deescal.cluster import RayConfig
from deescal.config import Config, ImportPath, Resources
from deescal.engine import LlmConfig, LoraSlots
from deescal.errors import UserError
from deescal.judge.features import JudgeConfig
from deescal.serve.adapters import Adapter, parse_adapter
from deescal.serve.client import KEY_ENV

TaskName = Literal["replies", "features", "realism", "plausibility", "deescalation", "pairwise"]
TASKS: tuple[TaskName, ...] = ("replies", "features", "realism", "plausibility", "deescalation", "pairwise")
Split = Literal["train", "validation", "test"]


class SamplingConfig(Config):
    """How an answer is drawn; greedy unless told."""

    max_tokens: int | None = Field(default=None, ge=1)  # of an answer; None: what the task needs
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    samples: int = Field(default=1, ge=1)  # answers to each row, each with a seed of its own
    seed: int = 0

    @model_validator(mode="after")
    def _differ(self) -> SamplingConfig:
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"samples={self.samples} would be equal: set temperature over 0, or samples=1")
        return self

    def tokens_of(self, answer_tokens: int) -> int:
        """Tokens an answer may have, of a task that needs so many."""
        return self.max_tokens or answer_tokens


class OnlineConfig(Config):
    """How an endpoint is asked."""

    key_env: str = KEY_ENV  # the environment variable that has the key
    concurrency: int = Field(default=16, ge=1)  # requests in flight
    timeout_s: float = Field(default=120.0, gt=0)  # of one attempt
    retries: int = Field(default=8, ge=0)  # after the first attempt; their waits outlast a replica's start
    part_requests: int = Field(default=64, ge=1)  # answers are stored after so many: what a kill can lose


class ScoreConfig(Config):
    """All of a scoring run but the data and the models' names."""

    llm: LlmConfig = LlmConfig(model="smollm2-135m", max_model_len=4096, max_num_seqs=32)
    lora: LoraSlots = LoraSlots()
    sampling: SamplingConfig = SamplingConfig()
    split: Split = "test"  # of a dataset
    batch_size: int = Field(default=16, ge=1)  # requests that go through Ray, and into a file, together
    workers: Resources = Resources(workers=1, num_cpus=2, memory_gib=6)  # an engine each
    worker: ImportPath = "deescal.score.worker:EngineWorker"
    judge: JudgeConfig = JudgeConfig()  # of the task `features`
    judge_engine: ImportPath = "deescal.judge.llm:VllmEngine"
    online: OnlineConfig = OnlineConfig()
    ray: RayConfig = RayConfig()

    @property
    def deciding(self) -> dict[str, Any]:
        """Of it what decides answers: not where models run, nor how fast."""
        return self.model_dump(mode="json", include={"sampling": True, "llm": {"dtype", "max_model_len"}})

    @property
    def demand(self) -> dict[str, float]:
        """What Ray must have for all engines at once, by Ray's names; memory once an engine, however many GPUs."""
        return {**self.workers.demand(self.llm.tensor_parallel_size), "memory": self.workers.demand()["memory"]}

    @property
    def batches_in_flight(self) -> int:
        """Of one engine: twice what it works on, since a batch that waits for its longest answer leaves room."""
        return 2 * -(-self.llm.max_num_seqs // self.batch_size) + 1


class Contestant(Config):
    """One of the models that a run asks."""

    model: str  # the base: a registry name, folder or Hugging Face id; of an endpoint, a name that it serves
    adapter: Adapter | None = None

    @property
    def name(self) -> str:
        return contestant_name(self.model, self.adapter.name if self.adapter else None)


def contestant_name(model: str, adapter: str | None) -> str:
    """'model' or 'model:adapter'."""
    return f"{model}:{adapter}" if adapter else model


def parse_models(texts: Sequence[str]) -> list[Contestant]:
    """`NAME` or `NAME:adapter=URI[:adapter=URI ...]`, each -> what is asked; a name with adapters is they alone.

    Raises:
        UserError: no model, one twice, or more than one base, which one engine cannot hold.
    """
    found: list[Contestant] = []
    for text in texts:
        # A colon belongs to a URI unless `name=` follows.
        base, *adapters = re.split(r":(?=[\w.-]+=)", text)
        if not base or "=" in base:
            raise UserError(f"--model '{text}': expected NAME or NAME:adapter=URI")
        found += [Contestant(model=base, adapter=parse_adapter(a)) for a in adapters] or [Contestant(model=base)]
    if not found:
        raise UserError("--model is required: NAME or NAME:adapter=URI")
    names = [c.name for c in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"--model '{twice[0]}' is given twice")
    return found
