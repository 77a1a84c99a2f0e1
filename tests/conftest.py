"""Settings every test shares: no telemetry, no network, and fakes that Ray's workers can import."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("deescal", deadline=None, derandomize=True)  # timing belongs to bench/, not to tests
settings.load_profile("deescal")

ROOT = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
sys.path.insert(0, str(ROOT))

EXAMPLES = ROOT / "examples"


def pytest_runtest_logstart() -> None:
    """What is there before a test stays: statsmodels collects garbage at each Holm correction, with every library."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind calls leaked what is not collected at the end


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of sample clips, truth and scripts."""
    return EXAMPLES


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data that lies beside the checkout on the maintainers' machines only."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the maintainers' data folder is not beside this checkout")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """boto3's client of an S3-protocol server in its own process, which the environment points to; bucket "videos"."""
    import boto3

    from deescal.storage import _filesystem

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    _filesystem.cache_clear()
    for _ in range(150):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    client = boto3.client("s3")
    client.create_bucket(Bucket="videos")
    yield client
    server.kill()
    server.wait()
    _filesystem.cache_clear()
