"""`deescal score`: every row of a table asked of one or several models."""

from __future__ import annotations

from typing import Annotated

import typer

from deescal.command import Out, user_errors_are_one_line

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="Folder of `deescal dataset build`, a Parquet file or a folder of them, or another scoring run.",
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="NAME, or NAME:adapter=URI; several times, or NAME:a=URI:b=URI, for several adapters over one base. With "
        "--endpoint, a name that it serves.",
    ),
]
TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        help="replies: the civilian's next words; features: the judge's thirty; realism: of a column `reply`; "
        "plausibility: the same by the probability of Yes; deescalation: of whole dialogues; pairwise: which of "
        "`first` and `second` is more real.",
    ),
]


@user_errors_are_one_line
def score(
    data: Data,
    model: Models,
    task: TaskOption,
    out: Out,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of a running OpenAI-compatible API, in place of an engine; its key: DEESCAL_API_KEY."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="YAML file; without it, SmolLM2-135M's settings on CPU.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Ask again what has an error.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 1 when any request has an error.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides of the config, as split=train.")
    ] = None,
) -> None:
    """Ask models about every row of a table, offline or at an endpoint; a run at --out that was stopped goes on."""
    from deescal.config import load_config
    from deescal.score import job
    from deescal.score.config import ScoreConfig
    from deescal.score.terminal import Terminal, show_ended

    settings = load_config(config, ScoreConfig, overrides or [])
    with Terminal() as terminal:
        ended = job.score(
            data, out, task, model, settings, endpoint=endpoint, retry_failed=retry_failed, watch=terminal
        )
    show_ended(ended, terminal.console)
    if strict and ended.n_errors:
        raise typer.Exit(1)
