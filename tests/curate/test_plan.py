from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deescal.curate.plan import is_current, plan_work, reopen
from deescal.ingest.sources import Input
from deescal.schema import empty_row
from deescal.stage import STAGES as ALL_STAGES

STAGES = ALL_STAGES[1:]  # of videos; 'import' is for transcripts


FINGERPRINTS = {stage: f"{stage}-1" for stage in STAGES}


def row(name: str, status: str = "accepted", failed_stage: str | None = None, aliases=(), fingerprints=FINGERPRINTS):
    done = STAGES[: STAGES.index(failed_stage) + 1] if failed_stage else STAGES
    return empty_row(
        clip_id=f"id-{name}",
        uri=name,
        source_version="v1",
        source={},
        aliases=[{"uri": a, "source_version": "v1", "source": {}} for a in aliases],
        status=status,
        failed_stage=failed_stage,
        stages=[{"stage": s, "fingerprint": fingerprints[s], "seconds": 0.0} for s in done],
    )


def test_complete_rows_and_their_aliases_need_nothing() -> None:
    plan = plan_work([Input("a", "v1"), Input("b", "v1"), Input("c", "v1")], [row("a", aliases=["b"])], FINGERPRINTS)
    assert plan.done == 2
    assert [(seed["uri"], seed["clip_id"]) for seed in plan.todo] == [("c", None)]


def test_a_changed_file_is_read_again() -> None:
    plan = plan_work([Input("a", "v2")], [row("a")], FINGERPRINTS)
    assert [seed["clip_id"] for seed in plan.todo] == [None]


def test_a_changed_stage_opens_the_row_but_not_a_failure_before_it() -> None:
    changed = {**FINGERPRINTS, "judge": "judge-2", "select": "select-2"}
    rows = [row("a"), row("b", "failed", "transcribe"), row("c", "failed", "judge")]
    plan = plan_work([Input(n, "v1") for n in "abc"], rows, changed)
    assert [seed["clip_id"] for seed in plan.todo] == ["id-a", "id-c"]


def test_retry_failed_opens_failures() -> None:
    rows = [row("a"), row("b", "failed", "transcribe")]
    plan = plan_work([Input(n, "v1") for n in "ab"], rows, FINGERPRINTS, retry_failed=True)
    assert [seed["clip_id"] for seed in plan.todo] == ["id-b"]
    opened = reopen(rows[1])
    assert opened["status"] is None
    assert [s["stage"] for s in opened["stages"]] == ["extract_audio"]  # only what failed is owed again


def test_rows_of_another_run_are_brought_over_even_when_current() -> None:
    plan = plan_work([Input("a", "v1")], [], FINGERPRINTS, elsewhere=[row("a")])
    assert [seed["clip_id"] for seed in plan.todo] == ["id-a"]
    assert plan_work([Input("a", "v1")], [row("a")], FINGERPRINTS, elsewhere=[row("a")]).done == 1


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_every_input_is_done_or_to_do_exactly_once(wanted: list[str], stored: list[str]) -> None:
    plan = plan_work([Input(n, "v1") for n in wanted], [row(n) for n in stored], FINGERPRINTS)
    assert plan.done + len(plan.todo) == len(wanted)
    assert {seed["uri"] for seed in plan.todo} == set(wanted) - set(stored)


def test_a_row_under_way_is_not_current() -> None:
    assert not is_current(empty_row(clip_id="a", stages=[]), FINGERPRINTS)
