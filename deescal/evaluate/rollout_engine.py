"""The engine of rollouts: one vLLM that stays loaded over all turns, as a Ray actor; REQUESTS in, ANSWERS out.

`deescal.score` would load an engine for each turn. Every dialogue stays with one engine, whose prefix cache has it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import pyarrow as pa

from deescal.cluster import start_ray, users_errors
from deescal.config import load_engine
from deescal.engine import load_in_process
from deescal.evaluate.contestants import Contestant
from deescal.evaluate.rollout import Ask
from deescal.schema import Row, to_table
from deescal.score.config import SamplingConfig, ScoreConfig
from deescal.score.exchange import lora_requests, read_output, sampling_parameters
from deescal.score.offline import to_prompts
from deescal.score.tables import ANSWERS, REQUESTS, answer_row
from deescal.serve.adapters import Adapter


class RolloutEngine:
    """One loaded base with its adapters."""

    def __init__(self, config: ScoreConfig, sampling: SamplingConfig, adapters: Sequence[Adapter]) -> None:
        self._llm = load_in_process(config.llm, config.lora if adapters else None)
        self._config, self._sampling = config, sampling
        self._adapters = lora_requests(adapters)

    def answer(self, requests: pa.Table) -> pa.Table:
        """REQUESTS -> ANSWERS, in order.

        One contestant after the other, so that nobody's seconds hold another's. Latency is that of all replies of one,
        which come together.
        """
        room = self._config.llm.max_model_len - (self._sampling.max_tokens or 0)
        rows = to_prompts(requests, self._config.llm.model, room).to_pylist()
        fit = [row for row in rows if row["error"] is None]
        found: dict[str, Row] = {}
        for _, of_one in groupby(sorted(fit, key=_adapter), key=_adapter):
            asked = list(of_one)
            asked_at_s, start = time.time(), time.perf_counter()
            outputs = self._generate(asked)
            took = {"asked_at_s": asked_at_s, "latency_s": time.perf_counter() - start}
            found |= {
                row["request_id"]: read_output(row, output) | took for row, output in zip(asked, outputs, strict=True)
            }
        answers = [answer_row(row, **found.get(row["request_id"], {"error": row["error"]})) for row in rows]
        return to_table(answers, ANSWERS)

    def _generate(self, rows: Sequence[Row]) -> list[Any]:
        parameters = [sampling_parameters(row, self._sampling) for row in rows]
        prompts: Any = [{"prompt_token_ids": list(map(int, row["prompt_ids"]))} for row in rows]
        # None in the list is the base; vLLM's annotation forgets it.
        adapters: Any = [self._adapters[row["adapter"]] if row["adapter"] else None for row in rows]
        lora = adapters if self._adapters else None
        return list(self._llm.generate(prompts, parameters, use_tqdm=False, lora_request=lora))


def _adapter(row: Row) -> str:
    return row["adapter"] or ""


@contextmanager
def engines(
    engine: str,
    config: ScoreConfig,
    sampling: SamplingConfig,
    contestants: Sequence[Contestant],
    at_once: Mapping[str, float] | None = None,
) -> Iterator[Ask]:
    """Engines that answer while the block runs.

    Args:
        engine: import path of the class.
        config: with the model.
        at_once: what these and others that are loaded at the same time ask for, by Ray's names; None: these alone.

    Raises:
        UserError: Ray has less than they ask for.
    """
    resources = config.workers
    demand = at_once or config.demand
    start_ray(config.ray, demand["CPU"] + 1, demand)
    import ray

    adapters = [c.adapter for c in contestants if c.adapter]
    shards = config.llm.tensor_parallel_size  # each on a GPU of its own, in one actor
    options = {
        **resources.ray_options(),
        "num_cpus": resources.num_cpus * shards,
        "num_gpus": resources.num_gpus * shards,
    }
    actor = ray.remote(load_engine(engine)).options(**options)
    actors = [actor.remote(config, sampling, adapters) for _ in range(resources.workers)]

    def ask(requests: Sequence[Row]) -> Mapping[str, Row]:
        shares: list[list[Row]] = [[] for _ in actors]
        for request in requests:
            beginning = str(request["messages"][0]["content"]).encode()
            shares[zlib.crc32(beginning) % len(actors)].append(request)
        waiting = [a.answer.remote(to_table(s, REQUESTS)) for a, s in zip(actors, shares, strict=True) if s]
        with users_errors():
            return {row["request_id"]: row for table in ray.get(waiting) for row in table.to_pylist()}

    try:
        yield ask
    finally:
        for one in actors:
            ray.kill(one)
