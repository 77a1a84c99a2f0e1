"""How rows flow through Ray: seeds in, the stages that some row owes, every clip stored the moment it is finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import pyarrow as pa

from deescal.cluster import check_place, on_this_node, start_ray, users_errors
from deescal.curate import store
from deescal.curate.config import CurateConfig
from deescal.curate.plan import FINAL, NAME, Plan, is_current, reopen
from deescal.ingest.transcripts import import_transcripts
from deescal.judge.select import select_clips
from deescal.judge.stage import interpret
from deescal.schema import CLIPS, STAGE, Row, empty_row, to_table
from deescal.speech.audio import extract_audio
from deescal.speech.diarize import diarize
from deescal.speech.transcribe import transcribe
from deescal.speech.turns import assign_turns
from deescal.stage import Ledger, RemoteLedger, Run
from deescal.storage import join, resolve

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
    start_ray(config.ray, config.logical_cpus(), config.demand(plan.owed))
    import ray

    check_place(join(out, "job.json"))

    ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=on_this_node()).remote(plan.owners)
    run = Run(out, fingerprints, RemoteLedger(ledger))
    load = partial(load_rows, out=out, origin=origin, fingerprints=fingerprints, retry_failed=retry_failed)
    n_blocks = ceil(len(plan.todo) / QUICK_BLOCK) if plan.owed in (["import"], ["select"]) else len(plan.todo)
    clips = ray.data.from_arrow(to_table(plan.todo, SEED)).repartition(min(n_blocks, MAX_BLOCKS))
    clips = clips.map_batches(load, batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    clips = run_stages(clips, config, run, plan.owed)
    clips = clips.map_batches(partial(write_rows, out=out), batch_size=1, batch_format="pyarrow", num_cpus=0.5)
    with users_errors():
        yield from clips.iter_rows()


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
