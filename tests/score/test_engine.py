"""The real engine in the real job: base and adapter in one pass, prompts too long, and the replies of transformers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deescal.config import load_config
from deescal.dataset.chat import load_tokenizer, render
from deescal.models import resolve
from deescal.schema import Row
from deescal.score.config import ScoreConfig
from deescal.score.job import Ended, score
from tests.serve.lora import write_adapter

from .conftest import user, write_rows

pytestmark = pytest.mark.engine

MODEL, NEW_TOKENS = "smollm2-135m", 8
TALK = (
    "Good evening. Do you know why I stopped you tonight?",
    "No, what did I do?",
    "You ran the red light at the corner. Where are you coming from?",
    "From work. I did not see it.",
    "Step out of the car for me, please.",
)


@dataclass(frozen=True)
class Scored:
    ended: Ended
    rows: list[Row]
    adapter: str


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Three prompts, each the beginning of the next, and one that is too long, asked of the base and an adapter."""
    folder = tmp_path_factory.mktemp("score")
    adapter = write_adapter(folder / "noise", MODEL, seed=1)
    rows = [{"scenario_id": "s", "turn_id": n, "messages": user(*TALK[:n])} for n in (1, 3, 5)]
    rows.append({"scenario_id": "long", "turn_id": 0, "messages": user("word " * 600)})
    data = write_rows(folder / "rows.parquet", rows)
    settings = ["llm.max_model_len=512", "llm.dtype=float32", "llm.kv_cache_gib=0.25", "lora.max_rank=8"]
    config = load_config(None, ScoreConfig, [*settings, f"sampling.max_tokens={NEW_TOKENS}", "batch_size=2"])
    out = folder / "out"
    ended = score(data, str(out), "replies", [MODEL, f"{MODEL}:noise={adapter}"], config)
    import ray

    ray.shutdown()
    return Scored(ended, pq.read_table(out / "scores.parquet").to_pylist(), adapter)


def test_every_row_is_answered_by_both_or_says_why_not(scored: Scored) -> None:
    asked = [(r["scenario_id"], r["adapter"]) for r in scored.rows]
    assert asked == [(scenario, adapter) for scenario in ("s", "s", "s", "long") for adapter in (None, "noise")]
    *good, one, other = scored.rows
    for row in good:
        assert row["error"] is None
        assert row["finish_reason"] in ("stop", "length")
        assert 0 < row["n_completion_tokens"] <= NEW_TOKENS
        assert row["latency_s"] > 0
    assert one["error"] == other["error"]
    assert f"llm.max_model_len leaves {512 - NEW_TOKENS} beside the answer" in one["error"]
    assert any(a["reply"] != b["reply"] for a, b in zip(good[::2], good[1::2], strict=True))


def test_shared_beginnings_come_from_the_cache(scored: Scored) -> None:
    assert sum(r["n_cached_tokens"] for r in scored.rows if not r["error"]) > 0
    assert 0 < scored.ended.run["summary"]["cache_hit_share"] < 1


def test_greedy_replies_are_those_of_transformers(scored: Scored) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(MODEL)
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32)
    model = PeftModel.from_pretrained(model, scored.adapter)

    def reply(row: Row) -> str:
        text = render(row["messages"], tokenizer, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        return str(tokenizer.decode(made, skip_special_tokens=True))

    good = [r for r in scored.rows if not r["error"]]
    with torch.inference_mode():
        for row in good:
            with nullcontext() if row["adapter"] else model.disable_adapter():
                assert row["output"] == reply(row)


def test_a_choice_is_the_probability_of_its_words_in_transformers(scored: Scored, tmp_path: Path) -> None:
    """The whole way of the task plausibility: prompt, choices, probabilities, score."""
    import torch
    from transformers import AutoModelForCausalLM

    from deescal.judge.choices import first_tokens
    from deescal.judge.plausibility import CHOICES, plausibility_messages
    from deescal.judge.scene import numbered

    said = user(*TALK[:1])
    rows = [{"messages": said, "reply": reply} for reply in (TALK[1], "Purple elephants vote on Tuesday.")]
    settings = ["llm.max_model_len=512", "llm.dtype=float32", "llm.kv_cache_gib=0.25"]
    out = tmp_path / "out"
    score(
        write_rows(tmp_path / "rows.parquet", rows),
        str(out),
        "plausibility",
        [MODEL],
        load_config(None, ScoreConfig, settings),
    )
    import ray

    ray.shutdown()
    found = pq.read_table(out / "scores.parquet").to_pylist()
    tokenizer = load_tokenizer(MODEL)
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32).eval()
    yes, no = (sorted(of) for of in first_tokens(tokenizer, CHOICES))
    for row in found:
        text = render(
            plausibility_messages(None, None, numbered(said), row["reply"]), tokenizer, add_generation_prompt=True
        )
        with torch.no_grad():
            p = model(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, -1].softmax(0)
        assert row["score"] == pytest.approx(float(100 * p[yes].sum() / (p[yes].sum() + p[no].sum())), abs=0.1)
    assert found[0]["score"] != found[1]["score"]
