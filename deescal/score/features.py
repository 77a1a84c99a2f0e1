"""The thirty features of transcripts, by the judge of curation (`deescal.judge.stage`), over requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from deescal.cluster import check_place, on_this_node, start_ray, users_errors
from deescal.config import explain
from deescal.errors import UserError
from deescal.judge.stage import InterpretConfig, Interpreter
from deescal.schema import TURN, Row, empty_row, to_table
from deescal.score.config import ScoreConfig
from deescal.score.offline import QUICK_CPUS, read_batches, store, write_batches
from deescal.score.tables import ANSWERS, answer_row
from deescal.stage import Ledger, LedgerLike, RemoteLedger, Stage
from deescal.storage import join, remove_folder


def judge_config(model: str, config: ScoreConfig) -> InterpretConfig:
    """Raises UserError where the judge's windows do not fit the model."""
    try:
        return InterpretConfig(
            engine=config.judge_engine,
            llm=config.llm.model_copy(update={"model": model}),
            judge=config.judge,
            resources=config.workers,
        )
    except ValidationError as error:
        raise UserError(explain(error, InterpretConfig, "config")) from error


class FeatureWorker:
    """Ray worker: REQUESTS with turns -> ANSWERS, whose output is JSON of CLIPS' columns `features` and `scores`."""

    def __init__(self, config: InterpretConfig, ledger: LedgerLike) -> None:
        self._interpret = Interpreter(config, Stage("roles", "", ledger), Stage("judge", "", ledger))

    def __call__(self, requests: pa.Table) -> pa.Table:
        rows = requests.to_pylist()
        clips = self._interpret(to_table([_clip(row) for row in rows])).to_pylist(maps_as_pydicts="strict")
        return to_table([_answer(row, clip) for row, clip in zip(rows, clips, strict=True)], ANSWERS)


def _clip(request: Mapping[str, Any]) -> Row:
    """A CLIPS row whose turns are known; its roles are taken as they are where every turn has one."""
    names = [TURN.field(i).name for i in range(TURN.num_fields)]
    turns = [{**dict.fromkeys(names), **turn} for turn in request["turns"]]
    known = [{"stage": "roles", "fingerprint": "", "seconds": 0.0}] if all(turn["role"] for turn in turns) else []
    return empty_row(clip_id=request["request_id"], uri=request["request_id"], turns=turns, stages=known)


def _answer(request: Mapping[str, Any], clip: Row) -> Row:
    seconds = clip["stages"][-1]["seconds"]
    if clip["error"] is not None:
        return answer_row(request, error=clip["error"], latency_s=seconds)
    output = json.dumps({"features": clip["features"], "scores": clip["scores"]})
    return answer_row(request, output=output, latency_s=seconds)


def ask_features(requests: Iterable[Row], out: str, judge: InterpretConfig, config: ScoreConfig) -> Iterator[pa.Table]:
    """As `offline.ask_offline`, for the judge of features."""
    work = join(out, "work")
    remove_folder(work)
    files = write_batches(requests, work, 1)  # a transcript is dozens of prompts already
    demand = judge.resources.demand()
    start_ray(config.ray, demand["CPU"] + 1, demand)
    check_place(files[0])
    import ray

    ledger = RemoteLedger(ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=on_this_node()).remote())
    ds = read_batches(files).map_batches(
        FeatureWorker,
        fn_constructor_args=(judge, ledger),
        compute=ray.data.ActorPoolStrategy(size=judge.resources.workers),
        batch_size=judge.batch_size,
        batch_format="pyarrow",
        **judge.resources.ray_options(),
    )
    ds = ds.map_batches(partial(store, out=out), batch_size=None, batch_format="pyarrow", num_cpus=QUICK_CPUS)
    with users_errors():
        yield from ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    remove_folder(work)
