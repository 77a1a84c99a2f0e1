"""How a row of PROMPTS is put to vLLM, and what of its output becomes an answer: of bulk scoring and of rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deescal.judge.choices import choice_logprobs
from deescal.schema import Row
from deescal.score.config import SamplingConfig
from deescal.score.tables import seed_of
from deescal.serve.adapters import Adapter, bring_adapter


def lora_requests(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Name -> vLLM's LoRARequest of each, brought to this machine; vLLM reads them when they are first asked."""
    from vllm.lora.request import LoRARequest

    return {
        adapter.name: LoRARequest(adapter.name, number, bring_adapter(adapter).folder)
        for number, adapter in enumerate(adapters, start=1)
    }


def sampling_parameters(row: Mapping[str, Any], sampling: SamplingConfig) -> Any:
    """vLLM's SamplingParams; the answer is sent once, when it is whole."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    if row["choice_ids"] is not None:  # through Ray, lists come as arrays
        wanted = sorted({int(i) for group in row["choice_ids"] for i in group})
        kind = RequestOutputKind.FINAL_ONLY
        return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=wanted, output_kind=kind)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed_of(row["request_id"], sampling),
        structured_outputs=StructuredOutputsParams(json=row["json_schema"]) if row["json_schema"] else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_output(row: Mapping[str, Any], output: Any) -> Row:
    """vLLM's finished RequestOutput -> output, finish_reason, and tokens of ANSWERS."""
    answer = output.outputs[0]
    text = answer.text
    if row["choice_ids"] is not None:
        text = json.dumps(choice_logprobs(answer.logprobs[0], row["choice_ids"]))
    return {
        "output": text,
        "finish_reason": answer.finish_reason,
        "n_prompt_tokens": len(row["prompt_ids"]),
        "n_cached_tokens": output.num_cached_tokens,
        "n_completion_tokens": len(answer.token_ids),
    }
