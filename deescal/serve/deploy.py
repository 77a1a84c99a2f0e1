"""`deescal serve`: an endpoint on this machine's own Ray, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deescal.cluster import start_ray
from deescal.config import Config
from deescal.engine import engine_environment
from deescal.errors import UserError, one_line
from deescal.serve.adapters import check_adapter
from deescal.serve.config import ServeConfig
from deescal.serve.keys import read_keys

APPLICATION = "deescal"
IMPORT_PATH = "deescal.serve.endpoint:application"
# Ray Serve's own settings, of every process of Ray, so set before it starts; on a cluster by scripts/node_env.sh.
# Replicas run the API in their main loop and stream to the proxy over gRPC: a token costs less time.
RAY_ENV = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # replicas' own ports would be open beside the proxy
}

Say = Callable[[str], None]


class ServeFailed(Exception):
    """No replica came up; the message is one line."""


class Live(Config):
    """An endpoint that answers."""

    url: str
    models: list[str]


def prepare(config: ServeConfig) -> ServeConfig:
    """Everything that can be wrong before Ray starts; the config with the adapters' digests.

    Raises:
        UserError: no such model, an adapter that does not fit, open to others without a key, a port that is taken.
    """
    from deescal.dataset.chat import load_tokenizer

    load_tokenizer(config.llm.model)
    keys = read_keys(config.keys.file)
    if not keys and not is_loopback(config.http.host):
        raise UserError(
            f"http.host={config.http.host}: without API keys it listens on this machine only; set DEESCAL_API_KEYS or "
            "keys.file, or http.host=127.0.0.1"
        )
    if not os.environ.get("RAY_ADDRESS"):
        _check_port(config.http.host, config.http.port)
    slots = config.lora
    adapters = [check_adapter(a, config.llm.model, slots) for a in config.adapters] if slots else []
    required = config.keys.model_copy(update={"required": config.keys.required or bool(keys)})
    return config.model_copy(update={"adapters": adapters, "keys": required})


def serve_config(config: ServeConfig) -> dict[str, Any]:
    """The same endpoint as a Serve config file holds it (`serve deploy`)."""
    fields = config.model_dump(mode="json", exclude={"adapters", "ray"}, exclude_defaults=True)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.http.host, "port": config.http.port},
        "logging_config": {"log_level": "WARNING"},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": fields,
                "deployments": [
                    {"name": "Endpoint", "user_config": {"adapters": [a.model_dump() for a in config.adapters]}}
                ],
            }
        ],
    }


def deploy(config: ServeConfig, say: Say = print) -> Live:
    """Start, or update, the endpoint and wait until it answers.

    Args:
        config: of `prepare`.

    Raises:
        UserError: this machine has less than is asked for.
        ServeFailed: no replica came up.
    """
    from ray import serve

    for name, value in {**RAY_ENV, **engine_environment(config.llm)}.items():
        os.environ.setdefault(name, value)
    demand = config.replicas.demand(config.llm.tensor_parallel_size)
    start_ray(config.ray, demand["CPU"], demand)
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": config.http.host, "port": config.http.port},
        logging_config={"log_level": "WARNING"},
    )
    apply(serve_config(config))
    wait(config.replicas.start_s, say)
    return Live(url=url_of(config), models=[config.served_name, *(a.name for a in config.adapters)])


def apply(schema: dict[str, Any]) -> None:
    """Hand a Serve config to the controller; what differs from the running one is brought about."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # `serve deploy` sends the same to the dashboard, which a laptop's Ray does not have.
    client = _get_global_client()
    assert client is not None  # Serve has been started
    client.deploy_apps(ServeDeploySchema.model_validate(schema))


def wait(limit_s: float, say: Say = print) -> None:
    """Until the application runs as it was last asked to.

    Raises:
        ServeFailed: Serve gave up, or `limit_s` seconds are over.
    """
    from ray import serve

    began, told = time.monotonic(), ""
    while True:
        found = serve.status().applications.get(APPLICATION)
        state = found.status.value if found else "NOT_STARTED"
        if state == "RUNNING":
            return
        if found and state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ServeFailed(explain(found))
        waited = time.monotonic() - began
        if waited > limit_s:
            raise ServeFailed(f"no replica is up after {limit_s:g} s ({state.lower()}); replicas.start_s is that limit")
        replicas = found.deployments["Endpoint"].replica_states if found and found.deployments else {}
        text = ", ".join(f"{n} {str(s).lower()}" for s, n in replicas.items() if n) or state.lower().replace("_", " ")
        if text != told:
            told = text
            say(f"{waited:5.0f} s  replicas: {text}")
        time.sleep(0.5)


def explain(found: Any) -> str:
    """The cause of a failed deployment in one line: our own error where it was one, else the last of the traceback."""
    message = "\n".join([found.message, *(d.message for d in found.deployments.values())])
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("deescal.errors.UserError: ")]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (ours or errors or lines or ["the application failed"])[-1].removeprefix("deescal.errors.UserError: ")


def url_of(config: ServeConfig) -> str:
    host = "127.0.0.1" if config.http.host in ("0.0.0.0", "::") else config.http.host
    return f"http://{host}:{config.http.port}"


def stop() -> None:
    """Take the endpoint down; replicas may finish the requests they have for `replicas.drain_s`."""
    from ray import serve

    serve.shutdown()


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that what runs can be drained; use it once Ray has started."""
    stopped = threading.Event()
    before = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"http.port={port} on {host}: {one_line(error)}; give another") from error
