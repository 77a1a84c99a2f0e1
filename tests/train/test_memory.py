from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deescal.train.config import TrainConfig
from deescal.train.fit import change
from deescal.train.memory import GIB, Memory, estimate_memory
from deescal.train.model import load_for_training
from deescal.train.pack import collate
from deescal.train.shape import FAMILIES, ModelShape, load_shape

N_TOKENS = 512
KEPT, WORK = "kept for the backward pass", "logits, or one block at work"
DEVICE = ("weights", "gradients", "optimizer", "communication")


def small(folder: Path, family: str) -> str:
    """A model of the family with few and narrow blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "vocab_size": 512,
    }
    found = {**FAMILIES[family], **sizes}
    config = AutoConfig.for_model(found.pop("model_type"), **found)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def two_examples(n_tokens: int, target_share: float) -> dict[str, Any]:
    """A packed micro-batch."""
    n = n_tokens // 2
    row = {"input_ids": np.arange(n) % 500, "is_target": np.arange(n) >= n * (1 - target_share)}
    return collate([[row, row]])


def strategy_of(method: str, **changes: Any) -> dict[str, Any]:
    """ddp, but for whole models in bfloat16, with which it does not go."""
    return {"name": "zero2" if method == "full" else "ddp", **changes}


def kept_by_autograd(config: TrainConfig) -> int:
    """Bytes that the forward pass of training keeps, weights and the loss' own tensors apart."""
    model = load_for_training(config, "cpu").train()
    if config.strategy.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    bfloat16 = config.dtype == "bfloat16"
    batch = two_examples(N_TOKENS, 0)  # not a logit
    with torch.autograd.graph.saved_tensors_hooks(see, lambda t: t), torch.autocast("cpu", torch.bfloat16, bfloat16):
        model(**batch, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


GEMMA = "gemma-2-2b-it"
CASES = [
    *((family, method, "bfloat16", "sdpa") for family in FAMILIES for method in ("lora", "full") if family != GEMMA),
    *((GEMMA, method, "bfloat16", "eager") for method in ("lora", "full")),  # its capped logits are eager's alone
    ("Llama-3.2-3B-Instruct", "qlora", "bfloat16", "sdpa"),
    ("Llama-3.2-3B-Instruct", "lora", "float32", "sdpa"),
    ("Llama-3.2-3B-Instruct", "full", "float32", "sdpa"),
    ("Llama-3.2-3B-Instruct", "lora", "bfloat16", "eager"),
    ("Llama-3.2-3B-Instruct", "lora", "float32", "eager"),
]


@pytest.mark.parametrize(("family", "method", "dtype", "attention"), CASES)
def test_what_is_kept_is_what_autograd_keeps(
    tmp_path: Path, family: str, method: str, dtype: str, attention: str
) -> None:
    config = TrainConfig(
        model=small(tmp_path, family),
        method=method,
        dtype=dtype,
        attention=attention,
        data={"max_tokens": N_TOKENS},
        lora={"r": 4},
        strategy=strategy_of(method),
    )
    estimate = estimate_memory(config, load_shape(config), on_gpu=False).parts[KEPT]
    # Gemma multiplies its normalisations in float32, which full fine-tuning keeps: up to 15 % more.
    assert kept_by_autograd(config) == pytest.approx(estimate, rel=0.15 if family.startswith("gemma") else 0.05)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_checkpointing_keeps_the_inputs_of_blocks(tmp_path: Path, method: str) -> None:
    config = TrainConfig(
        model=small(tmp_path, "Qwen2.5-3B-Instruct"),
        method=method,
        data={"max_tokens": N_TOKENS},
        strategy=strategy_of(method, gradient_checkpointing=True),
    )
    estimate = estimate_memory(config, load_shape(config), on_gpu=False).parts[KEPT]
    # What there is once, the mask and the last normalisation, weighs much beside three narrow blocks.
    assert estimate * 0.7 < kept_by_autograd(config) < estimate * 1.1


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_weights_are_as_large_as_they_load(tmp_path: Path, method: str) -> None:
    model = small(tmp_path, "Falcon3-3B-Instruct")
    config = TrainConfig(model=model, method=method, data={"max_tokens": 64}, strategy=strategy_of(method))
    weights = load_for_training(config, "cpu").parameters()
    loaded = sum(weight.untyped_storage().nbytes() for weight in weights)
    # In 4 bits, less the constants: they are no parameters.
    estimate = estimate_memory(config, load_shape(config), on_gpu=True).parts["weights"]
    assert loaded == pytest.approx(estimate, rel=0.01)


@cache
def shape_of(family: str) -> ModelShape:
    return load_shape(TrainConfig(model=f"nobody/{family}", data={"max_tokens": 256}))


@pytest.mark.parametrize(("method", "published_gib"), [("lora", 8.5), ("qlora", 4.6)])
def test_torchtunes_published_peaks(method: str, published_gib: float) -> None:
    """Llama-3.2-3B on an A100, batch 2 x 4,096 packed, bfloat16 (README of torchtune, 2025, "Optimization flags").

    Its run keeps the inputs of checkpointed blocks on the host, chunks the loss and compiles, and its number is without
    CUDA's context: those parts are left out here. Ours is more, as adapters are in float32 here and in bfloat16 there.
    """
    modules = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = TrainConfig(
        model="nobody/Llama-3.2-3B-Instruct",
        method=method,
        lora={"r": 64, "target_modules": modules},
        attention="flash_attention_2",
        data={"max_tokens": 4096, "sequences_at_once": 2},
        strategy={"gradient_checkpointing": True},
    )
    parts = estimate_memory(config, load_shape(config), on_gpu=True, target_share=0).parts
    comparable = sum(size for what, size in parts.items() if what not in (KEPT, "runtime")) / GIB
    assert published_gib * 0.95 < comparable < published_gib * 1.2


@pytest.mark.parametrize("n_workers", [1, 2, 8])
@pytest.mark.parametrize(
    ("strategy", "offload"), [("zero2", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")]
)
def test_states_of_full_fine_tuning_are_deepspeeds_own_estimate(strategy: str, offload: str, n_workers: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    shape = shape_of("Llama-3.2-3B-Instruct")
    config = workers(TrainConfig(method="full", strategy={"name": strategy, "offload": offload}), n_workers)
    memory = estimate_memory(config, shape, on_gpu=False)
    buckets = 2 * 500_000_000  # DeepSpeed's default, which its estimate leaves out
    ours = sum(memory.parts.get(what, 0) for what in DEVICE) - buckets
    options = {"num_gpus_per_node": n_workers, "cpu_offload": offload != "none", "additional_buffer_factor": 1}
    if strategy == "zero2":
        host, device = zero2(shape.n_params, **options)
    else:
        host, device, _ = zero3(shape.n_params, shape.n_largest, cpu_offload_params=offload == "all", **options)
    assert device * 0.99 < ours < device * (1.01 if (strategy, offload) != ("zero3", "none") else 1.12)
    if offload != "none" and n_workers < 8:  # beyond, theirs counts a copy of the weights that each worker starts from
        assert memory.host * n_workers == pytest.approx(host, rel=0.01)


def workers(config: TrainConfig, n: int) -> TrainConfig:
    return change(config, {"workers.workers": n})


def total(config: TrainConfig, shape: ModelShape, share: float = 0.35) -> float:
    memory: Memory = estimate_memory(config, shape, on_gpu=True, target_share=share)
    return memory.gib


families = st.sampled_from(sorted(FAMILIES))
flags = st.booleans()


@given(families, st.sampled_from(["lora", "full"]), st.sampled_from(["zero2", "zero3"]), flags, st.floats(0, 1))
def test_more_gpus_never_need_more_each(family: str, method: str, name: str, recompute: bool, share: float) -> None:
    config = TrainConfig(method=method, strategy={"name": name, "gradient_checkpointing": recompute})
    each = [total(workers(config, n), shape_of(family), share) for n in (1, 2, 4, 8)]
    assert each == sorted(each, reverse=True)
    assert each[-1] < each[0]


@given(families, st.sampled_from(["lora", "qlora", "full"]), flags, flags, st.integers(16, 4096))
def test_longer_sequences_never_need_less(family: str, method: str, recompute: bool, packing: bool, n: int) -> None:
    def of(n_tokens: int) -> float:
        data = {"max_tokens": n_tokens, "packing": packing}
        config = TrainConfig(method=method, data=data, strategy=strategy_of(method, gradient_checkpointing=recompute))
        return total(config, shape_of(family))

    assert of(n) < of(n + 64)


@given(families, st.integers(64, 2048), st.floats(0, 1))
def test_each_saving_saves(family: str, n_tokens: int, share: float) -> None:
    def of(**changes: Any) -> float:
        how = strategy_of(changes.get("method", "lora"), gradient_checkpointing=changes.pop("recompute", True))
        config = TrainConfig(**{"data": {"max_tokens": n_tokens}, "strategy": how, **changes})
        return total(config, shape_of(family), share)

    assert of(method="qlora") < of(method="lora") < of(method="full")
    assert of(recompute=True) < of(recompute=False)
    assert of(attention="flash_attention_2") <= of(attention="sdpa") <= of(attention="eager")
    assert of(dtype="bfloat16") < of(dtype="float32")


STEPS = """
import sys, torch
from deescal.train.config import TrainConfig
from deescal.train.model import load_for_training
from deescal.train.trainer import peak_memory_gib
from tests.train.test_memory import two_examples
config = TrainConfig.model_validate_json(sys.argv[1])
model = load_for_training(config, "cpu").train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
for _ in range(3):
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**two_examples(config.data.max_tokens, 0.35), use_cache=False).loss
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(peak_memory_gib())
"""


@pytest.mark.engine
def test_a_few_real_steps_on_cpu_peak_as_estimated() -> None:
    config = TrainConfig(data={"max_tokens": 512})
    done = subprocess.run(
        [sys.executable, "-c", STEPS, config.model_dump_json()], capture_output=True, text=True, check=True
    )
    measured_gib = float(done.stdout.split()[-1])
    estimate = estimate_memory(config, load_shape(config), on_gpu=False, target_share=0.35)
    assert estimate.gib == pytest.approx(measured_gib, rel=0.2)
