"""kill -9 of the driver and of each kind of worker: a resume ends with the table of an undisturbed run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from deescal.curate.config import CurateConfig
from deescal.curate.job import curate
from deescal.curate.store import read_clips

from .conftest import FAST, comparable, write_wav

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


DIE_BEFORE_SETTLING = """
import os, sys
from deescal.cli import app
from deescal.curate import store
begin = store.settle
def settle(out, sources=None):  # the first call is the run's beginning, the second its end
    store.settle = lambda *args: os.kill(os.getpid(), 9)
    return begin(out, sources)
store.settle = settle
app(sys.argv[1:])
"""


def start_cli(tmp_path: Path, *arguments: str, program: tuple[str, ...] = ("-m", "deescal")) -> subprocess.Popen[bytes]:
    with open(tmp_path / "log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *program, "curate", *arguments], stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "fast.yaml"
    file.write_text(yaml.safe_dump(FAST))
    return str(file)


def wait_for_clips(out: str, n: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while len(list(Path(out, "clips").glob("*.parquet"))) < n:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """The driver, and all of the Ray it started, at once."""
    for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()


def test_a_killed_driver_resumes_to_the_same_table(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig, config: str
) -> None:
    folder, out, calm = make_clips(12), str(tmp_path / "run"), str(tmp_path / "calm")
    process = start_cli(tmp_path, str(folder), "--out", out, "--config", config)
    wait_for_clips(out, 2, process, tmp_path / "log")
    kill_all(process)
    assert not Path(out, "run.json").exists()
    half = {row["clip_id"] for row in read_clips(out)}  # every file is whole
    assert len(half) >= 2

    process = start_cli(tmp_path, "--resume", "--out", out)
    assert process.wait(180) == 0, (tmp_path / "log").read_text()[-3000:]
    curate([str(folder)], calm, fast_config)
    assert comparable(read_clips(out)) == comparable(read_clips(calm))
    assert Path(out, "run.json").exists()


def test_a_driver_killed_between_the_last_clip_and_the_end_resumes_to_the_same_table(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig, config: str
) -> None:
    """With a file that holds other content than in the run before, and one that could not be read then."""
    folder, out, calm = make_clips(2), str(tmp_path / "run"), str(tmp_path / "calm")
    gone, manifest = folder / "gone.wav", tmp_path / "manifest.csv"
    manifest.write_text("\n".join(["uri", *(str(file) for file in sorted([*folder.iterdir(), gone]))]))
    curate([str(manifest)], out, fast_config)
    write_wav(folder / "clip001.wav", 12.0, 101)
    write_wav(gone, 12.0, 102)
    program = ("-c", DIE_BEFORE_SETTLING)
    process = start_cli(tmp_path, str(manifest), "--out", out, "--config", config, program=program)
    assert process.wait(180) == -9, (tmp_path / "log").read_text()[-3000:]
    assert len(list(read_clips(out))) == 6  # both clips have an old row and a new one

    process = start_cli(tmp_path, "--resume", "--out", out)
    assert process.wait(180) == 0, (tmp_path / "log").read_text()[-3000:]
    curate([str(manifest)], calm, fast_config)
    assert comparable(read_clips(out)) == comparable(read_clips(calm))


@pytest.mark.parametrize("stage", ["extract_audio", "transcribe", "diarize", "judge", "write"])
def test_a_killed_worker_changes_nothing(
    stage: str,
    make_clips: Callable[[int], Path],
    tmp_path: Path,
    fast_config: CurateConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out, calm = make_clips(4), str(tmp_path / "run"), str(tmp_path / "calm")
    marker = tmp_path / "die-once"
    marker.write_text("")
    monkeypatch.setenv("DEESCAL_TEST_DIE", f"{stage}:{marker}")
    if stage in ("extract_audio", "write"):  # no engine works there
        hook = {"worker_process_setup_hook": "tests.curate.engines.mortal_files"}
        ray.init(address="local", num_cpus=4, runtime_env=hook, log_to_driver=False, include_dashboard=False)
    curate([str(folder)], out, fast_config)
    assert not marker.exists()  # it did die
    curate([str(folder)], calm, fast_config)
    assert comparable(read_clips(out)) == comparable(read_clips(calm))


def test_a_clip_that_always_kills_its_worker_is_given_up(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_clips(1), str(tmp_path / "run")
    marker = tmp_path / "die-always"
    marker.write_text("")
    marker.chmod(0o444)
    monkeypatch.setenv("DEESCAL_TEST_DIE", f"transcribe:{marker}")
    curate([str(folder)], out, fast_config)
    (row,) = [row for row in read_clips(out) if row["failed_stage"] == "transcribe"]
    assert "died 3 times" in row["error"]
