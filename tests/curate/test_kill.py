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
import yaml

from deescal.curate.config import CurateConfig
from deescal.curate.job import curate
from deescal.curate.store import read_clips

from .conftest import FAST, comparable

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def start_cli(folder: Path, out: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    config = tmp_path / "fast.yaml"
    config.write_text(yaml.safe_dump(FAST))
    command = [sys.executable, "-m", "deescal", "curate", str(folder), "--out", out, "--config", str(config)]
    with open(tmp_path / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


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
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    folder, out, calm = make_clips(12), str(tmp_path / "run"), str(tmp_path / "calm")
    process = start_cli(folder, out, tmp_path)
    wait_for_clips(out, 2, process, tmp_path / "log")
    kill_all(process)
    assert not Path(out, "run.json").exists()
    half = {row["clip_id"] for row in read_clips(out)}  # every file is whole
    assert len(half) >= 2

    process = start_cli(folder, out, tmp_path)
    assert process.wait(180) == 0, (tmp_path / "log").read_text()[-3000:]
    curate([str(folder)], calm, fast_config)
    assert comparable(read_clips(out)) == comparable(read_clips(calm))
    assert Path(out, "run.json").exists()


@pytest.mark.parametrize("stage", ["transcribe", "diarize", "judge"])
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
