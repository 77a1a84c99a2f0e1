"""`deescal bench`: how fast what runs answers."""

from __future__ import annotations

from typing import Annotated

import typer

from deescal.command import Out, make_console, user_errors_are_one_line

app = typer.Typer(no_args_is_help=True, help="How fast a running service answers.")


@app.callback()
def _group() -> None:
    """How fast a running service answers."""


@app.command()
@user_errors_are_one_line
def serve(
    url: Annotated[str, typer.Argument(help="Of any OpenAI-compatible API; its key: DEESCAL_API_KEY.")],
    model: Annotated[str, typer.Option("--model", help="As the API names it.")],
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Folder of `deescal dataset build`, whose test conversations are sent; else made-up ones."
        ),
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Clients at once, a level each.")] = "1,4,16",
    requests: Annotated[int, typer.Option(help="Requests of a level.")] = 64,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Further settings, as max_tokens=128.")
    ] = None,
) -> None:
    """Put load on an endpoint: time to first token and per token, tokens a second; a table, a plot, a page."""
    from deescal.config import load_config
    from deescal.serve.load import LoadConfig, run_load
    from deescal.serve.load_report import show_load

    given = [f"concurrency=[{concurrency}]", f"requests={requests}", *(overrides or [])]
    console = make_console()
    result = run_load(url, model, load_config(None, LoadConfig, given), out, data, console)
    show_load(result, console)
    if result.lost:
        raise typer.Exit(1)
