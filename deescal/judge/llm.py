"""The judge's language model: vLLM inside the worker's own process.

In-process on purpose: when the engine dies, its worker dies with it, Ray restarts it, and the clip that
killed it is counted (`Stage`); an engine in a child process would leave the worker waiting for ever.
Everything here works with any instruction-tuned model that vLLM loads; nothing is specific to one family.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field

from deescal.config import Config
from deescal.models import resolve


class LlmConfig(Config):
    """The model and how it is loaded; all but `model`, `dtype` and `max_model_len` is about speed."""

    model: str = "qwen2.5-coder-1.5b"  # registry name, folder or Hugging Face id
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: int = Field(default=4096, ge=1)  # tokens of one prompt with its answer
    kv_cache_gib: float = Field(default=1.0, gt=0)  # on a CPU; on a GPU `gpu_memory_utilization` decides
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    max_num_seqs: int = Field(default=32, ge=1)  # prompts in flight
    threads: int = Field(default=0, ge=0)  # CPU threads; 0: as many as the process may use
    seed: int = 0


class Llm(Protocol):
    """What the judge needs of a model; `VllmEngine` and the tests' fake have it."""

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray: ...
    def count_tokens(self, text: str) -> int: ...
    def render(self, system: str, user: str) -> str: ...


class VllmEngine:
    """One loaded model. Greedy and seeded; prompts that share a beginning share its computed prefix."""

    def __init__(self, config: LlmConfig) -> None:
        path = resolve(config.model)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = f"{config.kv_cache_gib:g}"
        if os.path.isdir(path):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        options: dict[str, Any] = {"block_size": 32} if on_cpu else {}
        self._llm = LLM(
            model=path,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=on_cpu,
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=config.seed,
            **options,
        )
        if config.threads:
            import torch

            torch.set_num_threads(config.threads)
        self._tokenizer = self._llm.get_tokenizer()

    def render(self, system: str, user: str) -> str:
        """Chat template of the model around system and user text, up to where the answer starts.

        A model without a system role gets the system text at the head of the user's.
        """
        try:
            chat: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja2.TemplateError: templates raise it themselves for a role they lack
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            chat = [{"role": "user", "content": f"{system}\n\n{user}"}]
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return str(text)

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

        ids = self._first_tokens(tuple(choices))
        wanted = sorted({i for group in ids for i in group})
        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=wanted)
        outputs = self._llm.generate(self._tokens(prompts), parameters, use_tqdm=False)
        table = np.full((len(prompts), len(choices)), -np.inf)
        for row, output in zip(table, outputs, strict=True):
            logprobs = output.outputs[0].logprobs
            assert logprobs is not None  # asked for above
            found = logprobs[0]
            for column, group in enumerate(ids):
                row[column] = np.logaddexp.reduce([found[i].logprob for i in group])
        return table

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

    def _first_tokens(self, choices: tuple[str, ...]) -> list[set[int]]:
        groups = []
        for choice in choices:
            spellings = {s for c in (choice, choice.capitalize(), choice.upper()) for s in (c, f" {c}")}
            encoded = [self._encode(s) for s in spellings]
            whole = {e[0] for e in encoded if len(e) == 1}
            groups.append(whole or {self._encode(choice)[0], self._encode(f" {choice}")[0]})
        for i, group in enumerate(groups):
            for other in groups[i + 1 :]:
                if group & other:
                    raise ValueError(f"choices {choices} share a first token")
        return groups
