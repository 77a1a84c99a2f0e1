"""DeepSpeed's part: its config, and checkpoints that go on at another number of workers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from deescal.train.config import TrainConfig


def deepspeed_config(config: TrainConfig, *, universal: bool = False) -> dict[str, Any] | None:
    """DeepSpeed's JSON for the strategy; None for DDP.

    Args:
        universal: the checkpoint to go on from was converted by `to_universal`.
    """
    import torch

    strategy = config.strategy
    if strategy.name == "ddp":
        return None
    on_gpu = torch.cuda.is_available()
    zero: dict[str, Any] = {
        "stage": 2 if strategy.name == "zero2" else 3,
        "overlap_comm": on_gpu,
        "reduce_scatter": on_gpu,  # gloo, the CPU's, has none
        "contiguous_gradients": True,
    }
    if strategy.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if strategy.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    if strategy.name == "zero3":
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # else a checkpoint has no adapter to export
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: DeepSpeed's own needs a compiler on every node
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "gradient_clipping": config.optim.max_grad_norm,
        "train_micro_batch_size_per_gpu": config.data.sequences_at_once,
        "gradient_accumulation_steps": config.accumulation,
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 10**9,
    }


def is_zero3(trainer: Any) -> bool:
    """Whether each worker holds a part of every weight only."""
    plugin = trainer.args.deepspeed_plugin
    return bool(plugin and plugin.zero_stage == 3)


def saved_world_size(checkpoint: Path) -> int:
    """Workers that wrote a checkpoint of the Trainer."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def to_universal(checkpoint: Path) -> None:
    """Rewrite DeepSpeed's shards in a checkpoint of the Trainer so that any number of workers can read them."""
    from deepspeed.checkpoint.ds_to_universal import main as convert

    tag = (checkpoint / "latest").read_text().strip()
    convert(
        Namespace(
            input_folder=str(checkpoint / tag),
            output_folder=str(checkpoint / f"{tag}_universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    (checkpoint / "latest").write_text(f"{tag}_universal")
