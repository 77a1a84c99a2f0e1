"""The judge's features over a table of transcripts, with the fake judge behind its production worker."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deescal.judge.features import group_scores
from deescal.judge.stage import InterpretConfig
from deescal.judge.taxonomy import NAMES
from deescal.schema import Row, to_table
from deescal.score.config import Contestant, ScoreConfig
from deescal.score.features import FeatureWorker, judge_config
from deescal.score.job import score
from deescal.score.source import read_inputs
from deescal.score.tables import REQUESTS, make_requests
from deescal.score.tasks import FEATURES, Room
from deescal.stage import Ledger

from .conftest import write_rows

TURNS = [
    {"speaker": "X", "role": "officer", "text": "This is the police. Step out of the car, please."},
    {"speaker": "Y", "role": "civilian", "text": "I am not getting out. What did I do?"},
    {"speaker": "X", "role": "officer", "text": "I understand. Take a breath, let me explain."},
]


@pytest.fixture
def judged(fake_config: ScoreConfig) -> ScoreConfig:
    changes = {"judge_engine": "tests.judge.fake_llm:FakeLlm"}
    whole = {**fake_config.model_dump(), **changes, "judge": {"calibration": "none"}}
    whole["llm"]["max_model_len"] = 4096
    return ScoreConfig.model_validate(whole)


def write_transcripts(folder: Path) -> str:
    return write_rows(
        folder / "talk.parquet", [{"id": 0, "turns": TURNS}, {"id": 1, "turns": TURNS[:2]}, {"id": 2, "turns": []}]
    )


def check(row: Row) -> None:
    assert [f["name"] for f in row["features"]] == list(NAMES)
    assert dict(row["scores"]) == group_scores(row["features"])


def test_a_transcript_becomes_features(tmp_path: Path, judged: ScoreConfig) -> None:
    inputs = read_inputs(write_transcripts(tmp_path), FEATURES, "test")
    room = Room(len, 4096, 1)
    asked = [r for r in make_requests(inputs, FEATURES, [Contestant(model="fake/llm")], 1, room) if not r["error"]]
    config = judge_config("fake/llm", judged)
    assert isinstance(config, InterpretConfig)
    answers = FeatureWorker(config, Ledger())(to_table(asked, REQUESTS)).to_pylist()
    assert [a["request_id"] for a in answers] == [r["request_id"] for r in asked]
    read = [FEATURES.read(a["output"], {}, room) for a in answers]
    for row in read:
        check(row)
    present = [{f["name"] for f in row["features"] if f["present"]} for row in read]
    assert present[1] < present[0]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_here")
def test_a_table_of_transcripts_is_judged(tmp_path: Path, judged: ScoreConfig) -> None:
    ended = score(write_transcripts(tmp_path), str(tmp_path / "out"), "features", ["fake/llm"], judged)
    assert ended.run["summary"]["errors"] == {"turns: empty": 1}
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [r["id"] for r in rows] == [0, 1, 2]
    check(rows[0])
    assert rows[2]["features"] is None
