"""Memory of one worker of a fine-tune, from the model's shape and the config alone.

The peak is taken to be

    weights + gradients + optimizer + kept for the backward pass + the larger of (logits, one block at work) + runtime

which is too much where gradients grow only while what was kept is given back: with a single forward pass a step.

*Weights, gradients, optimizer.* Bytes a value: a weight 2 (bfloat16) or 4; in NF4 half a byte, and 0.127 bits for its
double-quantised constants (Dettmers et al. 2023, arXiv 2305.14314, section 3). What is trained costs its weight, its
gradient and AdamW's two moments. With ZeRO, over N workers, 2 + 2/N + 16/N (stage 2) and 20/N (stage 3), and four bytes
for each value of the largest layer (stage 3), and communication buckets. DeepSpeed's own estimates say the same, but
for stage 3 18/N, without the gradients in 16 bits. Offloading moves gradients and optimizer, with `all` the weights
too, to the host.

*Kept for the backward pass.* Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) count, in a block, what autograd
keeps; the count here is the same for the blocks of Llama, Qwen2, Gemma-2 and Granite as transformers writes them, per
token, with hidden size h, heads a (of keys and values k), head size d, MLP size f, and e bytes a value:

    normalisations   4h + 4 each: a copy in float32; and e h where their weights are trained
    attention        e d (2a + 2k) + 4a: queries, keys, values, output, and a log-sum-exp a head; the output twice
                     where sdpa goes example by example. On a CPU, and in eager attention, keys and values are
                     repeated to all heads (k = a). Eager attention also keeps the probabilities, in float32 and as
                     they are used: a (4 + 2) bytes a key, and a e where logits are capped
    MLP (SwiGLU)     3 e f: gate, its activation, up
    linear layers    their input, only where it meets a trained weight: e (2h + f), once for layers that share it

With gradient checkpointing it is the input of every block, e h, and one block while it is computed again.
liger's kernels keep less than this; it is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from deescal.train.config import TrainConfig
from deescal.train.shape import ModelShape

MOST_TARGETS = 0.8  # share of a sequence that is learned, where no data says it: at most 0.77 in the published corpus
GIB = 2**30
RUNTIME_GIB = {"gpu": 0.8, "cpu": 0.7}  # CUDA's context and cuBLAS' workspaces; Python and its libraries
# On a CPU, of what comes and goes in a step: freed memory between blocks in use, which glibc's malloc keeps. Measured
# with `python -m bench.train_plan`; CUDA's allocator loses little.
HEAP_LOSS = 0.75
NF4_BYTES = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8  # a weight, with one byte a 64 and four bytes a 64 x 256 of them
DEEPSPEED_BUCKET = 500_000_000  # values, its default
# A value of the vocabulary, per learned token: log-probabilities, their gradient and the logits' gradient, in float32.
LOGIT_BYTES = 12


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at its peak."""

    parts: dict[str, float]  # on its device, by what for
    host: float = 0.0  # in the host's memory, where something is offloaded

    @property
    def gib(self) -> float:
        return sum(self.parts.values()) / GIB


def estimate_memory(
    config: TrainConfig, shape: ModelShape, *, on_gpu: bool, target_share: float = MOST_TARGETS
) -> Memory:
    """The peak of one of the config's workers.

    Args:
        target_share: of a forward pass' tokens, those whose logits are computed, at most.
    """
    states, host = _states(config, shape, on_gpu)
    n_tokens = config.data.sequences_at_once * config.data.max_tokens
    kept, at_work = _activations(config, shape, n_tokens, on_gpu)
    logits = n_tokens * target_share * shape.vocab_size * (LOGIT_BYTES + (_bytes(config) if shape.softcap else 0))
    at_work = max(logits, at_work)
    parts = {
        **states,
        "kept for the backward pass": kept,
        "logits, or one block at work": at_work,
        "runtime": RUNTIME_GIB["gpu" if on_gpu else "cpu"] * GIB,
        "lost in the heap": 0 if on_gpu else HEAP_LOSS * (kept + at_work),
    }
    return Memory({what: size for what, size in parts.items() if size}, host)


def weight_bytes(config: TrainConfig, shape: ModelShape) -> float:
    """Of the base model, as it is loaded for training."""
    if config.method != "qlora":
        return _bytes(config) * shape.n_params
    return NF4_BYTES * shape.n_linear + _bytes(config) * (shape.n_params - shape.n_linear)


def _states(config: TrainConfig, shape: ModelShape, on_gpu: bool) -> tuple[dict[str, float], float]:
    """Bytes on the device, by what for, that last from step to step; and on the host."""
    full, n_workers = config.method == "full", config.workers.workers
    trained = shape.n_params if full else shape.n_lora
    e, base = _bytes(config), weight_bytes(config, shape)
    if config.strategy.name == "ddp":
        states = {  # what is trained is in float32: PEFT keeps adapters so
            "weights": base + (0 if full else 4 * trained),
            "gradients": 4 * trained,
            "optimizer": 8 * trained,
            "communication": 4 * trained if n_workers > 1 else 0,
        }
        return states, 0.0
    weights = base + (0 if full else e * trained)  # DeepSpeed casts adapters to the model's type, and keeps a copy
    gradients, optimizer = e * trained / n_workers, 16 * trained / n_workers
    buckets = e * DEEPSPEED_BUCKET * (2 if on_gpu and config.strategy.name == "zero2" else 1)
    host = 0.0
    if config.strategy.name == "zero3":
        weights /= n_workers
        buckets += 2 * e * shape.n_largest
    if config.strategy.offload != "none":
        host += optimizer
        gradients = optimizer = 0.0
    if config.strategy.offload == "all":
        host += weights
        weights = 0.0
    states = {"weights": weights, "gradients": gradients, "optimizer": optimizer, "communication": buckets}
    return states, host


def _activations(config: TrainConfig, shape: ModelShape, n_tokens: int, on_gpu: bool) -> tuple[float, float]:
    """Bytes kept for the backward pass, and those of one block at work in it."""
    row = n_tokens if config.data.packing else config.data.max_tokens  # tokens that a mask spans
    residual, layers = _bytes(config), shape.n_layers
    block = n_tokens * _block_bytes(config, shape, row, on_gpu) + n_tokens * _linear_input_bytes(config, shape) / layers
    casts = _bytes(config) * shape.n_lora if _casts_adapters(config) else 0
    once = _norm_bytes(config, shape) + 2 * residual * shape.head_dim  # the last normalisation; rotations
    always = n_tokens * (once + (row if config.attention == "eager" else 0))
    gradients = n_tokens * residual * (3 * shape.intermediate_size + 2 * shape.hidden_size)
    if config.attention == "eager":
        gradients += n_tokens * row * shape.n_heads * (4 + _bytes(config))
    if config.strategy.gradient_checkpointing:
        return always + layers * n_tokens * residual * shape.hidden_size, block + casts / layers + gradients
    return always + layers * block + casts, gradients


def _block_bytes(config: TrainConfig, shape: ModelShape, row: int, on_gpu: bool) -> float:
    """Kept of one token in one block, but for the inputs of linear layers."""
    e = _bytes(config)
    norms = shape.n_block_norms * _norm_bytes(config, shape)
    heads, kv_heads = shape.n_heads, shape.n_kv_heads
    if config.attention == "eager" or not on_gpu:
        kv_heads = heads
    attention = e * shape.head_dim * (2 * heads + 2 * kv_heads)
    if config.attention == "eager":
        attention += row * heads * ((4 + 2 if e == 2 else 4) + (e if shape.softcap else 0))
    else:
        attention += 4 * heads + (e * shape.head_dim * heads if config.attention == "sdpa" else 0)
    return norms + attention + 3 * _bytes(config) * shape.intermediate_size


def _norm_bytes(config: TrainConfig, shape: ModelShape) -> float:
    """Kept of one token in one normalisation."""
    return 4 * shape.hidden_size + 4 + (_bytes(config) * shape.hidden_size if config.method == "full" else 0)


def _linear_input_bytes(config: TrainConfig, shape: ModelShape) -> float:
    """Kept of one token, over all blocks, as inputs of trained weights."""
    e = _bytes(config)
    shared = e * shape.n_layers * (2 * shape.hidden_size + shape.intermediate_size)
    if config.method == "full":
        return shared
    inner = e * shape.n_adapters * config.lora.r
    inputs = e * shape.adapter_inputs
    return inner + min(inputs, shared)


def _bytes(config: TrainConfig) -> int:
    return 2 if config.dtype == "bfloat16" else 4


def _casts_adapters(config: TrainConfig) -> bool:
    """Whether adapters in float32 meet a model in bfloat16, under the Trainer's autocast."""
    return config.method != "full" and config.dtype == "bfloat16" and config.strategy.name == "ddp"
