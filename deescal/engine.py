"""How vLLM is loaded, wherever it runs: in the judge's worker, in bulk scoring, behind the endpoint.

One config and one translation into vLLM's arguments, so that a model answers alike in all three.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field

from deescal.config import Config
from deescal.models import resolve

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
# Rounded up to one of vLLM's, a rank costs memory for every adapter.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class LlmConfig(Config):
    """The model and how it is loaded; all but `model`, `dtype` and `max_model_len` is about speed."""

    model: str = "qwen2.5-coder-1.5b"  # registry name, folder or Hugging Face id
    # auto: the weights' own; on a CPU float32 where it has no bfloat16 instructions, which would be emulated slowly
    dtype: Dtype = "auto"
    max_model_len: int = Field(default=4096, ge=1)  # tokens of one prompt with its answer
    kv_cache_gib: float = Field(default=1.0, gt=0)  # on a CPU; on a GPU `gpu_memory_utilization` decides
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    max_num_seqs: int = Field(default=32, ge=1)  # prompts in flight
    threads: int = Field(default=0, ge=0)  # CPU threads; 0: as many as the process may use
    seed: int = 0


class LoraSlots(Config):
    """Room for adapters over one base."""

    max_loras: int = Field(default=4, ge=1)  # at work in one step; more wait for a slot
    max_cpu_loras: int = Field(default=16, ge=1)  # kept in memory, least recently used out first, read again when asked
    max_rank: int = Field(default=64, ge=1, le=LORA_RANKS[-1])

    def arguments(self) -> dict[str, Any]:
        return {
            "enable_lora": True,
            "max_loras": self.max_loras,
            "max_cpu_loras": max(self.max_cpu_loras, self.max_loras),
            "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= self.max_rank),
        }


def engine_arguments(config: LlmConfig, *, on_cpu: bool, lora: LoraSlots | None = None) -> dict[str, Any]:
    """Keyword arguments of vLLM's engines, all but `model`.

    Args:
        on_cpu: whether the engine will run on a CPU; one of this machine's kind, as to `dtype=auto`.
        lora: None where no adapter will ever be asked for, which is a little faster.
    """
    arguments: dict[str, Any] = {
        "dtype": resolve_dtype(config.dtype) if on_cpu else config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        "seed": config.seed,
        # A model's own defaults for sampling (temperature, penalties) would make greedy answers other than greedy.
        "generation_config": "vllm",
        # Between the parts of a JSON answer a model may else write white space until its tokens are used up.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        **(lora.arguments() if lora else {}),
    }
    if on_cpu:
        cache = int(config.kv_cache_gib * 2**30)
        quick = {"worker_extension_cls": "deescal.lora_on_cpu.Extension"} if lora else {}
        # vLLM 0.32 dies of a prompt read in parts whose request has a seed: it rewinds a generator, which on a CPU
        # cannot be. So prompts are read whole.
        whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(config.max_model_len, 4096)}
        fixed = {"block_size": 32, "kv_cache_memory_bytes": cache, "enforce_eager": True}
        return {**arguments, **quick, **whole, **fixed}
    return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}


def load_in_process(config: LlmConfig, lora: LoraSlots | None = None) -> Any:
    """vLLM's `LLM` in this very process, which dies with it, so that Ray knows."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in engine_environment(config).items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.platforms import current_platform

    arguments = engine_arguments(config, on_cpu=current_platform.is_cpu(), lora=lora)
    llm = LLM(model=resolve(config.model), disable_log_stats=True, **arguments)
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    return llm


def engine_environment(config: LlmConfig) -> dict[str, str]:
    """Of a process that will load vLLM; set before it is imported."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if os.path.isdir(resolve(config.model)):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def thread_environment(config: LlmConfig, num_cpus: float) -> dict[str, str]:
    """Of a process that will start vLLM's engine as another process, on a CPU: a thread for every CPU it was given.

    By itself vLLM keeps a core for its scheduler: on a laptop of two, half of the machine. The scheduler works while
    the model waits, so nothing is gained by that.
    """
    threads = config.threads or max(1, int(num_cpus))
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def resolve_dtype(dtype: Dtype) -> Dtype:
    """What `auto` is on this machine's CPU: bfloat16 where it has instructions for it, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_bfloat16() else "float32"


def has_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 matrices by itself (AVX-512 BF16 or AMX); 50 GFLOPs against 182 in
    float32 were seen on two cores that do not."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
