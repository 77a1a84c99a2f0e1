"""A dataset out of runs: prepare every clip, link the duplicates, split, render, write.

Work goes in parts of `part_clips` clips. A part is prepared by one worker and finished by another, and its files
carry its number: workers write in parallel, a repeated task writes the same file again, and the bytes depend on the
sources, the config and the seed alone. Only the linking sees all scenarios at once: it reads their signatures (a few
KB each) in a task of its own. The driver holds numbers, and one part at a time.

<out>/scenarios/part-00000.parquet   SCENARIOS, kept and dropped ones
<out>/turns/part-00000.parquet       DIALOGUE, kept and dropped turns
<out>/examples/{train,validation,test}.parquet   EXAMPLES
<out>/splits.parquet                 PLACES: where every kept scenario is; a later build into `out` keeps to it
<out>/README.md, report.html         dataset card, page
<out>/stats.json                     numbers and how it was built, written last: its presence says complete
work/, beside them                   while it is built
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deescal import __version__
from deescal.cluster import check_place, start_ray, users_errors
from deescal.curate import store
from deescal.curate.job import read_job
from deescal.dataset.card import render_card
from deescal.dataset.config import DatasetConfig
from deescal.dataset.context import PROMPT_VERSION
from deescal.dataset.finish import Finisher
from deescal.dataset.link import link_parts
from deescal.dataset.prepare import Preparer
from deescal.dataset.split import SPLITS, Place
from deescal.dataset.stats import StatsBuilder, imbalances
from deescal.errors import UserError
from deescal.models import identity
from deescal.report.dataset_page import write_dataset_page
from deescal.schema import EXAMPLES, to_table
from deescal.storage import (
    absolute,
    exists,
    join,
    read_table,
    remove_folder,
    write_bytes,
    write_json,
    write_table,
    writing,
)

PART = pa.schema({"part": pa.int32(), "uris": pa.list_(pa.string())})


@dataclass(frozen=True)
class Result:
    """How a build ended."""

    out: str
    stats: dict[str, Any]  # the content of stats.json
    report_uri: str


Progress = Callable[[str, int, int], None]  # step, parts done, parts in all


def build(
    sources: Sequence[str],
    out: str,
    config: DatasetConfig,
    *,
    fresh: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Result:
    """Make a dataset of the accepted clips of runs.

    Args:
        sources: run folders, of `deescal curate`, `deescal judge` or `deescal dataset import`.
        out: local folder or `s3://` prefix. A dataset that is there is extended: its scenarios keep their split.
        config: all steps.
        fresh: split anew, whatever `out` holds.
        progress: called as parts are done.

    Raises:
        UserError: a source that is no run or has no clips, a model that is missing, an `out` that cannot be written,
            a split that would be empty.
        LeakageError: duplicates would lie in two splits.
    """
    config.check_models()
    sources, out = [absolute(s) for s in sources], absolute(out)
    uris, in_two_sources = list_clips(sources)
    parts = plan_parts(uris, config.part_clips)
    previous = {} if fresh else read_places(out)
    work = join(out, "work")
    remove_folder(work)
    write_json(join(work, "parts.json"), len(parts))
    demand = config.workers.demand()
    start_ray(config.ray, demand["CPU"] + 1, demand)  # and one for the tasks between
    check_place(join(work, "parts.json"))
    clips = Counter({"in_two_sources": in_two_sources} if in_two_sources else {})
    for row in _each(parts, _Prepare, (config, work), config, partial(progress, "preparing clips")):
        clips.update(dict(row["clips"]))
    linked = _link(work, len(parts), config, previous)
    # What was built before stands until here, from where on nothing is refused.
    store.forget(join(out, "stats.json"))
    for folder in ("scenarios", "turns", "examples"):
        remove_folder(join(out, folder))
    stats = StatsBuilder(config.examples.tokenizer, config.examples.max_tokens)
    for row in _each(parts, _Finish, (config, work, out), config, partial(progress, "writing scenarios")):
        stats.add_unused({u["reason"]: (u["turns"], u["tokens"]) for u in row["unused"]})
    _collect(out, work, len(parts), stats)
    return _publish(out, work, sources, config, stats.result(clips=clips, **linked))


def list_clips(sources: Sequence[str]) -> tuple[list[str], int]:
    """Run folders -> the files of their clips, each clip once (the first source has it), and how many came again.

    Raises:
        UserError: a source is no run, or has no clips.
    """
    found: dict[str, str] = {}
    again = 0
    for source in sources:
        read_job(source)
        uris = store.list_clips(source)
        if not uris:
            raise UserError(f"source '{source}': a run without clips")
        for uri in uris:
            again += found.setdefault(PurePosixPath(uri).stem, uri) != uri
    return list(found.values()), again


def plan_parts(uris: Sequence[str], part_clips: int) -> list[dict[str, Any]]:
    """PART rows."""
    starts = range(0, len(uris), part_clips)
    return [{"part": part, "uris": list(uris[start : start + part_clips])} for part, start in enumerate(starts)]


def read_places(out: str) -> dict[str, Place]:
    """Where the scenarios of a dataset are; nothing where there is no dataset."""
    uri = join(out, "splits.parquet")
    if not exists(uri):
        return {}
    return {row["scenario_id"]: Place(row["incident_id"], row["split"]) for row in read_table(uri).to_pylist()}


def part_uri(folder: str, part: int) -> str:
    return join(folder, f"part-{part:05d}.parquet")


class _Prepare:
    """Ray worker: PART rows -> files in `<work>/prepared`, and how many clips of each status there were."""

    def __init__(self, config: DatasetConfig, work: str) -> None:
        self._prepare = Preparer(config)
        self._work = work

    def __call__(self, table: pa.Table) -> pa.Table:
        (row,) = table.to_pylist()
        prepared = self._prepare(row["uris"])
        write_table(part_uri(join(self._work, "prepared"), row["part"]), prepared)
        clips = Counter(prepared["status"].to_pylist())
        clips["failed"] = len(row["uris"]) - prepared.num_rows
        schema = pa.schema({"part": pa.int32(), "clips": pa.map_(pa.string(), pa.int64())})
        return to_table([{"part": row["part"], "clips": +clips}], schema)


class _Finish:
    """Ray worker: PART rows -> files of scenarios, turns and examples, and the kept turns that no example holds."""

    def __init__(self, config: DatasetConfig, work: str, out: str) -> None:
        self._finish = Finisher(config)
        self._work, self._out = work, out
        self._places = {r["scenario_id"]: r for r in read_table(join(work, "places.parquet")).to_pylist()}

    def __call__(self, table: pa.Table) -> pa.Table:
        (row,) = table.to_pylist()
        part = row["part"]
        finished = self._finish(read_table(part_uri(join(self._work, "prepared"), part)), self._places)
        write_table(part_uri(join(self._out, "scenarios"), part), finished.scenarios)
        write_table(part_uri(join(self._out, "turns"), part), finished.turns)
        for split, examples in finished.examples.items():
            write_table(part_uri(join(self._work, "examples", split), part), examples)
        unused = pa.struct({"reason": pa.string(), "turns": pa.int64(), "tokens": pa.int64()})
        rows = [{"reason": reason, "turns": n, "tokens": m} for reason, (n, m) in finished.unused.items()]
        return to_table([{"part": part, "unused": rows}], pa.schema({"part": pa.int32(), "unused": pa.list_(unused)}))


def _each(
    parts: Sequence[Mapping[str, Any]],
    worker: type,
    arguments: tuple[Any, ...],
    config: DatasetConfig,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    """Run a worker over the parts; yields what it returns of each as soon as it is done."""
    import ray

    resources = config.workers
    done = (
        ray.data.from_arrow(to_table(parts, PART))
        .repartition(len(parts))
        .map_batches(
            worker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=min(resources.workers, len(parts))),
            batch_size=1,
            batch_format="pyarrow",
            **resources.ray_options(),
        )
    )
    progress(0, len(parts))
    with users_errors():
        for n, row in enumerate(done.iter_rows(), start=1):
            progress(n, len(parts))
            yield row


def _link(work: str, n_parts: int, config: DatasetConfig, previous: Mapping[str, Place]) -> dict[str, Any]:
    """`link_parts` in a task of its own: what it holds of every scenario is not the driver's to hold."""
    import ray

    with users_errors():
        return ray.get(ray.remote(link_parts).remote(work, n_parts, config, previous))


def _collect(out: str, work: str, n_parts: int, stats: StatsBuilder) -> None:
    """Count all parts, and join their examples into one file a split and their places into one table."""
    with ExitStack() as files:
        writers = {}
        for split in SPLITS:
            file = files.enter_context(writing(join(out, "examples", f"{split}.parquet")))
            writers[split] = files.enter_context(pq.ParquetWriter(file, EXAMPLES, compression="zstd"))
        for part in range(n_parts):
            stats.add_scenarios(read_table(part_uri(join(out, "scenarios"), part)))
            stats.add_turns(read_table(part_uri(join(out, "turns"), part)))
            for split in SPLITS:
                uri = part_uri(join(work, "examples", split), part)
                if exists(uri):
                    examples = read_table(uri)
                    stats.add_examples(examples, split)
                    writers[split].write_table(examples)
    places = read_table(join(work, "places.parquet"))
    kept = places.filter(places["split"].is_valid()).select(["scenario_id", "incident_id", "split"])
    write_table(join(out, "splits.parquet"), kept)


def _publish(out: str, work: str, sources: Sequence[str], config: DatasetConfig, stats: dict[str, Any]) -> Result:
    """Card, page and numbers.

    Raises:
        RuntimeError: turns or scenarios went missing on the way; a bug.
    """
    if missing := imbalances(stats):
        raise RuntimeError(f"the dataset does not add up: {'; '.join(missing)}")
    made = {
        "title": config.card.title,
        "licence": config.card.licence,
        "language": config.card.language,
        "deescal": __version__,
        "seed": config.split.seed,
        "config": config.model_dump(mode="json"),
        "models": [identity(name) for name in config.models()],
        "sources": [{"name": PurePosixPath(source).name} for source in sources],
    }
    if config.context.enabled:
        made["generator"] = {"model": config.context.llm.model, "prompt_version": PROMPT_VERSION}
    write_bytes(join(out, "README.md"), render_card(stats, made).encode())
    report_uri = write_dataset_page(stats, made, out)
    write_json(join(out, "stats.json"), {**stats, "build": made})
    remove_folder(work)
    return Result(out, stats, report_uri)
