"""The load generator: known percentiles, known losses, and a whole run against a small server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deescal.errors import UserError
from deescal.schema import EXAMPLES, to_table
from deescal.serve.client import Endpoint
from deescal.serve.load import LoadConfig, deal, encounters, run_level, run_load
from deescal.serve.load_report import (
    LOAD,
    REQUESTS,
    LoadResult,
    cells,
    level_row,
    losses,
    render_load_page,
    show_load,
    token_times,
)
from deescal.storage import read_json, read_table, write_table
from tests.browser import opened
from tests.conftest import free_port
from tests.serve.fake_server import FakeServer, fail, hang, reply, stream

QUICK = {"backoff_s": 0.001, "timeout_s": 5.0}


def request(i: int = 0, **values: Any) -> dict[str, Any]:
    """An answered request, a token a second after the first second."""
    answered = {"pieces_s": [1.0, 2.0, 3.0], "latency_s": 3.5, "n_prompt_tokens": 10, "n_output_tokens": 3}
    at = {"concurrency": 2, "request": i, "prompt": f"p:{i}", "started_s": 0.0, "ended_s": 3.5, "attempts": 1}
    return {**dict.fromkeys(REQUESTS.names), **answered, **at, **values}


def failed(i: int, kind: str, attempts: int = 1) -> dict[str, Any]:
    none = dict.fromkeys(("pieces_s", "latency_s", "n_prompt_tokens", "n_output_tokens"))
    return request(i, **none, error=kind, message="no", attempts=attempts)


def test_a_level_in_numbers() -> None:
    rows = [
        request(0, pieces_s=[1.0, 1.5, 2.5], latency_s=2.5, attempts=2, n_cached_tokens=4),
        request(1, pieces_s=[3.0, 3.1], latency_s=4.0, n_output_tokens=2),
        failed(2, "HTTP 503", attempts=5),
        failed(3, "timeout"),
        failed(4, "timeout"),
    ]
    level = level_row(2, rows, 7, wall_s=10.0)
    assert to_table([level], LOAD).num_rows == 1
    assert (level["answered"], level["failed"], level["unsent"], level["retries"]) == (2, 3, 2, 5)
    assert level["errors"] == {"HTTP 503": 1, "timeout": 2}
    assert losses(level) == "2 at once: 1 HTTP 503, 2 timeout, 2 not sent"
    assert (level["prompt_tokens"], level["cached_tokens"], level["output_tokens"]) == (20, 4, 5)
    assert (level["requests_per_s"], level["output_tokens_per_s"], level["total_tokens_per_s"]) == (0.2, 0.5, 2.5)
    assert (level["first_token_p50_s"], level["first_token_p99_s"]) == (1.0, 3.0)
    assert (level["latency_p50_s"], level["latency_p95_s"]) == (2.5, 4.0)
    # Over the three gaps 0.1, 0.5, 1.0, not over the requests' means 0.75 and 0.1.
    assert (level["per_token_p50_s"], level["per_token_p95_s"]) == (0.5, 1.0)


def test_a_level_without_answers_and_one_without_streams() -> None:
    nothing = level_row(2, [], 4, wall_s=0.0)
    assert (nothing["unsent"], nothing["latency_p50_s"], nothing["requests_per_s"]) == (4, None, None)
    assert "–" in cells(nothing)
    plain = level_row(2, [request(pieces_s=None, n_prompt_tokens=None, n_output_tokens=None)], 1, wall_s=1.0)
    assert (plain["latency_p50_s"], plain["first_token_p50_s"], plain["per_token_p50_s"]) == (3.5, None, None)
    assert (plain["output_tokens_per_s"], plain["total_tokens_per_s"]) == (None, None)
    assert to_table([nothing, plain], LOAD).num_rows == 2


def test_tokens_of_a_burst_share_the_wait_before_it() -> None:
    seconds, counts = token_times([0.5, 0.6, 0.60001, 0.60002, 0.9], 5)
    np.testing.assert_allclose(seconds, [0.1 / 3, 0.29998 + 0.00002], rtol=1e-3)
    np.testing.assert_allclose(counts, [3, 1])
    seconds, counts = token_times([0.5, 0.9], 8)  # four tokens a piece
    np.testing.assert_allclose(seconds, [0.1])
    np.testing.assert_allclose(counts, [4])
    assert [len(x) for x in token_times([0.5], 1)] == [0, 0]


@given(st.lists(st.floats(0.001, 2), min_size=1, max_size=30))
def test_a_token_a_piece_gives_the_gaps_themselves(gaps: list[float]) -> None:
    pieces = np.cumsum([0.1, *gaps])
    seconds, counts = token_times(pieces.tolist(), len(pieces))
    np.testing.assert_allclose(seconds, np.diff(pieces))
    np.testing.assert_allclose(counts, 1)


def test_the_made_up_encounters_are_conversations() -> None:
    found = encounters()
    assert len(found) == 12
    for messages in found.values():
        assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * (len(messages) // 2)]
        assert len(messages) >= 9
        assert all(m["content"] and m["content"] == m["content"].strip() for m in messages)
        assert "Situation: " in messages[0]["content"]


@given(st.integers(0, 5))
def test_no_prompt_comes_twice_before_all_have_come(seed: int) -> None:
    conversations = encounters()
    n = sum(m["role"] == "assistant" for messages in conversations.values() for m in messages)
    prompts = list(islice(deal(conversations, seed), 2 * n))
    assert len({p.name for p in prompts[:n]}) == n
    assert Counter(p.name for p in prompts) == Counter({p.name: 2 for p in prompts})
    for prompt in prompts:
        name, _, i = prompt.name.partition(":")
        assert prompt.messages == conversations[name][: int(i)]
        assert prompt.messages[-1]["role"] == "user"
    assert prompts == list(islice(deal(conversations, seed), 2 * n))


def test_a_dataset_without_replies() -> None:
    with pytest.raises(UserError, match="no prompts"):
        deal({"a": [{"role": "assistant", "content": "Hm?"}, {"role": "user", "content": "Hello."}]}, 0)


def test_a_whole_run(tmp_path: Path) -> None:
    with FakeServer(then=stream("I", " am", " fine", gap_s=0.001)) as server:
        config = LoadConfig(concurrency=(1, 4), requests=10, max_tokens=7, **QUICK)
        result = run_load(server.url, "tiny", config, str(tmp_path))
    assert result.lost == 0
    assert len(server.seen) == 1 + 10 + 4 + 10  # with the warm-ups
    assert server.n_most <= 4
    fields = server.seen[0][2]
    assert (fields["model"], fields["max_tokens"], fields["temperature"], fields["stream"]) == ("tiny", 7, 0.0, True)
    assert fields["messages"][-1]["role"] == "user"
    requests = read_table(str(tmp_path / "requests.parquet"))
    assert requests.schema.equals(REQUESTS)
    assert requests.num_rows == 20
    assert len(set(requests["prompt"].to_pylist())) == 20
    assert [len(pieces) for pieces in requests["pieces_s"].to_pylist()] == [3] * 20
    told = read_json(str(tmp_path / "load.json"))
    assert [level["answered"] for level in told["levels"]] == [10, 10]
    assert [level["output_tokens"] for level in told["levels"]] == [30, 30]
    assert 0 < told["levels"][0]["per_token_p50_s"] < told["levels"][0]["latency_p50_s"]
    assert told["config"]["requests"] == 10
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert "tiny" in (tmp_path / "load.html").read_text()


def test_without_streams_and_with_a_dataset(tmp_path: Path) -> None:
    messages = [
        {"role": role, "content": f"{role} {i}"} for i in range(3) for role in ("user", "assistant")
    ]  # three places to reply at
    row = {
        **{"example_id": "e-0", "scenario_id": "e", "incident_id": "e", "window": 0, "first_turn_id": 0},
        **{"last_turn_id": 5, "n_tokens": 9, "n_target_tokens": 4, "n_context_messages": 0, "messages": messages},
    }
    data = str(tmp_path / "data")
    write_table(f"{data}/examples/test.parquet", to_table([row], EXAMPLES))
    with FakeServer() as server:
        config = LoadConfig(concurrency=(2,), requests=4, stream=False, **QUICK)
        result = run_load(server.url, "tiny", config, str(tmp_path / "out"), data)
    assert {row["prompt"] for row in result.requests} == {"e-0:1", "e-0:3", "e-0:5"}
    assert all("stream" not in fields for _, _, fields in server.seen)
    (level,) = result.levels
    assert (level["first_token_p50_s"], level["cached_tokens"], level["prompt_tokens"]) == (None, 16, 28)


def test_failures_are_counted_and_shown(tmp_path: Path) -> None:
    with FakeServer(reply(), fail(503), reply(), fail(400, "[red]too long"), then=reply()) as server:
        config = LoadConfig(concurrency=(1,), requests=5, stream=False, **QUICK)
        result = run_load(server.url, "tiny", config, str(tmp_path))
    (level,) = result.levels
    assert (level["answered"], level["failed"], level["retries"], result.lost) == (4, 1, 1, 1)
    assert level["errors"] == {"HTTP 400": 1}
    assert [row["message"] for row in result.requests if row["error"]] == ["HTTP 400: [red]too long"]
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    show_load(result, console)
    text = console.export_text()
    assert "lost, 1 at once: 1 HTTP 400" in text
    assert "req/s" in text
    assert "Lost, 1 at once: 1 HTTP 400." in (tmp_path / "load.html").read_text()


def test_when_the_time_is_over(tmp_path: Path) -> None:
    with FakeServer(reply(), reply(), then=hang) as server:
        config = LoadConfig(concurrency=(1, 2), requests=5, stream=False, time_limit_s=1.0, **QUICK)
        result = run_load(server.url, "tiny", config, str(tmp_path))
    first, second = result.levels
    assert (first["errors"], first["failed"]) == ({"time limit": 1}, 1)
    assert first["answered"] + first["unsent"] == 4
    assert (second["answered"], second["failed"], second["unsent"], second["wall_s"]) == (0, 0, 5, 0.0)
    assert result.lost == 10 - first["answered"]
    assert (tmp_path / "load.html").exists()


def test_a_level_sends_each_prompt_once() -> None:
    prompts = list(islice(deal(encounters(), 3), 30))

    async def run(server: FakeServer) -> list[dict[str, Any]]:
        deadline = asyncio.get_running_loop().time() + 60
        endpoint = Endpoint(server.url, **QUICK)
        return (await run_level(endpoint, "tiny", LoadConfig(stream=False), prompts, 6, deadline))[0]

    with FakeServer(then=reply(delay_s=0.002)) as server:
        rows = asyncio.run(run(server))
    assert [row["prompt"] for row in rows] == [prompt.name for prompt in prompts]
    assert sorted(str(fields["messages"]) for *_, fields in server.seen) == sorted(str(p.messages) for p in prompts)
    assert server.n_most <= 6


@pytest.mark.parametrize(
    ("values", "told"),
    [({"concurrency": ()}, "concurrency"), ({"concurrency": (1, 0)}, "concurrency 1,0: expected numbers of 1 or more")],
)
def test_a_config_that_asks_for_no_load(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_load("http://127.0.0.1:1", "tiny", LoadConfig(**values), "out")


def test_mistakes_are_told_before_the_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        run_load(f"http://127.0.0.1:{free_port()}", "tiny", LoadConfig(), str(tmp_path))
    with FakeServer() as server:
        with pytest.raises(UserError, match="no model 'huge'; it serves tiny"):
            run_load(server.url, "huge", LoadConfig(), str(tmp_path))
        with pytest.raises(UserError, match="no examples"):
            run_load(server.url, "tiny", LoadConfig(), str(tmp_path), str(tmp_path / "nothing"))
        assert not server.seen
    assert not list(tmp_path.iterdir())


def made_up_result(model: str = "tiny", streams: bool = True) -> LoadResult:
    rng = np.random.default_rng(0)
    levels, requests = [], []
    for n in (1, 4, 16):
        rows = []
        for i in range(64):
            gaps = rng.gamma(4, 0.004 * n**0.5, 40)
            pieces = np.cumsum([rng.gamma(4, 0.02 * n), *gaps])
            told = {"n_prompt_tokens": 180, "n_cached_tokens": 90, "n_output_tokens": 41}
            pieces_s = pieces.tolist() if streams else None
            rows.append(request(i, concurrency=n, pieces_s=pieces_s, latency_s=float(pieces[-1]), **told))
        if n == 16:
            rows[3:5] = [failed(3, "HTTP 503", 5), failed(4, "timeout", 5)]
        levels.append(level_row(n, rows, 64, 64 * 1.1 / n**0.7))
        requests += rows
    started = "2026-11-30T10:00:00+00:00"
    return LoadResult("out", "http://h:8000/v1", model, None, {"seed": 0}, started, levels, requests)


def test_words_of_others_are_text_on_the_page() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    page = render_load_page(made_up_result(evil))
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


@pytest.mark.parametrize("streams", [True, False])
def test_the_table_fits_a_wide_terminal(streams: bool) -> None:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    show_load(made_up_result(streams=streams), console)
    lines = console.export_text().splitlines()
    assert "16 at once: 1 HTTP 503, 1 timeout" in "".join(lines)
    assert sum("/" in line for line in lines) >= 3


def test_raw_measures_survive_parquet(tmp_path: Path) -> None:
    table = to_table(made_up_result().requests, REQUESTS)
    write_table(str(tmp_path / "r.parquet"), table)
    assert read_table(str(tmp_path / "r.parquet")).equals(table)
    assert pa.types.is_list(table.schema.field("pieces_s").type)


@pytest.mark.browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "load.html"
    file.write_text(render_load_page(made_up_result()))
    with opened(file) as (page, trouble, requests):
        time.sleep(0.1)
        assert page.locator("svg").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not trouble
    assert requests == [file.as_uri()]
