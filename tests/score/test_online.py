"""Scoring at an endpoint: every row once, errors in their rows, what was stored is not asked again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deescal.config import load_config
from deescal.errors import UserError
from deescal.score.config import SamplingConfig, ScoreConfig
from deescal.score.job import Ended, Watch, score
from deescal.score.online import fields
from deescal.score.tables import REQUESTS
from tests.serve.fake_server import FakeServer, Handler, fail, raw, reply
from tests.train.tiny import write_dataset

from .conftest import user, write_rows


class Api(FakeServer):
    """Answers with the model's name and the number of messages; refuses prompts that end in one of `refused`."""

    def __init__(self) -> None:
        super().__init__(then=self.answer, models=("base", "tuned"))
        self.refused: set[str] = set()

    def answer(self, handler: Handler, fields: dict[str, Any]) -> None:
        refused = fields["messages"][-1]["content"] in self.refused
        act = fail(400, "too long") if refused else reply(f"{fields['model']} {len(fields['messages'])}")
        act(handler, fields)


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        yield server


CONFIG = load_config(None, ScoreConfig, ["online.part_requests=3", "online.concurrency=2", "online.retries=1"])


def ask(data: str, out: Path, api: Api, *models: str, **options: Any) -> Ended:
    return score(data, str(out), "replies", models or ["base"], CONFIG, endpoint=api.url, **options)


def test_every_reply_of_a_split_is_asked_of_every_model(tmp_path: Path, api: Api) -> None:
    data = write_dataset(tmp_path / "data")
    ended = ask(data, tmp_path / "out", api, "base", "tuned")
    table = pq.read_table(tmp_path / "out" / "scores.parquet")
    rows = table.to_pylist()
    assert table.num_rows == len({r["request_id"] for r in rows}) == ended.run["rows"] * 2 == len(api.seen)
    assert [r["model"] for r in rows] == ["base", "tuned"] * ended.run["rows"]
    for row in rows:
        assert row["reply"] == f"{row['model']} {len(row['messages'])}"
        assert (row["n_prompt_tokens"], row["n_cached_tokens"], row["n_completion_tokens"]) == (7, 4, 3)
    assert ended.run["summary"]["cache_hit_share"] == pytest.approx(4 / 7)
    assert ended.n_errors == 0

    again = ask(data, tmp_path / "out", api, "base", "tuned")  # complete: nothing is asked
    assert again.run == ended.run
    assert len(api.seen) == table.num_rows


def test_errors_are_rows_and_only_they_are_asked_again(tmp_path: Path, api: Api) -> None:
    rows = [{"id": n, "messages": user(f"line {n}")} for n in range(7)]
    data = write_rows(tmp_path / "rows.parquet", [*rows, {"id": 7, "messages": []}])
    api.refused = {"line 2", "line 5"}
    ended = ask(data, tmp_path / "out", api)
    assert ended.run["summary"]["errors"] == {"HTTP N: too long": 2, "messages: empty": 1}
    found = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [r["id"] for r in found] == list(range(8))
    assert [r["id"] for r in found if r["error"]] == [2, 5, 7]
    assert len(api.seen) == 7

    api.refused = {"line 5"}
    assert ask(data, tmp_path / "out", api).run == ended.run
    assert len(api.seen) == 7
    healed = ask(data, tmp_path / "out", api, retry_failed=True)
    assert len(api.seen) == 9
    assert healed.run["summary"]["errors"] == {"HTTP N: too long": 1, "messages: empty": 1}
    found = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [r["attempts"] for r in found] == [1, 1, 2, 1, 1, 2, 1, 2]


def test_a_busy_server_is_asked_again(tmp_path: Path, api: Api) -> None:
    data = write_rows(tmp_path / "rows.parquet", [{"messages": user("Stop.")}])
    api.script = [fail(503, "busy")]
    ask(data, tmp_path / "out", api)
    (row,) = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert (row["reply"], row["attempts"]) == ("base 1", 2)


class PlugPulled(Exception):
    pass


class Impatient(Watch):
    """One that pulls the plug after some answers."""

    def answers(self, answers: Any) -> None:
        raise PlugPulled


def test_a_run_that_was_stopped_asks_the_rest(tmp_path: Path, api: Api) -> None:
    rows = [{"id": n, "messages": user(f"line {n}")} for n in range(20)]
    data = write_rows(tmp_path / "rows.parquet", rows)
    with pytest.raises(PlugPulled):
        ask(data, tmp_path / "out", api, watch=Impatient())
    assert not (tmp_path / "out" / "run.json").exists()
    stored = sum(pq.read_table(f).num_rows for f in (tmp_path / "out" / "parts").iterdir())
    assert 3 <= stored < 20
    before = -1
    while before != len(api.seen):  # what was under way when the plug was pulled may still arrive
        before = len(api.seen)
        time.sleep(0.3)
    ask(data, tmp_path / "out", api)
    assert len(api.seen) - before == 20 - stored
    found = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [r["id"] for r in found] == list(range(20))


def test_a_folder_of_another_run_is_refused(tmp_path: Path, api: Api) -> None:
    data = write_rows(tmp_path / "rows.parquet", [{"messages": user("Stop.")}])
    ask(data, tmp_path / "out", api)
    with pytest.raises(UserError, match="holds a scoring run of another"):
        ask(data, tmp_path / "out", api, "tuned")
    n_asked = len(api.seen)
    api.models = raw(json.dumps({"data": [{"id": "base", "max_model_len": 8192}]}).encode())  # has more room today
    ask(data, tmp_path / "out", api)
    api.models = raw(json.dumps({"data": [{"id": "base", "weights": "abc"}]}).encode())  # others under the name
    with pytest.raises(UserError, match="holds a scoring run of another"):
        ask(data, tmp_path / "out", api)
    assert len(api.seen) == n_asked


def test_a_prompt_has_the_room_that_the_endpoint_gives(tmp_path: Path, api: Api) -> None:
    talk = [{"role": "assistant" if n % 2 else "user", "content": f"line {n} " + "word " * 60} for n in range(40)]
    data = write_rows(tmp_path / "rows.parquet", [{"messages": talk, "reply": "No."}])
    sizes = []
    for max_model_len in (2048, 8192):
        api.models = raw(json.dumps({"data": [{"id": "base", "max_model_len": max_model_len}]}).encode())
        score(data, str(tmp_path / str(max_model_len)), "realism", ["base"], CONFIG, endpoint=api.url)
        sizes.append(len(json.dumps(api.seen[-1][2]["messages"])))
    assert sizes[0] < 0.7 * sizes[1], "the middle of a long dialogue is left out where there is no room"


def test_a_request_is_sent_with_seed_and_form() -> None:
    request = {
        **dict.fromkeys(REQUESTS.names),
        "request_id": "0000000a" + "0" * 24,
        "model": "base",
        "adapter": "tuned",
        "messages": user("Stop."),
        "json_schema": '{"type": "object"}',
    }
    asked = fields(request, SamplingConfig(max_tokens=5, temperature=0.7, seed=3))
    assert (asked["model"], asked["seed"], asked["max_tokens"]) == ("tuned", 13, 5)
    assert asked["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "seed" not in fields({**request, "json_schema": None}, SamplingConfig(max_tokens=5))
