"""After training: run.json, the gate on the export, the page. What is here can be done again for a complete run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from deescal import __version__
from deescal.models import identity
from deescal.storage import (
    exists,
    get_folder,
    join,
    put_folder,
    read_bytes,
    read_json,
    read_table,
    write_json,
    writing,
)
from deescal.train.config import TrainConfig
from deescal.train.tracking import METRICS_FILE, read_metrics


def describe_run(data: str, config: TrainConfig, counts: Mapping[str, Any], began: datetime) -> dict[str, Any]:
    """run.json of a run whose training is over: what it was made of.

    Args:
        counts: of the splits, as `deescal.train.data.tokenize` gives them.
    """
    return {
        "deescal": __version__,
        "started_at": began.isoformat(timespec="seconds"),
        "base": {"model": config.model, "identity": identity(config.model)},
        "data": {"uri": data, "splits": dict(counts)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "ray")},
        "config": config.model_dump(mode="json"),
    }


def prove(out: str, run: Mapping[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """The gate, parity.json, merged/ where asked for, the page, and run.json last.

    Args:
        run: of `describe_run`, or of a complete run, its config's `export` changed.
        on_gpu: give the engines one.

    Returns:
        run.json, with `wall_s` (of the first time), `result` and `parity`.

    Raises:
        UserError: the base cannot be merged into.
    """
    import ray

    from deescal.report.train_page import write_train_page
    from deescal.train.outcome import outcome
    from deescal.train.tracking import loss_png

    # In a task: on a cluster the GPU is another node's.
    gate = ray.remote(num_gpus=int(on_gpu), num_cpus=1, max_retries=0)(_gate)
    parity = ray.get(gate.remote(out, run["config"]))
    write_json(join(out, "parity.json"), parity)
    metrics = read_metrics(read_bytes(join(out, METRICS_FILE)).decode().splitlines())
    validation = read_table(join(out, "validation.parquet")).to_pylist()
    since_start = datetime.now(UTC) - datetime.fromisoformat(run["started_at"])
    run = {
        "wall_s": since_start.total_seconds(),
        **run,
        "result": outcome(metrics, validation, parity),
        "parity": parity,
    }
    with writing(join(out, "loss.png")) as file:
        loss_png(metrics, file)
    stats = join(run["data"]["uri"], "stats.json")
    write_train_page(run, out, read_json(stats) if exists(stats) else None)
    write_json(join(out, "run.json"), run)
    return run


def _gate(out: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's task: merge if asked for, then `check_export`; the folders are brought here and back."""
    from deescal.train.export import merge_adapter
    from deescal.train.parity import check_export
    from deescal.train.trace import Trace

    settings = TrainConfig.model_validate(config)
    trained = Trace(**read_json(join(out, "trainer_trace.json")))
    with tempfile.TemporaryDirectory() as folder:
        adapter, merged = f"{folder}/adapter", None
        get_folder(join(out, "adapter"), adapter)
        if settings.export.merge and settings.method != "full":
            merged = f"{folder}/merged"
            merge_adapter(settings.model, adapter, merged)
        parity = check_export(trained, adapter, settings, merged)
        if merged:
            put_folder(merged, join(out, "merged"))
        return parity
