"""Time and memory of a dataset build: `python bench/dataset.py --corpus DIR [--copies 1 20] [key=value ...]`.

A copy has the corpus' turn lengths and word frequencies but words of its own (every word is replaced by another one by
a seeded permutation of the vocabulary), so that copies are no duplicates of each other. Each number of copies is built
in a process of its own; memory is proportional set size, of the driver and of everything, sampled.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

csv.field_size_limit(sys.maxsize)
WORD = re.compile(r"[A-Za-z]+")


def write_copies(corpus: Path, folder: Path, copies: int) -> int:
    """Copies of every CSV below `corpus`; returns the number of turns."""
    files = sorted(corpus.rglob("*.csv"))
    texts = [list(csv.DictReader(file.open(newline="", errors="replace"))) for file in files]
    vocabulary = sorted({w for rows in texts for row in rows for w in WORD.findall(row["transcript"] or "")})
    turns = 0
    for copy in range(copies):
        shuffled = vocabulary[:]
        if copy:
            random.Random(copy).shuffle(shuffled)
        other = dict(zip(vocabulary, shuffled, strict=True))
        for file, rows in zip(files, texts, strict=True):
            target = folder / f"copy{copy:02d}" / f"{copy}_{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", newline="") as out:
                writer = csv.writer(out)
                writer.writerow(["start_time", "speaker_label", "transcript"])
                for row in rows:
                    text = WORD.sub(lambda m, other=other: other[m[0]], row["transcript"] or "")
                    writer.writerow([row["start_time"], row["speaker_label"], text])
            turns += len(rows)
    return turns


def peak_memory(process: subprocess.Popen) -> tuple[float, float]:
    """Wait for a process; peak GiB of it alone, and of it with all below it."""
    alone = everything = 0.0
    watched = psutil.Process(process.pid)
    done = threading.Event()

    def watch() -> None:
        nonlocal alone, everything
        while not done.wait(2.0):
            try:
                own = watched.memory_full_info().pss / 2**30
                below = [child.memory_full_info().pss / 2**30 for child in watched.children(recursive=True)]
            except psutil.Error:
                continue
            alone, everything = max(alone, own), max(everything, own + sum(below))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    if process.wait():
        raise SystemExit(f"the build ended with exit code {process.returncode}")
    done.set()
    thread.join()
    return alone, everything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 20])
    parser.add_argument("overrides", nargs="*", help="key=value of the build's config")
    args = parser.parse_args()
    deescal = [sys.executable, "-m", "deescal", "dataset"]
    for copies in args.copies:
        with tempfile.TemporaryDirectory() as folder:
            turns = write_copies(args.corpus, Path(folder) / "csv", copies)
            began = time.monotonic()
            command = [*deescal, "import", "csv", f"{folder}/csv", "--out", f"{folder}/run"]
            imported = peak_memory(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            import_s, began = time.monotonic() - began, time.monotonic()
            command = [*deescal, "build", f"{folder}/run", "--out", f"{folder}/dataset", *args.overrides]
            built = peak_memory(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            build_s = time.monotonic() - began
            print(
                f"{copies:3d} x corpus, {turns:,} turns: import {import_s:.0f} s ({turns / import_s:,.0f} turns/s), "
                f"driver {imported[0]:.2f} GiB; build {build_s:.0f} s ({turns / build_s:,.0f} turns/s), "
                f"driver {built[0]:.2f} GiB, all {built[1]:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
