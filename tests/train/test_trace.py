"""A trace against transformers' own functions, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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


def test_log_probabilities_are_the_models_own(folder: str, model: Any) -> None:
    trace = trace_model(model, AutoTokenizer.from_pretrained(folder), PROMPTS, new_tokens=2)
    assert [len(row) for row in trace.logprobs] == [299, 2]
    for prompt, found in zip(PROMPTS, trace.logprobs, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected)


def test_replies_are_greedy_whatever_the_model_asks_of_generate(folder: str, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [model.generate(torch.tensor([p]), max_new_tokens=8, do_sample=False)[0, len(p) :] for p in PROMPTS]
    model.generation_config.repetition_penalty = 5.0
    trace = trace_model(model, tokenizer, PROMPTS, new_tokens=8)
    assert trace.replies == [reply.tolist() for reply in expected]


def test_a_margin_is_from_the_best_to_the_second_best_token(folder: str, model: Any) -> None:
    trace = trace_model(model, AutoTokenizer.from_pretrained(folder), PROMPTS, new_tokens=3)
    for prompt, reply, margins in zip(PROMPTS, trace.replies, trace.margins, strict=True):
        with torch.no_grad():
            steps = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        best, second = steps.log_softmax(-1).topk(2).values.T
        torch.testing.assert_close(torch.tensor(margins), best - second, rtol=1e-4, atol=1e-5)


def test_a_reply_ends_with_any_of_the_models_ends(folder: str, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = trace_model(model, tokenizer, PROMPTS[1:], new_tokens=6).replies[0]
    model.generation_config.eos_token_id = [before[2], 1]
    trace = trace_model(model, tokenizer, PROMPTS[1:], new_tokens=6)
    assert trace.replies[0] == before[: before.index(before[2]) + 1]
    assert set(trace.stop_ids) == {before[2], 1, tokenizer.eos_token_id}


def test_the_model_is_left_as_it_was(folder: str, model: Any) -> None:
    model.train()
    trace_model(model, AutoTokenizer.from_pretrained(folder), PROMPTS[1:], new_tokens=1)
    assert model.training
    assert model(torch.tensor(PROMPTS[1:])).logits.requires_grad
