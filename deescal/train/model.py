"""The model to tune: base weights, whole or in 4 bits, with adapters or without."""

from __future__ import annotations

from typing import Any

from deescal.errors import UserError, one_line
from deescal.models import resolve
from deescal.train.attention import register
from deescal.train.config import TrainConfig


def load_base(config: TrainConfig, device: Any) -> Any:
    """The base model on `device`, in 4 bits for qlora; no gradients yet where adapters are to come."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, config.dtype)
    quantization = None
    if config.method == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(
        resolve(config.model),
        dtype=dtype,
        attn_implementation=register() if config.attention == "sdpa" else config.attention,
        quantization_config=quantization,
        device_map={"": device} if quantization else None,
    )
    if quantization:
        _keep_gradients(model)
    model.config.use_cache = False  # a cache hides the bounds of packed examples, and training has no use for one
    return model


def _keep_gradients(model: Any) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights in the first evaluation, on processors with AVX-512 bf16.

    It multiplies without autograd from then on: adapters below the last layers would learn nothing more, unseen.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def load_for_training(config: TrainConfig, device: Any) -> Any:
    """`load_base`, with fresh adapters (drawn from torch's generator) that alone are trained, unless method is full.

    Not by way of PEFT's `prepare_model_for_kbit_training`: it makes embeddings float32 and with them every hidden
    state, which for a 3B model costs more memory than 4 bits save. PEFT freezes the base by itself.
    """
    base = load_base(config, device)
    if config.method == "full":
        return base
    return add_adapters(base, config)


def add_adapters(model: Any, config: TrainConfig, **options: Any) -> Any:
    """The model with the config's adapters on it; `options` of PEFT's `get_peft_model`.

    Raises:
        UserError: the model has no layer of the given names.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        bias="none",
    )
    try:
        adapted = get_peft_model(model, adapters, **options)
    except ValueError as error:
        raise UserError(f"lora.target_modules={config.lora.target_modules!r}: {one_line(error)}") from error
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            # PEFT would make inputs float32 as adapters are, and autocast bfloat16 again: two copies of every input.
            layer.cast_input_dtype_enabled = False
    return adapted
