"""Whole scenarios of a dataset, and tables of other sources."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deescal.schema import DIALOGUE, SCENARIOS, to_table
from deescal.score.source import read_inputs
from deescal.score.tasks import DEESCALATION, FEATURES, REPLIES
from tests.train.tiny import write_dataset

from .conftest import user, write_rows


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A dataset of examples, with two parts of scenarios and turns."""
    folder = tmp_path / "data"
    write_dataset(folder)
    (folder / "scenarios").mkdir()
    (folder / "turns").mkdir()
    kept = [("b", "test", "kept"), ("a", "test", "kept"), ("c", "train", "kept"), ("d", None, "dropped")]
    for part in range(2):
        scenarios, turns = [], []
        for scenario, split, status in kept[2 * part : 2 * part + 2]:
            empty = dict.fromkeys(SCENARIOS.names)
            about = {"scenario_id": scenario, "split": split, "status": status, "context": f"Place of {scenario}"}
            scenarios.append({**empty, **about})
            for n, (role, text, state) in enumerate(
                [("officer", "Stop.", "kept"), ("civilian", "Why?", "kept"), ("civilian", "x", "dropped")]
            ):
                row = {"scenario_id": scenario, "turn_id": n, "speaker": role, "role": role, "text": text}
                turns.append({**dict.fromkeys(DIALOGUE.names), **row, "status": state})
        pq.write_table(to_table(scenarios, SCENARIOS), folder / "scenarios" / f"part-{part:05d}.parquet")
        pq.write_table(to_table(turns[::-1], DIALOGUE), folder / "turns" / f"part-{part:05d}.parquet")
    return str(folder)


@pytest.mark.parametrize("task", [DEESCALATION, FEATURES])
def test_a_row_is_a_kept_scenario_of_the_split_with_its_kept_turns(data: str, task) -> None:
    inputs = read_inputs(data, task, "test")
    rows = inputs.take(range(inputs.n_rows)).to_pylist()
    assert [r["scenario_id"] for r in rows] == ["a", "b"]
    assert rows[0]["context"] == "Place of a"
    assert rows[0]["messages"] == user("Stop.", "Why?")
    assert [(t["turn_id"], t["text"]) for t in rows[0]["turns"]] == [(0, "Stop."), (1, "Why?")]
    assert read_inputs(data, task, "train").n_rows == 1


def test_a_folder_of_tables_is_one_and_a_runs_folder_is_its_scores(tmp_path: Path) -> None:
    for n in range(2):
        write_rows(tmp_path / f"{n}.parquet", [{"n": n, "messages": user("Stop.")}])
    inputs = read_inputs(str(tmp_path), REPLIES, "test")
    assert inputs.take([1, 0])["n"].to_pylist() == [1, 0]
    before = inputs.version
    write_rows(tmp_path / "scores.parquet", [{"n": 7, "messages": user("Stop.")}])
    inputs = read_inputs(str(tmp_path), REPLIES, "test")
    assert inputs.take([0])["n"].to_pylist() == [7]
    assert inputs.version != before


def test_tables_without_a_column_that_others_have(tmp_path: Path) -> None:
    write_rows(tmp_path / "0.parquet", [{"messages": user("Stop.")}])
    write_rows(tmp_path / "1.parquet", [{"messages": user("Stop."), "note": "x"}])
    inputs = read_inputs(str(tmp_path), REPLIES, "test")
    assert inputs.take([0, 1])["note"].to_pylist() == [None, "x"]
    assert isinstance(inputs.schema, pa.Schema)
