"""The config of a curation run: one section a stage, and what Ray may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Literal

from deescal.config import Config
from deescal.judge.select import SelectConfig
from deescal.judge.stage import InterpretConfig, judge_identity, roles_identity
from deescal.models import resolve
from deescal.speech.audio import AudioConfig
from deescal.speech.diarize import DiarizeConfig
from deescal.speech.transcribe import TranscribeConfig
from deescal.speech.turns import TurnsConfig
from deescal.stage import chain_fingerprints


class RayConfig(Config):
    """The Ray that a run starts when it is not inside a cluster; `ray job submit` ignores it."""

    num_cpus: int | None = None  # logical; None: what the stages ask for, and two for the tasks between them
    object_store_gib: float = 1.0  # rows only, no media: little is needed


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

    def models(self) -> dict[str, list[str]]:
        """Stage -> the registry names, folders or hub ids it loads."""
        return {
            "transcribe": self.transcribe.models(),
            "diarize": self.diarize.models(),
            "interpret": self.interpret.models(),
        }

    def check_models(self, stages: Sequence[str] = ("transcribe", "diarize", "interpret")) -> None:
        """Raises UserError, naming the model, when one is unknown or not fetched."""
        for stage in stages:
            for name in self.models()[stage]:
                resolve(name)

    def fingerprints(self, after: str | None = None, kept: Mapping[str, str] | None = None) -> dict[str, str]:
        """Stage -> fingerprint, in order: of its config, its models and all before it.

        Args:
            after: 'import' where transcripts made elsewhere take the place of the speech stages.
            kept: fingerprints of earlier stages that another run did; the later ones hang on them.
        """
        speech: list[tuple[str, object]] = [
            ("extract_audio", self.audio.identity()),
            ("transcribe", self.transcribe.identity()),
            ("diarize", self.diarize.identity()),
            ("turns", self.turns.identity()),
        ]
        verdict: list[tuple[str, object]] = [
            ("roles", roles_identity(self.interpret)),
            ("judge", judge_identity(self.interpret)),
            ("select", self.select.identity()),
        ]
        stages = [(after, None), *verdict] if after else [*speech, *verdict]
        return chain_fingerprints([s for s in stages if s[0] not in (kept or {})], kept)

    def logical_cpus(self) -> int:
        """CPUs that Ray is told of on one machine: enough that all stages run at once; the cores are shared."""
        pools = [self.transcribe.resources, self.diarize.resources, self.interpret.resources]
        return ceil(sum(pool.workers * pool.num_cpus for pool in pools)) + 2
