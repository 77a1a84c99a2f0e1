"""A trace against transformers' own functions, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deescal.train.trace import trace_model
from tests.train.tiny import write_model

# The first is longer than what is computed in float32 at once.
PROMPTS = [[5 + i * 7 % 90 for i in range(300)], [9, 8, 7]]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return write_model(tmp_path / "model")


@pytest.fixture
def model(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def stop_ids(model: Any) -> list[int]:
    return [model.generation_config.eos_token_id]


def test_log_probabilities_are_the_models_own(model: Any) -> None:
    trace = trace_model(model, PROMPTS, stop_ids(model), new_tokens=2)
    assert [len(row) for row in trace.logprobs] == [299, 2]
    for prompt, found in zip(PROMPTS, trace.logprobs, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected)


def test_replies_are_greedy_whatever_the_model_asks_of_generate(model: Any) -> None:
    expected = [model.generate(torch.tensor([p]), max_new_tokens=8, do_sample=False)[0, len(p) :] for p in PROMPTS]
    model.generation_config.repetition_penalty = 5.0
    trace = trace_model(model, PROMPTS, stop_ids(model), new_tokens=8)
    assert trace.replies == [reply.tolist() for reply in expected]


def test_a_margin_is_from_the_best_to_the_second_best_token(model: Any) -> None:
    trace = trace_model(model, PROMPTS, stop_ids(model), new_tokens=3)
    for prompt, reply, margins in zip(PROMPTS, trace.replies, trace.margins, strict=True):
        with torch.no_grad():
            steps = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        best, second = steps.log_softmax(-1).topk(2).values.T
        torch.testing.assert_close(torch.tensor(margins), best - second, rtol=1e-4, atol=1e-5)


def test_a_reply_ends_with_any_of_the_stops(model: Any) -> None:
    before = trace_model(model, PROMPTS[1:], stop_ids(model), new_tokens=6).replies[0]
    first = min(before.index(before[2]), before.index(before[3]))
    for together in (False, True):
        trace = trace_model(model, PROMPTS[1:], [before[3], before[2]], new_tokens=6, together=together)
        assert trace.replies[0] == before[: first + 1]
        assert len(trace.margins[0]) == first + 1


def test_the_model_is_left_as_it_was(model: Any) -> None:
    model.train()
    trace_model(model, PROMPTS[1:], [], new_tokens=1)
    assert model.training
    assert model(torch.tensor(PROMPTS[1:])).logits.requires_grad
