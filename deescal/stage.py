"""What every stage of curation shares: which rows it owes work, what a failure becomes, what is recorded.

A stage is a function `(Dataset, config, run) -> Dataset` over the CLIPS table. Its worker hands each batch to
`Stage.apply`, which
- passes on untouched a row that failed earlier, and one that this stage did already (`plan.reopen` has taken out of
  a stored row what no longer holds before it comes here);
- turns a `ClipError` into a failed row, and lets every other exception stop the job, since it is a bug;
- counts starts that never finished, so that a clip that kills its worker each time is given up, not retried for ever.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from pydantic import Field

from deescal.config import Config, TaskResources
from deescal.errors import ClipError
from deescal.models import identity
from deescal.schema import Row, to_table

T = TypeVar("T")

# In order. 'import' takes the place of the four speech stages where transcripts were made elsewhere.
STAGES = ("import", "extract_audio", "transcribe", "diarize", "turns", "roles", "judge", "select")
MAX_DEATHS = 3  # of a stage's worker on one clip, before the clip is given up


class StageConfig(Config):
    """What every stage's config has besides its own fields."""

    resources: TaskResources = TaskResources()  # Resources where workers hold a model
    batch_size: int = Field(default=1, ge=1)  # clips a worker takes at once

    def models(self) -> list[str]:
        """Registry names, folders or hub ids of the models it loads."""
        return []

    def identity(self) -> dict[str, Any]:
        """What decides the result: all fields but those about speed, and the weights."""
        fields = self.model_dump(mode="json", exclude={"resources", "batch_size"})
        return {**fields, "weights": [identity(name) for name in self.models()]}


class LedgerLike(Protocol):
    """Run-wide memory shared by all workers (a Ray actor in a job, a plain object in tests)."""

    def claim(self, clip_id: str, uri: str) -> bool: ...
    def unfinished(self, clip_id: str, stage: str) -> int: ...
    def start(self, clip_id: str, stage: str) -> None: ...
    def finish(self, clip_id: str, stage: str) -> None: ...


class Ledger:
    """Who owns a content hash, and how often a clip was started in a stage without coming to an end."""

    def __init__(self, owners: Mapping[str, str] | None = None) -> None:
        self._owner = dict(owners or {})  # clip_id -> URI
        self._unfinished: Counter[tuple[str, str]] = Counter()

    def claim(self, clip_id: str, uri: str) -> bool:
        """True for the first URI that claims this content, and for the same URI again (a retried task)."""
        return self._owner.setdefault(clip_id, uri) == uri

    def unfinished(self, clip_id: str, stage: str) -> int:
        """Starts of this clip in this stage that came to no end: so often its worker died."""
        return self._unfinished[clip_id, stage]

    def start(self, clip_id: str, stage: str) -> None:
        self._unfinished[clip_id, stage] += 1

    def finish(self, clip_id: str, stage: str) -> None:
        self._unfinished.pop((clip_id, stage), None)


class RemoteLedger:
    """The ledger in its own Ray actor, called from any worker."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def claim(self, clip_id: str, uri: str) -> bool:
        return self._get(self._actor.claim.remote(clip_id, uri))

    def unfinished(self, clip_id: str, stage: str) -> int:
        return self._get(self._actor.unfinished.remote(clip_id, stage))

    def start(self, clip_id: str, stage: str) -> None:
        self._get(self._actor.start.remote(clip_id, stage))

    def finish(self, clip_id: str, stage: str) -> None:
        self._get(self._actor.finish.remote(clip_id, stage))

    @staticmethod
    def _get(ref: Any) -> Any:
        import ray

        return ray.get(ref)


@dataclass(frozen=True)
class Stage:
    """One stage of one run: its name, the fingerprint of what decides its result, and the run's ledger."""

    name: str
    fingerprint: str
    ledger: LedgerLike

    def owed(self, row: Row) -> bool:
        """Whether this stage still has to process the row."""
        done = any(s["stage"] == self.name for s in row["stages"] or ())
        return row["status"] not in ("failed", "duplicate") and not done

    def identify(self, rows: Sequence[Row], fetch: Callable[[Row], tuple[str, T]]) -> dict[str, T | ClipError]:
        """Give the rows owed their `clip_id`; a row whose content has another name in this run becomes a duplicate.

        Args:
            fetch: row -> the digest of its content, and what `apply` will need; ClipError where it cannot be read.

        Returns:
            clip_id -> what `fetch` brought, or why it could not.
        """
        found: dict[str, T | ClipError] = {}
        for row in filter(self.owed, rows):
            try:
                row["clip_id"], content = fetch(row)
            except ClipError as error:
                row["clip_id"] = digest(row["uri"].encode())
                found[row["clip_id"]] = error
                continue
            if self.ledger.claim(row["clip_id"], row["uri"]):
                found[row["clip_id"]] = content
            else:
                row["status"] = "duplicate"
        return found

    def apply(self, table: pa.Table, process: Callable[[Row], Row]) -> pa.Table:
        """Run `process` (row -> the columns it sets) on the rows owed; same rows out, same order.

        Raises:
            Exception: whatever `process` raises besides ClipError.
        """
        return self.apply_batch(table, lambda rows: [_outcome(process, row) for row in rows])

    def apply_batch(self, table: pa.Table, process: Callable[[Sequence[Row]], Sequence[Row | ClipError]]) -> pa.Table:
        """The same for work that is faster on many clips at once: one result or ClipError a row, in order.

        The clips of a batch that killed its worker are tried again one at a time, so that only the culprit
        is given up.
        """
        rows = table.to_pylist(maps_as_pydicts="strict")
        owed = [i for i, row in enumerate(rows) if self.owed(row)]
        deaths = {i: self.ledger.unfinished(rows[i]["clip_id"], self.name) for i in owed}
        fresh = [i for i in owed if deaths[i] == 0]
        suspects = sorted((i for i in owed if deaths[i] > 0), key=deaths.__getitem__)
        for group in ([fresh] if fresh else []) + [[i] for i in suspects]:
            for i in group:
                self.ledger.start(rows[i]["clip_id"], self.name)
            began = time.perf_counter()
            if deaths[group[0]] >= MAX_DEATHS:
                results: Sequence[Row | ClipError] = [ClipError(f"its worker died {MAX_DEATHS} times on this clip")]
            else:
                results = process([rows[i] for i in group])
            seconds = (time.perf_counter() - began) / len(group)
            for i, result in zip(group, results, strict=True):
                rows[i] = self.record(rows[i], result, seconds)
                self.ledger.finish(rows[i]["clip_id"], self.name)
        return to_table(rows)

    def record(self, row: Row, result: Row | ClipError, seconds: float) -> Row:
        """The row after this stage: with its columns, or failed; and with the stage's entry at the end of `stages`."""
        entry = {"stage": self.name, "fingerprint": self.fingerprint, "seconds": seconds}
        row = {**row, "stages": [*(row["stages"] or ()), entry]}
        if isinstance(result, ClipError):
            attempts = (row["attempts"] or 0) + 1
            return {**row, **failure(self.name, str(result)), "attempts": attempts}
        return {**row, **result}


def digest(content: bytes) -> str:
    """SHA-256, 32 hex digits: what a clip's id is, of its content or, where that cannot be read, of its URI."""
    return hashlib.sha256(content).hexdigest()[:32]


def failure(stage: str, error: str) -> Row:
    """The columns that make a row a failed one."""
    return {"status": "failed", "reason": f"{stage} failed: {error}", "failed_stage": stage, "error": error}


def _outcome(process: Callable[[Row], Row], row: Row) -> Row | ClipError:
    try:
        return process(row)
    except ClipError as error:
        return error


@dataclass(frozen=True)
class Run:
    """What stages need to know of the run they are in."""

    out: str  # URI of the run's folder
    fingerprints: Mapping[str, str]  # of the stages that some row may owe
    ledger: LedgerLike

    def stage(self, name: str) -> Stage:
        # A stage without a fingerprint shares a worker with one that has: its results are taken as they are.
        return Stage(name, self.fingerprints.get(name, ""), self.ledger)
