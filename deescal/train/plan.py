"""What a fine-tune will take, before anything is started: memory, steps, hours, and whether it fits.

Hours are the operations to do, those done twice included (`deescal.train.flops`), at an assumed share of what the
devices could do at most; without validation, checkpoints and export.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from deescal.errors import UserError
from deescal.storage import exists, join, read_json
from deescal.train.config import TrainConfig
from deescal.train.fit import Overrides, as_arguments, change, first_fit, fits, machine_gib, needed
from deescal.train.flops import TARGET_SHARE, Gpu, find_gpu, hardware_flops, parse_gpus, peak
from deescal.train.memory import GIB, MOST_TARGETS, Memory, estimate_memory
from deescal.train.pack import count_steps, most_targets, plan_packs
from deescal.train.shape import ModelShape, load_shape

# torchtune tunes Llama-3.2-3B with QLoRA and checkpointing on an A100 at 0.50 of the peak with torch.compile, which
# alone gave it 27 % (its README, 2025: 8,035 tokens/s); so 0.39 without.
UTILISATION = 0.35
# SmolLM2-135M, LoRA in bfloat16, on two cores with AVX-512: 270 tokens/s at 0.57 GFLOP each.
CPU_FLOPS_PER_CORE = 75e9


@dataclass(frozen=True)
class Tokens:
    """The training split, cut to the config's sequences."""

    tokenizer: str | None  # what counted them, where the dataset says it
    examples: int
    sequences: int
    tokens: int
    target_tokens: int
    most_targets: float  # share of a forward pass' tokens that are learned, at most

    @property
    def target_share(self) -> float:
        return self.target_tokens / self.tokens


@dataclass(frozen=True)
class Plan:
    """What a fine-tune takes, and what there is."""

    config: TrainConfig
    shape: ModelShape
    gpu: Gpu | None  # of each worker; None: this machine's processor
    memory: Memory  # of one worker
    needed_gib: float  # on one GPU; or on this machine, for all workers and Ray's object store
    available_gib: float
    data: Tokens | None
    steps: int | None  # None without data, as `hours`
    tokens_per_s: float  # of all workers
    hours: float | None
    proposal: Overrides | None  # where it does not fit, what would make it fit

    @property
    def fits(self) -> bool:
        return fits(self.needed_gib, self.available_gib)


def plan(config: TrainConfig, gpus: str | None = None, data: str | None = None) -> Plan:
    """Estimate a fine-tune.

    Args:
        gpus: 'A100-80 x4', a worker each; None: this machine, with its GPUs where the config's workers ask for them.
        data: folder of `deescal dataset build`; None: memory and speed only.

    Raises:
        UserError: an unknown GPU, model or dataset, or a config that does not go with so many workers.
    """
    gpu = None
    if gpus is not None:
        gpu, n_gpus = parse_gpus(gpus)
        config = change(config, {"workers.workers": n_gpus, "workers.num_gpus": 1})
    elif config.workers.num_gpus:
        gpu = _own_gpu()
    on_gpu = gpu is not None
    shape = load_shape(config)
    tokens = count_tokens(data, config) if data else None
    most = tokens.most_targets if tokens else MOST_TARGETS
    memory = estimate_memory(config, shape, on_gpu=on_gpu, target_share=most)
    needed_gib, available_gib = needed(config, memory, on_gpu=on_gpu), gpu.memory_gib if gpu else machine_gib()
    proposal = None
    if not fits(needed_gib, available_gib):
        proposal = first_fit(config, shape, available_gib, on_gpu=on_gpu, target_share=most)
    steps, tokens_per_s, hours = _time(config, shape, gpu, tokens)
    return Plan(config, shape, gpu, memory, needed_gib, available_gib, tokens, steps, tokens_per_s, hours, proposal)


def count_tokens(data: str, config: TrainConfig) -> Tokens:
    """The training split of a dataset, from its columns of counts.

    Raises:
        UserError: no dataset, an empty one, no learned token, or an example longer than a sequence.
    """
    from deescal.train.data import check_dataset, read_examples

    check_dataset(data, ["train"])
    table = read_examples(data, "train", ["example_id", "n_tokens", "n_target_tokens"])
    lengths, targets = table["n_tokens"].to_pylist(), table["n_target_tokens"].to_pylist()
    if None in lengths or None in targets:
        raise UserError(f"--data '{data}': its tokens were not counted; build it again with examples.tokenizer")
    packs = plan_packs(lengths, config.data.max_tokens)
    if not config.data.packing:
        packs = [[i] for i in range(len(lengths))]
    stats = join(data, "stats.json")
    return Tokens(
        tokenizer=read_json(stats).get("tokenizer") if exists(stats) else None,
        examples=len(lengths),
        sequences=len(packs),
        tokens=sum(lengths),
        target_tokens=sum(targets),
        most_targets=most_targets(packs, targets, config.data),
    )


def show_plan(plan: Plan) -> None:
    """Print it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    config, shape = plan.config, plan.shape
    console.print(
        f"[bold]{escape(shape.name)}[/]: {shape.n_params / 1e9:.3g}B parameters ({escape(shape.source)}); "
        f"{config.method}, {_trained(plan):,} of them trained; {config.workers.workers} x {_device(plan)}, "
        f"{config.strategy.name}"
    )
    table = Table(box=None, title="memory of a worker", title_justify="left")
    table.add_column("GiB", justify="right")
    table.add_column("what for")
    for what, size in plan.memory.parts.items():
        table.add_row(f"{size / GIB:.2f}", what)
    table.add_row(f"[bold]{plan.memory.gib:.2f}", "[bold]at its peak")
    if plan.memory.host:
        table.add_row(f"{plan.memory.host / GIB:.2f}", "offloaded to the host's memory")
    console.print(table)
    for line in [*_time_lines(plan), *_notes(plan), _verdict(plan)]:
        console.print(line)


def _time(
    config: TrainConfig, shape: ModelShape, gpu: Gpu | None, tokens: Tokens | None
) -> tuple[int | None, float, float | None]:
    """Steps, tokens a second of all workers, hours."""
    share = tokens.target_share if tokens else TARGET_SHARE
    example_tokens = tokens.tokens / tokens.examples if tokens else None
    flops_per_s = _flops_per_s(config, gpu)
    per_s = flops_per_s / hardware_flops(config, shape, target_share=share, example_tokens=example_tokens)
    if tokens is None:
        return None, per_s, None
    steps = count_steps(tokens.sequences, config.data.sequences_per_step, config.optim.epochs, config.optim.max_steps)
    n_tokens = steps * config.data.sequences_per_step * tokens.tokens / tokens.sequences
    return steps, per_s, n_tokens / per_s / 3600


def _flops_per_s(config: TrainConfig, gpu: Gpu | None) -> float:
    """Of all workers, by assumption."""
    if gpu:
        return config.workers.workers * peak(gpu, config.dtype) * UTILISATION
    return min(config.workers.workers * config.workers.num_cpus, os.cpu_count() or 1) * CPU_FLOPS_PER_CORE


def _own_gpu() -> Gpu:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    gpu = find_gpu(name)
    if gpu is None:
        raise UserError(f"the workers ask for GPUs; of this machine's ({name}) nothing is known: give --gpus 'KIND xN'")
    return gpu


def _trained(plan: Plan) -> int:
    return plan.shape.n_params if plan.config.method == "full" else plan.shape.n_lora


def _device(plan: Plan) -> str:
    return plan.gpu.kind if plan.gpu else "CPU of this machine"


def _time_lines(plan: Plan) -> list[str]:
    if plan.gpu:
        rate = peak(plan.gpu, plan.config.dtype) / 1e12
        how = f"assuming {UTILISATION:.0%} of {rate:.0f} dense TFLOP/s a GPU, recomputed work included"
    else:
        how = "rough: from 270 tokens/s of SmolLM2-135M on two cores, by work a token and cores"
    lines = []
    if plan.data and plan.steps and plan.hours is not None:
        data = plan.data
        lines.append(
            f"{data.examples:,} examples, {data.tokens:,} tokens ({data.target_share:.0%} learned) in "
            f"{data.sequences:,} sequences of {plan.config.data.max_tokens}; {plan.steps:,} steps, {_hours(plan.hours)}"
        )
    return [*lines, f"{plan.tokens_per_s:,.0f} tokens/s; {how}; validation and export come on top"]


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _notes(plan: Plan) -> list[str]:
    notes = []
    config = plan.config
    if plan.gpu and plan.gpu.bf16_tflops is None and config.dtype == "bfloat16":
        notes.append(f"{plan.gpu.kind} has no bfloat16, torch emulates it: counted at float32's speed")
    if plan.data and plan.data.tokenizer not in (None, config.model):
        notes.append(f"tokens were counted by the tokenizer of '{plan.data.tokenizer}', not the model's own")
    if config.liger:
        notes.append("liger's kernels keep less than counted here")
    return [f"[yellow]note[/] {note}" for note in notes]


def _verdict(plan: Plan) -> str:
    where = f"{plan.gpu.kind}'s" if plan.gpu else "this machine's"
    if not plan.gpu:
        need = f"all workers and Ray's object store need about {plan.needed_gib:.1f} GiB"
    else:
        need = f"about {plan.needed_gib:.1f} GiB a GPU"
    line = f"{need} of {where} {plan.available_gib:.1f}"
    if plan.fits:
        return f"[green]fits[/]: {line}"
    advice = f"would fit with: {as_arguments(plan.proposal)}" if plan.proposal else "no change of the config would do"
    return f"[red]does not fit[/]: {line}; {advice}"
