"""What an engine makes of some prompts: the log-probabilities of their tokens, and a greedy reply to each.

The trained model is traced in the trainer's memory; others each in a process of its own, which gives its memory back:
`python -m deescal.train.trace REQUEST TRACES`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from deescal.models import resolve
from deescal.train.config import TrainConfig

Engine = Literal["transformers", "vllm"]
_CHUNK = 256  # positions whose logits are in float32 at once
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for (vllm.config.lora.MaxLoRARanks)
# Of a worker of Ray Train: an engine that runs alone would wait for the others.
_WORKER_ENV = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


class EngineError(Exception):
    """An engine could not load or run a model: one line of what it said."""


@dataclass(frozen=True)
class Trace:
    """All lists have an item a prompt."""

    prompts: list[list[int]]  # token ids
    stop_ids: list[int]  # a reply ends with the first of these
    logprobs: list[list[float]]  # of the prompt's tokens 1, 2, ... given those before, in nats
    replies: list[list[int]]  # token ids, greedy
    margins: list[list[float]]  # log-probability of the best token over the second best, at each step of the reply


def trace_model(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], new_tokens: int, *, together: bool = False
) -> Trace:
    """The trace of a transformers or PEFT model in memory, which is left as it was.

    Args:
        together: every rank calls it, and each makes as many passes, however short its reply: ZeRO-3 brings weights
            together in every pass.
    """
    return _trace(model, [list(prompt) for prompt in prompts], list(stop_ids), new_tokens, together)


def trace_engine(
    engine: Engine, model: str, adapters: Sequence[str | None], like: Trace, config: TrainConfig
) -> list[Trace]:
    """A trace for each adapter folder (None: the model alone), with the prompts and stops of another trace.

    Args:
        model: registry name, folder or hub id; loaded as `config` says, by vLLM always whole.

    Raises:
        EngineError: it cannot be loaded or run.
    """
    request = {
        "engine": engine,
        "config": config.model_copy(update={"model": resolve(model)}).model_dump(mode="json"),
        "adapters": adapters,
        "prompts": like.prompts,
        "stop_ids": like.stop_ids,
    }
    env = {k: v for k, v in os.environ.items() if k not in _WORKER_ENV and not k.startswith("ACCELERATE_")}
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "traces.json")
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", __name__, str(asked), str(answered)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            said = [line for line in done.stderr.splitlines() if "Error" in line] or [f"exit code {done.returncode}"]
            raise EngineError(f"{engine} cannot run the model: {said[-1]}")
        return [Trace(**trace) for trace in json.loads(answered.read_text())]


def main(asked: str, answered: str) -> None:
    """Answer one request of `trace_engine`, by files."""
    request = json.loads(Path(asked).read_text())
    config = TrainConfig.model_validate(request["config"])
    run = {"transformers": _run_transformers, "vllm": _run_vllm}[request["engine"]]
    traces = run(config, request["adapters"], request["prompts"], request["stop_ids"])
    Path(answered).write_text(json.dumps([asdict(trace) for trace in traces]))


def _run_transformers(
    config: TrainConfig, adapters: Sequence[str | None], prompts: list[list[int]], stop_ids: list[int]
) -> list[Trace]:
    import torch
    from peft import PeftModel

    from deescal.train.model import load_base

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_base(config, device)
    if config.method != "qlora":  # which is loaded where it stays
        model = model.to(device)
    # The Trainer's own arithmetic: DeepSpeed casts all weights, adapters too; without it they stay and are autocast.
    halved = config.dtype == "bfloat16" and config.strategy.name != "ddp"
    autocast = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16" and not halved)
    traces = []
    for adapter in adapters:
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        if halved:
            for weight in model.parameters():  # not the buffers: rotary frequencies stay in float32
                weight.data = weight.data.bfloat16() if weight.is_floating_point() else weight.data
        with autocast:
            traces.append(_trace(model, prompts, stop_ids, config.export.parity_new_tokens))
    return traces


def _trace(model: Any, prompts: list[list[int]], stop_ids: list[int], new_tokens: int, together: bool = False) -> Trace:
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        found = [_trace_prompt(model, prompt, stop_ids, new_tokens, together) for prompt in prompts]
    model.train(training)
    logprobs, replies, margins = (list(column) for column in zip(*found, strict=True))
    return Trace(prompts, stop_ids, logprobs, replies, margins)


def _trace_prompt(
    model: Any, prompt: list[int], stop_ids: list[int], new_tokens: int, together: bool
) -> tuple[list[float], list[int], list[float]]:
    """Log-probabilities, reply, margins. Not by `generate`, which heeds a model's own penalties and temperature."""
    import torch
    from torch.nn.functional import cross_entropy

    ids = torch.tensor([prompt], device=model.device)
    out = model(input_ids=ids, use_cache=True)
    parts = zip(out.logits[0, :-1].split(_CHUNK), ids[0, 1:].split(_CHUNK), strict=True)
    logprobs = [-x for logits, after in parts for x in cross_entropy(logits.float(), after, reduction="none").tolist()]
    reply: list[int] = []
    margins: list[float] = []
    while True:
        best = out.logits[0, -1].float().topk(2)
        reply.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        stopped = next((n for n, token in enumerate(reply, 1) if token in stop_ids), None)
        if len(reply) == new_tokens or (stopped and not together):
            return logprobs, reply[:stopped], margins[:stopped]
        token = torch.tensor([[reply[-1]]], device=model.device)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)


def _run_vllm(
    config: TrainConfig, adapters: Sequence[str | None], prompts: list[list[int]], stop_ids: list[int]
) -> list[Trace]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    import torch
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options: dict[str, Any] = {"block_size": 32}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # the trainer may hold the rest
        options = {"gpu_memory_utilization": 0.9 * free / total}
    if modules := sorted({module for adapter in adapters if adapter for module in _adapted(adapter)}):
        # Named, as otherwise the output head is wrapped too, which vLLM's CPU kernels cannot do for prompt_logprobs.
        rank = next(r for r in _VLLM_RANKS if r >= config.lora.r)
        options |= {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": modules}
    new_tokens = config.export.parity_new_tokens
    llm = LLM(
        model=config.model,
        dtype=config.dtype,
        max_model_len=max(map(len, prompts)) + new_tokens,
        max_num_seqs=len(prompts),
        enforce_eager=True,
        disable_log_stats=True,
        seed=config.seed,
        generation_config="vllm",  # not the model's, which has penalties and ends of its own
        **options,
    )
    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=new_tokens,
        stop_token_ids=stop_ids,
        prompt_logprobs=0,  # of the prompt's own tokens, and no others
        logprobs=2,
        detokenize=False,
    )
    asked: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    traces = []
    for adapter in adapters:
        lora = LoRARequest("export", 1, adapter) if adapter else None
        outputs = llm.generate(asked, parameters, use_tqdm=False, lora_request=lora)
        traces.append(_of_vllm(outputs, prompts, stop_ids))
    return traces


def _adapted(adapter: str) -> set[str]:
    """Last names of the layers that an adapter changes, q_proj and the like."""
    from safetensors import safe_open

    with safe_open(Path(adapter, "adapter_model.safetensors"), framework="np") as weights:
        return {key.split(".lora_")[0].rpartition(".")[2] for key in weights.keys()}  # noqa: SIM118 - no mapping


def _of_vllm(outputs: Sequence[Any], prompts: list[list[int]], stop_ids: list[int]) -> Trace:
    logprobs, replies, margins = [], [], []
    for prompt, output in zip(prompts, outputs, strict=True):
        after = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        logprobs.append([found[token].logprob for token, found in after])
        reply = output.outputs[0]
        replies.append(list(reply.token_ids))
        two = [sorted((x.logprob for x in step.values()), reverse=True)[:2] for step in reply.logprobs]
        margins.append([best - second for best, second in two])
    return Trace(prompts, stop_ids, logprobs, replies, margins)


if __name__ == "__main__":
    main(*sys.argv[1:])
