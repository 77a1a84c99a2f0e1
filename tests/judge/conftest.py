from __future__ import annotations

from typing import Any

import pytest

from deescal.engine import LlmConfig
from deescal.judge.llm import VllmEngine


@pytest.fixture(scope="session")
def judge_engine() -> Any:
    """The real local judge, loaded once for all tests of the session."""
    return VllmEngine(LlmConfig())
