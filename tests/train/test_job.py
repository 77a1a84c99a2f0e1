"""Whole fine-tunes of a tiny model with the real Trainer, DeepSpeed and Ray Train: faults, world sizes, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from deescal.config import load_config
from deescal.errors import UserError
from deescal.schema import Row
from deescal.storage import read_json
from deescal.train.config import TrainConfig
from deescal.train.job import Ended, TrainingFailed, Watch, train
from deescal.train.sweep import sweep
from deescal.train.tracking import read_metrics

from .tiny import write_dataset, write_model

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model and a dataset of 24 + 6 examples."""
    folder = tmp_path_factory.mktemp("tune")
    write_model(folder / "model")
    write_dataset(folder / "data")
    yield folder
    import ray

    ray.shutdown()


def configure(place: Path, *overrides: str, **workers: Any) -> TrainConfig:
    settings = [
        f"model={place / 'model'}",
        "dtype=float32",  # so that orders of summation, not roundings, are what differs
        "data.max_tokens=256",
        "data.sequences_per_step=2",
        "lora.r=4",
        "optim.learning_rate=0.01",
        "optim.max_steps=8",
        "optim.warmup_share=0",
        "checkpoints.every_steps=2",
        "checkpoints.keep_best=8",
        "export.engine=false",
        "export.parity_prompts=2",
        "tracking.sample_prompts=2",
        "tracking.sample_new_tokens=4",
        "workers.memory_gib=1",
        f"workers.workers={workers.get('workers', 1)}",
        "workers.num_cpus=1",
        "ray.object_store_gib=0.2",
        "ray.num_cpus=4",
    ]
    return load_config(None, TrainConfig, [*settings, *overrides])


def run(place: Path, name: str, *overrides: str, watch: Watch | None = None, **workers: Any) -> Ended:
    return train(str(place / "data"), str(place / name), configure(place, *overrides, **workers), watch)


def losses(ended: Ended) -> list[float]:
    metrics = read_metrics(Path(ended.out, "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in metrics.training] == list(range(1, 9)), "every step once, none twice"
    tokens = [row["tokens"] for row in metrics.training]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == ended.run["result"]["tokens"]
    return [row["loss"] for row in metrics.training]


class At(Watch):
    """Does something once when a step's row comes."""

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        self._step, self._do = step, do

    def row(self, row: Row) -> None:
        if row["step"] >= self._step and "loss" in row:
            self._step = 10**9
            self._do()


class DriverKilled(Exception):
    pass


def kill_worker() -> None:
    """kill -9 of one training worker."""
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            process.kill()
            return
    raise AssertionError("there is no worker")


def die() -> None:
    raise DriverKilled


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Ended:
    return run(place, "undisturbed")


def test_a_run_learns_and_leaves_what_it_says(undisturbed: Ended) -> None:
    out = Path(undisturbed.out)
    result = undisturbed.run["result"]
    assert undisturbed.good
    assert result["tuned_loss"] < result["base_loss"] - 0.05
    assert result["steps"] == 8
    assert result["restarts"] == 0
    for name in ("job.json", "metrics.jsonl", "loss.png", "report.html", "parity.json", "replies.json", "run.json"):
        assert (out / name).stat().st_size > 0, name
    adapter = read_json(str(out / "adapter/adapter_config.json"))
    assert adapter["r"] == 4
    assert adapter["base_model_name_or_path"]
    assert (out / "adapter/adapter_model.safetensors").exists()
    assert (out / "adapter/chat_template.jinja").exists()
    validation = pq.read_table(out / "validation.parquet").to_pylist()
    assert [row["scenario_id"] for row in validation] == ["validation000", "validation001", "validation002"]
    assert all(row["tuned_nll"] < row["base_nll"] for row in validation)
    total = sum(row["n_target_tokens"] for row in validation)
    assert result["tuned_loss"] == pytest.approx(sum(row["tuned_nll"] for row in validation) / total)
    replies = read_json(str(out / "replies.json"))
    assert len(replies) == 2
    assert {"base", "tuned", "reference", "messages"} <= replies[0].keys()


def test_the_same_seed_gives_the_same_losses_and_a_complete_run_is_not_run_again(
    place: Path, undisturbed: Ended
) -> None:
    again = run(place, "again")
    assert losses(again) == losses(undisturbed)
    assert run(place, "again", watch=At(0, die)).run == again.run


def test_another_config_is_refused_where_a_run_is(place: Path, undisturbed: Ended) -> None:
    with pytest.raises(UserError, match="holds a fine-tune with another config"):
        run(place, "undisturbed", "optim.learning_rate=0.02")


def test_kill_9_of_a_worker(place: Path, undisturbed: Ended) -> None:
    killed = run(place, "killed", watch=At(5, kill_worker))
    assert killed.run["result"]["restarts"] == 1
    assert losses(killed) == pytest.approx(losses(undisturbed), abs=1e-5)
    assert killed.run["result"]["tuned_loss"] == pytest.approx(undisturbed.run["result"]["tuned_loss"], abs=1e-5)


def test_the_driver_is_killed_and_the_run_goes_on_with_more_workers(place: Path, undisturbed: Ended) -> None:
    import ray

    with pytest.raises(DriverKilled):
        run(place, "resumed", watch=At(5, die))
    ray.shutdown()
    resumed = run(place, "resumed", workers=2)
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-4)


@pytest.mark.engine  # DeepSpeed
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_on_two_workers_is_one_worker(place: Path, undisturbed: Ended, strategy: str) -> None:
    zero = run(place, strategy, f"strategy.name={strategy}", workers=2)
    assert zero.good
    assert losses(zero) == pytest.approx(losses(undisturbed), abs=1e-2)


@pytest.mark.engine
def test_zero2_goes_on_at_another_number_of_workers(place: Path, undisturbed: Ended) -> None:
    import ray

    with pytest.raises(DriverKilled):
        run(place, "zero2-resumed", "strategy.name=zero2", workers=2, watch=At(5, die))
    ray.shutdown()
    resumed = run(place, "zero2-resumed", "strategy.name=zero2", workers=1)
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-2)


def test_full_fine_tuning_exports_a_model(place: Path) -> None:
    full = run(place, "full", "method=full", "optim.learning_rate=0.003")
    assert full.good
    assert Path(full.out, "adapter/model.safetensors").exists()
    assert full.run["result"]["tuned_loss"] < full.run["result"]["base_loss"]


def test_padded_rows_learn_alike(place: Path, undisturbed: Ended) -> None:
    padded = run(place, "padded", "data.packing=false")
    assert padded.run["result"]["tuned_loss"] < padded.run["result"]["base_loss"]


def test_early_stopping_and_a_rate_that_does_harm(place: Path) -> None:
    """The export is the best checkpoint's, not the last one's."""
    wild = run(place, "wild", "optim.learning_rate=3", "checkpoints.early_stopping=1", "checkpoints.every_steps=1")
    assert wild.run["result"]["steps"] < 8


def test_on_s3(place: Path, s3: Any) -> None:
    import ray

    ray.shutdown()  # workers have the environment of the Ray that starts them, hence the server's address
    ended = train(str(place / "data"), "s3://videos/tuned", configure(place))
    ray.shutdown()
    listed = {item["Key"] for item in s3.list_objects_v2(Bucket="videos", Prefix="tuned")["Contents"]}
    assert {"tuned/run.json", "tuned/adapter/adapter_model.safetensors", "tuned/report.html"} <= listed
    assert ended.good


def test_a_sweep_ends_in_one_list_whatever_fails(place: Path) -> None:
    for name, rate in (("low", 0.001), ("high", 0.01)):
        (place / f"{name}.yaml").write_text(f"model: {place / 'model'}\noptim: {{learning_rate: {rate}}}\n")
    (place / "wrong.yaml").write_text("model: no-such-model\n")
    config = configure(place).model_dump(mode="json", exclude={"model"})
    config["optim"].pop("learning_rate")
    common = [f"{a}={json.dumps(b)}" for a, b in _flat(config)]
    runs = sweep(
        str(place / "data"),
        str(place / "sweep"),
        [str(place / f"{n}.yaml") for n in ("low", "high", "wrong")],
        [c for c in common if not c.endswith("=null")],
    )
    assert [r["name"] for r in runs] == ["low", "high", "wrong"]
    assert "no-such-model" in runs[2]["error"]
    assert "error" not in runs[0]
    assert runs[1]["result"]["tuned_loss"] < runs[0]["result"]["tuned_loss"]


def _flat(node: dict[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def test_workers_that_cannot_go_on_end_the_run_without_an_adapter(place: Path) -> None:
    with pytest.raises(TrainingFailed):
        run(place, "doomed", "checkpoints.max_failures=0", watch=At(1, kill_worker))
    assert not (place / "doomed/run.json").exists()
    assert not (place / "doomed/adapter").exists()
