from __future__ import annotations

from collections.abc import Sequence

import pytest

from deescal.errors import ClipError
from deescal.schema import Row, empty_row, to_table
from deescal.stage import MAX_DEATHS, Ledger, Stage


def rows_of(stage: Stage, rows: list[Row], process) -> list[Row]:
    return stage.apply(to_table(rows), process).to_pylist(maps_as_pydicts="strict")


def clip(name: str, **values) -> Row:
    return empty_row(clip_id=name, uri=name, **values)


def test_what_a_stage_sets_and_records() -> None:
    (row,) = rows_of(Stage("s", "f1", Ledger()), [clip("a")], lambda row: {"language": "en"})
    assert row["language"] == "en"
    assert [(s["stage"], s["fingerprint"]) for s in row["stages"]] == [("s", "f1")]


def test_done_failed_and_duplicate_rows_pass_untouched() -> None:
    stage = Stage("s", "f1", Ledger())
    done = clip("a", stages=[{"stage": "s", "fingerprint": "f1", "seconds": 1.0}])
    failed, duplicate = clip("b", status="failed", error="x"), clip("c", status="duplicate")

    def never(row: Row) -> Row:
        raise AssertionError(row["clip_id"])

    assert rows_of(stage, [done, failed, duplicate], never) == [done, failed, duplicate]


def test_a_clip_error_is_a_failed_row_and_others_go_on() -> None:
    def process(row: Row) -> Row:
        if row["clip_id"] == "bad":
            raise ClipError("no speech found")
        return {"language": "en"}

    bad, good = rows_of(Stage("s", "f", Ledger()), [clip("bad"), clip("good")], process)
    assert (bad["status"], bad["failed_stage"], bad["error"], bad["attempts"]) == ("failed", "s", "no speech found", 1)
    assert good["language"] == "en"
    assert good["status"] is None


def test_a_bug_stops_the_job() -> None:
    with pytest.raises(ZeroDivisionError):
        rows_of(Stage("s", "f", Ledger()), [clip("a")], lambda row: {"duration_s": 1 / 0})


def test_a_clip_that_kills_its_worker_is_given_up_and_the_rest_of_its_batch_is_not() -> None:
    """A worker's death is played by an exception that leaves the ledger as a kill would."""
    stage = Stage("s", "f", Ledger())
    table = to_table([clip("a"), clip("poison"), clip("b")])
    calls: list[list[str]] = []

    def process(rows: Sequence[Row]) -> list[Row | ClipError]:
        calls.append([row["clip_id"] for row in rows])
        if any(row["clip_id"] == "poison" for row in rows):
            raise SystemExit
        return [{"language": "en"} for _ in rows]

    for _ in range(MAX_DEATHS):
        with pytest.raises(SystemExit):
            stage.apply_batch(table, process)
    rows = stage.apply_batch(table, process).to_pylist()
    assert {row["clip_id"]: row["status"] for row in rows} == {"a": None, "poison": "failed", "b": None}
    assert "died 3 times" in rows[1]["error"]
    assert calls[0] == ["a", "poison", "b"]  # together at first, then apart


def test_a_ledger_gives_content_to_the_first_name() -> None:
    ledger = Ledger({"known": "first.mp4"})
    assert not ledger.claim("known", "second.mp4")
    assert ledger.claim("known", "first.mp4")
    assert ledger.claim("new", "second.mp4")
