"""What is done to an endpoint that runs: its adapters changed, its state shown, an end made of it.

These are for whoever runs it, not for its clients: they go to Ray, not through the API.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deescal.errors import UserError
from deescal.models import cache_folder
from deescal.serve.adapters import Adapter, check_adapter
from deescal.serve.config import ServeConfig
from deescal.serve.deploy import (
    APPLICATION,
    DEPLOYMENT,
    Say,
    ServeFailed,
    applied,
    apply,
    check_on_nodes,
    explain,
    url_of,
    wait,
)
from deescal.storage import read_json, write_json

_CHANGE_S = 300.0  # for replicas to take a change of adapters


@dataclass(frozen=True)
class State:
    """An endpoint as Ray Serve knows it."""

    url: str
    status: str  # running, deploying, unhealthy, ...
    message: str  # of Serve, where something is wrong
    replicas: dict[str, int]  # state -> how many
    base: str
    adapters: list[Adapter]
    metrics_urls: list[str]  # for Prometheus, one a node


def connect(port: int) -> None:
    """Join the Ray of the endpoint: RAY_ADDRESS, or the one that `deescal serve` started here for that port.

    Raises:
        UserError: there is none.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        address = _noted_address(port)
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a Ray that a process starts for itself has it
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"no endpoint on port {port}: Ray at {address} does not answer") from error


@contextmanager
def noted_address(port: int) -> Iterator[None]:
    """Where `connect` finds this process' own Ray, as long as the endpoint is there."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        yield
        return
    address = ray.get_runtime_context().gcs_address
    write_json(str(_note(port)), {"address": address})
    try:
        yield
    finally:
        if _note(port).is_file() and read_json(str(_note(port)))["address"] == address:  # of no newer one
            _note(port).unlink()


def change_adapters(load: Sequence[Adapter], unload: Sequence[str], say: Say = print) -> State:
    """Load and unload adapters while requests go on; when one is refused by a replica, all are as they were.

    Args:
        load: new ones, or other content under a name that is there.
        unload: names.

    Raises:
        UserError: a name that is not there, or an adapter that does not fit; nothing has changed.
        ServeFailed: a replica could not load it; the change was taken back.
    """
    before = _running()
    config = _config_of(before)
    there = {adapter.name: adapter for adapter in config.adapters}
    if missing := sorted(set(unload) - set(there)):
        raise UserError(f"adapter '{missing[0]}' is not loaded: {', '.join(there) or 'none is'}")
    if config.lora is None:
        raise UserError("this endpoint was started with lora=null: it takes no adapters")
    kept = {name: a for name, a in there.items() if name not in unload}
    new = {a.name: check_adapter(a, config.llm.model, config.lora) for a in load}
    wanted = config.model_validate({**config.model_dump(), "adapters": list({**kept, **new}.values())})
    check_on_nodes(tuple(new.values()))
    _put_adapters(before, wanted.adapters)
    try:
        wait(_CHANGE_S, say)
    except ServeFailed:
        _put_adapters(before, config.adapters)
        with suppress(ServeFailed):  # the cause is the first one's
            wait(config.replicas.start_s, say)  # a replica that could not load it is replaced
        raise
    return describe()


def running_config() -> ServeConfig:
    """The config of the endpoint that runs, adapters included. Raises UserError where there is none on this Ray."""
    return _config_of(_running())


def describe() -> State:
    """The endpoint's state.

    Raises:
        UserError: there is none on this Ray.
    """
    import ray
    from ray import serve

    schema = _running()
    config = _config_of(schema)
    found = serve.status().applications[APPLICATION]
    bad = found.status.value not in ("RUNNING", "DEPLOYING")
    replicas = found.deployments[DEPLOYMENT].replica_states if found.deployments else {}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return State(
        url=url_of(config),
        status=found.status.value.lower(),
        message=explain(found) if bad else "",
        replicas={str(state).lower(): n for state, n in replicas.items() if n},
        base=config.served_name,
        adapters=list(config.adapters),
        metrics_urls=[f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes],
    )


def _running() -> dict[str, Any]:
    """The Serve config that was last applied."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    applications = applied(client) if client else {}
    if client is None or APPLICATION not in applications:
        raise UserError("no endpoint of `deescal serve` runs on this Ray")
    options = client.http_config
    return {
        "http_options": {"host": options.host, "port": options.port},
        "applications": [applications[APPLICATION].model_dump(exclude_unset=True)],
    }


def _config_of(schema: dict[str, Any]) -> ServeConfig:
    (application,) = schema["applications"]
    adapters = application["deployments"][0]["user_config"]["adapters"]
    http = {**application["args"].get("http", {}), **schema["http_options"]}  # where Serve really listens
    return ServeConfig.model_validate({**application["args"], "http": http, "adapters": adapters})


def _put_adapters(schema: dict[str, Any], adapters: Sequence[Adapter]) -> None:
    (application,) = schema["applications"]
    deployment = {**application["deployments"][0], "user_config": {"adapters": [a.model_dump() for a in adapters]}}
    apply({**schema, "applications": [{**application, "deployments": [deployment]}]})


def _note(port: int) -> Path:
    return cache_folder() / "serve" / f"{port}.json"


def _noted_address(port: int) -> str:
    file = _note(port)
    if not file.is_file():
        raise UserError(f"no endpoint on port {port} of this machine; on a cluster set RAY_ADDRESS")
    return str(read_json(str(file))["address"])
