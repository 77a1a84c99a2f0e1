"""The memory that `deescal train plan` expects on a CPU, beside what steps of SmolLM2-135M really take.

    python -m bench.train_plan [--tokens 256 512 1024] [--steps 2]

Every line is a process of its own: imports as a worker has them, the model, and steps of two forward passes each over
one packed sequence, a third of it learned. Measured is the process' peak. The last column is the same with
glibc told to give every block from 1 MiB on its own mapping (MALLOC_MMAP_THRESHOLD_), which returns it when freed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import Any

from deescal.train.config import TrainConfig
from deescal.train.fit import change
from deescal.train.memory import estimate_memory
from deescal.train.shape import load_shape

TARGET_SHARE = 1 / 3
CASES: list[dict[str, Any]] = [
    {},
    {"strategy.gradient_checkpointing": True},
    {"method": "qlora"},
    {"method": "full", "dtype": "float32"},
    {"dtype": "float32"},
]


def run_steps(config: TrainConfig, n_steps: int) -> None:
    """Train; prints the process' peak in GiB and seconds a step, the first one left out."""
    import numpy as np
    import ray.train  # noqa: F401 (a worker has it)
    import torch
    from transformers import Trainer  # noqa: F401

    from deescal.train.model import load_for_training
    from deescal.train.pack import collate
    from deescal.train.trainer import peak_memory_gib

    model = load_for_training(config, "cpu").train()
    if config.strategy.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    n = config.data.max_tokens // 2
    ids = np.random.default_rng(0).integers(0, 40_000, n)
    row = {"input_ids": ids, "is_target": np.arange(n) >= n * (1 - TARGET_SHARE)}
    seconds = []
    for _ in range(n_steps):
        began = time.perf_counter()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, config.dtype == "bfloat16"):
                loss = model(**collate([[row, row]]), use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    print(peak_memory_gib(), min(seconds))


def measure(config: TrainConfig, n_steps: int, **environment: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "bench.train_plan", "--config", config.model_dump_json(), "--steps", str(n_steps)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    peak_gib, seconds = done.stdout.split()[-2:]
    return float(peak_gib), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.config:
        run_steps(TrainConfig.model_validate_json(args.config), args.steps)
        return
    print(f"{'':44s} tokens  expected  measured  ratio  s/step  with own mappings")
    for case in CASES:
        for n_tokens in args.tokens:
            config = change(TrainConfig(), {**case, "data.max_tokens": n_tokens})
            shape = load_shape(config)
            expected = estimate_memory(config, shape, on_gpu=False, target_share=TARGET_SHARE).gib
            peak, seconds = measure(config, args.steps)
            mapped, mapped_seconds = measure(config, args.steps, MALLOC_MMAP_THRESHOLD_=str(1 << 20))
            name = " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in case.items()) or "lora, bfloat16"
            print(
                f"{name:44s} {n_tokens:6d} {expected:9.2f} {peak:9.2f} {expected / peak:6.2f} {seconds:7.2f}"
                f"  {mapped:.2f} GiB, {mapped_seconds:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
