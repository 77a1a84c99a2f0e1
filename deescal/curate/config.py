"""The config of a curation run: one section a stage, and what Ray may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, Literal

from deescal.cluster import RayConfig
from deescal.config import Config, Resources, fingerprint, load_config, put_overrides
from deescal.errors import UserError
from deescal.judge.select import SelectConfig
from deescal.judge.stage import InterpretConfig, judge_identity, roles_identity
from deescal.models import identity
from deescal.speech.audio import AudioConfig
from deescal.speech.diarize import DiarizeConfig
from deescal.speech.transcribe import TranscribeConfig
from deescal.speech.turns import TurnsConfig
from deescal.stage import STAGES

VIDEO_STAGES = STAGES[1:]
TRANSCRIPT_STAGES = ("import", "roles", "judge", "select")
IMPORT_STAGES = ("import",)
SECTIONS = {  # stage -> its section of the config
    "extract_audio": "audio",
    "transcribe": "transcribe",
    "diarize": "diarize",
    "turns": "turns",
    "roles": "interpret",
    "judge": "interpret",
    "select": "select",
}


class CurateConfig(Config):
    """All of curation. Defaults are the `local` profile: packaged weights on CPU."""

    profile: Literal["local", "cluster"] = "local"  # a label for reports
    audio: AudioConfig = AudioConfig()
    transcribe: TranscribeConfig = TranscribeConfig()
    diarize: DiarizeConfig = DiarizeConfig()
    turns: TurnsConfig = TurnsConfig()
    interpret: InterpretConfig = InterpretConfig()  # roles and judge: one engine
    select: SelectConfig = SelectConfig()
    ray: RayConfig = RayConfig()

    def fingerprints(self, stages: Sequence[str] = VIDEO_STAGES) -> dict[str, str]:
        """Stage -> fingerprint of all that decides its result: config, weights, prompt.

        Raises:
            UserError: a model of one of these stages is unknown or not fetched.
        """
        decides: dict[str, Callable[[], object]] = {
            "import": lambda: None,
            "extract_audio": self.audio.identity,
            "transcribe": self.transcribe.identity,
            "diarize": self.diarize.identity,
            "turns": self.turns.identity,
            "roles": lambda: roles_identity(self.interpret),
            "judge": lambda: judge_identity(self.interpret),
            "select": self.select.identity,
        }
        return {stage: fingerprint(stage, decides[stage]()) for stage in stages}

    def models(self, stages: Sequence[str] = VIDEO_STAGES) -> dict[str, list[str]]:
        """Section -> the models that it loads, each with the hash of its weights where that is known.

        Raises:
            UserError: a model of one of these stages is unknown or not fetched.
        """
        loaded = {section: getattr(self, section).models() for section in _sections(stages)}
        return {section: [identity(name) for name in names] for section, names in loaded.items() if names}

    def demand(self, stages: Sequence[str] = VIDEO_STAGES) -> dict[str, float]:
        """What Ray must have for all workers of these stages at once and one task between them, by Ray's names."""
        asked = [getattr(self, section).resources for section in _sections(stages)]
        pools = [r for r in asked if isinstance(r, Resources)]
        tasks = [r for r in asked if not isinstance(r, Resources)]

        def total(field: str) -> float:
            held = sum(pool.workers * getattr(pool, field) for pool in pools)
            return held + max((getattr(task, field) for task in tasks), default=0.0)

        return {"CPU": total("num_cpus"), "GPU": total("num_gpus"), "memory": total("memory_gib") * 2**30}

    def logical_cpus(self) -> int:
        """CPUs that Ray is told of on one machine: enough that all stages run at once; the cores are shared."""
        pools = [self.transcribe.resources, self.diarize.resources, self.interpret.resources]
        return ceil(sum(pool.workers * pool.num_cpus for pool in pools)) + 2


def continued(
    before: CurateConfig, stages: Sequence[str], config: CurateConfig | None, overrides: Sequence[str]
) -> CurateConfig:
    """The config of a run that does `stages` again on the rows of one that was made with `before`.

    Args:
        before: its sections of earlier stages stay, since their results do.
        stages: those done again.
        config: takes the place of their sections; without, those of `before` stay too.
        overrides: `key=value`, on top of that.

    Raises:
        UserError: an override of an earlier stage, or as `load_config`.
    """
    allowed = ("profile", *_sections(stages), "ray")
    load_config(None, CurateConfig, overrides)  # refuses what no config may have
    given: dict[str, Any] = {}
    put_overrides(given, overrides)
    if earlier := [section for section in given if section not in allowed]:
        raise UserError(
            f"override of '{earlier[0]}': that was done before {stages[0]}, from where this run starts "
            f"(allowed: {', '.join(allowed)})"
        )
    base = before.model_copy(update={section: getattr(config or before, section) for section in allowed})
    return CurateConfig.model_validate(_merged(base.model_dump(mode="json"), given))


def _sections(stages: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(SECTIONS[stage] for stage in stages if stage in SECTIONS))


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        deeper = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if deeper else value
    return merged
