"""Roles and judge as one Ray stage: one worker, one engine, one prefix cache; two entries in a clip's record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from deescal.config import Config, ImportPath, Resources, load_engine
from deescal.engine import LlmConfig
from deescal.errors import ClipError, UserError
from deescal.judge import calibration, cues, prompts, roles
from deescal.judge.features import JudgeConfig, judge
from deescal.models import identity
from deescal.schema import Row
from deescal.stage import Run, Stage, StageConfig

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


class RolesConfig(Config):
    max_tokens: int = Field(default=1500, ge=32)  # of the transcript's beginning that the model reads to tell roles


class InterpretConfig(StageConfig):
    """The engine and what it is asked. `engine` is the class; `llm` is what it is built from."""

    engine: ImportPath = "deescal.judge.llm:VllmEngine"
    llm: LlmConfig = LlmConfig()
    roles: RolesConfig = RolesConfig()
    judge: JudgeConfig = JudgeConfig()
    resources: Resources = Resources(num_cpus=1, memory_gib=6.0)

    @model_validator(mode="after")
    def _fits(self) -> InterpretConfig:
        """What is known without the tokenizer: a word is a token at least. The worker counts exactly."""
        shared = prompts.system()
        asked = {
            "judge.window_tokens": (self.judge.window_tokens, [shared + prompts.ask(f) for f in prompts.FEATURES]),
            "roles.max_tokens": (self.roles.max_tokens, [roles.SYSTEM + roles.question("A")]),
        }
        for field, (transcript, questions) in asked.items():
            room, needed = self.llm.max_model_len - transcript, max(len(q.split()) for q in questions)
            if needed > room:
                raise ValueError(
                    f"{field}={transcript} leaves {room} of llm.max_model_len={self.llm.max_model_len} tokens, "
                    f"the questions have {needed} words"
                )
        return self

    def models(self) -> list[str]:
        return [self.llm.model]


def roles_identity(config: InterpretConfig) -> dict[str, Any]:
    """What decides the result of the stage 'roles', for its fingerprint."""
    return {
        "engine": config.engine,
        "model": model_identity(config),
        "dtype": config.llm.dtype,
        "prompts": roles.VERSION,
        **config.roles.model_dump(mode="json"),
    }


def judge_identity(config: InterpretConfig) -> dict[str, Any]:
    """What decides the result of the stage 'judge', for its fingerprint.

    Raises:
        UserError: the model is unknown or not fetched, or the calibration does not fit it.
    """
    loaded = calibration.load(model_identity(config), config.judge.calibration, config.judge.thresholds)
    return {
        "engine": config.engine,
        "model": model_identity(config),
        "dtype": config.llm.dtype,
        "prompts": prompts.PROMPT_VERSION,
        "cues": cues.VERSION,
        "calibration": loaded.digest,
        **config.judge.model_dump(mode="json", exclude={"calibration"}),
    }


def model_identity(config: InterpretConfig) -> str:
    """The model with the hash of its weights; its bare name for an engine that is not ours (a test's fake)."""
    if config.engine != InterpretConfig.model_fields["engine"].default:
        return config.llm.model
    return identity(config.llm.model)


class Interpreter:
    """Ray worker: fills `speakers`, the roles in `turns`, `features` and `scores`."""

    def __init__(self, config: InterpretConfig, roles_stage: Stage, judge_stage: Stage) -> None:
        self._config = config
        self._roles_stage, self._judge_stage = roles_stage, judge_stage
        self._calibration = calibration.load(model_identity(config), config.judge.calibration, config.judge.thresholds)
        room = config.llm.max_model_len - config.judge.window_tokens
        self._engine = load_engine(config.engine)(config.llm)
        longest = max(self._engine.count_tokens(prompts.system() + prompts.ask(f)) for f in prompts.FEATURES)
        if longest + 64 > room:
            raise UserError(
                f"judge.window_tokens={config.judge.window_tokens} leaves {room} of llm.max_model_len="
                f"{config.llm.max_model_len} tokens, the questions need {longest + 64}"
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        table = self._roles_stage.apply_batch(table, self._roles)
        return self._judge_stage.apply_batch(table, self._judge)

    def _roles(self, rows: Sequence[Row]) -> list[Row | ClipError]:
        config = self._config
        return [assign_roles(row["turns"], self._engine, config.roles.max_tokens, config.llm.model) for row in rows]

    def _judge(self, rows: Sequence[Row]) -> list[Row | ClipError]:
        results = judge([row["turns"] for row in rows], self._engine, self._config.judge, self._calibration)
        return [{"features": features, "scores": scores} for features, scores in results]


def assign_roles(turns: Sequence[Row], engine: Any, max_tokens: int, model: str = "") -> Row:
    """Turns -> the columns `speakers` and `turns` with every role filled in."""
    found = roles.assign(turns, engine, max_tokens, model)
    seconds = dict.fromkeys(found, 0.0)
    for turn in turns:
        seconds[turn["speaker"]] += max(0.0, (turn["end_s"] or 0.0) - (turn["start_s"] or 0.0))
    return {
        "speakers": [
            {"speaker": s, "role": role, "confidence": confidence, "speech_s": seconds[s]}
            for s, (role, confidence) in found.items()
        ],
        "turns": [{**turn, "role": found[turn["speaker"]][0]} for turn in turns],
    }


def interpret(ds: ray.data.Dataset, config: InterpretConfig, run: Run) -> ray.data.Dataset:
    """The stages 'roles' and 'judge' of every clip that has turns."""
    import ray

    return ds.map_batches(
        Interpreter,
        fn_constructor_args=(config, run.stage("roles"), run.stage("judge")),
        compute=ray.data.ActorPoolStrategy(size=config.resources.workers),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        **config.resources.ray_options(),
    )
