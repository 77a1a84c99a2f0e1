"""transformers' Trainer with this project's data order, token-weighted validation and reports to Ray Train."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from deescal.train.attention import check_apart
from deescal.train.config import DataConfig, TrainConfig
from deescal.train.data import Sequences, TokenData
from deescal.train.losses import by_scenario, example_losses, mean_loss
from deescal.train.pack import collate, collate_padded, count_steps, order_sequences, plan_packs
from deescal.train.zero import is_zero3


class CivilianTrainer(Trainer):
    """The stock loop; only what a validation measures is its own."""

    def __init__(
        self, *args: Any, validation: TokenData, validation_tokens: int | None, data: DataConfig, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.validation = validation
        self.packs = plan_packs(validation.lengths.tolist(), data.max_tokens)
        if not data.packing:
            self.packs = [[i] for pack in self.packs for i in pack]
        self.packing = data.packing
        self.n_periodic = first_within([int(validation.lengths[p].sum()) for p in self.packs], validation_tokens)

    @property
    def forward_model(self) -> Any:
        """The bare model, with no wrapper to wait in; but ZeRO-3's weights are only whole inside its engine."""
        return self.model_wrapped if is_zero3(self) else self.model

    def measure(self, n_packs: int | None = None) -> dict[int, float]:
        """Validation example -> nats of its targets; the first `n_packs` packs, by default all. Same on every rank."""
        import torch.distributed as dist

        losses = example_losses(
            self.forward_model,
            self.validation,
            self.packs[:n_packs],
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )
        if self.args.world_size > 1:
            everyone: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(everyone, losses)
            losses = {example: nats for part in everyone for example, nats in part.items()}
        return losses

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean negative log-likelihood of a civilian token, in nats, over the periodic part of the validation split."""
        n_targets = self.validation.n_targets
        logs: dict[str, Any] = {}
        if self.state.global_step == 0:  # the base, by scenario, to compare with at the end
            if self.packing:
                check_apart(self.forward_model, self.validation[int(self.validation.lengths.argmin())]["input_ids"])
            losses = self.measure()
            logs["base_nll"] = {s: list(total) for s, total in by_scenario(losses, self.validation).items()}
            periodic = {e for pack in self.packs[: self.n_periodic] for e in pack}
            losses = {e: nats for e, nats in losses.items() if e in periodic}
        else:
            losses = self.measure(self.n_periodic)
        logs["eval_loss"] = mean_loss(losses, n_targets)
        self.log(logs)
        metrics = {"eval_loss": logs["eval_loss"]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def first_within(sizes: list[int], limit: int | None) -> int:
    """How many of the first sizes fit within a limit; at least one."""
    if limit is None:
        return len(sizes)
    total = 0
    for i, size in enumerate(sizes):
        total += size
        if total > limit:
            return max(1, i)
    return len(sizes)


class Reporter(TrainerCallback):
    """Adds speed and memory to every row of metrics, shows rows to the driver, hands checkpoints to Ray Train.

    Rows live in the Trainer's `log_history`, hence in its checkpoints: after a fault they go on where training does.
    """

    def __init__(
        self,
        step_tokens: list[tuple[int, int]],
        steps_per_epoch: float,
        sink: Any,
        utilisation: Callable[[float], float | None],
    ) -> None:
        self._steps_per_epoch, self._utilisation = steps_per_epoch, utilisation
        self._after = [(0, 0)]  # step -> (tokens, target tokens) so far
        for n_tokens, n_targets in step_tokens:
            self._after.append((self._after[-1][0] + n_tokens, self._after[-1][1] + n_targets))
        self._sink = sink
        self._seconds = 0.0  # of training so far, validation and checkpoints not counted
        self._step_began = 0.0
        self._logged = (0, 0.0)  # step and seconds at the last row
        self._attempt = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rows = [row for row in state.log_history if "seconds" in row]
        if rows:
            self._seconds = rows[-1]["seconds"]
            self._logged = (rows[-1]["step"], self._seconds)
        if state.is_world_process_zero:
            import ray

            self._attempt = ray.get(self._sink.start.remote([metrics_row(row) for row in state.log_history]))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._seconds += now() - self._step_began
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" not in row and "eval_loss" not in row:
            return  # the Trainer's own summary at the end
        row["attempt"] = self._attempt
        if "loss" in row:
            step, seconds = self._logged
            tokens, targets = self._after[state.global_step]
            since = max(self._seconds - seconds, 1e-9)
            row |= {
                "epoch": state.global_step / self._steps_per_epoch,
                "tokens": tokens,
                "target_tokens": targets,
                "seconds": self._seconds,
                "tokens_per_s": (tokens - self._after[step][0]) / since,
                "target_tokens_per_s": (targets - self._after[step][1]) / since,
                "memory_gib": peak_memory_gib(),
            }
            row["mfu"] = self._utilisation(row["tokens_per_s"])
            self._logged = (state.global_step, self._seconds)
        if state.is_world_process_zero:
            self._sink.add.remote(metrics_row(row))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import ray.train
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier()  # every rank has written its part
        losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        checkpoint = None
        if ray.train.get_context().get_local_rank() == 0:  # a node's workers share the folder
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            {"step": state.global_step, "validation_loss": losses[-1]},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"step-{state.global_step:07d}",
        )
        if checkpoint is not None:  # Ray Train has it now; the Trainer would keep another node's copies
            shutil.rmtree(folder)


def now() -> float:
    """Seconds of a clock, once what a GPU was given is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def utilisation(config: TrainConfig, train: TokenData) -> Callable[[float], float | None]:
    """Tokens a second of all workers -> model FLOPs utilisation; None without a GPU, or of one that is not known."""
    import torch

    from deescal.train.flops import mfu
    from deescal.train.shape import load_shape

    if not torch.cuda.is_available():
        return lambda tokens_per_s: None
    shape, name = load_shape(config), torch.cuda.get_device_name()
    share = float(train.n_targets.sum() / train.lengths.sum())
    mean = float(train.lengths.mean())
    return lambda rate: mfu(rate, shape, config, name, target_share=share, example_tokens=mean)


def metrics_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the Trainer's log as `metrics.jsonl` has it."""
    if "eval_loss" in row:
        return {"step": row["step"], "validation_loss": row["eval_loss"], "attempt": row["attempt"]}
    return dict(row)


def peak_memory_gib() -> float:
    """Peak of this worker so far: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:  # on Linux ru_maxrss starts from the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (FileNotFoundError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def make_trainer(
    config: TrainConfig,
    load: Callable[[], Any],
    train: TokenData,
    validation: TokenData,
    scratch: Path,
    sink: Any,
    *,
    pad_id: int = 0,
    deepspeed: dict[str, Any] | None = None,
) -> CivilianTrainer:
    """A Trainer that is ready to run or to resume.

    Args:
        load: makes the model; called when DeepSpeed's config is in force.
        scratch: folder of this node for checkpoints before Ray Train has them.
        sink: an actor, `deescal.train.job.MetricsSink`.
        deepspeed: its config, or None for plain DDP.
    """
    packs, order, n_steps = plan_training(config, train.lengths.tolist())
    per_step = config.data.sequences_per_step
    lengths, n_targets = train.lengths, train.n_targets
    sizes = [(int(lengths[packs[s]].sum()), int(n_targets[packs[s]].sum())) for s in order]
    step_tokens = [
        (sum(n for n, _ in sizes[i : i + per_step]), sum(n for _, n in sizes[i : i + per_step]))
        for i in range(0, len(sizes), per_step)
    ]
    callbacks: list[TrainerCallback] = [Reporter(step_tokens, len(packs) / per_step, sink, utilisation(config, train))]
    if config.checkpoints.early_stopping:
        callbacks.append(EarlyStoppingCallback(config.checkpoints.early_stopping))
    arguments = training_arguments(config, n_steps, scratch, deepspeed)
    return CivilianTrainer(
        model=load(),
        args=arguments,
        train_dataset=Sequences(train, packs, order),
        eval_dataset=validation,
        data_collator=collate if config.data.packing else partial(collate_padded, pad_id=pad_id),
        callbacks=callbacks,
        validation=validation,
        validation_tokens=config.checkpoints.validation_tokens,
        data=config.data,
    )


def plan_training(config: TrainConfig, lengths: list[int]) -> tuple[list[list[int]], list[int], int]:
    """Lengths of examples -> sequences, the order in which they are trained on, and the number of steps."""
    data = config.data
    packs = plan_packs(lengths, data.max_tokens)
    if not data.packing:
        packs = [[i] for i in range(len(lengths))]
    n_steps = count_steps(len(packs), data.sequences_per_step, config.optim.epochs, config.optim.max_steps)
    sizes = [sum(lengths[i] for i in pack) for pack in packs]
    order = order_sequences(
        sizes, n_steps * data.sequences_per_step, data.sequences_per_step, config.seed, alike=not data.packing
    )
    return packs, order, n_steps


def training_arguments(
    config: TrainConfig, n_steps: int, scratch: Path, deepspeed: dict[str, Any] | None
) -> TrainingArguments:
    """The config in transformers' words."""
    import torch

    on_gpu = torch.cuda.is_available()
    optim, checkpoints = config.optim, config.checkpoints
    return TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=config.data.sequences_at_once,
        gradient_accumulation_steps=config.accumulation,
        max_steps=n_steps,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=optim.schedule if optim.schedule != "constant" else "constant_with_warmup",
        warmup_steps=int(optim.warmup_share * n_steps),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.strategy.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=config.liger,
        # Its fused cross-entropy would compute the logits of every token; only the targets' are asked for here.
        liger_kernel_config={"cross_entropy": False, "fused_linear_cross_entropy": False} if config.liger else None,
        logging_steps=config.tracking.log_every_steps,
        logging_nan_inf_filter=False,  # a loss that is not a number is to be seen
        eval_strategy="steps",
        eval_steps=checkpoints.every_steps,
        save_strategy="steps",
        save_steps=checkpoints.every_steps,
        save_total_limit=1,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        seed=config.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="sequential",  # `order_sequences` has shuffled
        accelerator_config={"split_batches": False, "dispatch_batches": False},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        deepspeed=deepspeed,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
    )
