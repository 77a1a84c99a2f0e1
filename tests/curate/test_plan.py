from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.curate.config import CurateConfig, continued
from deescal.curate.plan import COLUMNS, STORED, is_current, plan_rejudge, plan_work, reopen
from deescal.errors import UserError
from deescal.ingest.sources import Input
from deescal.schema import CLIPS, Row, empty_row
from deescal.stage import STAGES as ALL_STAGES

STAGES = ALL_STAGES[1:]  # of videos; 'import' is for transcripts


FINGERPRINTS = {stage: f"{stage}-1" for stage in STAGES}
NEW_JUDGE = {**FINGERPRINTS, "judge": "judge-2"}
FROM_JUDGE = {stage: NEW_JUDGE[stage] for stage in ("judge", "select")}


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


def seeds(plan) -> list[tuple[str, str | None]]:
    return [(seed["uri"], seed["clip_id"]) for seed in plan.todo]


def filled(columns: Row) -> Row:
    """A row with something in every column that a stage sets."""
    turn = {"turn_id": 0, "role": "officer", "text": "Stop."}
    values = {c: "old" for stage in STAGES for c in COLUMNS[stage]} | {"turns": [turn]}
    return {**columns, **values, "status": columns["status"]}


def test_complete_rows_and_their_aliases_need_nothing() -> None:
    plan = plan_work([Input("a", "v1"), Input("b", "v1"), Input("c", "v1")], [row("a", aliases=["b"])], FINGERPRINTS)
    assert plan.done == 2
    assert seeds(plan) == [("c", None)]
    assert plan_work([Input("a", "v1")], [row("a")], FINGERPRINTS).owed == []


def test_a_changed_file_is_read_again() -> None:
    plan = plan_work([Input("a", "v2")], [row("a")], FINGERPRINTS)
    assert seeds(plan) == [("a", None)]
    assert plan.owners == {"id-a": STORED}, "where it has the old content after all, no stage runs"


def test_a_changed_stage_opens_the_row_but_not_a_failure_before_it() -> None:
    rows = [row("a"), row("b", "failed", "transcribe"), row("c", "failed", "judge")]
    plan = plan_work([Input(n, "v1") for n in "abc"], rows, NEW_JUDGE)
    assert seeds(plan) == [("a", "id-a"), ("c", "id-c")]
    assert plan.owed == ["judge", "select"], "no speech model is loaded"
    assert plan_work([Input(n, "v1") for n in "abcd"], rows, NEW_JUDGE).owed == list(STAGES)


def test_retry_failed_opens_failures() -> None:
    rows = [row("a"), row("b", "failed", "transcribe")]
    plan = plan_work([Input(n, "v1") for n in "ab"], rows, FINGERPRINTS, retry_failed=True)
    assert seeds(plan) == [("b", "id-b")]
    opened = reopen(rows[1], FINGERPRINTS)
    assert opened["status"] is None
    assert [s["stage"] for s in opened["stages"]] == ["extract_audio"]  # only what failed is owed again


def test_a_change_withdraws_what_came_after_it_and_nothing_else() -> None:
    opened = reopen(filled(row("a")), NEW_JUDGE)
    assert [s["stage"] for s in opened["stages"]] == ["extract_audio", "transcribe", "diarize", "turns", "roles"]
    assert {column for column in CLIPS.names if opened[column] is None} >= {"features", "scores", "status", "reason"}
    assert (opened["words"], opened["speakers"], opened["turns"][0]["role"]) == ("old", "old", "officer")
    without_roles = reopen(filled(row("a")), {**FINGERPRINTS, "roles": "roles-2"})
    assert (without_roles["speakers"], without_roles["turns"][0]["role"]) == (None, None)


def test_a_setting_under_which_a_clip_failed_can_be_taken_back() -> None:
    short = {**FINGERPRINTS, "extract_audio": "extract_audio-2"}
    accepted = filled(row("a"))
    failed = reopen(accepted, short)
    assert failed["stages"] == []
    assert {failed[c] for columns in COLUMNS.values() for c in columns} == {None}, "of the old verdict nothing is left"
    failed |= {"status": "failed", "failed_stage": "extract_audio"}
    failed["stages"] = [{"stage": "extract_audio", "fingerprint": "extract_audio-2", "seconds": 0.0}]
    assert is_current(failed, short)
    assert not is_current(failed, FINGERPRINTS)
    assert reopen(failed, FINGERPRINTS)["stages"] == []
    assert plan_work([Input("a", "v1")], [{**failed, "clip_id": "id-a"}], FINGERPRINTS).owed == list(STAGES)


def test_every_column_of_a_row_belongs_to_its_source_a_stage_or_the_books() -> None:
    source = {"clip_id", "uri", "source_version", "aliases", "source"}
    books = {"failed_stage", "error", "attempts", "stages"}
    assert source | books | {c for columns in COLUMNS.values() for c in columns} == set(CLIPS.names)
    assert set(COLUMNS) == set(ALL_STAGES)


def test_a_changed_file_is_not_lost_where_its_old_content_has_another_name() -> None:
    plan = plan_work([Input("a", "v2"), Input("b", "v1")], [row("a", aliases=["b"])], NEW_JUDGE)
    assert set(seeds(plan)) == {("a", None), ("b", "id-a")}
    assert plan.owners == {"id-a": "b"}


def test_two_names_of_an_outdated_row_are_one_row_to_do() -> None:
    plan = plan_work([Input("a", "v1"), Input("b", "v1")], [row("a", aliases=["b"])], NEW_JUDGE)
    assert seeds(plan) == [("a", "id-a")]


def test_a_renamed_file_takes_over_an_outdated_row() -> None:
    assert plan_work([Input("b", "v1")], [row("a")], FINGERPRINTS).owners == {"id-a": STORED}
    assert plan_work([Input("b", "v1")], [row("a")], NEW_JUDGE).owners == {}, "'b' may claim it and is processed"


def test_a_row_that_is_done_again_goes_under_a_name_that_can_be_read() -> None:
    other_audio = {**FINGERPRINTS, "extract_audio": "extract_audio-2"}
    plan = plan_work([Input("b", "v1")], [row("a", aliases=["b"])], other_audio)
    assert seeds(plan) == [("b", "id-a")]
    assert plan.owners == {"id-a": "b"}


def test_an_input_that_cannot_be_looked_at_keeps_its_good_row() -> None:
    other_audio = {**FINGERPRINTS, "extract_audio": "extract_audio-2"}
    for fingerprints in (FINGERPRINTS, other_audio):
        plan = plan_work([Input("a", None)], [row("a")], fingerprints)
        assert (plan.todo, plan.done, plan.unseen) == ([], 1, ["a"])
    assert seeds(plan_work([Input("a", None)], [row("a")], NEW_JUDGE)) == [("a", "id-a")], "its sound is in the run"
    plan = plan_work([Input("a", None)], [row("a", "failed", "transcribe")], FINGERPRINTS)
    assert (seeds(plan), plan.unseen) == ([("a", None)], [])


def test_rows_of_another_run_are_brought_over_once() -> None:
    stored = row("a", fingerprints=NEW_JUDGE)
    assert [s["from_origin"] for s in plan_rejudge([row("a")], [], FROM_JUDGE).todo] == [True]
    assert plan_rejudge([row("a")], [stored], FROM_JUDGE).todo == []
    plan = plan_rejudge([row("a")], [row("a")], FROM_JUDGE)
    assert (seeds(plan), plan.todo[0]["from_origin"], plan.owed) == ([("a", "id-a")], False, ["judge", "select"])
    again = row("a", fingerprints={**FINGERPRINTS, "transcribe": "transcribe-2"})  # done anew at the origin
    assert [s["from_origin"] for s in plan_rejudge([again], [stored], FROM_JUDGE).todo] == [True]
    assert [s["uri"] for s in plan_rejudge([row("a", aliases=["b"])], [stored], FROM_JUDGE).todo] == ["a"]


def test_a_start_takes_each_row_as_it_is() -> None:
    """A run's folder may hold rows of several configs; what was asked for last says nothing about the others."""
    other = {**FINGERPRINTS, "transcribe": "transcribe-2"}
    rows = [row("a"), row("b", fingerprints=other), row("c", "failed", "transcribe"), row("d", "failed", "judge")]
    plan = plan_rejudge(rows, rows, FROM_JUDGE)
    assert seeds(plan) == [(n, f"id-{n}") for n in "abd"]
    assert plan.done == 1, "what failed before the start has no turns to judge"
    assert [s["fingerprint"] for s in reopen(rows[1], FROM_JUDGE)["stages"]][1] == "transcribe-2"
    finished = [row("a", fingerprints=NEW_JUDGE), row("b", fingerprints={**other, **FROM_JUDGE}), rows[2]]
    assert plan_rejudge(finished, finished, FROM_JUDGE).todo == []
    carried = plan_rejudge(rows[2:3], [], FROM_JUDGE)
    assert (seeds(carried), carried.owed) == ([("c", "id-c")], []), "a failed row comes along, and starts no worker"


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_every_input_is_done_or_to_do_exactly_once(wanted: list[str], stored: list[str]) -> None:
    plan = plan_work([Input(n, "v1") for n in wanted], [row(n) for n in stored], FINGERPRINTS)
    assert plan.done + len(plan.todo) == len(wanted)
    assert {seed["uri"] for seed in plan.todo} == set(wanted) - set(stored)
    assert set(plan.inputs) == set(wanted)


def test_a_row_under_way_is_not_current() -> None:
    assert not is_current(empty_row(clip_id="a", stages=[]), FINGERPRINTS)


def test_a_start_keeps_the_settings_of_its_run() -> None:
    before = CurateConfig.model_validate({"interpret": {"judge": {"window_tokens": 900}}, "turns": {"max_gap_s": 3.0}})
    late = ("judge", "select")
    config = continued(before, late, None, ["interpret.judge.calibration=none", "select.rule=paper"])
    assert config.interpret.judge.window_tokens == 900
    assert (config.interpret.judge.calibration, config.select.rule) == ("none", "paper")
    whole = continued(before, late, CurateConfig(), [])
    assert (whole.interpret, whole.turns) == (CurateConfig().interpret, before.turns)
    with pytest.raises(UserError, match=r"override of 'turns'.*before judge.*allowed: profile, interpret, select, ray"):
        continued(before, late, None, ["turns.max_gap_s=1"])
    with pytest.raises(UserError, match=r"override of 'interpret'.*before select"):
        continued(before, ("select",), CurateConfig(), ["interpret.judge.calibration=none"])
