"""Requests, answers and scores as pure tables: order, identity, resume, conservation."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.dataset.chat import load_tokenizer, render
from deescal.schema import Row, to_table
from deescal.score.config import Contestant
from deescal.score.source import Inputs, read_inputs
from deescal.score.store import read_answers, write_part
from deescal.score.tables import ANSWERS, REQUESTS, answer_row, make_requests, merge_answers, pending, score_rows
from deescal.score.tasks import REPLIES, Room
from deescal.serve.adapters import Adapter
from tests.train.tiny import write_dataset

from .conftest import user, write_rows

ROOM = Room(len, 10_000, 100)
BASE = Contestant(model="base")
TUNED = Contestant(model="base", adapter=Adapter(name="tuned", uri="/tuned"))


def read(path: Path, rows: list[dict[str, Any]]) -> Inputs:
    return read_inputs(write_rows(path / "rows.parquet", rows), REPLIES, "test")


def requests(inputs: Inputs, *contestants: Contestant, samples: int = 1) -> list[Row]:
    return list(make_requests(inputs, REPLIES, contestants or [BASE], samples, ROOM))


def test_each_prompt_of_a_scenario_extends_the_one_before(tmp_path: Path, tiny_model: str) -> None:
    inputs = read_inputs(write_dataset(tmp_path / "data"), REPLIES, "test")
    tokenizer = load_tokenizer(tiny_model)
    asked = requests(inputs)
    rows = inputs.take(range(inputs.n_rows)).to_pylist()
    pairs = extended = 0
    for before, after in pairwise(asked):
        if rows[before["row"]]["example_id"] != rows[after["row"]]["example_id"]:
            continue
        pairs += 1
        whole = render(before["messages"], tokenizer)  # without the head of an answer
        extended += render(after["messages"], tokenizer).startswith(whole)
    assert pairs == extended > 5


def test_a_datasets_replies_are_asked_once_with_what_came_before(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    data = write_dataset(tmp_path / "data")
    examples = pq.read_table(tmp_path / "data" / "examples" / "test.parquet").to_pylist()
    inputs = read_inputs(data, REPLIES, "test")
    found = {(r["example_id"], r["message"]): r for r in inputs.take(range(inputs.n_rows)).to_pylist()}
    assert len(found) == inputs.n_rows
    for example in examples:
        for number, message in enumerate(example["messages"]):
            row = found.pop((example["example_id"], number), None)
            new = number >= example["n_context_messages"] and message["role"] == "assistant"
            assert (row is not None) == new
            if row:
                assert row["reference"] == message["content"]
                assert row["messages"] == example["messages"][:number]
    assert not found


def test_rows_of_a_table_are_asked_by_scenario_and_turn(tmp_path: Path) -> None:
    keys = [("b", 2), ("a", 5), ("b", 1), ("a", 3)]
    rows = [{"scenario_id": s, "turn_id": t, "messages": user(f"{s}{t}")} for s, t in keys]
    asked = requests(read(tmp_path, rows), BASE, TUNED)
    assert [(r["adapter"], r["row"]) for r in asked] == [(a, n) for a in (None, "tuned") for n in (3, 1, 2, 0)]


def test_the_last_assistant_message_is_not_shown(tmp_path: Path) -> None:
    (request,) = requests(read(tmp_path, [{"messages": user("Stop.", "Why?")}]))
    assert request["messages"] == user("Stop.")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "messages: empty"),
        ([{"role": "officer", "content": "Stop."}], "role 'officer' of message 0"),
        (user("Stop.", None), "message 1 has no content"),
        ([{"role": "assistant", "content": "Me?"}], "nobody has spoken"),
    ],
)
def test_a_row_that_cannot_be_asked_has_an_error(tmp_path: Path, messages: list[dict], error: str) -> None:
    first, second = requests(read(tmp_path, [{"messages": messages}, {"messages": user("Stop.")}]))
    assert error in first["error"]
    assert second["error"] is None


def test_ids_tell_rows_models_and_samples_apart_and_stay(tmp_path: Path) -> None:
    rows = [{"messages": user("Stop.")}] * 2  # the same twice is asked twice
    asked = requests(read(tmp_path, rows), BASE, TUNED, samples=2)
    assert len({r["request_id"] for r in asked}) == len(asked) == 8
    assert asked == requests(read(tmp_path, rows), BASE, TUNED, samples=2)


def request(number: int) -> Row:
    return {**dict.fromkeys(REQUESTS.names), "request_id": f"{number:032d}", "attempts": 0}


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 4))), st.booleans())
def test_what_has_an_answer_is_never_asked_again(events: list[tuple[int, bool, int]], retry: bool) -> None:
    asked = [request(n) for n in range(6)]
    rows = [answer_row(asked[n], error=None if good else "no", attempts=a) for n, good, a in events]
    random.Random(0).shuffle(rows)
    answers = merge_answers(rows)
    todo = {r["request_id"] for r in pending(asked, answers, retry)}
    for n, one in enumerate(asked):
        good = any(g for m, g, _ in events if m == n)
        tried = any(m == n for m, _, _ in events)
        assert (one["request_id"] in todo) == (not good and (retry or not tried))
        if good:
            assert answers[one["request_id"]]["error"] is None


def test_attempts_go_on_counting() -> None:
    one = request(0)
    answers = merge_answers([answer_row(one, error="no", attempts=4)])
    (again,) = pending([one], answers, retry_failed=True)
    assert answer_row(again, output="yes")["attempts"] == 5


def test_stored_answers_come_back(tmp_path: Path) -> None:
    rows = [answer_row(request(n), output=str(n)) for n in range(5)]
    out = str(tmp_path)
    write_part(out, to_table(rows[:3], ANSWERS))
    write_part(out, to_table(rows[:3], ANSWERS))  # a task that was run twice
    write_part(out, to_table(rows[3:], ANSWERS))
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert read_answers(out) == {row["request_id"]: row for row in rows}
    assert read_answers(str(tmp_path / "none")) == {}


def test_scores_have_every_row_in_order_once_a_model_and_sample(tmp_path: Path) -> None:
    rows = [{"scenario_id": s, "error": s * 2, "messages": user(s)} for s in ("c", "a", "b")]
    inputs = read(tmp_path, rows)
    asked = requests(inputs, BASE, TUNED, samples=2)
    answers = {r["request_id"]: answer_row(r, output=f" {r['row']} ") for r in asked}
    table = pa.concat_tables(score_rows(inputs, REPLIES, [BASE, TUNED], 2, ROOM, answers))
    assert table["scenario_id"].to_pylist() == [s for s in "cab" for _ in range(4)]
    assert table["input_error"].to_pylist() == [s * 2 for s in "cab" for _ in range(4)]  # a name that scoring has
    assert table["adapter"].to_pylist() == [None, None, "tuned", "tuned"] * 3
    assert table["sample"].to_pylist() == [0, 1] * 6
    assert table["reply"].to_pylist() == [str(n) for n in range(3) for _ in range(4)]
    answers.popitem()
    with pytest.raises(RuntimeError, match="has no answer"):
        list(score_rows(inputs, REPLIES, [BASE, TUNED], 2, ROOM, answers))
