"""Time and memory of a dataset build: `python bench/dataset.py [key=value ...] --corpus DIR [--copies 1 20]`.

The corpus is imported once. A further copy is a run of its own, derived from the first: it has the corpus' turn lengths
and word frequencies but words of its own (every word is replaced by another one by a seeded permutation of the
vocabulary), so that copies are no duplicates of each other. Each number of copies is built in a process of its own;
memory is proportional set size, of the driver and of everything, sampled.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from deescal.schema import CLIPS, to_table

WORD = re.compile(r"[A-Za-z]+")


def write_copy(run: Path, target: Path, seed: int) -> None:
    """The imported run with other words."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("clips", "names"))
    (target / "clips").mkdir()
    files = sorted((run / "clips").glob("*.parquet"))
    texts = (turn["text"] for file in files for turn in pq.read_table(file)["turns"][0].as_py())
    vocabulary = sorted({word for text in texts for word in WORD.findall(text)})
    shuffled = vocabulary[:]
    random.Random(seed).shuffle(shuffled)
    other = dict(zip(vocabulary, shuffled, strict=True))
    for file in files:
        (row,) = pq.read_table(file).to_pylist(maps_as_pydicts="strict")
        row["clip_id"] = hashlib.sha256(f"{seed} {row['clip_id']}".encode()).hexdigest()[:32]
        row["uri"] += f"#copy-{seed}"
        for turn in row["turns"]:
            turn["text"] = WORD.sub(lambda m: other[m[0]], turn["text"])
        pq.write_table(to_table([row], CLIPS), target / "clips" / f"{row['clip_id']}.parquet", compression="zstd")


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


def measure(arguments: list[str], what: str, turns: int) -> None:
    """Run `deescal dataset ...` and print its rate and memory."""
    began = time.monotonic()
    command = [sys.executable, "-m", "deescal", "dataset", *arguments]
    alone, everything = peak_memory(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    seconds = time.monotonic() - began
    print(
        f"{what}: {seconds:.0f} s ({turns / seconds:,.0f} turns/s), driver {alone:.2f} GiB, all {everything:.2f} GiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 20])
    parser.add_argument("overrides", nargs="*", help="key=value of the build's config")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "run00")
        turns = sum(sum(1 for _ in file.open(errors="replace")) - 1 for file in args.corpus.rglob("*.csv"))
        measure(["import", "csv", str(args.corpus), "--out", str(first)], "import of the corpus", turns)
        runs = [str(first)]
        for copies in args.copies:
            while len(runs) < copies:
                runs.append(str(Path(folder, f"run{len(runs):02d}")))
                write_copy(first, Path(runs[-1]), len(runs))
            out = str(Path(folder, f"dataset{copies}"))
            what = f"build of {copies} x corpus, {copies * turns:,} turns"
            measure(["build", *runs[:copies], "--out", out, *args.overrides], what, copies * turns)


if __name__ == "__main__":
    main()
