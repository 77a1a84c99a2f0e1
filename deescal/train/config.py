"""The config of a fine-tune: one section a concern. Defaults are the `local` profile: SmolLM2-135M, LoRA, CPU."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deescal.cluster import RayConfig
from deescal.config import Config, Resources


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), as PEFT names their fields."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)  # the paper's; its released code has 16
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"  # PEFT: every linear layer but the output head


class DataConfig(Config):
    """How examples become sequences, and sequences steps."""

    max_tokens: int = Field(default=2048, ge=16)  # of a sequence; an example with more is refused, by count
    # Several whole examples in one sequence, none seeing another; false: one example a row, padded, alike lengths
    # together.
    packing: bool = True
    sequences_per_step: int = Field(default=8, ge=1)  # of one optimizer step, over all workers
    sequences_at_once: int = Field(default=1, ge=1)  # of one forward pass of one worker
    validation_split: Literal["validation", "test"] = "validation"


class OptimConfig(Config):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: float = Field(default=0.03, ge=0, le=1)  # of all steps
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=2.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)  # ends earlier than the epochs


class StrategyConfig(Config):
    """How the model is spread over workers, and what is spent to save memory."""

    name: Literal["ddp", "zero2", "zero3"] = "ddp"  # ZeRO: DeepSpeed (Rajbhandari et al. 2020, arXiv 1910.02054)
    offload: Literal["none", "optimizer", "all"] = "none"  # to the host's memory; ZeRO only, parameters with zero3
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _offload_fits(self) -> StrategyConfig:
        if self.offload != "none" and self.name == "ddp":
            raise ValueError("offload needs zero2 or zero3")
        if self.offload == "all" and self.name != "zero3":
            raise ValueError("offload of all needs zero3; zero2 can offload the optimizer")
        return self


class CheckpointsConfig(Config):
    """When a run is saved and measured, and when it ends early."""

    every_steps: int = Field(default=50, ge=1)  # validation loss, then a checkpoint; and at the last step
    validation_tokens: int | None = Field(
        default=None, ge=1
    )  # measured each time; None: all. Base and best: always all
    keep_best: int = Field(default=2, ge=1)  # by validation loss; the last one is kept too
    early_stopping: int | None = Field(default=None, ge=1)  # end after so many validations without a lower loss
    max_failures: int = Field(default=3, ge=0)  # of workers; each time on from the last checkpoint


class TrackingConfig(Config):
    """Beside `metrics.jsonl`, which is always written."""

    log_every_steps: int = Field(default=1, ge=1)
    tensorboard: bool = True
    mlflow_uri: str | None = None  # a tracking server or folder; needs the package mlflow
    sample_prompts: int = Field(default=6, ge=0)  # held-out prompts answered before and after
    sample_new_tokens: int = Field(default=64, ge=1)


class ExportConfig(Config):
    """What comes out, and the gate before it is marked good."""

    merge: bool = False  # also the merged model, in the base's own precision
    parity_prompts: int = Field(default=8, ge=1)
    parity_new_tokens: int = Field(default=32, ge=1)
    engine: bool = True  # compare with vLLM too; false: with a fresh load by transformers and PEFT only
    # Greatest difference of log-probabilities of the prompt's own next tokens, mean over tokens, in nats.
    max_mean_difference: float = Field(default=0.05, gt=0)
    # Share of prompts whose greedy text must be the same up to the first near tie.
    min_same_text: float = Field(default=1.0, ge=0, le=1)


class TrainConfig(Config):
    """All of a fine-tune."""

    model: str = "smollm2-135m"  # registry name, folder or Hugging Face id
    method: Literal["lora", "qlora", "full"] = "lora"  # qlora: NF4, double quantisation (arXiv 2305.14314)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    liger: bool = False  # fused kernels of liger-kernel; GPU only
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    strategy: StrategyConfig = StrategyConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    tracking: TrackingConfig = TrackingConfig()
    export: ExportConfig = ExportConfig()
    workers: Resources = Resources(workers=1, num_cpus=2, memory_gib=6)
    ray: RayConfig = RayConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        forward = self.data.sequences_at_once * self.workers.workers
        if self.data.sequences_per_step % forward:
            raise ValueError(
                f"data.sequences_per_step={self.data.sequences_per_step} must be a multiple of "
                f"data.sequences_at_once x workers.workers = {forward}"
            )
        if self.method == "qlora" and self.strategy.name == "zero3":
            raise ValueError("qlora does not go with zero3, which cannot shard 4-bit weights: use ddp or zero2")
        if self.method == "qlora" and self.export.merge and not self.export.engine:
            raise ValueError("export.merge after qlora can only be compared in vLLM: leave export.engine on")
        if self.method == "full" and self.strategy.name == "ddp" and self.dtype == "bfloat16":
            # Adapters are float32 whatever the base is, and DeepSpeed keeps a float32 copy of what it trains.
            raise ValueError(
                "full with ddp would round small steps on bfloat16 weights to nothing: "
                "set strategy.name=zero2 or zero3, or dtype=float32"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Forward passes of one worker for one optimizer step."""
        return self.data.sequences_per_step // (self.data.sequences_at_once * self.workers.workers)
