"""The work of a fine-tune in floating-point operations, what GPUs could do of it at most, and the share they do.

A token costs two operations for each weight that it is multiplied with, going forward: the linear layers of the blocks,
and, for a learned token, the output head; and 4 H d c for attention over c tokens on average (all heads H of size d).
The gradient by the input costs as much again, and that by the weights once more. Weights that are not trained need no
gradient: 2 + 2 operations a weight and token for LoRA, 2 + 2 + 2 for full fine-tuning (Kaplan et al. 2020, arXiv
2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B, for MFU; causal attention is half here).
What gradient checkpointing computes a second time is work, but not counted in MFU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deescal.errors import UserError
from deescal.train.config import TrainConfig
from deescal.train.shape import ModelShape

TARGET_SHARE = 0.35  # of all tokens, those that are learned, where no data says it


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, by NVIDIA's data sheets; rates are dense, without sparsity."""

    kind: str
    memory_gib: float  # as torch.cuda reports it, a little less than is printed on the box
    bf16_tflops: float | None  # tensor cores, sums in float32; None: no bfloat16, which torch emulates slowly
    fp32_tflops: float
    pattern: str  # of torch.cuda.get_device_name, without the maker's name


GPUS: dict[str, Gpu] = {
    gpu.kind: gpu
    for gpu in (
        Gpu("A10G", 22.0, 70.0, 35.0, "A10G"),
        Gpu("L4", 22.0, 121.0, 30.3, "L4"),
        Gpu("T4", 14.6, None, 8.1, "T4"),
        Gpu("L40S", 44.4, 362.0, 91.6, "L40S"),
        Gpu("A100-40", 39.4, 312.0, 19.5, "A100-(SXM4|PCIE)-40GB"),
        Gpu("A100-80", 79.1, 312.0, 19.5, "A100(-SXM4-80GB| 80GB PCIe)"),
        Gpu("H100", 79.1, 989.4, 66.9, "H100( 80GB HBM3)?"),
        Gpu("H100-PCIE", 79.1, 756.0, 51.2, "H100 PCIe"),
        Gpu("H200", 139.7, 989.4, 66.9, "H200"),
        Gpu("RTX3090", 23.6, 71.0, 35.6, "GeForce RTX 3090"),
        Gpu("RTX4090", 23.5, 165.2, 82.6, "GeForce RTX 4090"),
    )
}


def parse_gpus(text: str) -> tuple[Gpu, int]:
    """'A100-80 x4', 'A100-80x4' or 'A100-80' -> the kind, and how many.

    Raises:
        UserError: an unknown kind, or something that is no number of them.
    """
    kinds = "|".join(sorted(map(re.escape, GPUS), key=len, reverse=True))
    found = re.fullmatch(rf"\s*({kinds})\s*(?:x\s*(\d+))?\s*", text, re.IGNORECASE)
    if found is None or (found[2] and int(found[2]) == 0):
        raise UserError(f"--gpus '{text}': expected KIND or KIND xN, such as 'A100-80 x4'; kinds: {', '.join(GPUS)}")
    gpu = next(g for kind, g in GPUS.items() if kind.lower() == found[1].lower())
    return gpu, int(found[2] or 1)


def find_gpu(device_name: str) -> Gpu | None:
    """By what torch.cuda.get_device_name says; None for a GPU that is not in the table, or a slice of one."""
    for gpu in GPUS.values():
        if re.fullmatch(rf"((NVIDIA|Tesla)\s)*{gpu.pattern}", device_name):
            return gpu
    return None


def peak_flops(device_name: str, dtype: str = "bfloat16") -> float | None:
    """Operations a second that a GPU could do, dense, by torch's name for it; None where nobody says."""
    gpu = find_gpu(device_name)
    return None if gpu is None else peak(gpu, dtype)


def peak(gpu: Gpu, dtype: str) -> float:
    """Operations a second with this type of numbers; float32's where a GPU has no bfloat16."""
    return 1e12 * (gpu.bf16_tflops if dtype == "bfloat16" and gpu.bf16_tflops else gpu.fp32_tflops)


def model_flops(
    config: TrainConfig, shape: ModelShape, *, target_share: float = TARGET_SHARE, example_tokens: float | None = None
) -> float:
    """Operations of one token's training, forward and backward; what is computed twice is counted once.

    Args:
        target_share: of all tokens, those that are learned.
        example_tokens: mean length of an example, within which its tokens see each other; None: a whole sequence.
    """
    weights = shape.n_linear + target_share * shape.n_head
    attention = _attention_flops(config, shape, example_tokens)
    if config.method == "full":
        return 6 * weights + 3 * attention
    return 4 * weights + 3 * attention + 6 * shape.n_lora


def hardware_flops(
    config: TrainConfig, shape: ModelShape, *, target_share: float = TARGET_SHARE, example_tokens: float | None = None
) -> float:
    """The same with what gradient checkpointing computes twice."""
    once = model_flops(config, shape, target_share=target_share, example_tokens=example_tokens)
    if not config.strategy.gradient_checkpointing:
        return once
    adapters = 0 if config.method == "full" else 2 * shape.n_lora
    return once + 2 * shape.n_linear + adapters + _attention_flops(config, shape, example_tokens)


def _attention_flops(config: TrainConfig, shape: ModelShape, example_tokens: float | None) -> float:
    """Of one token going forward: it sees half of its example on average."""
    seen = (example_tokens or config.data.max_tokens) / 2
    return 4 * shape.n_layers * shape.n_heads * shape.head_dim * seen


def mfu(
    tokens_per_s: float,
    shape: ModelShape,
    config: TrainConfig,
    device_name: str,
    *,
    target_share: float = TARGET_SHARE,
    example_tokens: float | None = None,
) -> float | None:
    """Model FLOPs utilisation, 0..1, by the bfloat16 peak (of float32 models, float32's).

    Args:
        tokens_per_s: of all workers together, learned or not.
        device_name: of one of the config's workers' GPUs, as torch.cuda.get_device_name says it.

    Returns:
        None for a GPU whose peak is not in the table.
    """
    one_peak = peak_flops(device_name, config.dtype)
    if one_peak is None:
        return None
    flops = model_flops(config, shape, target_share=target_share, example_tokens=example_tokens)
    return tokens_per_s * flops / (config.workers.workers * one_peak)
