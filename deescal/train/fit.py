"""Whether a fine-tune fits into memory, and what to change where it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from pydantic import ValidationError

from deescal.config import explain
from deescal.errors import UserError
from deescal.train.config import TrainConfig
from deescal.train.memory import GIB, MOST_TARGETS, Memory, estimate_memory
from deescal.train.shape import ModelShape, load_shape

USABLE_SHARE = 0.92  # of a device's memory: the rest is lost between allocations
SHORTEST_TOKENS = 256  # of a sequence that is proposed

Overrides = dict[str, Any]  # as on the command line: dotted key -> value


def check_memory(config: TrainConfig, target_share: float = 0.0) -> None:
    """Raises UserError where this machine, or its first GPU, has too little for the config's workers.

    With a `target_share` of 0, as long as it is not known, it refuses only what cannot be whatever the data.

    Of a cluster's machines nothing is known here: with RAY_ADDRESS set nothing is checked, nor where the workers ask
    for GPUs and there are none.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    available_gib, on_gpu = machine_gib(), bool(config.workers.num_gpus)
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            return
        available_gib = torch.cuda.get_device_properties(0).total_memory / GIB * min(1.0, config.workers.num_gpus)
    shape = load_shape(config)
    needed_gib = needed(config, estimate_memory(config, shape, on_gpu=on_gpu, target_share=target_share), on_gpu=on_gpu)
    if fits(needed_gib, available_gib):
        return
    found = first_fit(config, shape, available_gib, on_gpu=on_gpu, target_share=target_share)
    where = "on a GPU" if on_gpu else f"for {config.workers.workers} worker(s) on this machine"
    raise UserError(
        f"not enough memory: {config.method} of '{config.model}' in sequences of {config.data.max_tokens} tokens needs "
        f"about {needed_gib:.1f} GiB {where}, which has {available_gib:.1f}: "
        + (f"try {as_arguments(found)}" if found else "no change of the config would do; take a smaller model")
    )


def needed(config: TrainConfig, one: Memory, *, on_gpu: bool) -> float:
    """GiB on each GPU, or on this machine for all workers and Ray's object store; `one` worker's is given."""
    if on_gpu:
        return one.gib
    return config.workers.workers * (one.gib + one.host / GIB) + config.ray.object_store_gib


def fits(needed_gib: float, available_gib: float) -> bool:
    return needed_gib <= USABLE_SHARE * available_gib


def machine_gib() -> float:
    import psutil

    return psutil.virtual_memory().total / GIB


def first_fit(
    config: TrainConfig,
    shape: ModelShape,
    available_gib: float,
    *,
    on_gpu: bool,
    target_share: float = MOST_TARGETS,
) -> Overrides | None:
    """The first change that makes the config fit, from harmless to painful; None where none does."""
    for overrides in _changes(config, on_gpu):
        try:
            changed = change(config, overrides)
        except UserError:  # such as 4 bits with ZeRO-3
            continue
        memory = estimate_memory(changed, shape, on_gpu=on_gpu, target_share=target_share)
        if changed != config and fits(needed(changed, memory, on_gpu=on_gpu), available_gib):
            return {key: value for key, value in overrides.items() if reduce(getattr, key.split("."), config) != value}
    return None


def _changes(config: TrainConfig, on_gpu: bool) -> Iterator[Overrides]:
    """What to try, in order; some of it may be so already."""
    recompute: Overrides = {"strategy.gradient_checkpointing": True}
    quantized = {**recompute, "method": "qlora"}
    yield recompute
    yield quantized
    if on_gpu:  # on one machine's processor, all parts lie in the same memory
        yield {**recompute, "strategy.name": "zero2"}
        yield {**recompute, "strategy.name": "zero3"}
        yield {**recompute, "strategy.name": "zero3", "strategy.offload": "all"}
    n_tokens, one = config.data.max_tokens, {"data.sequences_at_once": 1}
    while True:
        yield {**recompute, **one, "data.max_tokens": n_tokens}
        yield {**quantized, **one, "data.max_tokens": n_tokens}
        if n_tokens <= SHORTEST_TOKENS:
            return
        n_tokens = max(SHORTEST_TOKENS, n_tokens // 2)


def change(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """The config with other values under dotted keys.

    Raises:
        UserError: they do not go together.
    """
    values = config.model_dump()
    for key, value in overrides.items():
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, TrainConfig, "plan")) from error


def as_arguments(overrides: Mapping[str, Any]) -> str:
    """key=value as the command line takes them."""
    return " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in overrides.items())
