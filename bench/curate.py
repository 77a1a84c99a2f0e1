"""What curation costs beyond its engines: `python bench/curate.py whole|flat`.

whole: 30 minutes of audio through the job; then each engine alone, one after the other. All stages share the cores,
       which are the busiest resource here. Two ratios: the job's wall time to the sum of the engines' wall times, each
       alone with all cores (what one would get without streaming); and to the engines' CPU seconds divided by what
       the cores do together, as a multiple of one (two cores of a virtual machine are often two threads of one core).
flat:  10 and 100 clips with fake engines: seconds a clip and peak memory must not grow with their number.

Clips are the sample encounters, each copy made distinct by its metadata, so that none is a duplicate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the fakes lie in tests/; Ray's workers look there too
os.environ["PYTHONPATH"] = str(ROOT)
ENCOUNTERS = ("traffic_stop", "crisis", "domestic", "trespass")


class PeakMemory:
    """Peak of the summed memory of this process and all below it, sampled; pages shared by workers count once."""

    def __enter__(self) -> PeakMemory:
        self.peak_gib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(2.0):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_gib = max(self.peak_gib, total / 2**30)

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def copy_with_comment(source: Path, target: Path, comment: str) -> None:
    """The same sound and picture in a file of other bytes."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        writer.metadata["comment"] = comment
        streams = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                writer.mux(packet)


def make_clips(folder: Path, minutes: float) -> list[Path]:
    clips, seconds = [], 0.0
    while seconds < minutes * 60:
        name = ENCOUNTERS[len(clips) % len(ENCOUNTERS)]
        target = folder / f"{name}_{len(clips):03d}.mp4"
        copy_with_comment(ROOT / "examples/clips" / f"{name}.mp4", target, f"copy {len(clips)}")
        with av.open(str(target)) as media:
            seconds += media.duration / av.time_base
        clips.append(target)
    return clips


@dataclass
class Cost:
    """Seconds by the clock, and of all cores together."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def scaled(self, factor: float) -> Cost:
        return Cost(self.wall_s * factor, self.cpu_s * factor)


def cpu_seconds() -> float:
    """User and system time of this process and of all below it, ended ones included."""
    me = psutil.Process()
    own = me.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in me.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@contextmanager
def clock(spent: dict[str, Cost], name: str) -> Iterator[None]:
    began, cpu_began_s = time.perf_counter(), cpu_seconds()
    yield
    spent[name] = Cost(time.perf_counter() - began, cpu_seconds() - cpu_began_s)


def engines_alone(clips: list[Path]) -> dict[str, Cost]:
    """What each engine costs over all clips, loading not counted."""
    from deescal.config import load_engine
    from deescal.curate.config import CurateConfig
    from deescal.judge.stage import Interpreter
    from deescal.schema import empty_row, to_table
    from deescal.speech.audio import decode_audio
    from deescal.speech.turns import assign_words, make_turns
    from deescal.stage import Ledger, Run

    config = CurateConfig()
    spent: dict[str, Cost] = {}
    with clock(spent, "extract_audio"):
        sounds = [decode_audio(clip).samples.astype(np.float32) / 32768 for clip in clips]
    transcriber = load_engine(config.transcribe.engine)(config.transcribe)
    with clock(spent, "transcribe"):
        texts = [transcriber.transcribe(sound) for sound in sounds]
    del transcriber
    diarizer = load_engine(config.diarize.engine)(config.diarize)
    with clock(spent, "diarize"):
        spans = [diarizer.diarize(sound) for sound in sounds]
    del diarizer
    rows = [
        empty_row(
            clip_id=str(i),
            uri=str(i),
            stages=[],
            turns=make_turns(
                assign_words(text["words"], s["speaker_spans"], s["exclusive_spans"], config.turns),
                s["speaker_spans"],
                config.turns,
            ),
        )
        for i, (text, s) in enumerate(zip(texts, spans, strict=True))
    ]
    run = Run("", config.fingerprints(), Ledger())
    worker = Interpreter(config.interpret, run.stage("roles"), run.stage("judge"))
    size = config.interpret.batch_size
    with clock(spent, "roles and judge"):
        for start in range(0, len(rows), size):
            worker(to_table(rows[start : start + size]))
    return spent


def whole(minutes: float, alone_minutes: float) -> None:
    from deescal.curate.config import CurateConfig
    from deescal.curate.job import curate

    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp, "clips")
        folder.mkdir()
        clips = make_clips(folder, minutes)
        began = time.perf_counter()
        with PeakMemory() as memory:
            result = curate([str(folder)], str(Path(tmp, "run")), CurateConfig())
        wall_s = time.perf_counter() - began
        import ray

        ray.shutdown()
        audio_s = result.summary.audio_s
        print(f"job: {len(clips)} clips, {audio_s / 60:.1f} min of audio, wall {wall_s:.0f} s,", end=" ")
        print(f"{audio_s / wall_s:.1f} x real time, peak memory {memory.peak_gib:.1f} GiB", flush=True)
        for name, cost in result.summary.stages.items():
            print(f"  in the job: {name:<14} {cost.seconds:7.1f} s")
        some = clips[: max(1, round(len(clips) * alone_minutes / minutes))]
        scale = len(clips) / len(some)  # every fourth clip is the same encounter, so cost grows with their number
        alone = {name: cost.scaled(scale) for name, cost in engines_alone(some).items()}
        for name, cost in alone.items():
            print(
                f"  alone:      {name:<14} {cost.wall_s:7.1f} s, {cost.cpu_s:7.1f} s of CPU"
                + (f" (from {len(some)} clips)" if scale > 1 else "")
            )
        sum_s = sum(cost.wall_s for cost in alone.values())
        print(f"engines one after the other: {sum_s:.0f} s; wall of the job / that = {wall_s / sum_s:.2f}")
        cores = len(os.sched_getaffinity(0))
        speedup = matrix_products(cores) / matrix_products(1)
        least_s = sum(cost.cpu_s for cost in alone.values()) / speedup
        print(
            f"{cores} cores do {speedup:.2f} times the work of one: CPU seconds / {speedup:.2f} = {least_s:.0f} s;",
            end=" ",
        )
        print(f"wall of the job / that = {wall_s / least_s:.2f}")


def matrix_products(processes: int, seconds: float = 4.0) -> int:
    """Products of matrices that so many processes of one thread each do in the given time."""
    work = (
        "import time, numpy as np; a = np.ones((400, 400), np.float32); n = 0; t = time.time()\n"
        f"while time.time() - t < {seconds}: a @ a; n += 1\nprint(n)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(processes)
    ]
    return sum(int(process.communicate()[0]) for process in running)


def flat(n: int) -> None:
    """n clips through fake engines."""
    import ray

    from deescal.curate.config import CurateConfig
    from deescal.curate.job import Watch, curate
    from tests.curate.conftest import FAST, write_wav

    marks: list[float] = []
    watch = Watch(on_clip=lambda row: marks.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as tmp, PeakMemory() as memory:
        for i in range(n):
            write_wav(Path(tmp, "clips", f"{i:04d}.wav"), 30.0, i)
        curate([str(Path(tmp, "clips"))], str(Path(tmp, "run")), CurateConfig.model_validate(FAST), watch=watch)
    ray.shutdown()
    rate = (marks[-1] - marks[0]) / (n - 1)
    print(f"{n:5d} clips: {rate:.3f} s a clip after the first, peak memory {memory.peak_gib:.2f} GiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("whole", "flat"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--alone-minutes", type=float, default=30.0, help="audio for the engines alone, scaled up")
    arguments = parser.parse_args()
    if arguments.what == "whole":
        whole(arguments.minutes, min(arguments.alone_minutes, arguments.minutes))
    else:
        for count in (10, 100):
            flat(count)
