"""The judge's language model: vLLM inside the worker's own process.

In-process on purpose: when the engine dies, its worker dies with it, Ray restarts it, and the clip that
killed it is counted (`Stage`); an engine in a child process would leave the worker waiting for ever.
Everything here works with any instruction-tuned model that vLLM loads; nothing is specific to one family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from deescal.dataset.chat import render
from deescal.engine import LlmConfig, load_in_process
from deescal.judge.choices import choice_logprobs, first_tokens


class Llm(Protocol):
    """What the judge needs of a model; `VllmEngine` and the tests' fake have it."""

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray: ...
    def count_tokens(self, text: str) -> int: ...
    def render(self, system: str, user: str) -> str: ...


class VllmEngine:
    """One loaded model. Greedy and seeded; prompts that share a beginning share its computed prefix."""

    def __init__(self, config: LlmConfig) -> None:
        self._llm = load_in_process(config)
        self._tokenizer = self._llm.get_tokenizer()

    def render(self, system: str, user: str) -> str:
        """Chat template of the model around system and user text, up to where the answer starts."""
        return render([{"role": "system", "content": system}, {"role": "user", "content": user}], self._tokenizer, True)

    def count_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """Log-probability of each choice as the first token of the answer: float array (prompts, choices).

        A choice's probability is the sum over its spellings (" yes", "Yes", ...), each by its first token, and
        is exact however unlikely the choice is. The rows do not sum to one: the rest is other answers.

        Raises:
            ValueError: two choices begin with the same token, so one token cannot tell them apart.
        """
        from vllm import SamplingParams

        ids = first_tokens(self._tokenizer, choices)
        wanted = sorted({i for group in ids for i in group})
        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=wanted)
        outputs = self._llm.generate(self._tokens(prompts), parameters, use_tqdm=False)
        rows = [choice_logprobs(output.outputs[0].logprobs[0], [list(group) for group in ids]) for output in outputs]
        return np.array(rows).reshape(len(prompts), len(choices))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        regex: str | None = None,
        json_schema: dict[str, Any] | None = None,
    ) -> list[str]:
        """Greedy answers, at most `max_tokens` each, held to one of the forms when one is given."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        form = None
        if regex is not None or json_schema is not None:
            form = StructuredOutputsParams(regex=regex, json=json_schema)
        parameters = SamplingParams(max_tokens=max_tokens, temperature=0.0, structured_outputs=form)
        outputs = self._llm.generate(self._tokens(prompts), parameters, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _tokens(self, prompts: Sequence[str]) -> list[Any]:
        """Token ids, since the chat template has written the special tokens already."""
        return [{"prompt_token_ids": self._encode(prompt)} for prompt in prompts]
