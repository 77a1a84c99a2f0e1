"""The whole evaluation against an endpoint without a model: conservation, resume, errors, bad input, the command."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deescal.config import load_config
from deescal.errors import UserError
from deescal.evaluate.command import app
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.job import Ended, Watch, evaluate, evaluate_from
from deescal.evaluate.rows import SCORED_TURNS
from deescal.evaluate.significance import SIGNIFICANCE
from deescal.evaluate.summary import SUMMARY_TABLE
from deescal.judge.realism import CRITERIA
from deescal.report.evaluate_findings import read_csv
from deescal.schema import Row
from deescal.score import tasks
from tests.conftest import ROOT
from tests.serve.fake_server import FakeServer, Handler, fail, raw, reply
from tests.serve.lora import write_adapter
from tests.train.tiny import write_dataset, write_model

FLAWLESS = json.dumps({c.name: {"evidence": "", "points": 0} for c in CRITERIA})
QUICK = ["metrics.metrics=[rouge_l, bleu_4]", "metrics.workers=1", "test.n_resamples=200", "generate.online.retries=0"]


MODELS = ("good", "bad", "third", "judge", "officer")


class Api(FakeServer):
    """`good` repeats the officer's last word as the tiny dataset's civilians do, `bad` never does, `judge` judges.

    `third` says no, `officer` how often it heard something.
    """

    def __init__(self) -> None:
        super().__init__(then=self.answer, models=MODELS)
        self.refused: set[str] = set()  # last messages
        self.slow = ""  # model that takes its time
        self.broken = False  # the judge is
        self.broken_for = ""  # model that answers with an error

    def answer(self, handler: Handler, fields: dict[str, Any]) -> None:
        said = fields["messages"][-1]["content"]
        time.sleep(0.1 if fields["model"] == self.slow else 0)
        if fields["model"] == "judge":
            pair = "<second>" in said  # of the two replies, the one that repeats a word is the more real
            first = "know" not in said.partition("<second>")[0].partition("<first>")[2]
            answer = json.dumps({"because": "", "better": "first" if first else "second"}) if pair else FLAWLESS
            act = fail(500, "no") if self.broken else reply(answer)
        elif fields["model"] == "third":
            act = fail(400, "no") if self.broken_for == "third" else reply("No.")
        elif fields["model"] == "officer":
            act = reply(f"Officer: line {sum(m['role'] == 'user' for m in fields['messages'])}")
        elif said in self.refused:
            act = fail(400, "too long")
        else:
            act = reply(" ".join([said.split()[-1]] * 3) if fields["model"] == "good" else "I don't know, officer.")
        act(handler, fields)

    def asked(self, model: str) -> list[dict[str, Any]]:
        return [fields for _, _, fields in self.seen if fields["model"] == model]


@pytest.fixture(autouse=True)
def _no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time, and the page has tests of its own."""

    def write(run: Any, out: str) -> None:
        (Path(out) / "report.html").write_text("a page")

    if "command" not in request.node.name:
        monkeypatch.setattr("deescal.report.evaluate_page.write_evaluate_page", write)


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_dataset(tmp_path / "data")


def config(*overrides: str) -> EvaluateConfig:
    return load_config(None, EvaluateConfig, [*QUICK, *overrides])


def compare(data: str, out: Path, api: Api, *overrides: str, models: str = "good,bad", **options: Any) -> Ended:
    texts = [name if "/" in name else f"{api.url}#{name}" for name in models.split(",")]
    return evaluate(data, texts, str(out), config(*overrides), **options)


def turns_of(out: Path) -> list[Row]:
    table = pq.read_table(out / "turns.parquet")
    assert table.schema.equals(SCORED_TURNS)
    return table.to_pylist()


def untimed(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in ("asked_at_s", "latency_s")} for row in rows]


def tables(out: Path) -> tuple[list[Row], list[str], str]:
    """What two right runs must have in common; a NaN as text, since it equals nothing."""
    summary = read_csv(str(out / "summary.csv"), SUMMARY_TABLE)
    timeless = [{k: v for k, v in row.items() if "latency" not in k and "seconds" not in k} for row in summary]
    return untimed(turns_of(out)), [repr(row) for row in timeless], (out / "significance.csv").read_text()


def test_every_contestant_answers_every_item_once(tmp_path: Path, data: str, api: Api) -> None:
    ended = compare(data, tmp_path / "out", api)
    rows, items = turns_of(tmp_path / "out"), pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    examples = pq.read_table(Path(data) / "examples" / "test.parquet").to_pylist()
    n_new = sum(
        m["role"] == "assistant" and n >= e["n_context_messages"] for e in examples for n, m in enumerate(e["messages"])
    )
    assert len(items) == len({i["item_id"] for i in items}) == n_new > 10
    keys = {(r["item_id"], r["model"], r["seed"]) for r in rows}
    assert keys == {(i["item_id"], m, 0) for i in items for m in ("good", "bad")}
    assert len(rows) == len(keys) == ended.run["rows"] == len(api.seen)
    by_item = {i["item_id"]: i for i in items}
    for row in rows:
        item = by_item[row["item_id"]]
        assert (row["messages"], row["reference"]) == (item["messages"], item["reference"])
        assert row["rouge_l"] == (1.0 if row["model"] == "good" else 0.0)
        assert row["meteor"] is None
    assert ended.run["metrics"] == ["rouge_l", "bleu_4"]
    assert ended.failed == {}
    assert ended.run["errors"] == {}


def test_turns_of_a_scenario_are_numbered_in_order(tmp_path: Path, data: str, api: Api) -> None:
    compare(data, tmp_path / "out", api, models="good")
    by_scenario: dict[str, list[int]] = {}
    for row in turns_of(tmp_path / "out"):
        by_scenario.setdefault(row["scenario_id"], []).append(row["turn_id"])
    assert all(turns == list(range(len(turns))) for turns in by_scenario.values())


def test_the_tables_say_who_is_better(tmp_path: Path, data: str, api: Api) -> None:
    compare(data, tmp_path / "out", api)
    summary = {row["model"]: row for row in read_csv(str(tmp_path / "out" / "summary.csv"), SUMMARY_TABLE)}
    assert (summary["good"]["rouge_l"], summary["bad"]["rouge_l"]) == (100.0, 0.0)
    assert summary["good"]["seconds_a_turn"] > 0
    tests = read_csv(str(tmp_path / "out" / "significance.csv"), SIGNIFICANCE)
    assert [(r["a"], r["b"], r["metric"], r["difference"]) for r in tests[:1]] == [("bad", "good", "rouge_l", -1.0)]
    # Three incidents that all differ by the same: no interval, and it says why.
    assert math.isnan(tests[0]["low"])
    assert tests[0]["reason"]


def test_errors_are_counted_never_scored_and_asked_again(tmp_path: Path, data: str, api: Api) -> None:
    items = compare(data, tmp_path / "first", api, models="good") and turns_of(tmp_path / "first")
    api.refused = {items[0]["messages"][-1]["content"]}
    ended = compare(data, tmp_path / "out", api, models="good")
    failed = [r for r in turns_of(tmp_path / "out") if r["error"]]
    assert 0 < len(failed) < len(items)
    assert all(r["reply"] is None and r["rouge_l"] is None for r in failed)
    assert ended.run["errors"] == {"teacher_forced, good": {"HTTP N: too long": len(failed)}}
    (row,) = read_csv(str(tmp_path / "out" / "summary.csv"), SUMMARY_TABLE)
    assert (row["n"], row["n_errors"], row["rouge_l"]) == (len(items), len(failed), 100.0)
    before = len(api.seen)
    api.refused = set()
    assert compare(data, tmp_path / "out", api, models="good", retry_failed=True).run["errors"] == {}
    assert len(api.seen) - before == len(failed)


def test_a_run_that_lost_files_comes_to_the_same(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    compare(data, out, api)
    before, n_asked = tables(out), len(api.seen)
    (out / "run.json").unlink()
    compare(data, out, api)
    assert len(api.seen) == n_asked
    assert tables(out) == before
    (out / "run.json").unlink()
    replies = next((out / "replies").iterdir())
    (replies / "run.json").unlink()
    part = next((replies / "parts").iterdir())
    n_lost = pq.read_table(part).num_rows
    part.unlink()
    compare(data, out, api)
    assert len(api.seen) == n_asked + n_lost
    assert tables(out) == before
    for name in ("turns.parquet", "summary.csv", "report.html", "steps.json"):
        (out / name).unlink()
    compare(data, out, api)
    assert len(api.seen) == n_asked + n_lost
    assert tables(out) == before


class PlugPulled(Exception):
    pass


class Impatient(Watch):
    def answers(self, answers: Any) -> None:
        raise PlugPulled


def test_a_run_that_was_stopped_asks_the_rest(tmp_path: Path, data: str, api: Api) -> None:
    quick = ("generate.online.part_requests=3", "generate.online.concurrency=2")
    with pytest.raises(PlugPulled):
        compare(data, tmp_path / "out", api, *quick, watch=Impatient())
    assert not (tmp_path / "out" / "run.json").exists()
    compare(data, tmp_path / "out", api, *quick)
    compare(data, tmp_path / "calm", api, *quick)
    assert tables(tmp_path / "out") == tables(tmp_path / "calm")


DRIVER = """
import sys
import time
import deescal.report.evaluate_page as page
from deescal.config import load_config
from deescal.evaluate import steps
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.job import evaluate
page.write_evaluate_page = lambda run, out: None
stop_after, data, models, out, *overrides = sys.argv[1:]
if stop_after:  # work of a step, done and not stored yet
    work = getattr(steps, stop_after)
    def and_wait(*given, **named):
        made = work(*given, **named)
        open(out + "/here", "w").close()
        time.sleep(600)
        return made
    setattr(steps, stop_after, and_wait)
evaluate(data, [models], out, load_config(None, EvaluateConfig, overrides))
"""


def kill_when(
    happened: Callable[[], bool], stop_after: str, data: str, models: str, out: Path, settings: Sequence[str]
) -> None:
    """An evaluation in a process of its own, and kill -9."""
    driver = [sys.executable, "-c", DRIVER, stop_after, data, models, str(out), *settings]
    process = subprocess.Popen(driver, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not happened():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("moment", ["good", "judge"])
def test_a_run_killed_while_it_asks_comes_to_the_same(tmp_path: Path, data: str, api: Api, moment: str) -> None:
    """kill -9 in the midst of generation, and in the midst of judging."""
    out, few = tmp_path / "out", "{part_requests: 2, concurrency: 1, retries: 0}"
    judge = ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=6", f"judge.score.online={few}")
    settings = [*QUICK, *judge, f"generate.online={few}"]
    models = f"{api.url}#good,{api.url}#bad"
    api.slow = moment
    kill_when(lambda: len(api.asked(moment)) >= 6, "", data, models, out, settings)
    assert not (out / "run.json").exists()
    api.slow = ""
    before = {name: len(api.asked(name)) for name in ("good", "bad", "judge")}
    compare(data, out, api, *settings)
    after = {name: len(api.asked(name)) for name in before}
    n_items = pq.read_table(out / "items.parquet").num_rows
    # Asked twice is only what was under way, or not stored yet.
    assert n_items <= after["good"] <= n_items + 3
    assert 18 <= after["judge"] <= 18 + 3
    assert after[moment] > before[moment]
    compare(data, tmp_path / "calm", api, *settings)
    assert tables(out) == tables(tmp_path / "calm")
    judged = [pq.read_table(folder / "judged.parquet").to_pylist() for folder in (out, tmp_path / "calm")]
    assert judged[0] == judged[1]


@pytest.mark.parametrize("work", ["score_pairs", "significance_table"])
def test_a_run_killed_while_it_scores_or_tests_comes_to_the_same(
    tmp_path: Path, data: str, api: Api, work: str
) -> None:
    out, models = tmp_path / "out", f"{api.url}#good,{api.url}#bad"
    kill_when((out / "here").exists, work, data, models, out, QUICK)
    assert not (out / "run.json").exists()
    assert (out / "turns.parquet").exists() == (work == "significance_table")
    n_asked = len(api.seen)
    compare(data, out, api)
    assert len(api.seen) == n_asked
    compare(data, tmp_path / "calm", api)
    assert tables(out) == tables(tmp_path / "calm")


def test_a_step_alone_takes_what_is_there(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    compare(data, out, api)
    n_asked, turns = len(api.seen), turns_of(out)
    ended = evaluate_from(str(out), "score", config("metrics.metrics=[bleu_4]"))
    assert len(api.seen) == n_asked
    assert ended.run["metrics"] == ["bleu_4"]
    assert [r["bleu_4"] for r in turns_of(out)] == [r["bleu_4"] for r in turns]
    stamp = (out / "turns.parquet").stat().st_mtime_ns
    evaluate_from(str(out), "test", config("metrics.metrics=[bleu_4]"))
    assert (out / "turns.parquet").stat().st_mtime_ns == stamp
    (out / "report.html").unlink()
    shutil.copytree(out, tmp_path / "copied", copy_function=shutil.copy)  # its files are younger
    stamp = (tmp_path / "copied" / "turns.parquet").stat().st_mtime_ns
    evaluate_from(str(tmp_path / "copied"), "report", config("metrics.metrics=[bleu_4]"))
    assert (tmp_path / "copied" / "report.html").exists()
    assert (tmp_path / "copied" / "turns.parquet").stat().st_mtime_ns == stamp
    ended = evaluate_from(str(out), "report", config("metrics.metrics=[rouge_l]"))  # the page would say what is not
    assert ended.run["metrics"] == ["rouge_l"]
    ended = evaluate_from(str(out), "report", config("metrics.metrics=[bleu_4]"))
    assert ended.run["metrics"] == ["bleu_4"]
    assert load_config(str(out / "config.json"), EvaluateConfig) == config("metrics.metrics=[bleu_4]")
    for other in ("protocols=[rollout]", "generate.sampling.max_tokens=9"):
        with pytest.raises(UserError, match="differs from that of"):
            evaluate_from(str(out), "score", config(other))
    shutil.rmtree(out / "replies")
    steps = json.loads((out / "steps.json").read_text())
    del steps["test"]
    (out / "steps.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match=r"step 'test' of .* is not done yet"):
        evaluate_from(str(out), "report", config())


def test_who_cannot_be_asked_is_out_alone(tmp_path: Path, data: str, api: Api) -> None:
    told: list[str] = []

    class Listening(Watch):
        def failed(self, label: str, why: str) -> None:
            told.append(label)

    ended = compare(
        data, tmp_path / "out", api, models="good,no/such/model,bad,org/base:x=/no/where", watch=Listening()
    )
    assert list(ended.failed) == told == ["model", "base:x"]
    assert "neither a folder nor a Hugging Face id" in ended.failed["model"]
    assert "no adapter_config.json in /no/where" in ended.failed["base:x"]
    assert {r["model"] for r in turns_of(tmp_path / "out")} == {"good", "bad"}
    reasons = [r["reason"] for r in read_csv(str(tmp_path / "out" / "significance.csv"), SIGNIFICANCE)]
    assert "no item has a score of both" in reasons
    with pytest.raises(UserError, match="no contestant can be asked"):
        compare(data, tmp_path / "none", api, models="no/such/model")


def test_a_contestant_may_be_added(tmp_path: Path, data: str, api: Api) -> None:
    """At the same endpoint or another, before the others or after; labels change by it, replies do not."""
    out, both = tmp_path / "out", "protocols=[teacher_forced, rollout]"
    with Api() as other:
        compare(data, out, api, both, models="good")
        n_asked = len(api.seen)
        compare(data, out, api, both, models="bad,good")
        assert (len(api.asked("good")), len(api.asked("bad"))) == (n_asked, n_asked)
        evaluate(data, [f"{other.url}#good,{api.url}#good"], str(out), config(both))
        assert len(api.seen) == 2 * n_asked
        assert len(other.seen) == n_asked
    models = [r["model"] for r in turns_of(out)]
    assert {name.partition("@")[0] for name in models} == {"good"}
    assert sorted(models.count(name) for name in set(models)) == [n_asked, n_asked]


def test_an_endpoint_that_is_gone_keeps_its_replies(tmp_path: Path, data: str, api: Api) -> None:
    with Api() as other:
        models = [f"{api.url}#good,{other.url}#bad"]
        evaluate(data, models, str(tmp_path / "out"), config())
    ended = evaluate(data, models, str(tmp_path / "out"), config())
    assert ended.failed == {}
    ended = evaluate(data, models, str(tmp_path / "out"), config(), retry_failed=True)
    assert ended.failed == {}  # no error, so that there is nothing to ask
    assert {r["model"] for r in turns_of(tmp_path / "out")} == {"good", "bad"}


def test_an_endpoint_that_is_gone_cannot_be_asked_for_what_failed(tmp_path: Path, data: str, api: Api) -> None:
    with Api() as other:
        models = [f"{api.url}#good,{other.url}#third"]
        other.broken_for = "third"
        evaluate(data, models, str(tmp_path / "out"), config())
    ended = evaluate(data, models, str(tmp_path / "out"), config(), retry_failed=True)
    assert "cannot be reached" in ended.failed["third"]
    assert {r["model"] for r in turns_of(tmp_path / "out")} == {"good"}


def test_nobody_to_ask_leaves_a_finished_evaluation_alone(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    compare(data, out, api)
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    with pytest.raises(UserError, match="no contestant can be asked"):
        evaluate(data, ["no-such-model"], str(out), config())
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before


def test_another_judges_scores_never_stand_for_the_first_ones(tmp_path: Path, data: str, api: Api) -> None:
    """Killed between its scores and its choices, another judge has left its scores under the first one's tables."""
    out, models = tmp_path / "out", f"{api.url}#good,{api.url}#bad"
    judge = ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=4", "judge.rubrics=[realism]")
    compare(data, out, api, *judge)
    before = pq.read_table(out / "judged.parquet")
    other = [*QUICK, *judge, "judge.n_items=2", "judge.pairwise=true"]
    kill_when((out / "here").exists, "compare_pairs", data, models, out, other)
    assert pq.read_table(out / "judged.parquet").num_rows < before.num_rows
    compare(data, out, api, *judge)
    assert pq.read_table(out / "judged.parquet").equals(before)


def test_one_ray_has_room_for_contestants_and_judge() -> None:
    settings = config("judge.model=org/judge", "judge.score.workers.num_cpus=6", "generate.workers.num_cpus=2")
    roomy = settings.with_room()
    assert (roomy.generate.ray.num_cpus, roomy.judge.score.ray.num_cpus) == (7, 7)
    assert config("judge.score.workers.num_cpus=6").with_room().generate.ray.num_cpus == 3
    assert config("generate.ray.num_cpus=9").with_room().generate.ray.num_cpus == 9


def test_seeds_are_draws_of_one_item(tmp_path: Path, data: str, api: Api) -> None:
    sampling = ("generate.sampling.temperature=1", "generate.sampling.samples=2")
    compare(data, tmp_path / "out", api, *sampling, models="good")
    rows = turns_of(tmp_path / "out")
    n_items = len({r["item_id"] for r in rows})
    assert sorted(r["seed"] for r in rows) == [0] * n_items + [1] * n_items
    assert len({f["seed"] for f in api.asked("good")}) == 2 * n_items
    (row,) = read_csv(str(tmp_path / "out" / "summary.csv"), SUMMARY_TABLE)
    assert (row["n_items"], row["n"], row["seeds"]) == (n_items, 2 * n_items, 2)


def test_a_judge_reads_a_sample_and_real_replies(tmp_path: Path, data: str, api: Api) -> None:
    judge = ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=4")
    ended = compare(data, tmp_path / "out", api, *judge)
    judged = pq.read_table(tmp_path / "out" / "judged.parquet").to_pylist()
    assert len(api.asked("judge")) == len(judged) == 4 * 3
    assert sorted(r["contestant"] for r in judged) == ["bad"] * 4 + ["good"] * 4 + ["reference"] * 4
    assert len({r["item_id"] for r in judged}) == 4
    assert {r["score"] for r in judged} == {100.0}
    assert "realism" in ended.run["metrics"]
    summary = read_csv(str(tmp_path / "out" / "summary.csv"), SUMMARY_TABLE)
    assert [row["realism"] for row in summary] == [100.0, 100.0]
    compare(data, tmp_path / "out", api, *judge)
    assert len(api.asked("judge")) == len(judged)


def test_a_judge_is_asked_with_the_key_of_its_host(
    tmp_path: Path, data: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = api.url.split("://")[1].split("/")[0]
    judge = (
        "judge.model=judge",
        f"judge.endpoint={api.url}",
        "judge.n_items=1",
        f"keys={{'{host}': DEESCAL_TEST_KEY}}",
    )
    with Api() as other:
        models = [f"{other.url}#good"]
        monkeypatch.delenv("DEESCAL_TEST_KEY", raising=False)
        with pytest.raises(UserError, match="the judge: the environment variable DEESCAL_TEST_KEY"):
            evaluate(data, models, str(tmp_path / "out"), config(*judge))
        monkeypatch.setenv("DEESCAL_TEST_KEY", "one")
        with pytest.raises(UserError, match="no model 'judges'; it serves"):
            evaluate(data, models, str(tmp_path / "out"), config(*judge, "judge.model=judges"))
        assert other.seen == []
        evaluate(data, models, str(tmp_path / "out"), config(*judge))
    assert {headers["authorization"] for _, headers, _ in api.seen} == {"Bearer one"}
    assert all("authorization" not in headers for _, headers, _ in other.seen)


def test_a_judges_errors_are_asked_again(tmp_path: Path, data: str, api: Api) -> None:
    out, judge = tmp_path / "out", ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=2")
    few = ("judge.include_reference=false", "judge.score.online.retries=0")
    api.broken = True
    for again in (
        lambda: compare(data, out, api, *judge, *few, models="good", retry_failed=True),
        lambda: evaluate_from(str(out), "judge", config(*judge, *few)),
    ):
        shutil.rmtree(out, ignore_errors=True)
        api.broken = True
        ended = compare(data, out, api, *judge, *few, models="good")
        assert ended.failed == {"the judge": "none of 2 answers could be read, the first: HTTP 500: no"}
        assert not (out / "judged.parquet").exists()
        api.broken, n_judged = False, len(api.asked("judge"))
        again()
        assert len(api.asked("judge")) == n_judged + 2
        assert [r["score"] for r in pq.read_table(out / "judged.parquet").to_pylist()] == [100.0] * 2


def test_settings_of_the_judge_reach_the_tables_from_any_step(tmp_path: Path, data: str, api: Api) -> None:
    out, judge = tmp_path / "out", ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=2")
    compare(data, out, api, *judge)
    assert any(row["realism"] is not None for row in read_csv(str(out / "summary.csv"), SUMMARY_TABLE))
    ended = evaluate_from(str(out), "report", config())
    assert "realism" not in ended.run["metrics"]
    assert all(row["realism"] is None for row in read_csv(str(out / "summary.csv"), SUMMARY_TABLE))
    assert not (out / "judged.parquet").exists()
    ended = evaluate_from(str(out), "report", config(*judge, "judge.rubrics=[]", "judge.pairwise=true"))
    assert ended.failed == {}
    assert (out / "preferences.csv").exists()
    evaluate_from(str(out), "test", config(*judge))
    assert not (out / "preferences.csv").exists()
    assert any(row["realism"] is not None for row in read_csv(str(out / "summary.csv"), SUMMARY_TABLE))


def test_a_judge_that_cannot_be_asked_is_out_alone(
    tmp_path: Path, data: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, judge = tmp_path / "out", ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=2")

    class RayTaskError(Exception):
        __module__ = "ray.exceptions"

    def broken(*arguments: Any, **options: Any) -> None:
        raise RayTaskError("a worker's traceback\nRuntimeError: weights do not fit")

    with monkeypatch.context() as patch:
        patch.setattr("deescal.evaluate.judging.judge", broken)
        ended = compare(data, out, api, *judge)
        assert ended.failed == {"the judge": "its engine failed: RuntimeError: weights do not fit"}
        assert ended.run["metrics"] == ["rouge_l", "bleu_4"]
        assert not (out / "judged.parquet").exists()
    ended = compare(data, out, api, *judge)
    assert ended.failed == {}
    assert "realism" in ended.run["metrics"]
    with monkeypatch.context() as patch:
        patch.setattr("deescal.evaluate.judging.judge", broken)
        ended = compare(data, out, api, *judge, retry_failed=True)
    assert list(ended.failed) == ["the judge"]
    assert "realism" in ended.run["metrics"]  # what it said before, of the same replies
    assert {"statsmodels", "krippendorff"} < ended.run["versions"].keys()


def test_other_rubrics_are_judged_anew(tmp_path: Path, data: str, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=1")
    compare(data, tmp_path / "out", api, *judge, models="good")
    n_judged = len(api.asked("judge"))
    others = tuple(replace(task, version="another") if task.name == "realism" else task for task in tasks._ALL)
    monkeypatch.setattr(tasks, "_ALL", others)
    compare(data, tmp_path / "out", api, *judge, models="good")
    assert len(api.asked("judge")) == 2 * n_judged


def test_bad_settings_are_refused_before_anything_is_asked(tmp_path: Path, data: str, api: Api) -> None:
    compare(data, tmp_path / "out", api)
    n_asked = len(api.seen)
    for overrides, says in (
        (["judge.model=good", f"judge.endpoint={api.url}/v1"], "is also the model of contestant"),
        (["metrics.metrics=[bertscore]", "metrics.bertscore_model=no-such"], "model 'no-such': neither a folder nor"),
        (["keys={127.0.0.1: DEESCAL_TEST_NO_KEY}"], "DEESCAL_TEST_NO_KEY, which `keys` names, is not set"),
        (["pairs=[[good, other]]"], "no contestant 'other'; there are good, bad"),
        (["generate.split=validation"], "holds an evaluation on other data"),
        (["generate.sampling.max_tokens=9"], "holds an evaluation on other data, or with other sampling"),
    ):
        with pytest.raises(UserError) as caught:
            compare(data, tmp_path / "out", api, *overrides)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(api.seen) == n_asked


def test_rollouts_are_rows_of_their_own_and_are_taken_up_again(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    both = ("protocols=[teacher_forced, rollout]", "judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=2")
    ended = compare(data, out, api, *both)
    rows = [r for r in turns_of(out) if r["protocol"] == "rollout"]
    assert len(rows) == ended.run["rows"] / 2
    for row in rows:
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        if row["model"] == "bad" and row["item_id"].partition("-")[2].startswith("0-") and said:
            assert said[-1] == "I don't know, officer." or row["item_id"].endswith("-3")
    assert {row["protocol"] for row in read_csv(str(out / "summary.csv"), SUMMARY_TABLE)} == {
        "rollout",
        "teacher_forced",
    }
    # What the judge said is no verdict on whole dialogues: counted as not read, no score.
    judged = pq.read_table(out / "judged.parquet").to_pylist()
    whole = [r for r in judged if r["rubric"] == "deescalation"]
    assert whole
    assert all((r["score"], r["n_read"], r["n_unread"]) == (None, 0, 1) for r in whole)
    assert {r["contestant"] for r in whole} == {"good", "bad"}

    before, n_asked, n_judged = tables(out), len(api.asked("good")) + len(api.asked("bad")), len(api.asked("judge"))
    rollout = next((out / "rollout").iterdir())
    (rollout / "turns.parquet").unlink()
    part = next((rollout / "parts").iterdir())
    n_lost = pq.read_table(part).num_rows
    part.unlink()
    compare(data, out, api, *both)
    assert len(api.asked("good")) + len(api.asked("bad")) == n_asked + n_lost
    assert len(api.asked("judge")) == n_judged
    assert tables(out) == before


def test_conversations_are_played_judged_and_taken_up_again(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    talk = (
        *("protocols=[teacher_forced, interactive]", "officer.model=officer", f"officer.endpoint={api.url}"),
        *("officer.n_turns=3", "judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=2"),
    )
    ended = compare(data, out, api, *talk)
    rows = [r for r in turns_of(out) if r["protocol"] == "interactive"]
    scenarios = {i["scenario_id"] for i in pq.read_table(out / "items.parquet").to_pylist()}
    assert len(rows) == len({(r["item_id"], r["model"]) for r in rows}) == 3 * 2 * len(scenarios)
    for row in rows:
        assert (row["reference"], row["rouge_l"]) == (None, None)
        assert row["messages"][-1]["content"] == f"line {row['turn_id'] + 1}" or row["turn_id"] == 0
    assert {r["reply"] for r in rows if r["model"] == "good" and r["turn_id"] == 2} == {"3 3 3"}
    whole = [r for r in pq.read_table(out / "judged.parquet").to_pylist() if r["rubric"] == "deescalation"]
    assert {(r["protocol"], r["contestant"]) for r in whole} == {("interactive", m) for m in ("good", "bad")}
    metrics = {(r["protocol"], r["metric"]) for r in read_csv(str(out / "significance.csv"), SIGNIFICANCE)}
    assert ("teacher_forced", "rouge_l") in metrics
    assert ("interactive", "rouge_l") not in metrics
    assert ("interactive", "realism") in metrics
    assert list(ended.run["errors"]) == ["the judge, deescalation"]  # it answers in realism's form

    before, n_asked = tables(out), len(api.seen)
    folder = next((out / "interactive").iterdir())
    for place in folder.iterdir():
        (place / "turns.parquet").unlink(missing_ok=True)
    part = next((folder / "officer" / "parts").iterdir())
    n_lost = pq.read_table(part).num_rows
    part.unlink()
    compare(data, out, api, *talk)
    assert len(api.seen) == n_asked + n_lost
    assert tables(out) == before
    compare(data, out, api, *talk, "officer.n_turns=2")
    assert len(list((out / "interactive").iterdir())) == 2


def test_an_officer_that_is_gone_costs_conversations_only(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    talk = ("protocols=[teacher_forced, interactive]", "officer.model=officer", f"officer.endpoint={api.url}")
    compare(data, out, api, *talk, "officer.n_turns=2")
    everybody = api.models
    api.models = raw(json.dumps({"object": "list", "data": [{"id": m} for m in MODELS[:-1]]}).encode())
    ended = compare(data, out, api, *talk, "officer.n_turns=2", models="good,bad,third")
    (who,) = ended.failed
    assert who == "third in interactive"
    assert ended.failed[who].startswith("the officer simulator: ")
    assert {(r["protocol"], r["model"]) for r in turns_of(out)} == {
        *(("teacher_forced", m) for m in ("good", "bad", "third")),
        *(("interactive", m) for m in ("good", "bad")),
    }
    assert not ended.run["errors"]
    api.models = everybody
    ended = compare(data, out, api, *talk, "officer.n_turns=2", models="good,bad,third")
    assert not ended.failed
    # Nobody's words are asked about twice, whoever said them.
    lines = [json.dumps(fields["messages"]) for fields in api.asked("officer")]
    assert len(lines) == len(set(lines))


def test_another_officer_since_is_not_judged_as_the_one_before(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    talk = ("protocols=[interactive]", "officer.model=officer", f"officer.endpoint={api.url}")
    compare(data, out, api, *talk, "officer.n_turns=2")
    stored = json.loads((out / "config.json").read_text())
    stored["officer"]["n_turns"] = 3  # as a run that was stopped before it asked leaves it
    (out / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="other replies than those that are there"):
        evaluate_from(str(out), "score", load_config(str(out / "config.json"), EvaluateConfig))


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_configs_are_valid(file: Path) -> None:
    found = load_config(str(file), EvaluateConfig)
    assert "interactive" in found.protocols
    assert found.judge.pairwise


def test_conversations_need_an_officer_that_is_there(tmp_path: Path, data: str, api: Api) -> None:
    with pytest.raises(UserError, match=r"interactive needs officer\.model"):
        config("protocols=[interactive]")
    talk = ("protocols=[interactive]", f"officer.endpoint={api.url}", "officer.model=nobody")
    with pytest.raises(UserError, match="nobody"):
        compare(data, tmp_path / "out", api, *talk)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        compare(data, tmp_path / "out", api, *talk[:2], "officer.model=officer", "officer.score.llm.max_model_len=64")
    with pytest.raises(UserError, match=r"judge\.pairwise needs protocol teacher_forced"):
        config(*talk, "judge.pairwise=true")
    assert not api.seen


def test_the_judge_compares_pairs_in_both_orders(tmp_path: Path, data: str, api: Api) -> None:
    out = tmp_path / "out"
    judge = ("judge.model=judge", f"judge.endpoint={api.url}", "judge.n_items=4", "judge.pairwise=true")
    compare(data, out, api, *judge)
    rows = pq.read_table(out / "preferences.parquet").to_pylist()
    assert len(rows) == 4
    # Labels are (bad, good) in the order of `pairs_to_compare`: the later against the earlier.
    assert {(r["a"], r["b"], r["winner"], r["agreed"]) for r in rows} == {("bad", "good", "b", True)}
    n_asked = len(api.asked("judge"))
    compare(data, out, api, *judge)
    assert len(api.asked("judge")) == n_asked


def test_bad_data_is_refused_before_anything_is_asked(tmp_path: Path, data: str, api: Api) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        compare(str(tmp_path / "nowhere"), tmp_path / "out", api)
    with pytest.raises(UserError, match="no dataset of `deescal dataset build`"):
        compare(str(tmp_path), tmp_path / "out", api)
    test = Path(data) / "examples" / "test.parquet"
    pq.write_table(pq.read_table(test).slice(0, 0), test)
    with pytest.raises(UserError, match="its test split is empty"):
        compare(data, tmp_path / "out", api)
    test.unlink()
    with pytest.raises(UserError, match="without a test split"):
        compare(data, tmp_path / "out", api)
    assert api.seen == []
    assert not (tmp_path / "out").exists()


def test_missing_wordnet_is_a_line_before_anything(
    tmp_path: Path, data: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("METEOR needs WordNet")

    monkeypatch.setattr("deescal.evaluate.nltk_data.load_wordnet", missing)
    with pytest.raises(UserError, match="METEOR needs WordNet"):
        compare(data, tmp_path / "out", api, "metrics.metrics=[meteor]")
    assert api.seen == []


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_from_replies_to_human_ratings(tmp_path: Path, data: str, api: Api) -> None:
    out, models = str(tmp_path / "out"), f"{api.url}#good,{api.url}#bad"
    result = command("--data", data, "--models", models, "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    for found in ("teacher forced: ", "ROUGE-L", "s/turn", "bad - good", "page      "):
        assert found in result.output
    assert "->" not in result.output  # none is known to be tuned from another
    result = command("--data", data, "--models", models, "--out", out, *QUICK, "pairs=[[good, bad]]")
    assert "bad -> good" in result.output
    n_asked = len(api.seen)
    assert command("--out", out, "--from", "report").exit_code == 0
    assert len(api.seen) == n_asked

    pack = tmp_path / "pack"
    result = command("humans", "export", out, "--out", str(pack), "n_items=6", "raters=2")
    assert result.exit_code == 0, result.output
    sheets = sorted(str(sheet) for sheet in pack.glob("rate-*.csv"))
    for sheet in sheets:
        lines = Path(sheet).read_text(encoding="utf-8-sig").splitlines()
        filled = [line.rstrip(",") + ",4,3" if line.endswith(",,") else line for line in lines]
        Path(sheet).write_text("\n".join(filled))
    result = command("humans", "import", str(pack), *sheets, "--run", out, "--count-inattentive")
    assert result.exit_code == 0, result.output
    assert "agreement on realism" in result.output
    assert "What people say" in (tmp_path / "out" / "report.html").read_text()
    assert next((tmp_path / "out" / "humans").iterdir()).joinpath("ratings.parquet").exists()


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path, data: str, api: Api) -> None:
    for arguments, says in (
        (["--out", "x"], "--data is required"),
        (["--out", "x", "--data", data], "--models is required"),
        (["--out", str(tmp_path / "x"), "--from", "test"], "no evaluation is there"),
        (["--out", "x", "--data", data, "--models", "a", "bad"], "'bad': expected key=value"),
        (["--out", "x", "--data", data, "--from", "test"], "--from test: takes data and models from"),
        (["humans", "export", str(tmp_path), "--out", "x"], "no turns.parquet"),
        (["humans", "import", str(tmp_path), "x.csv"], "no key.json"),
    ):
        result = command(*arguments)
        assert result.exit_code == 2, arguments
        assert says in result.output, result.output
        assert len(result.output.strip().splitlines()) == 1


@pytest.mark.ray
def test_engines_here_and_one_that_does_not_load(tmp_path: Path, data: str) -> None:
    import ray

    model = write_model(tmp_path / "tiny")
    shutil.copytree(model, tmp_path / "broken")
    adapter = write_adapter(tmp_path / "noise", model, seed=1)
    here = (
        "generate.worker=tests.evaluate.fakes:PickyWorker",
        "generate.llm={max_model_len: 512, max_num_seqs: 4}",
        "generate.workers={num_cpus: 0.5, memory_gib: 0.1}",
        "generate.ray={num_cpus: 4, object_store_gib: 0.2}",
        "generate.lora.max_rank=8",
    )
    models = [f"{tmp_path}/broken,{model},{model}:noise={adapter}"]
    try:
        ended = evaluate(data, models, str(tmp_path / "out"), config(*here))
    finally:
        ray.shutdown()
    assert list(ended.failed) == ["broken"]
    assert ended.failed["broken"] == "its engine failed: RuntimeError: weights do not fit"
    rows = turns_of(tmp_path / "out")
    n_items = pq.read_table(tmp_path / "out" / "items.parquet").num_rows
    assert len(rows) == 2 * n_items
    assert {r["reply"].partition(":")[0] for r in rows if r["model"] == "tiny"} == {"base"}
    assert {r["reply"].partition(":")[0] for r in rows if r["model"] == "tiny:noise"} == {"noise"}
    assert [tuple(pair) for pair in ended.run["pairs"]] == [("tiny:noise", "tiny"), ("tiny:noise", "broken")]
