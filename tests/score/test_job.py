"""The whole offline job under Ray, with a fake engine: conservation, kills, poison, and what is asked again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from deescal.schema import Row
from deescal.score.config import ScoreConfig
from deescal.score.job import score
from deescal.score.suspects import GIVEN_UP
from tests.train.tiny import write_dataset

from .conftest import user, write_rows
from .fakes import LOG_ENV, SLOW_ENV, asked

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def scores(out: Path) -> list[Row]:
    return pq.read_table(out / "scores.parquet").to_pylist()


def comparable(rows: list[Row]) -> list[Row]:
    """Without what may differ between two right runs."""
    return [{k: v for k, v in row.items() if k not in ("asked_at_s", "latency_s", "attempts")} for row in rows]


def test_a_dataset_is_scored_and_a_second_run_asks_nothing(
    tmp_path: Path, tiny_model: str, fake_config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG_ENV, str(tmp_path / "log"))
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    config = fake_config.model_copy(update={"llm": fake_config.llm.model_copy(update={"max_model_len": 256})})
    ended = score(data, str(out), "replies", [tiny_model], config)
    rows = scores(out)
    assert len(rows) == len({r["request_id"] for r in rows}) == ended.run["rows"] > 10
    long = [r for r in rows if r["error"]]
    assert 0 < len(long) < len(rows)
    assert all("llm.max_model_len leaves 128 beside the answer" in r["error"] for r in long)
    assert all(r["reply"] == f"base: {r['n_prompt_tokens']}" for r in rows if not r["error"])
    assert sorted(asked(tmp_path / "log")) == sorted(r["request_id"] for r in rows if not r["error"])
    assert not (out / "work").exists()

    score(data, str(out), "replies", [tiny_model], config)
    assert len(asked(tmp_path / "log")) == len(rows) - len(long)


def test_poison_is_one_error_and_takes_nobody_with_it(
    tmp_path: Path, tiny_model: str, fake_config: ScoreConfig
) -> None:
    texts = ["Stop.", "refused", *(f"Line {n}." for n in range(8)), "poison", "Hands up!"]
    data = write_rows(tmp_path / "rows.parquet", [{"messages": user(text)} for text in texts])
    score(data, str(tmp_path / "out"), "replies", [tiny_model], fake_config)
    rows = scores(tmp_path / "out")
    assert [r["messages"][0]["content"] for r in rows] == texts
    errors = {r["messages"][0]["content"]: r["error"] for r in rows if r["error"]}
    assert errors == {"poison": GIVEN_UP, "refused": "ValueError: this is refused"}
    assert next(r["attempts"] for r in rows if r["error"] == GIVEN_UP) == 3


DRIVER = """
import sys
from deescal.score.config import ScoreConfig
from deescal.score.job import score
data, out, model, config = sys.argv[1:]
score(data, out, "replies", [model], ScoreConfig.model_validate_json(config))
"""


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """The driver, and all of the Ray it started, at once."""
    for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait()


def test_a_killed_run_asks_only_what_has_no_answer(
    tmp_path: Path, tiny_model: str, fake_config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Line {n}." for n in range(60)]
    data = write_rows(tmp_path / "rows.parquet", [{"messages": user(text)} for text in texts])
    out, calm = tmp_path / "out", tmp_path / "calm"
    environment = {**os.environ, SLOW_ENV: "0.4", LOG_ENV: str(tmp_path / "log")}
    command = [sys.executable, "-c", DRIVER, data, str(out), tiny_model, fake_config.model_dump_json()]
    with open(tmp_path / "driver.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    wait_for_parts(out, 4, process, tmp_path / "driver.log")
    kill_all(process)
    assert not (out / "run.json").exists()
    stored = {i for file in (out / "parts").glob("[!.]*") for i in pq.read_table(file)["request_id"].to_pylist()}
    assert 8 <= len(stored) < 60
    before = len(asked(tmp_path / "log"))

    monkeypatch.setenv(LOG_ENV, str(tmp_path / "log"))
    score(data, str(out), "replies", [tiny_model], fake_config)
    again = asked(tmp_path / "log")[before:]
    assert not stored & set(again)
    assert len(again) == 60 - len(stored)
    score(data, str(calm), "replies", [tiny_model], fake_config)
    assert comparable(scores(out)) == comparable(scores(calm))


def wait_for_parts(out: Path, n: int, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 240
    while len(list((out / "parts").glob("[!.]*"))) < n:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def test_a_killed_worker_changes_nothing(
    tmp_path: Path, tiny_model: str, fake_config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOW_ENV, "0.3")
    data = write_rows(tmp_path / "rows.parquet", [{"messages": user(f"Line {n}.")} for n in range(40)])
    out, killed = tmp_path / "out", []

    def kill() -> None:
        while len(list((out / "parts").glob("[!.]*"))) < 3:
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True):
            if "vLLMEngineStage" in "".join(process.cmdline()) or "MapWorker" in "".join(process.cmdline()):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    score(data, str(out), "replies", [tiny_model], fake_config)
    thread.join()
    assert killed
    rows = scores(out)
    assert [r["messages"][0]["content"] for r in rows] == [f"Line {n}." for n in range(40)]
    assert not any(r["error"] for r in rows)
