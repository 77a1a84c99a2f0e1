"""Stage `diarize`: the stored FLAC -> who speaks when, as spans that may overlap and as spans that do not.

pyannote's own pipeline does the work: a segmentation model finds up to three local speakers in each 5 s chunk, an
encoder turns each into a vector, clustering makes local speakers global. One cut-off on the distances of the small
packaged encoder is too low for one recording and too high for the next, so `cluster_speakers` begins with long clean
speech only, compares groups by their centroids, in which noise has averaged out, and counts how often two groups
speak in the same chunk: the segmentation model has told those apart already. Figures: docs/diarization.md.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from deescal.config import Config, ImportPath, Resources, load_engine
from deescal.errors import ClipError, UserError, one_line
from deescal.models import resolve
from deescal.schema import Row
from deescal.speech.audio import SAMPLE_RATE_HZ, load_audio
from deescal.stage import Run, Stage, StageConfig

if TYPE_CHECKING:
    import ray.data

MAX_LINKED = 4000  # vectors that are compared pair by pair: those of an hour, in 128 MB
NOBODY = -2  # pyannote's mark of a local speaker that belongs to no cluster


class ClusteringConfig(Config):
    """When two stretches of speech are one speaker's. Similarities are cosines of speaker embeddings."""

    # speech from which groups are built: undisturbed seconds in a 5 s chunk
    min_clean_s: float = Field(default=2.0, gt=0)
    # average linkage makes groups of embeddings (unit vectors) up to this Euclidean distance
    group_distance: float = Field(default=0.55, gt=0)
    # groups whose centroids are this similar are one speaker ...
    merge_similarity: float = Field(default=0.82, ge=-1, le=1)
    # ... less this where both speak in the same chunks; fully so from this share of the rarer one's chunks on,
    # counting a chunk where each has this much undisturbed speech
    contrast_penalty: float = Field(default=0.15, ge=0)
    contrast_share: float = Field(default=0.1, gt=0, le=1)
    min_contrast_s: float = Field(default=0.5, gt=0)
    # a group heard over less time, or in a tenth of the clip if that is less, is noise
    min_speaker_s: float = Field(default=2.5, gt=0)


class DiarizeConfig(StageConfig):
    resources: Resources = Resources(num_cpus=1, memory_gib=1.5)
    engine: ImportPath = "deescal.speech.diarize:Pyannote"
    segmentation: str = "pyannote-segmentation"  # registry name or folder
    embedding: str = "ge2e"  # registry name or folder
    pipeline: str | None = None  # a whole pretrained pipeline (registry name, folder, Hugging Face id) in their place
    step_s: float = Field(default=1.0, gt=0, le=5)  # between 5 s chunks
    activity_threshold: float = Field(default=0.5, gt=0, lt=1)  # probability from which a local speaker speaks
    fill_gap_s: float = Field(default=0.3, ge=0)  # a shorter silence does not end a span
    clustering: ClusteringConfig = ClusteringConfig()
    num_speakers: int | None = Field(default=None, ge=1)  # where they are known
    min_speakers: int | None = Field(default=None, ge=1)
    max_speakers: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0)  # CPU threads; 0: as many as resources.num_cpus
    chunks_at_once: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _bounds_fit(self) -> DiarizeConfig:
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise ValueError(f"min_speakers={self.min_speakers} is more than max_speakers={self.max_speakers}")
        return self

    def models(self) -> list[str]:
        return [self.pipeline] if self.pipeline else [self.segmentation, self.embedding]

    def identity(self) -> dict[str, Any]:
        fields = super().identity()
        for name in ("device", "threads", "chunks_at_once"):  # speed only
            fields.pop(name)
        return fields


def diarize(ds: ray.data.Dataset, config: DiarizeConfig, run: Run) -> ray.data.Dataset:
    """Sets speaker_spans and exclusive_spans."""
    import ray.data

    return ds.map_batches(
        Diarizer,
        fn_constructor_args=(config, run.stage("diarize"), run.out),
        compute=ray.data.ActorPoolStrategy(size=config.resources.workers),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        **config.resources.ray_options(),
    )


class Diarizer:
    """The Ray worker: loads the engine once."""

    def __init__(self, config: DiarizeConfig, stage: Stage, out: str) -> None:
        self._engine = load_engine(config.engine)(config)
        self._stage = stage
        self._out = out

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._stage.apply(table, self.process)

    def process(self, row: Row) -> Row:
        result: Row = self._engine.diarize(load_audio(self._out, row["audio"]))
        return result


class Pyannote:
    """pyannote.audio's pipeline, packaged or pretrained; UserError where a pretrained one cannot be loaded."""

    def __init__(self, config: DiarizeConfig) -> None:
        os.environ.setdefault("PYANNOTE_METRICS_ENABLED", "0")  # usage metrics go to an outside host by default
        import torch

        use_cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        if not use_cuda:
            torch.set_num_threads(config.threads or max(1, int(config.resources.num_cpus)))
        self._config = config
        if config.pipeline:
            self._pipeline = _pretrained(config.pipeline)
        else:
            from deescal.speech.speaker_model import build_pipeline

            self._pipeline = build_pipeline(config, resolve(config.segmentation), resolve(config.embedding))
        self._pipeline.to(torch.device("cuda" if use_cuda else "cpu"))

    def diarize(self, samples: np.ndarray) -> Row:
        """16 kHz mono float32 -> {'speaker_spans', 'exclusive_spans'}, lists of schema.SPAN in order of start.

        Raises:
            ClipError: nobody speaks.
        """
        import torch

        if not np.any(samples):  # silent or empty
            raise ClipError("nobody speaks (the sound is silent)")
        file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": SAMPLE_RATE_HZ, "uri": "clip"}
        limits = {name: getattr(self._config, name) for name in ("num_speakers", "min_speakers", "max_speakers")}
        found = self._pipeline(file, **limits)
        everything = getattr(found, "speaker_diarization", found)  # older pipelines give the annotation itself
        exclusive = getattr(found, "exclusive_speaker_diarization", everything)
        duration_s = len(samples) / SAMPLE_RATE_HZ
        spans = _spans(everything, duration_s)
        if not spans:
            raise ClipError("nobody speaks")
        names = letters(span["speaker"] for span in spans)
        exclusive_spans = make_exclusive([s for s in _spans(exclusive, duration_s) if s["speaker"] in names])
        return {
            "speaker_spans": [{**s, "speaker": names[s["speaker"]]} for s in spans],
            "exclusive_spans": [{**s, "speaker": names[s["speaker"]]} for s in exclusive_spans],
        }


def letters(labels: Iterable[str]) -> dict[str, str]:
    """Labels in order of appearance -> 'A', 'B', ... 'Z', 'AA', 'AB', ..."""
    names: dict[str, str] = {}
    for label in labels:
        if label not in names:
            number, name = len(names), ""
            while number >= 0:
                name = string.ascii_uppercase[number % 26] + name
                number = number // 26 - 1
            names[label] = name
    return names


def make_exclusive(spans: Sequence[Row]) -> list[Row]:
    """One speaker at a time: where spans overlap, the one that began last has the time.

    pyannote closes a speaker's short gaps also where another one speaks in them, so its exclusive form overlaps
    at times; there the inner span is the true one.
    """
    edges = sorted({t for s in spans for t in (s["start_s"], s["end_s"])})
    result: list[Row] = []
    ordered = sorted(spans, key=lambda s: (s["start_s"], -s["end_s"], s["speaker"]))
    begun = 0
    open_: list[int] = []  # the spans that have begun, last first; those that ended go when they come to the top
    for start_s, end_s in pairwise(edges):
        while begun < len(ordered) and ordered[begun]["start_s"] <= start_s:
            heappush(open_, -begun)
            begun += 1
        while open_ and ordered[-open_[0]]["end_s"] <= start_s:
            heappop(open_)
        if not open_:
            continue
        speaker = ordered[-open_[0]]["speaker"]
        if result and result[-1]["speaker"] == speaker and result[-1]["end_s"] == start_s:
            result[-1]["end_s"] = end_s
        else:
            result.append({"start_s": start_s, "end_s": end_s, "speaker": speaker})
    return result


@dataclass(frozen=True)
class LocalSpeakers:
    """What is known of every (chunk, local speaker): arrays of shape (chunks, local speakers[, dimension])."""

    embeddings: np.ndarray  # unit vectors; NaN where there is too little speech for one
    active: np.ndarray  # bool: speaks at all
    clean_s: np.ndarray  # seconds in which nobody else speaks


def cluster_speakers(
    local: LocalSpeakers, config: ClusteringConfig, step_s: float, min_speakers: int, max_speakers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Local speakers -> (cluster of each, NOBODY where there is none; centroid of each cluster, unit norm)."""
    known = ~np.isnan(local.embeddings).any(axis=2)
    if not known.any():  # a few words, each too short to tell: one speaker
        return np.where(local.active, 0, NOBODY), np.zeros((1, local.embeddings.shape[2]))
    chosen = known
    for share in (1.0, 0.5, 0.0):  # short clips may have no long clean speech
        chosen = known & (local.clean_s >= share * config.min_clean_s)
        if chosen.sum() >= max(4, min_speakers) or share == 0:
            break
    vectors = local.embeddings[chosen]
    groups = _groups(vectors, config.group_distance, min_speakers)
    needed = max(1, round(min(config.min_speaker_s / step_s, 0.1 * len(vectors))))
    sizes = np.bincount(groups)
    large = np.argsort(-sizes, kind="stable")[: max(min_speakers, int((sizes >= needed).sum()))]
    centroids = np.stack([vectors[groups == g].sum(axis=0) for g in np.sort(large)])  # not normed: sums add up

    while len(centroids) > min_speakers:
        unit = _unit(centroids)
        similarity = unit @ unit.T - config.contrast_penalty * np.minimum(
            1.0, _contrast(local, unit, config.min_contrast_s) / config.contrast_share
        )
        np.fill_diagonal(similarity, -np.inf)
        i, j = sorted(np.unravel_index(np.argmax(similarity), similarity.shape))
        if similarity[i, j] < config.merge_similarity and len(centroids) <= max_speakers:
            break
        centroids[i] += centroids[j]
        centroids = np.delete(centroids, j, axis=0)
    centroids = _unit(centroids)
    return _assign(local, centroids), centroids


def _groups(vectors: np.ndarray, distance: float, min_groups: int) -> np.ndarray:
    """(n,): the group of each unit vector, by average linkage up to `distance`.

    Linkage takes memory by the square of their number: of very many, MAX_LINKED spread over the clip make the groups,
    and the others go to the nearest.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    n = len(vectors)
    if n < 2:
        return np.zeros(n, dtype=int)
    linked = vectors[np.linspace(0, n - 1, min(n, MAX_LINKED)).round().astype(int)]
    tree = linkage(linked, method="average", metric="euclidean")
    groups: np.ndarray = fcluster(tree, distance, criterion="distance") - 1
    if groups.max() + 1 < min_groups:
        groups = fcluster(tree, min_groups, criterion="maxclust") - 1
    if n <= MAX_LINKED:
        return groups
    centroids = _unit(np.stack([linked[groups == g].sum(axis=0) for g in range(groups.max() + 1)]))
    nearest: np.ndarray = (vectors @ centroids.T).argmax(axis=1)
    return nearest


def _contrast(local: LocalSpeakers, centroids: np.ndarray, min_clean_s: float) -> np.ndarray:
    """(k, k): in which share of the rarer one's chunks do two clusters speak beside each other, 0..1."""
    usable = ~np.isnan(local.embeddings).any(axis=2) & (local.clean_s >= min_clean_s)
    chunk, speaker = np.nonzero(usable)
    heard = np.zeros((len(usable), len(centroids)))  # (chunk, cluster): 1 where it speaks
    heard[chunk, (local.embeddings[chunk, speaker] @ centroids.T).argmax(axis=1)] = 1.0
    together = heard.T @ heard
    alone = np.diag(together)
    share = together / np.maximum(1.0, np.minimum(alone[:, None], alone[None]))
    np.fill_diagonal(share, 0.0)
    return share


def _assign(local: LocalSpeakers, centroids: np.ndarray) -> np.ndarray:
    """Each local speaker's cluster by similarity; those of one chunk get different ones."""
    from scipy.optimize import linear_sum_assignment

    clusters = np.full(local.active.shape, NOBODY)
    similarity = local.embeddings @ centroids.T
    usable = local.active & ~np.isnan(similarity).any(axis=2)
    for chunk, speakers in enumerate(usable):
        who = np.flatnonzero(speakers)
        if len(who):
            rows, columns = linear_sum_assignment(similarity[chunk, who], maximize=True)
            clusters[chunk, who[rows]] = columns
    return clusters


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def _spans(annotation: Any, duration_s: float) -> list[Row]:
    """pyannote's annotation -> spans within the clip, in order of start."""
    spans: list[Row] = [
        {"start_s": max(0.0, float(turn.start)), "end_s": min(duration_s, float(turn.end)), "speaker": str(speaker)}
        for turn, _, speaker in annotation.itertracks(yield_label=True)
    ]
    return sorted((s for s in spans if s["end_s"] > s["start_s"]), key=lambda s: (s["start_s"], s["end_s"]))


def _pretrained(name: str) -> Any:
    from pyannote.audio import Pipeline

    try:
        pipeline = Pipeline.from_pretrained(resolve(name), token=os.environ.get("HF_TOKEN"))
    except OSError as error:  # hub and file errors are all of this kind
        raise UserError(f"diarization pipeline '{name}': {one_line(error)}") from error
    if pipeline is None:
        raise UserError(f"diarization pipeline '{name}': not found, or gated and HF_TOKEN is not set")
    return pipeline
