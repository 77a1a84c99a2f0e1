from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.diarize import ENCOUNTERS, RATE_HZ, conversation, encounter, error_rate
from deescal.errors import ClipError, UserError
from deescal.schema import empty_row, to_table
from deescal.speech import diarize as module
from deescal.speech.diarize import (
    NOBODY,
    ClusteringConfig,
    DiarizeConfig,
    Diarizer,
    LocalSpeakers,
    cluster_speakers,
    letters,
    make_exclusive,
)
from deescal.stage import Ledger, Stage

CONFIG = ClusteringConfig()


def span(start_s: float, end_s: float, speaker: str) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "speaker": speaker}


# ---- without models ---------------------------------------------------------------------------


def test_letters_follow_the_order_of_appearance() -> None:
    assert letters(["x", "b", "x", "a"]) == {"x": "A", "b": "B", "a": "C"}
    names = list(letters(str(i) for i in range(54)).values())
    assert names[25:28] == ["Z", "AA", "AB"]
    assert names[52] == "BA"


def test_exclusive_spans_give_the_time_to_the_inner_one() -> None:
    assert make_exclusive([span(0, 3, "A"), span(1, 2, "B")]) == [span(0, 1, "A"), span(1, 2, "B"), span(2, 3, "A")]
    assert make_exclusive([span(0, 2, "A"), span(1, 3, "B")]) == [span(0, 1, "A"), span(1, 3, "B")]
    assert make_exclusive([]) == []


def local_speakers(voices: list[list[int]], noise: float, seed: int = 0) -> LocalSpeakers:
    """Chunks with the given voices (two slots) in clean speech of 2.5 s each; -1 is silence."""
    rng = np.random.default_rng(seed)
    base = rng.random((8, 256))  # like GE2E's vectors, none negative, so no two are far apart
    who = np.array(voices)
    vectors = base[who] + noise * rng.standard_normal((*who.shape, 256))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[who < 0] = np.nan
    return LocalSpeakers(vectors, who >= 0, np.where(who >= 0, 2.5, 0.0))


def partition(found: np.ndarray, voices: list[list[int]]) -> set[tuple[int, int]]:
    return {(int(f), v) for f, v in zip(found.ravel(), np.ravel(voices), strict=True) if v >= 0}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_clusters_are_the_voices(count: int) -> None:
    voices = [[i % count, -1] for i in range(60)]
    found, centroids = cluster_speakers(local_speakers(voices, 0.15), CONFIG, 1.0, 1, 99)
    assert len(partition(found, voices)) == count == len(centroids)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1)
    assert (found[:, 1] == NOBODY).all()


def test_two_like_voices_are_told_apart_where_they_speak_in_the_same_chunks() -> None:
    """Centroids more similar than merge_similarity are still two speakers if the segmentation hears them together."""
    rng = np.random.default_rng(1)
    first = rng.random(256)
    second = first + 0.28 * rng.standard_normal(256)

    def local(together: bool) -> LocalSpeakers:
        vectors = np.full((40, 2, 256), np.nan)
        for i in range(40):
            slots = [first, second] if together else [first if i < 20 else second]
            for slot, voice in enumerate(slots):
                v = voice + 0.02 * rng.standard_normal(256)
                vectors[i, slot] = v / np.linalg.norm(v)
        active = ~np.isnan(vectors).any(axis=2)
        return LocalSpeakers(vectors, active, np.where(active, 2.5, 0.0))

    config = ClusteringConfig(group_distance=0.2)
    assert len(cluster_speakers(local(together=True), config, 1.0, 1, 99)[1]) == 2
    assert len(cluster_speakers(local(together=False), config, 1.0, 1, 99)[1]) == 1


def test_hours_of_speech_are_grouped_in_bounded_memory() -> None:
    voices = [[i // 7 % 3, -1] for i in range(9000)]
    voices[4321] = [3, -1]  # a moment of somebody else is still no speaker
    local = local_speakers(voices, 0.15)
    tracemalloc.start()
    found, centroids = cluster_speakers(local, CONFIG, 1.0, 1, 99)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(centroids) == 3
    assert len({pair for pair in partition(found, voices) if pair[1] < 3}) == 3
    assert peak < 9000**2 / 2 * 8 / 2, "half of what the distances of all pairs take"


def test_speakers_of_one_chunk_get_different_clusters() -> None:
    voices = [[0, 1], [0, -1], [1, -1]] * 10
    found, _ = cluster_speakers(local_speakers(voices, 0.15), CONFIG, 1.0, 1, 99)
    assert all(a != b for (a, b), v in zip(found, voices, strict=True) if -1 not in v)


@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_a_known_number_of_speakers_is_kept(wanted: int) -> None:
    voices = [[i % 3, -1] for i in range(60)]
    found, centroids = cluster_speakers(local_speakers(voices, 0.15), CONFIG, 1.0, wanted, wanted)
    assert len(centroids) == wanted
    assert set(np.unique(found)) - {NOBODY} == set(range(wanted))


def test_a_voice_heard_for_a_moment_is_no_speaker() -> None:
    voices = [[0, -1]] * 40 + [[1, -1]] + [[0, -1]] * 40
    assert len(cluster_speakers(local_speakers(voices, 0.15), CONFIG, 1.0, 1, 99)[1]) == 1


def test_too_little_speech_to_tell_is_one_speaker() -> None:
    nothing = LocalSpeakers(np.full((2, 2, 256), np.nan), np.array([[True, False], [True, True]]), np.full((2, 2), 0.1))
    found, centroids = cluster_speakers(nothing, CONFIG, 1.0, 1, 99)
    assert found.tolist() == [[0, NOBODY], [0, 0]]
    assert len(centroids) == 1
    one = local_speakers([[0, -1]], 0.1)
    assert cluster_speakers(one, CONFIG, 1.0, 1, 99)[0].tolist() == [[0, NOBODY]]


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="min_speakers=3 is more than max_speakers=2"):
        DiarizeConfig(min_speakers=3, max_speakers=2)
    assert DiarizeConfig().models() == ["pyannote-segmentation", "ge2e"]
    assert DiarizeConfig(pipeline="pyannote-community-1").models() == ["pyannote-community-1"]
    assert DiarizeConfig(threads=4, device="cpu").identity() == DiarizeConfig().identity()
    assert DiarizeConfig(step_s=0.5).identity() != DiarizeConfig().identity()


class OneSpeaker:
    def __init__(self, config: DiarizeConfig) -> None:
        pass

    def diarize(self, samples: np.ndarray) -> dict[str, Any]:
        if len(samples) == 0:
            raise ClipError("nobody speaks")
        spans = [span(0, len(samples) / RATE_HZ, "A")]
        return {"speaker_spans": spans, "exclusive_spans": spans}


def test_the_worker_sets_spans_and_records_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {"audio/a.flac": RATE_HZ, "audio/b.flac": 0}
    monkeypatch.setattr(module, "load_audio", lambda out, audio: np.zeros(lengths[audio], np.float32))
    config = DiarizeConfig(engine=f"{__name__}:OneSpeaker")
    rows = [empty_row(clip_id=a, audio=a) for a in lengths]
    worker = Diarizer(config, Stage("diarize", "f", Ledger()), "out")
    good, bad = worker(to_table(rows)).to_pylist(maps_as_pydicts="strict")
    assert good["speaker_spans"] == good["exclusive_spans"] == [span(0, 1, "A")]
    assert (bad["status"], bad["failed_stage"], bad["error"]) == ("failed", "diarize", "nobody speaks")


# ---- with the packaged models -----------------------------------------------------------------


@lru_cache
def engine(**clustering: float) -> Any:
    return module.Pyannote(DiarizeConfig(clustering=ClusteringConfig(**clustering)))


@pytest.mark.engine
def test_the_real_conversation() -> None:
    samples, truth = conversation()
    found = engine().diarize(samples)
    assert error_rate(samples, truth, found["speaker_spans"]) <= 0.12
    assert found["speaker_spans"][0]["speaker"] == "A"
    assert {s["speaker"] for s in found["speaker_spans"]} == {"A", "B"}
    starts = [s["start_s"] for s in found["speaker_spans"]]
    assert starts == sorted(starts)
    exclusive = found["exclusive_spans"]
    assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(exclusive))
    assert engine().diarize(samples) == found


# The range that docs/diarization.md states: both settings alone, and its corners.
RANGE = [
    *({"merge_similarity": m} for m in (0.72, 0.76, 0.80, 0.86, 0.92)),
    *({"group_distance": g} for g in (0.35, 0.45, 0.5, 0.6)),
    *({"group_distance": g, "merge_similarity": m} for g in (0.45, 0.6) for m in (0.72, 0.88)),
]


def only_once(function: Callable[..., Any]) -> Callable[..., Any]:
    results: list[Any] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not results:
            results.append(function(*args, **kwargs))
        return results[0]

    return wrapped


@pytest.mark.engine
def test_no_cliff_around_the_chosen_settings() -> None:
    """One run of the models; only the clustering is done again."""
    from deescal.speech.speaker_model import SpeakerClustering

    samples, truth = conversation()
    diarizer = module.Pyannote(DiarizeConfig())
    pipeline = diarizer._pipeline
    for name in ("get_segmentations", "get_embeddings"):
        setattr(pipeline, name, only_once(getattr(pipeline, name)))
    for settings in RANGE:
        pipeline.clustering = SpeakerClustering(DiarizeConfig(clustering=ClusteringConfig(**settings)))
        assert error_rate(samples, truth, diarizer.diarize(samples)["speaker_spans"]) <= 0.20, settings


@pytest.mark.engine
@pytest.mark.parametrize("name", ENCOUNTERS)
def test_the_sample_encounters(name: str) -> None:
    samples, truth = encounter(name)
    found = engine().diarize(samples)
    assert error_rate(samples, truth, found["speaker_spans"]) <= 0.10
    assert len({s["speaker"] for s in found["speaker_spans"]}) == len({t[2] for t in truth})


@pytest.mark.engine
def test_one_speaker_alone_is_one_speaker() -> None:
    samples, _ = conversation()
    alone = samples[int(21.8 * RATE_HZ) : int(27.8 * RATE_HZ)]
    assert {s["speaker"] for s in engine().diarize(alone)["speaker_spans"]} == {"A"}


@pytest.mark.engine
@pytest.mark.parametrize("length_s", [0, 0.01, 3])
def test_where_nobody_speaks_the_clip_fails(length_s: float) -> None:
    rng = np.random.default_rng(0)
    noise = (1e-4 * rng.standard_normal(int(length_s * RATE_HZ))).astype(np.float32)
    for samples in (np.zeros_like(noise), noise):
        with pytest.raises(ClipError, match="nobody speaks"):
            engine().diarize(samples)


@pytest.mark.engine
def test_a_pipeline_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diarization pipeline"):
        module.Pyannote(DiarizeConfig(pipeline=str(tmp_path)))
