"""Our endpoint against vLLM's own server: same model, engine settings, cores and load, one after the other in one run.

    python -m bench.serve [--data DATASET] [--rounds 1] [--requests 64] [--concurrency 16] [--model smollm2-135m]
        [key=value ...]

Each server is started afresh in every round, in turn, and gets the same conversations in the same order: streams,
greedy, `--max-tokens` of reply. Prints throughput, time to first token and time per token of both, and their ratios.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from deescal.config import load_config
from deescal.engine import engine_arguments, engine_environment, thread_environment
from deescal.models import resolve
from deescal.serve.config import ServeConfig
from deescal.serve.load import LoadConfig, run_load

START_S = 600
WAYS = ("vLLM", "ours")


def command_of(way: str, config: ServeConfig, overrides: Sequence[str], port: int) -> list[str]:
    """How a server is started."""
    if way == "ours":
        given = [f"llm.model={config.llm.model}", *overrides, f"http.port={port}", "limits.requests_per_minute=0"]
        return [sys.executable, "-m", "deescal", "serve", "run", *given]
    arguments = engine_arguments(config.llm, on_cpu=not config.replicas.num_gpus, lora=config.lora)
    flags = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "structured_outputs_config":
            flags += [flag, '{"backend": "xgrammar", "disable_any_whitespace": true}']
        elif value is True:
            flags.append(flag)
        elif value is False:
            flags.append(f"--no-{name.replace('_', '-')}")
        else:
            flags += [flag, str(value)]
    served = ["--served-model-name", config.served_name, "--port", str(port), "--disable-uvicorn-access-log"]
    # What `vllm serve` runs, which asks for its package's version under a name that the CPU build does not have.
    module = "vllm.entrypoints.openai.api_server"
    return [sys.executable, "-m", module, "--model", resolve(config.llm.model), *flags, *served]


@contextmanager
def running(way: str, config: ServeConfig, overrides: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A server's URL and process id, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = thread_environment(config.llm, config.replicas.num_cpus)
    environment = {**os.environ, **engine_environment(config.llm), **threads}
    with tempfile.TemporaryFile("w+") as log:
        command = command_of(way, config, overrides, port)
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_S
            while not answers(f"http://127.0.0.1:{port}"):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{way} did not start:\n{log.read()[-4000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def measure(way: str, config: ServeConfig, overrides: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """The level as `deescal bench serve` reports it."""
    load = LoadConfig(concurrency=(args.concurrency,), requests=args.requests, max_tokens=args.max_tokens)
    with running(way, config, overrides) as (url, _), tempfile.TemporaryDirectory() as folder:
        result = run_load(url, config.served_name, load, folder, args.data)
    (level,) = result.levels
    return level


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", help="folder of a dataset; without it, made-up conversations")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("overrides", nargs="*", help="key=value of the endpoint's config, for both")
    args = parser.parse_args()
    config = load_config(None, ServeConfig, [f"llm.model={args.model}", *args.overrides])
    for number in range(1, args.rounds + 1):
        rates: dict[str, float] = {}
        # In turn, the other first in the next round: what drifts on a machine falls on both.
        for way in WAYS if number % 2 else WAYS[::-1]:
            level = measure(way, config, args.overrides, args)
            rates[way] = level["output_tokens_per_s"]
            print(
                f"round {number} {way:5s} {rates[way]:7.1f} tokens/s, first token p50 {level['first_token_p50_s']:.3f} "
                f"p95 {level['first_token_p95_s']:.3f} s, per token p50 {1000 * level['per_token_p50_s']:.0f} p95 "
                f"{1000 * level['per_token_p95_s']:.0f} ms, lost {level['failed']}",
                flush=True,
            )
        print(f"round {number} ours / vLLM {rates['ours'] / rates['vLLM']:.2f}", flush=True)


if __name__ == "__main__":
    main()
