"""`deescal serve`: an endpoint on this machine's own Ray, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deescal.cluster import is_one_node, on_every_node, start_ray, users_errors
from deescal.config import Config
from deescal.engine import engine_environment
from deescal.errors import UserError, one_line
from deescal.serve.adapters import Adapter, bring_adapter, check_adapter
from deescal.serve.config import ServeConfig
from deescal.serve.guard import is_local_host
from deescal.serve.keys import read_keys

APPLICATION, DEPLOYMENT = "deescal", "Endpoint"
IMPORT_PATH = "deescal.serve.endpoint:application"
# Ray Serve's own settings, of every process of Ray, so set before it starts; on a cluster by scripts/node_env.sh.
# Replicas run the API in their main loop and stream to the proxy over gRPC: a token costs less time.
RAY_ENV = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # replicas' own ports would be open beside the proxy
}

Say = Callable[[str], None]
_STOP_S = 30.0  # for Serve itself, beyond what replicas may take


class ServeFailed(Exception):
    """No replica came up; the message is one line."""


class Live(Config):
    """An endpoint that answers."""

    url: str
    models: list[str]


def prepare(config: ServeConfig, *, on_nodes: bool = False) -> ServeConfig:
    """Everything that can be wrong before Ray starts; the config with the adapters' digests.

    Args:
        on_nodes: it is for other machines: keys that are `required` need not be here, a replica there looks for them.

    Raises:
        UserError: no such model, an adapter that does not fit, or open to others without a key.
    """
    from deescal.dataset.chat import load_tokenizer

    load_tokenizer(config.llm.model)
    keys = None if on_nodes and config.keys.required else read_keys(config.keys.file)
    if keys is not None and not keys and not is_local_host(config.http.host):
        raise UserError(
            f"http.host={config.http.host}: without API keys it listens on this machine only; set DEESCAL_API_KEYS or "
            "keys.file, or http.host=127.0.0.1"
        )
    slots = config.lora
    adapters = tuple(check_adapter(a, config.llm.model, slots) for a in config.adapters) if slots else ()
    required = config.keys.model_copy(update={"required": config.keys.required or bool(keys)})
    return config.model_copy(update={"adapters": adapters, "keys": required})


def http_options(config: ServeConfig) -> dict[str, Any]:
    """Of Ray's proxy. A request that no replica takes, as none is up, ends after the longest that a start may take."""
    wait_s = config.replicas.start_s + config.limits.request_timeout_s
    return {"host": config.http.host, "port": config.http.port, "request_timeout_s": wait_s}


def serve_config(config: ServeConfig, runtime_env: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same endpoint as a Serve config file holds it (`serve deploy`).

    Args:
        runtime_env: that brings the code to nodes which have not got it.
    """
    # All fields, defaults too: a section that lacks some is filled from its place's default, not from its class'.
    fields = config.model_dump(mode="json", exclude={"adapters", "ray"})
    return {
        "proxy_location": "EveryNode",
        "http_options": http_options(config),
        "logging_config": {"log_level": "WARNING"},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "runtime_env": dict(runtime_env or {}),
                "args": fields,
                "deployments": [
                    {"name": DEPLOYMENT, "user_config": {"adapters": [a.model_dump() for a in config.adapters]}}
                ],
            }
        ],
    }


def deploy(config: ServeConfig, say: Say = print) -> Live:
    """Start, or update, the endpoint and wait until it answers.

    Args:
        config: of `prepare`.

    Raises:
        UserError: a port that is taken, less of this machine than is asked for, a node that cannot bring an adapter.
        ServeFailed: no replica came up.
    """
    from ray import serve

    for name, value in {**RAY_ENV, **engine_environment(config.llm)}.items():
        os.environ.setdefault(name, value)
    demand = config.replicas.demand(config.llm.tensor_parallel_size)
    if not os.environ.get("RAY_ADDRESS"):
        _check_port(config.http.host, config.http.port)
    start_ray(config.ray, max(os.cpu_count() or 1, demand["CPU"]), demand)
    check_on_nodes(config.adapters)
    serve.start(proxy_location="EveryNode", http_options=http_options(config), logging_config={"log_level": "WARNING"})
    apply(serve_config(config, _code_of_this_job()))
    wait(config.replicas.start_s, say)
    return Live(url=url_of(config), models=[config.served_name, *(a.name for a in config.adapters)])


def apply(schema: dict[str, Any]) -> None:
    """Hand a Serve config to the controller; what differs from the running one is brought about.

    Other applications on this Ray stay: Serve takes what a config does not name for deleted.
    """
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    # `serve deploy` sends the same to the dashboard, which a laptop's Ray does not have.
    client = _get_global_client()
    assert client is not None  # Serve has been started
    others = [app.model_dump(exclude_unset=True) for name, app in applied(client).items() if name != APPLICATION]
    client.deploy_apps(ServeDeploySchema.model_validate({**schema, "applications": [*schema["applications"], *others]}))


def applied(client: Any) -> dict[str, Any]:
    """Applications that are there -> what was last applied; the controller keeps that of deleted ones, too."""
    import ray
    from ray import serve

    there = serve.status().applications
    return {name: app for name, app in ray.get(client._controller.get_app_configs.remote()).items() if name in there}


def is_there() -> bool:
    """Whether the endpoint is known to Serve, in whatever state; once Serve has ended it is not."""
    from ray import serve

    try:
        return APPLICATION in serve.status().applications
    except Exception:  # RayActorError and others, of a controller that has gone
        return False


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
            raise ServeFailed(f"not running after {limit_s:g} s ({state.lower()})")
        replicas = found.deployments[DEPLOYMENT].replica_states if found and found.deployments else {}
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
    return f"http://[{host}]:{config.http.port}" if ":" in host else f"http://{host}:{config.http.port}"


def stop(drain_s: float) -> None:
    """Take the endpoint down; replicas get no new requests, and may finish those they have for `drain_s` seconds.

    Serve itself ends with its last application; its shutdown alone would cut off what is under way.
    """
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None or not is_there():
        return
    ray.get(client._controller.delete_apps.remote([APPLICATION]))
    deadline = time.monotonic() + drain_s + _STOP_S
    while is_there() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not serve.status().applications:
        serve.shutdown()


def check_on_nodes(adapters: Sequence[Adapter]) -> None:
    """Raises UserError where a node of the cluster cannot bring an adapter; a replica there would not come up."""
    if is_one_node():
        return  # it has them
    with users_errors():
        for adapter in adapters:
            on_every_node(bring_adapter, adapter)


def _code_of_this_job() -> dict[str, Any]:
    """What `ray job submit` brought along, which replicas on other nodes need, too."""
    import ray

    environment = ray.get_runtime_context().runtime_env
    return {name: environment[name] for name in ("working_dir", "env_vars") if environment.get(name)}


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


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"http.port={port} on {host}: {one_line(error)}; give another") from error
