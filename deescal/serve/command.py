"""`deescal serve`: start an endpoint, change its adapters while it runs, look at it, stop it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from deescal.command import RunUnlessNamed, make_console, require, user_errors_are_one_line

if TYPE_CHECKING:
    from rich.console import Console

    from deescal.serve.adapters import Adapter
    from deescal.serve.config import ServeConfig
    from deescal.serve.deploy import Live
    from deescal.serve.live import State

Model = Annotated[
    str | None, typer.Option("--model", help="The base: registry name, folder or Hugging Face id; as llm.model=NAME.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=URI", help="Served beside the base under this name; may be repeated."),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file, as in configs/serve/; without it, SmolLM2-135M on this CPU.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides of the config, as http.port=8001.")
]
Port = Annotated[int, typer.Option(help="Of the endpoint on this machine; a cluster is named by RAY_ADDRESS.")]

_LOOK_S = 2.0  # between looks whether `deescal serve stop` has ended it

app = typer.Typer(
    cls=RunUnlessNamed,
    no_args_is_help=True,
    help="A model and its adapters behind an OpenAI-compatible API. `deescal serve --model NAME` is "
    "`deescal serve run --model NAME`.",
)


@app.command()
@user_errors_are_one_line
def run(
    model: Model = None,
    adapter: Adapters = None,
    config: ConfigFile = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="On a cluster: end this command when the endpoint answers.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Serve until Ctrl-C; requests under way are then finished."""
    from deescal.serve import deploy, live

    console = make_console()
    ready = deploy.prepare(_config(config, model, adapter, overrides))
    require(
        not detach or os.environ.get("RAY_ADDRESS"),
        "--detach: this machine's own Ray would end with the command; set RAY_ADDRESS to a cluster",
    )
    try:
        served = deploy.deploy(ready, lambda line: console.print(line, style="dim"))
    except deploy.ServeFailed as error:
        console.print(f"deescal: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    state = live.describe()
    show_live(served, state, ready.keys.required, console)
    if detach:
        return
    console.print("Ctrl-C stops it", style="dim")
    with deploy.until_stopped() as stopped, live.noted_address(ready.http.port):
        n_missed = 0  # a controller that is started anew is soon back
        while not stopped.wait(_LOOK_S) and n_missed < 3:
            n_missed = 0 if deploy.is_there() else n_missed + 1
        if not stopped.is_set():
            console.print("stopped by another command", style="dim")
            return
        console.print("stopping: requests under way are finished first", style="dim")
        deploy.stop(ready.replicas.drain_s)


@app.command()
@user_errors_are_one_line
def load(
    adapters: Annotated[list[str], typer.Argument(metavar="NAME=URI...", help="Adapters to serve from now on.")],
    port: Port = 8000,
) -> None:
    """Add adapters to a running endpoint, or give a name other weights; no request fails."""
    from deescal.serve.adapters import parse_adapter

    _change([parse_adapter(text) for text in adapters], [], port)


@app.command()
@user_errors_are_one_line
def unload(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Adapters to serve no longer.")],
    port: Port = 8000,
) -> None:
    """Take adapters out of a running endpoint."""
    _change([], names, port)


@app.command()
@user_errors_are_one_line
def status(port: Port = 8000) -> None:
    """Say where it listens, which models it has, and how its replicas are; exit 1 where something is wrong."""
    from deescal.serve import live

    live.connect(port)
    state = live.describe()
    show_state(state)
    if state.status != "running":
        raise typer.Exit(1)


@app.command()
@user_errors_are_one_line
def stop(port: Port = 8000) -> None:
    """End an endpoint; requests under way are finished first."""
    from deescal.serve import deploy, live

    live.connect(port)
    deploy.stop(live.running_config().replicas.drain_s)
    print("stopped")


@app.command("config")
@user_errors_are_one_line
def write_config(
    model: Model = None, adapter: Adapters = None, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Print the same endpoint as a file for Ray's `serve deploy`."""
    import yaml

    from deescal.serve.deploy import prepare, serve_config

    ready = prepare(_config(config, model, adapter, overrides), on_nodes=True)
    print(yaml.safe_dump(serve_config(ready), sort_keys=False), end="")


def _config(
    file: str | None, model: str | None, adapters: list[str] | None, overrides: list[str] | None
) -> ServeConfig:
    from deescal.config import load_config
    from deescal.serve.adapters import parse_adapter
    from deescal.serve.config import ServeConfig

    given = load_config(file, ServeConfig, [*([f"llm.model={model}"] if model else []), *(overrides or [])])
    if not adapters:
        return given
    both = [*given.adapters, *(parse_adapter(text) for text in adapters)]
    return ServeConfig.model_validate({**given.model_dump(), "adapters": [a.model_dump() for a in both]})


def _change(load: Sequence[Adapter], unload: Sequence[str], port: int) -> None:
    from deescal.serve import deploy, live

    live.connect(port)
    try:
        state = live.change_adapters(load, unload)
    except deploy.ServeFailed as error:
        print(f"deescal: {error}; the adapters are as they were")
        raise typer.Exit(1) from error
    show_state(state)


def show_live(served: Live, state: State, has_keys: bool, console: Console) -> None:
    """What somebody needs who wants to use it."""
    who = "with an API key (Authorization: Bearer ...)" if has_keys else "from this machine only: no API key is set"
    console.print(f"serving {', '.join(served.models)}", markup=False)
    console.print(f"  API      {state.url}/v1   {who}", markup=False, soft_wrap=True)
    console.print(f"  metrics  {', '.join(state.metrics_urls)}", markup=False, soft_wrap=True)
    if served.url != state.url:
        console.print(f"  Serve runs on this cluster already: {served.url} of the config is not used", style="yellow")


def show_state(state: State) -> None:
    """An endpoint's state as a table."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_row("API", f"{state.url}/v1")
    table.add_row("status", state.status + (f": {state.message}" if state.message else ""))
    table.add_row("replicas", ", ".join(f"{n} {name}" for name, n in state.replicas.items()) or "none")
    table.add_row("base", state.base)
    for adapter in state.adapters:
        table.add_row("adapter", f"{adapter.name}   {adapter.digest}   {adapter.uri}")
    table.add_row("metrics", ", ".join(state.metrics_urls))
    make_console().print(table, soft_wrap=True)
