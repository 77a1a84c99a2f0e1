"""How rows flow through Ray: seeds in, the stages that some row owes, every clip stored the moment it is finished."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import pyarrow as pa

from deescal.curate import store
from deescal.curate.config import CurateConfig, RayConfig
from deescal.curate.plan import FINAL, NAME, Plan, is_current, reopen
from deescal.errors import UserError
from deescal.ingest.transcripts import import_transcripts
from deescal.judge.select import select_clips
from deescal.judge.stage import interpret
from deescal.schema import CLIPS, STAGE, Row, empty_row, to_table
from deescal.speech.audio import extract_audio
from deescal.speech.diarize import diarize
from deescal.speech.transcribe import transcribe
from deescal.speech.turns import assign_turns
from deescal.stage import Ledger, RemoteLedger, Run
from deescal.storage import exists, is_local, join, resolve

if TYPE_CHECKING:
    import ray.data

SEED = pa.schema([*(CLIPS.field(name) for name in ("clip_id", *NAME)), pa.field("from_origin", pa.bool_())])
OUTCOME = pa.schema(
    {
        "clip_id": pa.string(),
        "uri": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "duration_s": pa.float64(),
        "stages": pa.list_(STAGE),
    }
)
MAX_BLOCKS = 5000  # a block is Ray's unit of scheduling: one clip each, until their number would burden the driver
QUICK_BLOCK = 64  # clips a block where no clip takes longer than scheduling it


def run_stages(clips: ray.data.Dataset, config: CurateConfig, run: Run, owed: Sequence[str]) -> ray.data.Dataset:
    """Rows under way -> finished rows. All stages run at once; a clip moves on as soon as it can.

    Args:
        owed: the stages that some row owes; no worker is started, and no model loaded, for the others.
    """
    if "import" in owed:  # transcripts made elsewhere take the place of the speech stages
        clips = import_transcripts(clips, run, accept="select" not in run.fingerprints)
    if "extract_audio" in owed:
        clips = extract_audio(clips, config.audio, run)
    if "transcribe" in owed:
        clips = transcribe(clips, config.transcribe, run)
    if "diarize" in owed:
        clips = diarize(clips, config.diarize, run)
    if "turns" in owed:
        clips = assign_turns(clips, config.turns, run)
    if "roles" in owed or "judge" in owed:  # one engine for both
        clips = interpret(clips, config.interpret, run)
    if "select" in owed:
        clips = select_clips(clips, config.select, run)
    return clips


def stream(
    plan: Plan,
    config: CurateConfig,
    out: str,
    fingerprints: Mapping[str, str],
    origin: str | None = None,
    retry_failed: bool = False,
) -> Iterator[Row]:
    """Run the plan's rows through the stages; yields an OUTCOME the moment a clip is stored.

    Raises:
        UserError: this machine is too small, the cluster does not see `out`, or a worker says so.
    """
    start_ray(config.ray, config.logical_cpus())
    import ray

    if not os.environ.get("RAY_ADDRESS"):  # a cluster may grow
        check_size(config.demand(plan.owed), ray.cluster_resources())
    check_place(out)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's node: what it knows must not go with a spot machine.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote(plan.owners)
    run = Run(out, fingerprints, RemoteLedger(ledger))
    load = partial(load_rows, out=out, origin=origin, fingerprints=fingerprints, retry_failed=retry_failed)
    n_blocks = ceil(len(plan.todo) / QUICK_BLOCK) if plan.owed in (["import"], ["select"]) else len(plan.todo)
    clips = ray.data.from_arrow(to_table(plan.todo, SEED)).repartition(min(n_blocks, MAX_BLOCKS))
    clips = clips.map_batches(load, batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    clips = run_stages(clips, config, run, plan.owed)
    clips = clips.map_batches(partial(write_rows, out=out), batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    try:
        yield from clips.iter_rows()
    except ray.exceptions.RayError as error:
        if refusal := _user_error(error):
            raise refusal from error
        raise


def load_rows(
    seeds: pa.Table, out: str, origin: str | None, fingerprints: Mapping[str, str], retry_failed: bool
) -> pa.Table:
    """Seeds -> CLIPS rows under way: what still stands of a known clip, a new one empty."""
    rows = []
    for seed in seeds.to_pylist(maps_as_pydicts="strict"):
        from_origin, name = seed["from_origin"], {key: seed[key] for key in NAME}
        if seed["clip_id"] is None:
            rows.append(empty_row(**name, aliases=[], stages=[]))
            continue
        home = origin if from_origin and origin else out
        row = {**store.read_clip(home, seed["clip_id"]), **name}
        if from_origin and row["audio"]:
            row["audio"] = resolve(home, row["audio"])  # the sound stays where it is
        rows.append(row if is_current(row, fingerprints, retry_failed) else reopen(row, fingerprints))
    return to_table(rows)


def write_rows(table: pa.Table, out: str) -> pa.Table:
    """Store finished rows, and the names of duplicates; returns their OUTCOME.

    Raises:
        RuntimeError: a row is not finished, which is a bug in a stage.
    """
    rows = table.to_pylist(maps_as_pydicts="strict")
    for row in rows:
        if row["status"] not in (*FINAL, "duplicate"):
            raise RuntimeError(f"{row['uri']}: went through all stages and has the status {row['status']!r}")
        store.finish_clip(out, row)
    return to_table([{name: row[name] for name in OUTCOME.names} for row in rows], OUTCOME)


def start_ray(config: RayConfig, num_cpus: float) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), else start Ray on this machine.

    Args:
        num_cpus: that Ray is told of on this machine where the config does not say.
    """
    # Ray's C++ core repeats on the terminal what it also raises; a bug still ends the job with its traceback.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data  # configures its loggers on import, so their level is set after it

    if not ray.is_initialized():
        with _silent_stderr():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",  # else Ray joins whatever cluster it finds on this machine
                    num_cpus=config.num_cpus or ceil(num_cpus),
                    object_store_memory=int(config.object_store_gib * 2**30),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.issue_detectors_config.detectors = []  # advice to whoever sizes workers, not to whoever runs a job
    context.enable_progress_bars = False  # ours counts clips; Ray's counts blocks of every operator


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


def check_place(out: str) -> None:
    """Raises UserError where nodes of the cluster do not see the local folder `out`, in which job.json lies already."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not is_local(out):
        return
    look = ray.remote(exists)
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    looks = [look.options(num_cpus=0, scheduling_strategy=p).remote(join(out, "job.json")) for p in places]
    found = ray.get(looks)
    if not all(found):
        raise UserError(
            f"--out '{out}': a local folder that {found.count(False)} of the cluster's {len(nodes)} nodes do not see; "
            "give s3://bucket/prefix, or a folder that all nodes share"
        )


def _user_error(error: Exception) -> UserError | None:
    """The UserError that a worker raised; Ray hands on its text only."""
    name = f"{UserError.__module__}.{UserError.__qualname__}"
    found = re.search(rf"^{re.escape(name)}: (.+)$", str(error), re.MULTILINE)
    return UserError(found[1]) if found else None


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
