"""Transcription: word error rates, what the coverage audit recovers, and speed beside WhisperX in one run.

    pip install --no-deps --target /tmp/whisperx_site whisperx==3.8.6 nltk
    python bench/transcribe.py --whisperx-site /tmp/whisperx_site [--minutes 10] [--threads 2] [--rounds 3] [--beam 5]

WhisperX wants other versions of torch and of the hub client than ours, so it is installed beside the environment,
without its dependencies: those it needs at run time are here. Without --whisperx-site it is left out.

Both get the same samples in memory, the same int8 weights of whisper-base, the same cores, beam and language;
WhisperX with its own pyannote VAD and batch of 8, without word times (its aligner would cost more); ours with word
times, the audit and the guards. They take turns, `--rounds` times, and the ratio is the median over rounds, so that
a busy machine disturbs both alike. CPU seconds are given too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from deescal.models import resolve
from deescal.speech.audio import SAMPLE_RATE_HZ, decode_audio
from deescal.speech.coverage import join_text, plain
from deescal.speech.transcribe import TranscribeConfig
from deescal.speech.whisper import FasterWhisper

EXAMPLES = Path(__file__).parents[1] / "examples"
ENCOUNTERS = ("traffic_stop", "crisis", "domestic", "trespass")
OTHERS = ("everyday", "narrated_crime", "training_drill")

Clip = tuple[np.ndarray, str]  # samples and what is said


def load(name: str) -> Clip:
    turns = json.loads((EXAMPLES / "truth" / f"{name}.json").read_text())["turns"]
    samples = decode_audio(EXAMPLES / "clips" / f"{name}.mp4").samples.astype(np.float32) / 32768
    return samples, " ".join(turn["text"] for turn in turns)


def far_speech() -> Iterator[tuple[str, np.ndarray, str, tuple[float, float]]]:
    """A loud near speaker, somebody far away for some turns, and the near one again."""
    near, _ = load("traffic_stop")
    for name, first_s, last_s in (("trespass", 15, 30), ("domestic", 8, 18)):
        turns = json.loads((EXAMPLES / "truth" / f"{name}.json").read_text())["turns"]
        turns = [turn for turn in turns if first_s < turn["start_s"] < last_s]
        start_s, end_s = turns[0]["start_s"] - 0.2, turns[-1]["end_s"] + 0.2
        far = load(name)[0][int(start_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)]
        for decibels in (30, 40):
            cut = 16 * SAMPLE_RATE_HZ
            mixed = np.concatenate([near[:cut], far * 10 ** (-decibels / 20), near[cut : 40 * SAMPLE_RATE_HZ]])
            said = " ".join(turn["text"] for turn in turns)
            yield f"{name}, {decibels} dB quieter", mixed.astype(np.float32), said, (16.0, 16.0 + end_s - start_s)


def word_error_rate(said: list[str], heard: list[str]) -> float:
    import jiwer

    return float(jiwer.wer([plain(text) for text in said], [plain(text) for text in heard]))


def accuracy(engine: FasterWhisper) -> None:
    rng = np.random.default_rng(0)
    clean, noisy, said = [], [], []
    for name in ENCOUNTERS:
        samples, text = load(name)
        noise = rng.standard_normal(len(samples)).astype(np.float32) * np.std(samples) * 10 ** (-8 / 20)
        said.append(text)
        clean.append(join_text(engine.transcribe(samples)["words"]))
        noisy.append(join_text(engine.transcribe(samples + noise)["words"]))
    print(f"WER of the four encounters: {word_error_rate(said, clean):.2%}")
    print(f"  with white noise, 8 dB below the speech: {word_error_rate(said, noisy):.2%}")


def audit(engine: FasterWhisper) -> None:
    """Words of far speech, by faster-whisper's own batched pipeline and by ours."""
    from faster_whisper import BatchedInferencePipeline

    for name, samples, said, (start_s, end_s) in far_speech():
        segments, _ = BatchedInferencePipeline(engine._model).transcribe(samples, beam_size=5, word_timestamps=True)
        heard = [w.word.strip() for s in segments for w in s.words or () if start_s + 0.5 < w.start < end_s - 0.5]
        result = engine.transcribe(samples)
        ours = [w["text"] for w in result["words"] if start_s + 0.5 < w["start_s"] < end_s - 0.5]
        print(
            f"far speech ({name}), {len(said.split())} words: "
            f"batched alone finds {len(heard)}, WER {word_error_rate([said], [' '.join(heard)]):.0%}; "
            f"with the audit {len(ours)}, WER {word_error_rate([said], [' '.join(ours)]):.0%} "
            f"({result['redecoded_s']:.1f} s decoded again, {result['covered_share']:.0%} of speech covered)"
        )


def whisperx_text(threads: int, beam: int) -> Callable[[np.ndarray], str]:
    import whisperx

    model = whisperx.load_model(
        resolve("whisper-base"),
        "cpu",
        compute_type="int8",
        threads=threads,
        language="en",
        asr_options={"beam_size": beam},
    )
    return lambda samples: " ".join(s["text"] for s in model.transcribe(samples, batch_size=8)["segments"])


def timed(transcribe: Callable[[np.ndarray], str], samples: np.ndarray) -> tuple[str, float, float]:
    """Text, seconds by the clock, seconds of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    text = transcribe(samples)
    return text, time.perf_counter() - wall, time.process_time() - cpu


def speed(engine: FasterWhisper, args: argparse.Namespace) -> None:
    pieces: list[np.ndarray] = []
    said: list[str] = []
    for name in cycle(ENCOUNTERS + OTHERS):
        samples, text = load(name)
        pieces.append(samples)
        said.append(text)
        if sum(map(len, pieces)) >= args.minutes * 60 * SAMPLE_RATE_HZ:
            break
    samples = np.concatenate(pieces)
    audio_s = len(samples) / SAMPLE_RATE_HZ
    contestants = {"deescal": lambda x: join_text(engine.transcribe(x)["words"])}
    if args.whisperx_site:
        contestants["WhisperX"] = whisperx_text(args.threads, args.beam)
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    cpus: dict[str, list[float]] = {name: [] for name in contestants}
    for transcribe in contestants.values():
        transcribe(samples[: 30 * SAMPLE_RATE_HZ])  # warm up
    for round_ in range(args.rounds):
        for name, transcribe in contestants.items():
            text, wall_s, cpu_s = timed(transcribe, samples)
            walls[name].append(wall_s)
            cpus[name].append(cpu_s)
            print(
                f"round {round_ + 1}: {name:8} {wall_s:6.1f} s, {cpu_s:6.1f} s of CPU, "
                f"{audio_s / wall_s:5.1f}x real time, WER {word_error_rate([' '.join(said)], [text]):.2%}",
                flush=True,
            )
    for name in contestants:
        print(f"{name}: {audio_s / statistics.median(walls[name]):.1f}x real time (median), {audio_s / 60:.1f} min")
    if args.whisperx_site:
        for what, spent in (("throughput", walls), ("CPU", cpus)):
            ratios = [theirs / ours for ours, theirs in zip(spent["deescal"], spent["WhisperX"], strict=True)]
            print(
                f"{what}: deescal / WhisperX = {statistics.median(ratios):.2f} "
                f"(of {', '.join(f'{r:.2f}' for r in ratios)})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whisperx-site", help="folder with whisperx 3.8.6, see the top of this file")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beam", type=int, default=TranscribeConfig().beam_size)
    parser.add_argument("--only", choices=["speed", "accuracy", "audit"])
    args = parser.parse_args()
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before pyannote is imported
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.whisperx_site:
        sys.path.append(args.whisperx_site)
    import torch

    torch.set_num_threads(args.threads)
    engine = FasterWhisper(TranscribeConfig(beam_size=args.beam, threads=args.threads))
    if args.only in (None, "accuracy"):
        accuracy(engine)
    if args.only in (None, "audit"):
        audit(engine)
    if args.only in (None, "speed"):
        speed(FasterWhisper(TranscribeConfig(beam_size=args.beam, threads=args.threads, language="en")), args)


if __name__ == "__main__":
    main()
