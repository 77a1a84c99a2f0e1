"""Requests as the engine reads them: the training's own prompts, and errors where there can be none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deescal.dataset.chat import load_tokenizer, render
from deescal.schema import to_table
from deescal.score.config import ScoreConfig
from deescal.score.offline import processor_settings, to_prompts, write_batches
from deescal.score.tables import REQUESTS
from deescal.storage import read_table
from tests.train.tiny import write_model

from .conftest import user


def table(*conversations: list[dict[str, Any]]) -> Any:
    empty = dict.fromkeys(REQUESTS.names)
    rows = [{**empty, "request_id": str(n), "attempts": 0, "messages": m} for n, m in enumerate(conversations)]
    return to_table(rows, REQUESTS)


def test_prompts_are_those_of_training_up_to_the_answer(tiny_model: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    messages = user("Step out.", "Why?", "Hands up!")
    (row,) = to_prompts(table(messages), tiny_model, 500).to_pylist()
    asked = tokenizer.decode(row["prompt_ids"])
    assert asked == render(messages, tokenizer, add_generation_prompt=True)
    trained = render([*messages, {"role": "assistant", "content": "They are up."}], tokenizer)
    assert trained.startswith(asked)


def test_a_prompt_without_room_is_an_error(tiny_model: str) -> None:
    n_tokens = len(to_prompts(table(user("Step out.")), tiny_model, 500)["prompt_ids"][0].as_py())
    for room, fits in ((n_tokens, True), (n_tokens - 1, False)):
        (row,) = to_prompts(table(user("Step out.")), tiny_model, room).to_pylist()
        assert (row["error"] is None) == bool(row["prompt_ids"]) == fits


def test_messages_that_the_template_refuses_are_an_error(tmp_path: Path) -> None:
    model = write_model(tmp_path / "gemma", family="gemma-2")
    twice = [{"role": "user", "content": "Stop."}] * 2
    bad, good = to_prompts(table(twice, user("Stop.")), model, 500).to_pylist()
    assert "chat template refuses the messages: Conversation roles must alternate" in bad["error"]
    assert bad["prompt_ids"] == []
    assert good["error"] is None


def test_batches_are_files_in_order(tmp_path: Path) -> None:
    rows = table(*(user(f"line {n}") for n in range(7))).to_pylist()
    files = write_batches(rows, str(tmp_path), 3)
    assert [read_table(file)["request_id"].to_pylist() for file in files] == [list("012"), list("345"), ["6"]]


@pytest.mark.parametrize("gpus", [0, 1])
def test_an_engine_is_never_short_of_requests(tiny_model: str, gpus: int) -> None:
    config = ScoreConfig.model_validate(
        {"llm": {"model": tiny_model, "max_num_seqs": 100}, "batch_size": 7, "workers": {"num_gpus": gpus}}
    )
    settings = processor_settings(config, with_adapters=False)
    assert settings["batch_size"] * settings["max_concurrent_batches"] >= 2 * 100
    assert settings["engine_kwargs"]["disable_log_stats"]
    assert "enable_lora" not in settings["engine_kwargs"]
    assert ("GPU" in settings["placement_group_config"]["bundle_per_worker"]) == bool(gpus)
    assert processor_settings(config, with_adapters=True)["engine_kwargs"]["enable_lora"]
