"""Diarization: error rates, how they depend on the settings, and speed.

    python bench/diarize.py [--threads 1] [--minutes 10] [--mixtures 6]

- DER (no collar, overlapping speech scored) on the real telephone conversation in pyannote's wheel, on the
  sample encounters in examples/, and on conversations made of other voices (flite's and espeak-ng's),
  where these programs are installed;
- the same over ranges of the clustering settings, one at a time and together, without running the models again,
  beside pyannote's own agglomerative clustering on the same vectors;
- seconds of audio a second of time, on the samples put end to end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deescal.errors import ClipError
from deescal.speech.diarize import ClusteringConfig, DiarizeConfig, Pyannote

EXAMPLES = Path(__file__).parents[1] / "examples"
ENCOUNTERS = ("traffic_stop", "crisis", "domestic", "trespass")
RATE_HZ = 16_000
VOICES = ["kal16", "rms", "espeak:en-us", "espeak:en-gb+m7", "espeak:en-us+f4"]
SENTENCES = [
    "The ferry leaves from the other pier on Sundays.",
    "Did you remember to bring the keys for the garage?",
    "No.",
    "I left them on the kitchen table, next to the blue bowl, I think.",
    "That is the third time this month that this has happened to us.",
    "Fine. We can ask the neighbour for hers.",
    "She is on holiday until the end of next week, and so is her husband.",
    "What about the window at the back?",
    "It was painted shut years ago, nobody has opened it since.",
    "Then I will call somebody who can help.",
]

Truth = list[tuple[float, float, str]]
Clip = tuple[np.ndarray, Truth]


def conversation() -> Clip:
    import pyannote.audio
    import soundfile

    folder = Path(pyannote.audio.__file__).parent / "sample"
    lines = [line.split() for line in (folder / "sample.rttm").read_text().splitlines()]
    truth = [(float(f[3]), float(f[3]) + float(f[4]), f[7]) for f in lines]
    return soundfile.read(folder / "sample.wav", dtype="float32")[0], truth


def encounter(name: str) -> Clip:
    from deescal.speech.audio import decode_audio

    turns = json.loads((EXAMPLES / "truth" / f"{name}.json").read_text())["turns"]
    samples = decode_audio(EXAMPLES / "clips" / f"{name}.mp4").samples.astype(np.float32) / 32768
    return samples, [(t["start_s"], t["end_s"], t["speaker"]) for t in turns]


def mixture(seed: int, length_s: float = 50.0) -> Clip:
    """One to three voices in turn, with pauses, some overlap, and noise 15 to 40 dB below."""
    rng = np.random.default_rng(1000 + seed)
    voices = list(rng.choice(VOICES, size=1 + seed % 3, replace=False))
    gain = {voice: 10 ** (rng.normal(0, 2) / 20) for voice in voices}
    samples, truth, at_s, voice = np.zeros(int((length_s + 15) * RATE_HZ), np.float32), [], 0.5, ""
    while at_s < length_s:
        voice = str(rng.choice([v for v in voices if v != voice] or voices))
        for _ in range(rng.integers(1, 4)):
            speech = speak(str(rng.choice(SENTENCES)), voice) * gain[voice]
            start = int(at_s * RATE_HZ)
            samples[start : start + len(speech)] += speech
            truth.append((at_s, at_s + len(speech) / RATE_HZ, voice))
            at_s = truth[-1][1] + 0.25
        at_s = max(0.0, at_s + rng.choice([-0.6, 0.0, 0.3, 1.5], p=[0.15, 0.35, 0.35, 0.15]))
    samples = samples[: int((truth[-1][1] + 0.5) * RATE_HZ)]
    noise = rng.standard_normal(len(samples)).astype(np.float32)
    samples += noise * np.sqrt((samples**2).mean()) * 10 ** (-rng.uniform(15, 40) / 20)
    return samples / max(1.0, float(np.abs(samples).max())), truth


def speak(text: str, voice: str) -> np.ndarray:
    """Synthesized speech at -22 dB, the silence at both ends cut."""
    import soundfile
    from scipy.signal import resample_poly

    program, _, name = voice.rpartition(":")
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        if program == "espeak":
            subprocess.run(["espeak-ng", "-v", name, "-w", wav.name, text], check=True)
        else:
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", wav.name], check=True)
        samples, rate_hz = soundfile.read(wav.name, dtype="float32")
    samples = resample_poly(samples, RATE_HZ, rate_hz)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples / np.sqrt((samples**2).mean()) * 10 ** (-22 / 20)


class Recordings:
    """Clips whose segmentation and embeddings are computed once; only the clustering is done again."""

    def __init__(self, engine: Pyannote) -> None:
        self._engine = engine
        self._pipeline = engine._pipeline
        self._computed: dict[tuple[str, str], Any] = {}
        self._clip = ""
        for name in ("get_segmentations", "get_embeddings"):
            setattr(self._pipeline, name, self._remembering(name, getattr(self._pipeline, name)))

    def _remembering(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if (name, self._clip) not in self._computed:
                self._computed[name, self._clip] = function(*args, **kwargs)
            return self._computed[name, self._clip]

        return wrapped

    def error(self, name: str, clip: Clip, clustering: Any) -> tuple[float, int]:
        """(DER, speakers found)."""
        self._clip, self._pipeline.clustering = name, clustering
        samples, truth = clip
        try:
            spans = self._engine.diarize(samples)["speaker_spans"]
        except ClipError:
            spans = []
        return error_rate(samples, truth, spans), len({s["speaker"] for s in spans})


def error_rate(samples: np.ndarray, truth: Truth, spans: list[dict[str, Any]]) -> float:
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(items: Truth) -> Annotation:
        made = Annotation()
        for i, (start_s, end_s, speaker) in enumerate(items):
            made[Segment(start_s, end_s), i] = speaker
        return made.support()

    found = annotation([(s["start_s"], s["end_s"], s["speaker"]) for s in spans])
    whole = Timeline([Segment(0, len(samples) / RATE_HZ)])
    return float(DiarizationErrorRate()(annotation(truth), found, uem=whole))


def ours(**settings: float) -> Any:
    from deescal.speech.speaker_model import SpeakerClustering

    return SpeakerClustering(DiarizeConfig(clustering=ClusteringConfig(**settings)))


def pyannotes(threshold: float) -> Any:
    from pyannote.audio.pipelines.clustering import AgglomerativeClustering

    clustering = AgglomerativeClustering()
    return clustering.instantiate({"method": "average", "min_cluster_size": 3, "threshold": threshold})


@contextmanager
def table(title: str, *columns: str) -> Iterator[Callable[..., None]]:
    print(f"\n{title}\n" + " ".join(f"{c:>14}" for c in columns))
    yield lambda *cells: print(
        " ".join(f"{c:14.3f}" if isinstance(c, float) else f"{c:>14}" for c in cells), flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates, robustness and speed of diarization.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio for the speed; 0: none")
    parser.add_argument("--mixtures", type=int, default=6, help="number of made conversations; 0: none")
    arguments = parser.parse_args()

    clips = {"real": conversation()}
    clips |= {name: encounter(name) for name in ENCOUNTERS if (EXAMPLES / "clips" / f"{name}.mp4").is_file()}
    if shutil.which("flite") and shutil.which("espeak-ng"):
        clips |= {f"mixture {i}": mixture(i) for i in range(arguments.mixtures)}
    config = DiarizeConfig(threads=arguments.threads)

    if arguments.minutes:
        engine = Pyannote(config)
        samples = np.concatenate([s for s, _ in clips.values()])
        samples = np.resize(samples, int(arguments.minutes * 60 * RATE_HZ))  # repeats what there is
        began, cpu_began_s = time.perf_counter(), time.process_time()
        engine.diarize(samples)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began_s
        audio_s = arguments.minutes * 60
        print(f"{arguments.minutes:g} min in {seconds:.1f} s, {arguments.threads} threads: {audio_s / seconds:.1f}x")
        print(f"compute: {cpu_s:.1f} s of one core, {audio_s / cpu_s:.1f}x a core (other work on the machine aside)")

    recordings = Recordings(Pyannote(config))
    with table("chosen settings", "clip", "DER", "speakers", "true") as row:
        for name, clip in clips.items():
            der, speakers = recordings.error(name, clip, ours())
            row(name, der, speakers, len({t[2] for t in clip[1]}))

    def summary(clustering: Any) -> list[float]:
        rates = {name: recordings.error(name, clip, clustering)[0] for name, clip in clips.items()}
        encounters = [rates[n] for n in ENCOUNTERS if n in rates] or [float("nan")]
        mixtures = [r for n, r in rates.items() if n.startswith("mixture")] or [float("nan")]
        return [rates["real"], float(np.mean(encounters)), max(encounters), float(np.mean(mixtures)), max(mixtures)]

    heads = ("real", "encounters", "their worst", "mixtures", "their worst")
    sweeps = {
        "merge_similarity": np.arange(0.70, 0.93, 0.02),
        "group_distance": np.arange(0.35, 0.76, 0.05),
        "min_clean_s": np.arange(1.0, 3.6, 0.5),
        "contrast_penalty": np.arange(0.0, 0.31, 0.05),
        "min_speaker_s": np.arange(1.0, 5.1, 1.0),
    }
    for setting, values in sweeps.items():
        with table(f"DER over {setting}", setting, *heads) as row:
            for value in values:
                row(float(value), *summary(ours(**{setting: float(value)})))
    with table("DER over both at once", "distance", "similarity", *heads) as row:
        for distance in (0.35, 0.45, 0.6):
            for similarity in (0.74, 0.82, 0.9):
                row(distance, similarity, *summary(ours(group_distance=distance, merge_similarity=similarity)))
    with table("pyannote's agglomerative clustering, same vectors", "threshold", *heads) as row:
        for value in np.arange(0.12, 0.33, 0.02):
            row(float(value), *summary(pyannotes(float(value))))


if __name__ == "__main__":
    main()
