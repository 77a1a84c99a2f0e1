"""Adapters of noise, as PEFT writes them, without loading any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from deescal.models import resolve


def write_adapter(
    folder: Path,
    base: str,
    *,
    seed: int = 0,
    rank: int = 8,
    scale: float = 0.05,
    projections: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
    **config: Any,
) -> str:
    """A LoRA of random matrices over these projections of every layer of a base.

    Args:
        base: registry name or folder of a model in safetensors.
        scale: standard deviation of both matrices; 0.05 changes what SmolLM2 says by more than rounding does.
        config: further or other fields of adapter_config.json.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for file in sorted(Path(resolve(base)).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                module = name.removesuffix(".weight")
                if module.rsplit(".", 1)[-1] in projections:
                    outputs, inputs = weights.get_slice(name).get_shape()
                    for matrix, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                        noise = rng.normal(0, scale, shape).astype(np.float32)
                        tensors[f"base_model.model.{module}.{matrix}.weight"] = noise
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(projections),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return str(folder)
