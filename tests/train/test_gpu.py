"""QLoRA on a real GPU, with a small random model of a real family's architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from deescal.config import load_config
from deescal.train.config import TrainConfig
from deescal.train.job import train
from deescal.train.tracking import read_metrics

from .tiny import write_dataset, write_model

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.engine]


def test_qlora_on_a_gpu_learns_and_tells_its_utilisation(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_dataset(tmp_path / "data")
    settings = [
        f"model={tmp_path / 'model'}",
        "method=qlora",
        "data.max_tokens=256",
        "data.sequences_per_step=2",
        "optim.learning_rate=0.01",
        "optim.max_steps=20",
        "checkpoints.every_steps=10",
        "export.engine=false",
        "workers.num_gpus=1",
    ]
    ended = train(str(tmp_path / "data"), str(tmp_path / "out"), load_config(None, TrainConfig, settings))
    assert ended.run["result"]["tuned_loss"] < ended.run["result"]["base_loss"]
    metrics = read_metrics((tmp_path / "out/metrics.jsonl").read_text().splitlines())
    assert all(0 < row["mfu"] < 1 for row in metrics.training)
