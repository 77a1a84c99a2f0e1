"""Stage `transcribe`: the stored FLAC -> words with times and probabilities, with a record of what was refused.

The engine, `deescal.speech.whisper:FasterWhisper` unless the config names another, is a class made with the config
whose `transcribe(samples)` gives the stage's columns or raises ClipError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from deescal.config import ImportPath, Resources, load_engine
from deescal.schema import Row
from deescal.speech.audio import load_audio
from deescal.stage import Run, Stage, StageConfig

if TYPE_CHECKING:
    import ray.data


class TranscribeConfig(StageConfig):
    """The engine, how it decodes, and what is believed."""

    resources: Resources = Resources(num_cpus=2, memory_gib=2.0)
    engine: ImportPath = "deescal.speech.whisper:FasterWhisper"
    model: str = "whisper-base"  # registry name, folder, or Hugging Face id of CTranslate2 weights
    language: str | None = None  # "en", "es", ...; None: detected, window by window
    beam_size: int = Field(
        default=5, ge=1
    )  # for windows that greedy decoding is not sure of, and for the second decoding
    sure_log_probability: float = Field(
        default=-0.2, le=0
    )  # mean over tokens, from which greedy decoding of a window is sure; 0: never
    compute_type: str = "int8"  # of CTranslate2: int8, int8_float16, float16, float32, ...
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0)  # CPU threads; 0: as many as resources.num_cpus
    windows_at_once: int = Field(default=4, ge=1)  # windows of 30 s decoded in one call; more pay on a GPU only

    # voice activity
    vad_threshold: float = Field(default=0.5, gt=0, lt=1)  # probability from which sound is speech
    min_silence_s: float = Field(default=0.16, ge=0)  # a shorter silence does not end a span of speech
    pad_s: float = Field(default=0.3, ge=0, le=5)  # sound kept around speech
    max_pause_s: float = Field(default=2.0, ge=0)  # a longer pause is cut out before decoding
    min_speech_s: float = Field(default=0.3, ge=0)  # with less than that in the whole clip, there is none

    # coverage audit
    redecode_from_s: float = Field(default=1.0, gt=0)  # the shortest stretch of missed speech that is decoded again
    redecode_pad_s: float = Field(default=0.5, ge=0)  # sound kept around it

    # guards
    max_repeats: int = Field(default=8, ge=1)  # of a phrase in one breath, at the first decoding, not the second
    max_words_per_s: float = Field(default=7.0, gt=0)  # nobody repeats a phrase faster
    max_compression_ratio: float = Field(default=2.4, gt=0)  # of a window's text; more repetitive text is decoded again
    min_speech_overlap: float = Field(default=0.2, ge=0, le=1)  # share of an utterance that must be heard as speech
    no_speech_probability: float = Field(
        default=0.6, ge=0, le=1
    )  # a window above it is refused where its log probability is also low
    min_log_probability: float = Field(default=-1.0, le=0)  # mean over tokens
    other_language_probability: float = Field(default=0.8, ge=0, le=1)  # from which a window has a language of its own

    @model_validator(mode="after")
    def _language_is_known(self) -> TranscribeConfig:
        if self.language is not None and self.engine == TranscribeConfig.model_fields["engine"].default:
            from faster_whisper.tokenizer import _LANGUAGE_CODES  # a second, so only where it is needed

            if self.language not in _LANGUAGE_CODES:
                raise ValueError(
                    f"language '{self.language}' is not one of Whisper's (allowed: {', '.join(_LANGUAGE_CODES)})"
                )
        return self

    def models(self) -> list[str]:
        return [self.model]

    def identity(self) -> dict[str, Any]:
        fields = super().identity()
        for name in ("threads", "device"):  # speed only; the clip's language hangs on windows_at_once
            fields.pop(name)
        return fields


def transcribe(ds: ray.data.Dataset, config: TranscribeConfig, run: Run) -> ray.data.Dataset:
    """Sets language, language_probability, words, speech_s, covered_share, redecoded_s, dropped_text."""
    import ray.data

    return ds.map_batches(
        Transcriber,
        fn_constructor_args=(config, run.stage("transcribe"), run.out),
        compute=ray.data.ActorPoolStrategy(size=config.resources.workers),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        **config.resources.ray_options(),
    )


class Transcriber:
    """The Ray worker: loads the engine once."""

    def __init__(self, config: TranscribeConfig, stage: Stage, out: str) -> None:
        self._engine = load_engine(config.engine)(config)
        self._stage = stage
        self._out = out

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._stage.apply(table, self._process)

    def _process(self, row: Row) -> Row:
        result: Row = self._engine.transcribe(load_audio(self._out, row["audio"]))
        return result
