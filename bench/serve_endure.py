"""An endpoint under load for long, its replica killed in the middle and replaced once more by a changed config.

    python -m bench.serve_endure [--requests 2000] [--concurrency 32] [--data DATASET] [--model smollm2-135m]

Clients ask real conversations for replies of mixed lengths and try again where they are turned away, as
`deescal.serve.client` does. After a third of the answers the replica is killed (kill -9); after two thirds a config
that needs a new replica is applied, as by `deescal serve` on a cluster. Prints what was lost, retries, latencies and
the memory of the endpoint's processes; exit 1 where a request was lost, nothing was disturbed, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import Any

import psutil

from bench.serve import running
from deescal.config import load_config
from deescal.errors import UserError
from deescal.serve import deploy, live
from deescal.serve.answers import Answer, EndpointError
from deescal.serve.client import Endpoint, ask_all
from deescal.serve.config import ServeConfig
from deescal.serve.load import deal, encounters, read_conversations

LENGTHS = (1, 4, 8, 16, 32, 64)  # tokens of a reply
GROWTH = 1.15  # of memory between the first and the last quarter of an undisturbed stretch: more is a leak


class Watch:
    """Disturbs at the right moments, and samples memory."""

    def __init__(self, server: int, config: ServeConfig, n: int) -> None:
        self._server, self._config, self._n = server, config, n
        self.done = 0
        self.killed = self.updated = False
        self.memory: list[tuple[int, float]] = []  # answers so far, GiB of replica and engine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(600)

    def _run(self) -> None:
        connect(self._config.http.port)
        while not self._stop.wait(2):
            replicas = [p for p in psutil.Process(self._server).children(recursive=True) if is_replica(p)]
            with suppress(psutil.NoSuchProcess):
                whole = [q for p in replicas for q in [p, *p.children(recursive=True)]]
                self.memory.append((self.done, sum(q.memory_info().rss for q in whole) / 2**30))
            if not self.killed and self.done > self._n / 3 and replicas:
                replicas[0].kill()
                self.killed = True
                print(f"{self.done} answers: killed the replica (pid {replicas[0].pid})", flush=True)
            if not self.updated and self.done > 2 * self._n / 3:
                changed = self._config.model_copy(
                    update={"limits": self._config.limits.model_copy(update={"max_tokens": 512})}
                )
                deploy.apply(deploy.serve_config(changed))
                self.updated = True
                print(f"{self.done} answers: another config, which needs another replica", flush=True)


def is_replica(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return any("ServeReplica:deescal:Endpoint" in part for part in process.cmdline())
    return False


def connect(port: int) -> None:
    """The endpoint answers a moment before it leaves word where its Ray is."""
    for _ in range(60):
        with suppress(UserError):
            live.connect(port)
            return
        time.sleep(1)
    raise SystemExit(f"cannot connect to the Ray of the endpoint on port {port}")


async def put_load(url: str, requests: list[dict[str, Any]], concurrency: int, watch: Watch) -> list[Answer | str]:
    def count(number: int, answer: Answer | EndpointError) -> None:
        watch.done += 1
        if watch.done % 100 == 0:
            print(f"{watch.done} answers", flush=True)

    # Longer than it takes to start a replica, with waits that double up to a minute.
    async with Endpoint(url, timeout_s=600, retries=12, backoff_s=1.0) as endpoint:
        return await ask_all(endpoint, requests, concurrency, count)


def grew(memory: list[tuple[int, float]], first: float, last: float) -> float:
    """Memory of the last quarter over that of the first, in a stretch given by answers."""
    inside = [gib for done, gib in memory if first <= done <= last]
    quarter = max(1, len(inside) // 4)
    return statistics.median(inside[-quarter:]) / statistics.median(inside[:quarter]) if inside else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--data", help="folder of a dataset; without it, made-up conversations")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("overrides", nargs="*", help="key=value of the endpoint's config")
    args = parser.parse_args()
    given = [f"llm.model={args.model}", "limits.requests_per_minute=0", *args.overrides]
    config = load_config(None, ServeConfig, given)
    rng = random.Random(0)
    prompts = islice(deal(read_conversations(args.data) if args.data else encounters(), 0), args.requests)
    requests = [
        {"model": config.served_name, "messages": p.messages, "max_tokens": rng.choice(LENGTHS), "temperature": 0}
        for p in prompts
    ]
    with running("ours", config, args.overrides) as (url, server):
        http = config.http.model_copy(update={"port": int(url.rsplit(":", 1)[1])})
        watch, began = Watch(server, config.model_copy(update={"http": http}), len(requests)), time.monotonic()
        answers = asyncio.run(put_load(url, requests, args.concurrency, watch))
        seconds = time.monotonic() - began
        watch.stop()
    good = [a for a in answers if isinstance(a, Answer)]
    lost = [a for a in answers if not isinstance(a, Answer)]
    third = len(requests) / 3
    growths = [grew(watch.memory, 0.1 * third, third), grew(watch.memory, 2.3 * third, 3 * third)]
    latencies = sorted(a.latency_s for a in good)
    print(
        f"{len(good)} of {len(requests)} answered in {seconds:.0f} s, {len(lost)} lost, "
        f"{sum(a.attempts - 1 for a in good)} retries, latency p50 {latencies[len(latencies) // 2]:.1f} s, "
        f"p99 {latencies[int(len(latencies) * 0.99)]:.1f} s"
    )
    print(
        f"memory of replica and engine: {watch.memory[0][1]:.2f} GiB at first, {watch.memory[-1][1]:.2f} at last; last "
        f"quarter over first {growths[0]:.2f} before the kill, {growths[1]:.2f} after the update"
    )
    for message in sorted(set(map(str, lost)))[:5]:
        print(f"lost: {message}")
    if lost or not (watch.killed and watch.updated) or max(growths) > GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    main()
