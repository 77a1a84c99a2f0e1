"""An evaluation with real engines in all protocols: two contestants over one base, and an officer, each loaded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deescal.config import load_config
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.job import Ended, evaluate
from deescal.schema import Row
from tests.serve.lora import write_adapter

from .test_protocols import window, write_split

pytestmark = [pytest.mark.engine, pytest.mark.ray]

MODEL = "smollm2-135m"
SAID = ("Do you know why I stopped you?", "No. What did I do?", "You ran the red light.", "It was yellow, man.")
SETTINGS = (
    "generate.llm.dtype=float32",  # bfloat16 decides near ties by what else is in the batch
    *("generate.llm.max_model_len=512", "generate.llm.kv_cache_gib=0.25", "generate.lora.max_rank=8"),
    *("generate.sampling.max_tokens=8", "officer.score.llm.max_model_len=512", "officer.score.llm.kv_cache_gib=0.25"),
    *("officer.score.sampling.max_tokens=8", f"officer.model={MODEL}", "officer.n_turns=2"),
    *("protocols=[interactive, rollout, teacher_forced]", "metrics.metrics=[rouge_l]", "test.n_resamples=100"),
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, list[Row]]:
    folder = tmp_path_factory.mktemp("evaluate")
    messages = [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(SAID)]
    data = write_split(folder / "data", [window(scenario, 0, messages, 0) for scenario in "st"])
    adapter = write_adapter(folder / "noise", MODEL, seed=1)
    config = load_config(None, EvaluateConfig, list(SETTINGS))
    import ray

    ray.shutdown()  # of other tests, with fewer CPUs than two engines take
    ended = evaluate(data, [f"{MODEL},{MODEL}:noise={adapter}"], str(folder / "out"), config)
    ray.shutdown()
    return ended, pq.read_table(folder / "out" / "turns.parquet").to_pylist()


def test_every_protocol_has_an_answer_to_everything(played: tuple[Ended, list[Row]]) -> None:
    ended, rows = played
    assert (ended.failed, ended.run["errors"]) == ({}, {})
    found = Counter((row["protocol"], row["model"]) for row in rows)
    labels = (MODEL, f"{MODEL}:noise")
    assert found == {(p, m): 4 for p in ("teacher_forced", "rollout", "interactive") for m in labels}
    assert all(row["reply"] is not None and 0 < row["n_completion_tokens"] <= 8 for row in rows)
    assert Path(ended.out, "report.html").stat().st_size > 10_000


def test_later_turns_have_the_models_own_words_and_the_officers(played: tuple[Ended, list[Row]]) -> None:
    _, rows = played
    for protocol in ("rollout", "interactive"):
        for model in (MODEL, f"{MODEL}:noise"):
            for scenario in "st":
                first, second = sorted(
                    (r for r in rows if (r["protocol"], r["model"], r["scenario_id"]) == (protocol, model, scenario)),
                    key=lambda row: row["turn_id"],
                )
                assert second["messages"][:2] == [*first["messages"], {"role": "assistant", "content": first["reply"]}]
                officer = second["messages"][2]["content"]
                assert (officer == SAID[2]) == (protocol == "rollout")
                assert officer.strip()


def test_the_first_reply_of_every_protocol_is_the_same(played: tuple[Ended, list[Row]]) -> None:
    """Both ways into vLLM give the greedy answer to the same prompt; an adapter's is another one than the base's."""
    _, rows = played
    by_model: dict[str, set[str]] = {}
    for row in rows:
        if row["turn_id"] == 0:
            by_model.setdefault(row["model"], set()).add(row["reply"])
    assert [len(replies) for replies in by_model.values()] == [1, 1]
    told = {
        (r["model"], r["scenario_id"]): r["reply"]
        for r in rows
        if (r["protocol"], r["turn_id"]) == ("teacher_forced", 1)
    }
    assert told[MODEL, "s"] == told[MODEL, "t"] != told[f"{MODEL}:noise", "s"] == told[f"{MODEL}:noise", "t"]
