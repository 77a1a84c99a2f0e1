"""`jobs/curate.py` through `ray job submit`, against a Ray head started here."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import free_port

from .conftest import FAST

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a fresh head's job server, and the environment to reach it."""
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    # Ray's job server wants a token by default; head, client and job share this one.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [RAY, "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4"]
    command += ["--object-store-memory=200000000", "--min-worker-port=0", "--max-worker-port=0", "--block"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(address, server)
        yield address, environment
    finally:
        server.terminate()  # `--block` takes its children along
        server.wait(60)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert server.poll() is None, "the Ray head ended"
        try:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers; `ray job submit` knows the cluster's token, this request does not
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


def test_a_submitted_job_gives_the_same_run(
    head: tuple[str, dict[str, str]], make_clips: Callable[[int], Path], tmp_path: Path
) -> None:
    address, environment = head
    folder, out, config = make_clips(2), tmp_path / "run", tmp_path / "fast.yaml"
    config.write_text(yaml.safe_dump(FAST))
    runtime = yaml.safe_load((ROOT / "runtime_env.yaml").read_text())
    # The fakes lie in tests/, which a real job leaves behind.
    runtime["excludes"] = [e for e in runtime.get("excludes", []) if not e.strip("/").startswith("tests")]
    (tmp_path / "runtime_env.yaml").write_text(yaml.safe_dump(runtime))
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    command += ["--runtime-env", str(tmp_path / "runtime_env.yaml"), "--", sys.executable, "jobs/curate.py"]
    command += [str(folder), "--out", str(out), "--config", str(config)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "succeeded" in result.stdout
    run = json.loads((out / "run.json").read_text())
    assert (run["inputs"], run["clips"], run["aliases"]) == (4, 3, 1)
