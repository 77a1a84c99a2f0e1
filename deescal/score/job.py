"""A scoring run: rows of a table asked of one or several models, every one answered once, whatever is killed meanwhile.

<out>/job.json         what was asked for, written first: the same command goes on with the run, another is refused
<out>/parts/           ANSWERS as they come (`deescal.score.store`)
<out>/work/            the requests that are being asked; gone when all are
<out>/scores.parquet   SCORES: the input's rows in order, each with every model's answers
<out>/run.json         summary, written last: its presence says complete
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deescal import __version__
from deescal.errors import UserError, one_line
from deescal.schema import Row, to_table
from deescal.score.config import ScoreConfig, contestant_name
from deescal.score.plan import Plan, describe, make_plan, run_identity
from deescal.score.source import SCORES_FILE
from deescal.score.store import read_answers, write_part
from deescal.score.summary import summarize
from deescal.score.tables import ANSWERS, answer_row, pending, score_rows, scores_schema
from deescal.score.tasks import FEATURES, find_task
from deescal.storage import STORAGE_ERRORS, absolute, exists, join, locate, read_json, write_json, writing


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    out: str
    run: dict[str, Any]  # the content of run.json

    @property
    def n_errors(self) -> int:
        summary = self.run["summary"]
        return int(summary["requests"] - summary["answered"])


class Watch:
    """What a run tells whoever waits for it; the terminal's version is in deescal.score.terminal."""

    def begin(self, total: int, done: int) -> None:
        """So many requests, of which so many have an answer from before."""

    def answers(self, answers: pa.Table) -> None:
        """ANSWERS that were just stored."""


def score(
    data: str,
    out: str,
    task: str,
    models: Sequence[str],
    config: ScoreConfig,
    *,
    endpoint: str | None = None,
    retry_failed: bool = False,
    watch: Watch | None = None,
) -> Ended:
    """Ask every row of the data of every model; what has an answer at `out` already is not asked again.

    Args:
        data: see `read_inputs`.
        out: folder of the run, local or s3://.
        task: see `deescal.score.config.TASKS`.
        models: see `parse_models`; of an endpoint, names that it serves.
        endpoint: URL of a running API in place of an engine of our own.
        retry_failed: ask again what has an error.

    Raises:
        UserError: anything wrong with these, before an engine starts or a request is sent.
    """
    watch, started_at, began = watch or Watch(), datetime.now(UTC), time.monotonic()
    plan = make_plan(absolute(data), find_task(task), models, config, endpoint)
    out = absolute(out)
    there = _begin(out, plan)
    if there is not None and not (retry_failed and there["summary"]["errors"]):
        return Ended(out, there)
    answers = read_answers(out)
    _forget(join(out, "run.json"))  # it says 'complete', which is not true from here on
    todo = pending(plan.requests(), answers, retry_failed)
    done = sum(1 for a in answers.values() if a["error"] is None or not retry_failed)
    watch.begin(plan.n_requests, done)
    if done < plan.n_requests:
        _ask(plan, _without_errors(todo, out, watch), out, watch)
    return Ended(out, _finish(plan, out, started_at, time.monotonic() - began))


def _begin(out: str, plan: Plan) -> dict[str, Any] | None:
    """Claim the folder; what run.json says where this run is complete."""
    asked, file = run_identity(plan), join(out, "job.json")
    try:
        if exists(file):
            if read_json(file).get("fingerprint") != asked:
                raise UserError(
                    f"--out '{out}': holds a scoring run of another task, dataset, sampling or model (its name, "
                    "weights or endpoint); give another folder"
                )
            if exists(join(out, "run.json")):
                return dict(read_json(join(out, "run.json")))
        write_json(file, {"deescal": __version__, "fingerprint": asked, **describe(plan)})
    except STORAGE_ERRORS as error:
        raise UserError(f"--out '{out}': cannot be read and written: {one_line(error)}") from error
    return None


def _without_errors(requests: Iterable[Row], out: str, watch: Watch) -> Iterator[Row]:
    """Those that can be asked; of the others the errors are stored as their answers."""
    refused = []
    for request in requests:
        if request["error"] is None:
            yield request
        else:
            refused.append(answer_row(request, error=request["error"]))
    if refused:
        answers = to_table(refused, ANSWERS)
        write_part(out, answers)
        watch.answers(answers)


def _ask(plan: Plan, requests: Iterator[Row], out: str, watch: Watch) -> None:
    first = next(requests, None)
    if first is None:
        return
    requests = chain([first], requests)
    if plan.endpoint is not None:
        from deescal.score.online import ask_online

        ask_online(requests, out, plan.endpoint, plan.sampling, plan.config.online, watch.answers)
        return
    if plan.task is FEATURES:
        from deescal.score.features import ask_features, judge_config

        stream = ask_features(requests, out, judge_config(plan.config.llm.model, plan.config), plan.config)
    else:
        from deescal.score.offline import ask_offline

        stream = ask_offline(requests, out, plan.contestants, plan.sampling, plan.config)
    for answers in stream:
        watch.answers(answers)


def _finish(plan: Plan, out: str, started_at: datetime, wall_s: float) -> dict[str, Any]:
    """Scores and summary of all answers."""
    answers = read_answers(out)
    schema = scores_schema(plan.inputs.schema, plan.task)
    used: dict[str, list[Row]] = {contestant.name: [] for contestant in plan.contestants}
    with writing(join(out, SCORES_FILE)) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for page in score_rows(plan.inputs, plan.task, plan.contestants, plan.sampling.samples, plan.room, answers):
            writer.write_table(page)
            for model, adapter, i in zip(
                *(page[n].to_pylist() for n in ("model", "adapter", "request_id")), strict=True
            ):
                used[contestant_name(model, adapter)].append(answers[i])
    run = {
        "deescal": __version__,
        "fingerprint": run_identity(plan),
        **describe(plan),
        "rows": plan.inputs.n_rows,
        "summary": summarize([answer for rows in used.values() for answer in rows]),
        "by_model": {name: summarize(rows) for name, rows in used.items()},
        "started_at": started_at.isoformat(timespec="seconds"),
        "wall_s": round(wall_s, 3),  # of the last invocation that did something
    }
    write_json(join(out, "run.json"), run)
    return run


def _forget(uri: str) -> None:
    filesystem, path = locate(uri)
    if filesystem.exists(path):
        filesystem.rm_file(path)
