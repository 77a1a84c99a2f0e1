"""What a run still has to do: a pure decision from the inputs, the rows that are there, and the fingerprints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deescal.ingest.sources import Input
from deescal.schema import Row
from deescal.stage import STAGES


@dataclass(frozen=True)
class Plan:
    """Rows to send through the stages (new ones, and old ones of which a stage is out of date), and the rest."""

    todo: list[Row]  # clip_id (null where the content is not known yet), uri, source_version, source
    done: int  # inputs that need nothing
    owners: dict[str, str]  # clip_id -> URI of the rows that exist: a new name of the same content is an alias


def is_current(row: Row, fingerprints: Mapping[str, str], retry_failed: bool = False) -> bool:
    """Whether a stored row is what a run with these fingerprints would give.

    A failed row is current when the stage it failed in, and those before it, are unchanged.
    """
    last = row["failed_stage"] if row["status"] == "failed" else STAGES[-1]
    if row["status"] not in ("accepted", "rejected", "failed") or (retry_failed and row["status"] == "failed"):
        return False
    have = {s["stage"]: s["fingerprint"] for s in row["stages"] or ()}
    needed = [stage for stage in STAGES if stage in fingerprints]
    if last in needed:
        needed = needed[: needed.index(last) + 1]
    return all(have.get(stage) == fingerprints[stage] for stage in needed)


def plan_work(
    inputs: Sequence[Input],
    existing: Sequence[Row],
    fingerprints: Mapping[str, str],
    retry_failed: bool = False,
    elsewhere: Sequence[Row] = (),
) -> Plan:
    """Decide for each input: done, to be updated from its row, or new.

    Args:
        inputs: what the sources hold now.
        existing: the index of the run's rows (`store.read_index`).
        fingerprints: stage -> fingerprint of this run, in order.
        retry_failed: run failed clips again though nothing changed.
        elsewhere: rows of the run this one starts from; to be brought over even where nothing changed.
    """
    here = {row["clip_id"] for row in existing}
    by_name: dict[str, tuple[Row, str | None]] = {}
    for row in [*elsewhere, *existing]:
        for name in names(row):
            by_name[name["uri"]] = (row, name["source_version"])
    todo: dict[str, Row] = {}
    done = 0
    for item in inputs:
        known = by_name.get(item.uri)
        row, version = known if known else ({}, None)
        if not known or version != item.version:
            todo[item.uri] = seed(None, item.uri, item.version, item.extra)
        elif row["clip_id"] in here and is_current(row, fingerprints, retry_failed):
            done += 1
        else:
            todo[row["uri"]] = seed(row["clip_id"], row["uri"], row["source_version"], row["source"])
    return Plan(list(todo.values()), done, {row["clip_id"]: row["uri"] for row in existing})


def names(row: Row) -> list[Row]:
    """All names of a row's content: itself and its aliases, each with uri, source_version and source."""
    return [row, *(row["aliases"] or [])]


def seed(clip_id: str | None, uri: str, source_version: str | None, source: Mapping[str, str] | None) -> Row:
    """What the first stage is given to make a row of."""
    return {"clip_id": clip_id, "uri": uri, "source_version": source_version, "source": dict(source or {})}


def reopen(row: Row) -> Row:
    """The row as one under way again: its verdict and failure are withdrawn, its attempts are kept.

    The failed stage's entry goes too, so that the stage owes the row again.
    """
    stages = [s for s in row["stages"] or () if s["stage"] != row["failed_stage"]]
    cleared = dict.fromkeys(("status", "reason", "failed_stage", "error"))
    return {**row, "stages": stages, **cleared}
