"""Ray as deescal starts it, joins it, and reads its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any, TypeVar

from deescal.config import Config
from deescal.errors import UserError, one_line
from deescal.storage import exists, is_local

T = TypeVar("T")


class RayConfig(Config):
    """The Ray that a run starts when it is not inside a cluster; `ray job submit` ignores it."""

    num_cpus: int | None = None  # logical; None: what the workers ask for, and what the tasks between them need
    object_store_gib: float = 1.0  # rows only, no media: little is needed


def start_ray(config: RayConfig, num_cpus: float, demand: Mapping[str, float]) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), else start Ray on this machine.

    Args:
        num_cpus: that Ray is told of on this machine where the config does not say.
        demand: what all workers ask for at once, by Ray's names (CPU, GPU, memory in bytes).

    Raises:
        UserError: this machine has less than is asked for; a cluster may grow, and is not asked.
    """
    # Ray's C++ core repeats on the terminal what it also raises; a bug still ends the job with its traceback.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray's workers are nice (15) by default: an engine's threads, which wait for each other, would stand behind
    # whatever else this machine does, the driver's own polling included.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import psutil
    import ray
    import ray.data  # configures its loggers on import, so their level is set after it

    object_store = int(config.object_store_gib * 2**30)
    if not ray.is_initialized():
        with _silent_stderr():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",  # else Ray joins whatever cluster it finds on this machine
                    num_cpus=config.num_cpus or ceil(num_cpus),
                    object_store_memory=object_store,
                    # Of the machine: by default Ray counts what happens to be free at this moment.
                    _memory=psutil.virtual_memory().total - object_store,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.issue_detectors_config.detectors = []  # advice to whoever sizes workers, not to whoever runs a job
    context.enable_progress_bars = False  # ours counts clips; Ray's counts blocks of every operator
    if not os.environ.get("RAY_ADDRESS"):
        check_size(demand, ray.cluster_resources())
        if demand.get("GPU"):
            check_build()


def check_size(demand: Mapping[str, float], resources: Mapping[str, float]) -> None:
    """Raises UserError where Ray has less than is asked for, both by its names: it would wait for ever."""
    units = {"CPU": ("CPUs", 1.0), "GPU": ("GPUs", 1.0), "memory": ("GiB of memory", 2.0**30)}
    for kind, asked in demand.items():
        there = resources.get(kind, 0.0)
        if asked > there:
            unit, one = units[kind]
            raise UserError(
                f"the stages ask for {asked / one:.1f} {unit} at once, Ray has {there / one:.1f} on this machine: "
                "lower `workers`, `num_cpus`, `num_gpus` or `memory_gib` of the stages' resources"
                + (", or raise ray.num_cpus" if kind == "CPU" else "")
            )


def check_build() -> None:
    """Raises UserError where torch has no CUDA, as in the environment that set-up makes by default."""
    import torch

    if torch.version.cuda is None:
        raise UserError("GPUs are asked for, but torch here is a CPU build: make setup LOCK=locks/gpu.txt")


def on_every_node(function: Callable[..., T], *arguments: Any) -> list[T]:
    """What a function returns on each node of the cluster, this one among them; it takes no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    task: Any = ray.remote(num_cpus=0)(function)
    found: list[T] = ray.get([task.options(scheduling_strategy=place).remote(*arguments) for place in places])
    return found


def on_this_node() -> Any:
    """Ray's strategy for an actor that stays beside the driver: what it knows must not go with a spot machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def is_one_node() -> bool:
    """Whether the cluster is one node, so that what this process sees is what all see."""
    import ray

    return sum(node["Alive"] for node in ray.nodes()) < 2


def check_place(uri: str) -> None:
    """Whether all nodes of the cluster see a file that this process has written.

    Where no node has a CPU yet, as on a cluster that starts at its head alone, the first one to come is waited for.

    Raises:
        UserError: not all of them do.
    """
    import ray

    if not is_local(uri):
        return
    if not ray.cluster_resources().get("CPU"):
        found = [True, ray.get(ray.remote(num_cpus=1)(exists).remote(uri))]
    elif is_one_node():
        return
    else:
        found = on_every_node(exists, uri)
    if not all(found):
        raise UserError(
            f"--out '{os.path.dirname(uri)}': a local folder that {found.count(False)} of the cluster's {len(found)} "
            "nodes do not see; give s3://bucket/prefix, or a folder that all nodes share"
        )


@contextlib.contextmanager
def users_errors() -> Iterator[None]:
    """A UserError that a worker raised comes out as such, not as Ray's error around it."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause from error
        # Ray Data hands on the text of it only.
        if found := re.search(r"^deescal\.[\w.]+Error: (.+)$", str(error), re.MULTILINE):
            raise UserError(found[1]) from error
        raise


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing written to file descriptor 2 is seen: Ray's core reports its own log level there, whatever the level."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def why_failed(error: Exception) -> str:
    """One line, of a user's error or of an engine that did not load; what is neither is a bug and goes on."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__module__.startswith("ray."):
        # Ray's text is the worker's traceback, with the error itself at its end.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"its engine failed: {lines[-1] if lines else one_line(error)}"
    raise error
