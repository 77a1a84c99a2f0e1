"""What is wrong is said in one line before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deescal.cli import app
from deescal.config import load_config
from deescal.train.config import TrainConfig

from .tiny import write_dataset, write_model

CONFIGS = sorted((Path(__file__).parents[2] / "configs/train").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input")
    write_model(folder / "model")
    write_dataset(folder / "data")
    return folder


def said(place: Path, *overrides: str, data: str = "data") -> str:
    arguments = ["--data", str(place / data), "--out", str(place / "out"), "--model", str(place / "model")]
    result = CliRunner().invoke(app, ["train", *arguments, "data.max_tokens=256", *overrides])
    assert result.exit_code == 2, result.output
    assert not (place / "out" / "tokens").exists()
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_are_valid(file: Path) -> None:
    config = load_config(str(file), TrainConfig)
    if config.method == "qlora":
        assert (config.lora.r, config.lora.alpha, config.optim.learning_rate) == (16, 32, 2e-4)
        assert config.data.sequences_per_step == 8
        assert config.optim.epochs == 2


def test_the_local_config_is_the_default() -> None:
    assert load_config(str(CONFIGS[0].parent / "local.yaml"), TrainConfig) == TrainConfig()


def test_no_dataset(place: Path) -> None:
    assert "no examples at" in said(place, data="nowhere")


def test_an_empty_split(place: Path) -> None:
    folder = place / "empty"
    write_dataset(folder)
    file = folder / "examples/validation.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "the validation split is empty" in said(place, data="empty")


def test_a_column_is_missing(place: Path) -> None:
    folder = place / "columns"
    write_dataset(folder)
    file = folder / "examples/train.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["messages"]), file)
    assert "column(s) messages missing" in said(place, data="columns")


def test_no_civilian_turn(place: Path) -> None:
    folder = place / "silent"
    write_dataset(folder)
    file = folder / "examples/train.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("n_target_tokens")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array([0] * len(table), pa.int32())), file)
    assert "no civilian turn to learn" in said(place, data="silent")


def test_no_such_model(place: Path) -> None:
    assert "model 'nobody': neither a folder nor" in said(place, "model=nobody")


def test_a_model_that_takes_fewer_tokens(place: Path) -> None:
    assert "data.max_tokens=1024" in said(place, "data.max_tokens=1024")


def test_not_enough_memory(place: Path) -> None:
    line = said(place, "data.sequences_at_once=500000", "data.sequences_per_step=500000")
    assert "GiB" in line


def test_kernels_that_cannot_run(place: Path) -> None:
    assert "liger=true: its kernels are for GPUs" in said(place, "liger=true")
    assert "the package flash_attn is not here" in said(place, "attention=flash_attention_2", "workers.num_gpus=1")


def test_settings_that_do_not_go_together(place: Path) -> None:
    assert "must be a multiple of" in said(place, "data.sequences_per_step=3", "workers.workers=2")
    assert "offload needs zero2 or zero3" in said(place, "strategy.offload=optimizer")
    assert "set strategy.name=zero2 or zero3, or dtype=float32" in said(place, "method=full")
    assert "unknown key 'lr'" in said(place, "lr=1")
