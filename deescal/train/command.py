"""`deescal train`: fine-tune, compare several configs, or say beforehand what a run would take."""

from __future__ import annotations

from typing import Annotated

import typer

from deescal.command import Out, RunUnlessNamed, require, split_overrides, user_errors_are_one_line

Data = Annotated[str, typer.Option("--data", help="Folder of `deescal dataset build`: a path or s3://bucket/prefix.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Registry name, folder or Hugging Face id; the same as model=NAME.")
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file, as in configs/train/; without it, SmolLM2-135M on CPU.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides of the config, as optim.epochs=1.")
]


app = typer.Typer(
    cls=RunUnlessNamed,
    no_args_is_help=True,
    help="Fine-tune a small model on a dataset. `deescal train --data URI --out URI` is `deescal train run ...`.",
)


@app.command()
@user_errors_are_one_line
def run(data: Data, out: Out, model: Model = None, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Fine-tune one model; a run at --out that was stopped is continued."""
    from deescal.config import load_config
    from deescal.train.config import TrainConfig
    from deescal.train.job import TrainingFailed, train
    from deescal.train.terminal import Terminal, show_ended

    settings = load_config(config, TrainConfig, _overrides(overrides, model))
    with Terminal() as terminal:
        try:
            ended = train(data, out, settings, terminal)
        except TrainingFailed as error:
            terminal.failed(str(error))
            raise typer.Exit(1) from error
    show_ended(ended, terminal.console)
    if not ended.good:
        raise typer.Exit(1)


@app.command()
@user_errors_are_one_line
def sweep(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG... [key=value]...", help="YAML files, a run each; then overrides of all."),
    ],
    data: Data,
    out: Out,
    model: Model = None,
    at_once: Annotated[int, typer.Option(min=1, help="Runs at the same time, as far as the cluster has room.")] = 1,
) -> None:
    """Fine-tune with several configs in one Ray job, and compare them in one table."""
    from deescal.train.sweep import sweep_with_table

    files, overrides = split_overrides(configs)
    require(files, "no CONFIG given: YAML files, a run each")
    if not sweep_with_table(data, out, files, _overrides(overrides, model), at_once):
        raise typer.Exit(1)


@app.command()
@user_errors_are_one_line
def plan(
    model: Model = None,
    gpus: Annotated[str | None, typer.Option(help="Kind and number, as 'A100-80 x4'; without it, this CPU.")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset whose tokens are counted.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Say what a run would take: memory per GPU, steps, hours, and whether it fits."""
    from deescal.config import load_config
    from deescal.train.config import TrainConfig
    from deescal.train.plan import plan as estimate
    from deescal.train.plan import show_plan

    found = estimate(load_config(config, TrainConfig, _overrides(overrides, model)), gpus, data)
    show_plan(found)
    if not found.fits:
        raise typer.Exit(1)


def _overrides(given: list[str] | None, model: str | None) -> list[str]:
    return [*([f"model={model}"] if model else []), *(given or [])]
