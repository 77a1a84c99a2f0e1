from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deescal.schema import MESSAGE
from deescal.score.config import ScoreConfig
from tests.train.tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model of random weights, with a tokenizer and a chat template."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def fake_config() -> ScoreConfig:
    return ScoreConfig.model_validate(
        {
            "worker": "tests.score.fakes:FakeWorker",
            "llm": {"max_model_len": 512, "max_num_seqs": 4},
            "batch_size": 2,
            "workers": {"num_cpus": 0.5, "memory_gib": 0.1},
            "ray": {"num_cpus": 4, "object_store_gib": 0.2},
        }
    )


@pytest.fixture
def ray_here() -> Iterator[None]:
    """Whatever Ray a test starts is stopped after it."""
    import ray

    yield
    ray.shutdown()


def user(*contents: str | None) -> list[dict[str, Any]]:
    """Officer and civilian in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Parquet whose `messages`, where there are any, have the right type even if empty."""
    table = pa.Table.from_pylist(rows)
    if "messages" in table.schema.names:
        at = table.schema.get_field_index("messages")
        messages = pa.array([row["messages"] for row in rows], pa.list_(MESSAGE))
        table = table.set_column(at, "messages", messages)
    pq.write_table(table, path)
    return str(path)
