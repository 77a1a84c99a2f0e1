from __future__ import annotations

from typing import Any

import pytest

from deescal.judge.features import JudgeConfig
from deescal.judge.select import SelectConfig, select
from deescal.judge.stage import InterpretConfig, Interpreter, judge_identity, roles_identity
from deescal.schema import CLIPS, empty_row, to_table
from deescal.stage import Ledger, Run
from tests.judge.transcripts import EVERYDAY, NARRATED, STOP

FAKE = InterpretConfig(engine="tests.judge.fake_llm:FakeLlm", judge=JudgeConfig(calibration="none"))


def clip(clip_id: str, turns: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return empty_row(clip_id=clip_id, uri=f"/clips/{clip_id}.mp4", turns=turns, stages=[], **more)


@pytest.fixture
def run() -> Run:
    return Run(out="out", fingerprints={"roles": "r1", "judge": "j1", "select": "s1"}, ledger=Ledger())


def test_one_worker_fills_roles_features_and_scores(run: Run) -> None:
    worker = Interpreter(FAKE, run.stage("roles"), run.stage("judge"))
    failed = clip("c3", [], status="failed", reason="transcribe failed: no speech", failed_stage="transcribe")
    table = to_table([clip("c0", STOP), clip("c1", NARRATED), clip("c2", EVERYDAY), failed])
    out = worker(table)
    assert out.schema.equals(CLIPS)
    stop, narrated, everyday, untouched = out.to_pylist(maps_as_pydicts="strict")
    assert [(s["speaker"], s["role"]) for s in stop["speakers"]] == [("A", "officer"), ("B", "civilian")]
    assert stop["speakers"][0]["speech_s"] == pytest.approx(12.5)
    assert {t["role"] for t in stop["turns"]} == {"officer", "civilian"}
    assert [s["stage"] for s in stop["stages"]] == ["roles", "judge"]
    assert untouched == to_table([failed]).to_pylist(maps_as_pydicts="strict")[0]
    verdicts = [select(r["features"], r["scores"], SelectConfig()) for r in (stop, narrated, everyday)]
    assert [status for status, _ in verdicts] == ["accepted", "rejected", "rejected"]
    assert "no_police_presence" in verdicts[1][1]
    assert worker(out).equals(out), "what is done is not done again"


def test_identities_follow_what_decides_the_result_only() -> None:
    faster = FAKE.model_copy(update={"batch_size": 9})
    assert roles_identity(faster) == roles_identity(FAKE)
    assert judge_identity(faster) == judge_identity(FAKE)
    stricter = InterpretConfig.model_validate(
        {"engine": FAKE.engine, "judge": {"calibration": "none", "thresholds": {"agreement_reached": 0.9}}}
    )
    assert roles_identity(stricter) == roles_identity(FAKE)
    assert judge_identity(stricter) != judge_identity(FAKE)
