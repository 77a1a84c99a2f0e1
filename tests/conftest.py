"""Settings every test shares: no telemetry, no network, and fakes that Ray's workers can import."""

from __future__ import annotations

import os
import sys
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
