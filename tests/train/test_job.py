"""Whole fine-tunes of a tiny model with the real Trainer, DeepSpeed and Ray Train: faults, world sizes, bad input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from deescal.config import load_config
from deescal.errors import UserError
from deescal.storage import read_json
from deescal.train.config import TrainConfig
from deescal.train.job import Ended, TrainingFailed, train
from deescal.train.sweep import sweep
from deescal.train.tracking import read_metrics

from .tiny import write_dataset, write_model

pytestmark = pytest.mark.ray

N_STEPS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model and a dataset of 24 + 6 examples."""
    folder = tmp_path_factory.mktemp("tune")
    write_model(folder / "model")
    write_dataset(folder / "data")
    yield folder
    import ray

    ray.shutdown()


def settings(place: Path, *overrides: str, workers: int = 1) -> list[str]:
    return [
        f"model={place / 'model'}",
        "dtype=float32",  # so that orders of summation, not roundings, are what differs
        "data.max_tokens=256",
        "data.sequences_per_step=2",
        "lora.r=4",
        "optim.learning_rate=0.01",
        f"optim.max_steps={N_STEPS}",
        "optim.warmup_share=0",
        "checkpoints.every_steps=2",
        "checkpoints.keep_best=8",
        "export.engine=false",
        "export.parity_prompts=2",
        "tracking.sample_prompts=2",
        "tracking.sample_new_tokens=4",
        "workers.memory_gib=1",
        f"workers.workers={workers}",
        "workers.num_cpus=1",
        "ray.object_store_gib=0.2",
        "ray.num_cpus=4",
        *overrides,
    ]


def run(place: Path, name: str, *overrides: str, workers: int = 1) -> Ended:
    lend_tokens(place, name)
    config = load_config(None, TrainConfig, settings(place, *overrides, workers=workers))
    return train(str(place / "data"), str(place / name), config)


def lend_tokens(place: Path, name: str) -> None:
    """The undisturbed run's tokens, which are the same for all of these: seconds saved in each run."""
    lender = place / "undisturbed" / "tokens"
    if lender.exists() and not (place / name).exists():
        shutil.copytree(lender, place / name / "tokens")


def losses(ended: Ended) -> list[float]:
    metrics = read_metrics(Path(ended.out, "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in metrics.training] == list(range(1, N_STEPS + 1)), "every step once, none twice"
    tokens = [row["tokens"] for row in metrics.training]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == ended.run["result"]["tokens"]
    return [row["loss"] for row in metrics.training]


def wait_for_checkpoint(out: Path, step: int = 2, within_s: float = 240) -> None:
    """Until Ray Train knows of a step's checkpoint, by its own list."""
    until = time.monotonic() + within_s
    known = out / "checkpoints/checkpoint_manager_snapshot.json"
    while not (known.exists() and f"step-{step:07d}" in known.read_text()):
        assert time.monotonic() < until, f"no checkpoint in {out}"
        time.sleep(0.02)


@contextmanager
def worker_killed(out: Path) -> Iterator[None]:
    """`kill -9` of a training worker once there is a checkpoint."""
    killed: list[int] = []

    def kill() -> None:
        wait_for_checkpoint(out)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert killed, "there was no worker"


def kill_driver(place: Path, name: str, *overrides: str, workers: int = 1, step: int = 2) -> None:
    """`deescal train` in a process of its own, which gets `kill -9` once there is this step's checkpoint."""
    import ray

    ray.shutdown()  # it starts its own
    lend_tokens(place, name)
    command = [sys.executable, "-m", "deescal", "train", "--data", place / "data", "--out", place / name]
    with open(place / f"{name}.log", "w") as log:
        driver = subprocess.Popen(
            [*command, *settings(place, *overrides, workers=workers)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for_checkpoint(place / name, step)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    assert not (place / name / "run.json").exists()


def assert_resumed(ended: Ended, after: int = 2) -> None:
    metrics = read_metrics(Path(ended.out, "metrics.jsonl").read_text().splitlines())
    attempts = {row["step"]: row["attempt"] for row in metrics.training}
    assert attempts[after] == 1, "steps before the checkpoint are the first attempt's"
    assert attempts[N_STEPS] == 2, "the second goes on from there"


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Ended:
    return run(place, "undisturbed")


def test_a_run_learns_and_leaves_what_it_says(undisturbed: Ended) -> None:
    out = Path(undisturbed.out)
    result = undisturbed.run["result"]
    assert undisturbed.good
    assert result["tuned_loss"] < result["base_loss"] - 0.05
    assert result["steps"] == N_STEPS
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


def test_a_complete_run_is_not_run_again_and_another_config_is_refused(place: Path, undisturbed: Ended) -> None:
    written = Path(undisturbed.out) / "run.json"
    before = written.stat().st_mtime_ns
    assert run(place, "undisturbed").run == undisturbed.run
    assert written.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a fine-tune with another config"):
        run(place, "undisturbed", "optim.learning_rate=0.02")


def test_a_complete_run_is_merged_when_asked_for(place: Path, undisturbed: Ended) -> None:
    shutil.copytree(undisturbed.out, place / "merged")
    metrics = place / "merged/metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    merged = run(place, "merged", "export.merge=true")
    assert merged.good
    assert metrics.stat().st_mtime_ns == before
    assert "trained | merged, transformers" in [row["what"] for row in merged.run["parity"]["rows"]]
    assert (Path(merged.out) / "merged/model.safetensors").exists()
    assert merged.run["wall_s"] == undisturbed.run["wall_s"]
    with pytest.raises(UserError, match=r"asked with export.parity_prompts=2"):
        run(place, "merged", "export.parity_prompts=3")


def test_kill_9_of_a_worker(place: Path, undisturbed: Ended) -> None:
    with worker_killed(place / "killed"):
        killed = run(place, "killed")
    assert killed.run["result"]["restarts"] == 1
    assert_resumed(killed)
    assert losses(killed) == pytest.approx(losses(undisturbed), abs=1e-5)
    assert killed.run["result"]["tuned_loss"] == pytest.approx(undisturbed.run["result"]["tuned_loss"], abs=1e-5)


def test_workers_that_cannot_go_on_end_the_run_without_an_adapter(place: Path, undisturbed: Ended) -> None:
    with pytest.raises(TrainingFailed), worker_killed(place / "doomed"):
        run(place, "doomed", "checkpoints.max_failures=0")
    assert not (place / "doomed/run.json").exists()
    assert not (place / "doomed/adapter").exists()


def test_padded_rows_and_a_rate_that_does_harm(place: Path, undisturbed: Ended) -> None:
    """Early stopping; and the export is the best checkpoint's, not the last one's."""
    wild = run(
        place,
        "wild",
        "data.packing=false",
        "optim.learning_rate=3",
        "checkpoints.early_stopping=1",
        "checkpoints.every_steps=1",
    )
    result = wild.run["result"]
    assert result["steps"] < N_STEPS
    assert result["best_step"] < result["steps"]


def test_a_model_that_cannot_be_packed_is_refused(place: Path, undisturbed: Ended) -> None:
    from transformers import AutoTokenizer, StableLmConfig, StableLmForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = StableLmForCausalLM(
        StableLmConfig(vocab_size=len(tokenizer), num_key_value_heads=4, initializer_range=0.2, **sizes)
    )
    model.save_pretrained(place / "stablelm")
    tokenizer.save_pretrained(place / "stablelm")
    with pytest.raises(UserError, match="lets an example see the one before it"):
        run(place, "leaky", f"model={place / 'stablelm'}")
    assert not (place / "leaky/run.json").exists()


def test_a_sweep_ends_in_one_list_whatever_fails(place: Path, undisturbed: Ended) -> None:
    for name, rate in (("low", 0.001), ("high", 0.01)):
        lend_tokens(place, f"sweep/{name}")
        rest = "dtype: float32" if name == "high" else "dtype: bfloat16\nstrategy: {gradient_checkpointing: true}"
        (place / f"{name}.yaml").write_text(f"model: {place / 'model'}\noptim: {{learning_rate: {rate}}}\n{rest}\n")
    (place / "wrong.yaml").write_text("model: no-such-model\n")
    common = [s for s in settings(place) if not s.startswith(("model=", "dtype=", "optim.learning_rate="))]
    runs = sweep(
        str(place / "data"), str(place / "sweep"), [str(place / f"{n}.yaml") for n in ("low", "high", "wrong")], common
    )
    assert [r["name"] for r in runs] == ["low", "high", "wrong"]
    assert "no-such-model" in runs[2]["error"]
    assert "error" not in runs[0]
    assert runs[1]["result"]["tuned_loss"] < runs[0]["result"]["tuned_loss"]
    same = Ended(str(place / "sweep/high"), read_json(str(place / "sweep/high/run.json")))
    assert losses(same) == losses(undisturbed), "the same config, seed and number of workers"


@pytest.mark.engine  # DeepSpeed
def test_zero3_on_two_workers_is_one_worker(place: Path, undisturbed: Ended) -> None:
    zero = run(place, "zero3", "strategy.name=zero3", workers=2)
    assert zero.good
    assert losses(zero) == pytest.approx(losses(undisturbed), abs=1e-2)


def test_the_driver_is_killed_and_the_run_goes_on_with_more_workers(place: Path, undisturbed: Ended) -> None:
    kill_driver(place, "resumed")
    resumed = run(place, "resumed", workers=2)
    assert_resumed(resumed)
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-4)


@pytest.mark.engine
def test_zero2_on_two_workers_is_one_worker_and_goes_on_at_another_number(place: Path, undisturbed: Ended) -> None:
    kill_driver(place, "zero2", "strategy.name=zero2", workers=2, step=8)
    resumed = run(place, "zero2", "strategy.name=zero2", workers=1)
    assert_resumed(resumed, after=8)
    assert resumed.good
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-2)


@pytest.mark.engine
def test_full_fine_tuning_with_zero3_on_s3_exports_a_model(place: Path, s3: Any) -> None:
    import ray

    ray.shutdown()  # workers have the environment of the Ray that starts them, hence the server's address
    config = load_config(
        None, TrainConfig, settings(place, "method=full", "strategy.name=zero3", "optim.learning_rate=0.003")
    )
    ended = train(str(place / "data"), "s3://videos/tuned", config)
    ray.shutdown()
    listed = {item["Key"] for item in s3.list_objects_v2(Bucket="videos", Prefix="tuned")["Contents"]}
    assert {"tuned/run.json", "tuned/adapter/model.safetensors", "tuned/report.html"} <= listed
    assert ended.good
    assert ended.run["result"]["tuned_loss"] < ended.run["result"]["base_loss"]
