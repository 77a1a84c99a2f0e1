"""One real endpoint for all tests that need one: `deescal serve` as users start it, with keys and two adapters."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import free_port

from .lora import write_adapter

MODEL = "smollm2-135m"
KEY, OTHER_KEY = "a-key-of-the-first-academy", "a-key-of-the-second-academy"
START_S = 420  # 40 s on an idle machine


@dataclass(frozen=True)
class Served:
    """A running endpoint."""

    url: str  # without /v1
    port: int
    adapters: dict[str, str]  # name -> folder
    log: Path
    ray_logs: Path
    process: subprocess.Popen[str]

    def client(self, key: str | None = KEY, timeout_s: float = 240) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    adapters = {f"tuned-{i}": write_adapter(folder / f"tuned-{i}", MODEL, seed=i) for i in (1, 2)}
    port = free_port()
    options = [f"--adapter={name}={place}" for name, place in adapters.items()]
    log = folder / "serve.log"
    environment = {
        **os.environ,
        "DEESCAL_API_KEYS": f"first:{KEY},second:{OTHER_KEY}",
        "RAY_metrics_report_interval_ms": "1000",
    }
    environment.pop("RAY_ADDRESS", None)
    environment["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="serve")  # short, as sockets' names are
    # One adapter in memory at a time, so that every test with two of them has the other evicted and read again.
    settings = [f"http.port={port}", "lora.max_loras=1", "lora.max_cpu_loras=1"]
    command = [sys.executable, "-m", "deescal", "serve", "--model", MODEL, *options, *settings]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        _wait(process, log)
        yield Served(f"http://127.0.0.1:{port}", port, adapters, log, Path(environment["RAY_TMPDIR"]), process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


def _wait(process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while "serving " not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"no endpoint after {START_S} s or it ended:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)
