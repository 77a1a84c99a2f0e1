"""What one worker of Ray Train does: load, train with transformers' Trainer, measure, hand over.

A checkpoint is what the Trainer saves (adapter or model, optimizer, scheduler, its state with all metrics so far,
generators of each rank), handed to Ray Train, which keeps the best and the last and starts workers from the last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deescal.errors import UserError
from deescal.train.config import TrainConfig


def train_worker(work: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's loop function: train on from the last checkpoint if there is one, then `finish`.

    Args:
        work: `config` (of TrainConfig), `out` (the run's folder), `name` (of the run, for its folder on the node),
            `prompts` (held-out ones, see `finish`), `sink` (actor that the rows of metrics go to).

    Returns:
        What `finish` returns; or `refused`, why training cannot go on, in one line.
    """
    import ray.train
    import ray.train.torch
    import torch
    from transformers import set_seed

    from deescal.dataset.chat import load_tokenizer
    from deescal.train.data import read_tokens
    from deescal.train.finish import finish
    from deescal.train.model import load_for_training
    from deescal.train.trainer import make_trainer
    from deescal.train.zero import deepspeed_config

    config = TrainConfig.model_validate(work["config"])
    device = ray.train.torch.get_device()
    n_threads = max(1, int(config.workers.num_cpus))
    torch.set_num_threads(n_threads)
    os.environ["OMP_NUM_THREADS"] = str(n_threads)  # without it accelerate takes half, on processors with two a core
    scratch = _node_folder(work["name"])
    resumed, universal = _fetch_checkpoint(scratch, config)
    train = read_tokens(work["out"], "train")
    validation = read_tokens(work["out"], config.data.validation_split)
    # DeepSpeed's config must be there before a model is loaded: for ZeRO-3 it is spread while it is read.
    deepspeed = deepspeed_config(config, universal=universal)
    tokenizer = load_tokenizer(config.model)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    set_seed(config.seed)  # adapters are drawn here, the same on every worker
    trainer = make_trainer(
        config,
        lambda: load_for_training(config, device),
        train,
        validation,
        scratch,
        work["sink"],
        pad_id=pad_id,
        deepspeed=deepspeed,
    )
    trainer.args.eval_on_start = resumed is None
    try:
        trainer.train(resume_from_checkpoint=resumed)
        result = finish(trainer, config, work["prompts"], work["out"])
    except UserError as refusal:  # of all ranks alike; raised, Ray Train would try it `max_failures` times more
        result = {"refused": str(refusal)}
    barrier()
    if ray.train.get_context().get_local_rank() == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def _node_folder(name: str) -> Path:
    """An empty folder of this node, the same for all its workers."""
    import ray.train

    folder = Path(tempfile.gettempdir()) / f"deescal-train-{name}"
    if ray.train.get_context().get_local_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()
    return folder


def _fetch_checkpoint(scratch: Path, config: TrainConfig) -> tuple[str | None, bool]:
    """The checkpoint to go on from, on this node; and whether it had to be made readable for another world size."""
    import ray.train

    from deescal.train.zero import saved_world_size, to_universal

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None, False
    context = ray.train.get_context()
    is_first_here = context.get_local_rank() == 0
    folder = scratch / "resumed"
    if is_first_here:
        checkpoint.to_directory(str(folder))
    barrier()
    universal = config.strategy.name != "ddp" and saved_world_size(folder) != context.get_world_size()
    if universal and is_first_here:
        to_universal(folder)
    barrier()
    return str(folder), universal


def barrier() -> None:
    """Wait for all workers."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
