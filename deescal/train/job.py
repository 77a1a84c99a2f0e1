"""A fine-tune from the command to the page: check, tokenize, train on Ray, prove the export, report.

<out>/job.json      what was asked for, written first: the same command goes on with the run, another is refused
<out>/tokens/       TOKENS of the splits, made once
<out>/checkpoints/  Ray Train's: the best ones and the last, `step-0000050`
<out>/metrics.jsonl, tensorboard/, loss.png, report.html
<out>/adapter/, validation.parquet, replies.json, trainer_trace.json   see deescal.train.finish
<out>/merged/, parity.json   see deescal.train.publish
<out>/run.json      how it ended, written last: its presence says complete
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from deescal import __version__
from deescal.cluster import check_place, on_this_node, start_ray, users_errors
from deescal.config import fingerprint
from deescal.errors import UserError, one_line
from deescal.models import identity
from deescal.schema import Row
from deescal.storage import (
    absolute,
    exists,
    is_local,
    join,
    locate,
    read_json,
    write_bytes,
    write_json,
)
from deescal.train.config import ExportConfig, TrainConfig
from deescal.train.data import check_dataset, read_examples, read_tokens, split_version, tokenize
from deescal.train.mirrors import Mirrors, check_tracking
from deescal.train.pack import most_targets
from deescal.train.publish import describe_run, prove
from deescal.train.tracking import METRICS_FILE, metrics_lines

RAYS_LIST = "checkpoint_manager_snapshot.json"  # Ray Train's, of the checkpoints that there are
POLL_S = 1.0
SAVE_EVERY_S = 10.0  # metrics.jsonl, while it grows


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    out: str
    run: dict[str, Any]  # the content of run.json

    @property
    def good(self) -> bool:
        """There is an export, and it serves as it was trained."""
        return bool(self.run["parity"]["good"])


class Watch:
    """What a run tells whoever waits for it; the terminal's version is in deescal.train.terminal."""

    def targets(self, text: str) -> None:
        """The first examples as the loss sees them."""

    def begin(self, n_steps: int, counts: Mapping[str, Any]) -> None:
        """Training starts."""

    def row(self, row: Row) -> None:
        """A row of metrics.jsonl."""

    def step(self, text: str) -> None:
        """Something else begins."""


class TrainingFailed(Exception):
    """Workers failed more often than `checkpoints.max_failures`; the message is one line."""


def train(data: str, out: str, config: TrainConfig, watch: Watch | None = None) -> Ended:
    """Fine-tune a model on a dataset.

    Args:
        data: folder of `deescal dataset build`, local or s3://.
        out: folder of the run, local or s3://; a run there that was stopped is continued.
        config: all of it.

    Raises:
        UserError: a wrong dataset, model or config, or too little memory, before any worker starts.
        TrainingFailed: the workers gave up.
    """
    from deescal.train.export import check_mergeable
    from deescal.train.fit import check_memory
    from deescal.train.shape import load_shape

    watch, began = watch or Watch(), datetime.now(UTC)
    data, out = absolute(data), absolute(out)
    splits = ["train", config.data.validation_split]
    load_shape(config)  # refuses what is no model, or takes shorter sequences
    check_dataset(data, splits)
    if config.export.merge and config.method != "full":
        check_mergeable(config.model)
    there = _begin(out, data, config)
    if there is not None:
        return Ended(out, there if _stands(out, there, config) else _prove_again(out, there, config, watch))
    check_tracking(config.tracking)
    check_kernels(config)
    check_memory(config)
    start([config])
    check_place(join(out, "job.json"))
    watch.step("tokenizing")
    with users_errors():
        counts = tokenize(data, config.model, splits, out)
    n_steps = _check_tokens(out, counts, config)
    prompts = _prompts(data, config, watch)
    watch.begin(n_steps, counts)
    _fit(out, config, prompts, watch)
    return Ended(out, _prove(out, describe_run(data, config, counts, began), config, watch))


def check_kernels(config: TrainConfig) -> None:
    """Raises UserError where kernels are asked for that have no GPU, or no package here."""
    for setting, asked, package in (
        ("liger=true", config.liger, "liger_kernel"),
        ("attention=flash_attention_2", config.attention == "flash_attention_2", "flash_attn"),
    ):
        if asked and not config.workers.num_gpus:
            raise UserError(f"{setting}: its kernels are for GPUs: set workers.num_gpus, or leave it out")
        if asked and find_spec(package) is None:
            raise UserError(f"{setting}: the package {package} is not here: install it, or leave the setting out")


def start(configs: Sequence[TrainConfig], at_once: int = 1) -> None:
    """Ray with room for so many of these runs; Ray Data's tasks run before the workers, and take one CPU beside."""
    each = [config.workers.demand(at_once) for config in configs]
    demand = {kind: max(one[kind] for one in each) for kind in each[0]}
    start_ray(configs[0].ray, max(2.0, demand["CPU"]) + 1, demand)


def run_identity(data: str, config: TrainConfig) -> str:
    """Fingerprint of what decides the trained weights: not how many workers, nor what is only measured or shown."""
    shown = {"workers", "ray", "tracking", "export", "checkpoints"}
    deciding = config.model_dump(mode="json", exclude=shown)
    splits = ["train", config.data.validation_split]
    return fingerprint(deciding, identity(config.model), data, [split_version(data, split) for split in splits])


def _begin(out: str, data: str, config: TrainConfig) -> dict[str, Any] | None:
    """Claim the folder; what run.json says where this run is complete."""
    asked = run_identity(data, config)
    begun = any(exists(join(out, there)) for there in ("run.json", f"checkpoints/{RAYS_LIST}"))
    job = join(out, "job.json")
    if begun and exists(job):
        before = read_json(job)
        if before.get("fingerprint") != asked:
            raise UserError(f"--out '{out}': holds a fine-tune with another config, model or dataset; give another")
        if exists(join(out, "run.json")):
            return dict(read_json(join(out, "run.json")))
    whole = config.model_dump(mode="json")
    write_json(job, {"deescal": __version__, "fingerprint": asked, "data": data, "config": whole})
    return None


def _stands(out: str, run: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a complete run's export is good and the one asked for; all but what training decided may differ."""
    before, asked = ExportConfig.model_validate(run["config"]["export"]), config.export
    if (before.parity_prompts, before.parity_new_tokens) != (asked.parity_prompts, asked.parity_new_tokens):
        raise UserError(
            f"--out '{out}': complete, and the trained model was asked with export.parity_prompts="
            f"{before.parity_prompts}, export.parity_new_tokens={before.parity_new_tokens}: leave them, or give another"
        )
    return before == asked and run["parity"]["good"]


def _prove_again(out: str, run: Mapping[str, Any], config: TrainConfig, watch: Watch) -> dict[str, Any]:
    """A complete run's export once more: refused before, or by other rules, or merged."""
    start_ray(config.ray, 2.0, {"GPU": 1.0} if config.workers.num_gpus else {})
    check_place(join(out, "run.json"))
    export = config.export.model_dump(mode="json")
    return _prove(out, {**run, "config": {**run["config"], "export": export}}, config, watch)


def _prove(out: str, run: Mapping[str, Any], config: TrainConfig, watch: Watch) -> dict[str, Any]:
    watch.step("comparing the export with what was trained")
    with users_errors():
        return prove(out, run, on_gpu=bool(config.workers.num_gpus))


def _check_tokens(out: str, counts: Mapping[str, Any], config: TrainConfig) -> int:
    """Steps; refuses examples that are too long, and sequences that learn more at once than there is memory for."""
    from deescal.train.fit import check_memory
    from deescal.train.trainer import plan_training

    for split in counts:
        if counts[split]["longest"] > config.data.max_tokens:
            raise UserError(
                f"the longest example of the {split} split has {counts[split]['longest']} tokens of "
                f"'{config.model}', data.max_tokens={config.data.max_tokens}: raise it, or build the dataset with "
                f"examples.tokenizer={config.model}"
            )
    tokens = read_tokens(out, "train")
    packs, _, n_steps = plan_training(config, tokens.lengths.tolist())
    check_memory(config, most_targets(packs, tokens.n_targets.tolist(), config.data))
    return n_steps


def _prompts(data: str, config: TrainConfig, watch: Watch) -> list[dict[str, Any]]:
    """Held-out prompts, of growing length, each of another scenario; and a look at what is learned."""
    import numpy as np

    from deescal.dataset.chat import load_tokenizer
    from deescal.train.masks import ChatEncoder, show_targets

    encoder = ChatEncoder(load_tokenizer(config.model))
    first = read_examples(data, "train").slice(0, 2).to_pylist()
    watch.targets("\n\n".join(show_targets(encoder, e["messages"], e["n_context_messages"]) for e in first))
    held_out = read_examples(data, config.data.validation_split).to_pylist()
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    n_wanted = max(config.tracking.sample_prompts, config.export.parity_prompts)
    one_each = {held_out[i]["scenario_id"]: held_out[i] for i in order}
    prompts = []
    for i, example in enumerate(list(one_each.values())[:n_wanted]):
        replies = [k for k, m in enumerate(example["messages"]) if m["role"] == "assistant"]
        at = replies[min(i, len(replies) - 1)]
        messages = example["messages"][:at]
        prompts.append(
            {
                "example_id": example["example_id"],
                "scenario_id": example["scenario_id"],
                "messages": messages,
                "reference": example["messages"][at]["content"],
                "input_ids": encoder.prompt(messages),
            }
        )
    return prompts


def _fit(out: str, config: TrainConfig, prompts: Sequence[Mapping[str, Any]], watch: Watch) -> None:
    """Ray Train's run, watched, which leaves metrics.jsonl."""
    import ray
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    sink = ray.remote(num_cpus=0)(MetricsSink).options(scheduling_strategy=on_this_node()).remote()
    one = config.workers
    filesystem, path = locate(out)
    storage: dict[str, Any] = {"storage_path": path}
    if not is_local(out):
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        storage["storage_filesystem"] = PyFileSystem(FSSpecHandler(filesystem))
    options = one.ray_options()
    resources = {"CPU": options["num_cpus"], "memory": options["memory"]}
    if one.num_gpus:
        resources["GPU"] = one.num_gpus
    kept = CheckpointConfig(
        num_to_keep=config.checkpoints.keep_best,
        checkpoint_score_attribute="validation_loss",
        checkpoint_score_order="min",
    )
    work = {
        "config": config.model_dump(mode="json"),
        "out": out,
        "name": fingerprint(out),
        "prompts": list(prompts),
        "sink": sink,
    }
    trainer = TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # what it returns is in Ray's result
        train_loop_config=work,
        torch_config=TorchConfig(backend="nccl" if one.num_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=one.workers, use_gpu=bool(one.num_gpus), resources_per_worker=resources
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # annotated as version 1's
            name="checkpoints",
            failure_config=FailureConfig(max_failures=config.checkpoints.max_failures),
            checkpoint_config=kept,
            logging_config=LoggingConfig(log_level="ERROR"),
            **storage,
        ),
    )
    trouble: list[BaseException] = []

    def fit() -> None:
        try:
            ended: Any = trainer.fit()  # version 2's, which returns what the first worker does
            if refused := (ended.return_value or {}).get("refused"):
                trouble.append(UserError(refused))
        except BaseException as error:
            trouble.append(error)

    about = {"model": config.model, "method": config.method, "learning_rate": config.optim.learning_rate}
    with Mirrors(config.tracking, out, about) as mirrors:
        # In a thread: in the main one Ray would take Ctrl-C, and end with exit code 0.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        follow = _Follow(sink, out, watch, mirrors)
        while thread.is_alive():
            thread.join(POLL_S)
            follow.look()
        follow.look(last=True)
        if trouble:
            with users_errors():
                _explain(trouble[0])


def _train_worker(work: dict[Any, Any]) -> dict[str, Any]:
    from deescal.train.worker import train_worker

    return train_worker(work)


def _explain(error: BaseException) -> None:
    """The worker's own error in one line."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "__cause__", None) or error]
    cause = causes[0]
    for wrapped in (getattr(cause, "cause", None), getattr(cause, "_base_exc", None)):
        cause = wrapped or cause
    if isinstance(cause, UserError):
        raise cause from error
    raise TrainingFailed(f"the workers failed: {type(cause).__name__}: {one_line(cause)}") from error


class MetricsSink:
    """Rows on their way from the first worker to the driver."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def start(self, rows: list[Row]) -> int:
        """Workers start, with the rows of their checkpoint; returns which attempt it is."""
        if not self._rows:  # the driver started anew
            self._rows = list(rows)
        return 1 + max((row["attempt"] for row in self._rows), default=0)

    def add(self, row: Row) -> None:
        self._rows.append(row)

    def since(self, n: int) -> list[Row]:
        """The rows after the first `n`."""
        return self._rows[n:]


class _Follow:
    """Keeps metrics.jsonl as the sink has it, and tells the watch what is new."""

    def __init__(self, sink: Any, out: str, watch: Watch, mirrors: Mirrors) -> None:
        self._sink, self._out, self._watch, self._mirrors = sink, out, watch, mirrors
        self._saved_at = 0.0
        self._rows: list[Row] = []

    def look(self, *, last: bool = False) -> None:
        import ray

        new = ray.get(self._sink.since.remote(len(self._rows)))
        self._rows += new
        if last or (new and time.monotonic() - self._saved_at > SAVE_EVERY_S):
            self._saved_at = time.monotonic()
            write_bytes(join(self._out, METRICS_FILE), metrics_lines(self._rows).encode())
        for row in new:
            self._mirrors.add(row)
            self._watch.row(row)
