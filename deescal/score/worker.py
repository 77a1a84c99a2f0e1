"""Ray Data's vLLM stage with what it lacks: adapters from local folders, what an answer cost, and an end to poison.

Loaded by Ray's workers only, since it imports vLLM. Beside Ray's own stage
- an adapter is a folder brought into this machine's cache (Ray's loader takes cloud paths only);
- finish reason and cached tokens come from vLLM's output (Ray's drops them);
- the engine sends an answer once, when it is whole (Ray's gets every token of every request through asyncio);
- an error is the row's, and requests that die with their engine are told apart (`deescal.score.suspects`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from deescal.errors import one_line
from deescal.schema import Row
from deescal.score.config import SamplingConfig
from deescal.score.exchange import lora_requests, read_output, sampling_parameters
from deescal.score.suspects import GIVEN_UP, MAX_DEATHS, Circle
from deescal.score.tables import answer_row
from deescal.serve.adapters import Adapter


class EngineWorker(vLLMEngineStageUDF):
    """One engine. Rows of PROMPTS in, with the columns of ANSWERS out."""

    def __init__(
        self,
        data_column: str,
        *,
        sampling: SamplingConfig,
        adapters: Sequence[Adapter],
        deaths: Any,
        **engine: Any,
    ) -> None:
        """
        Args:
            data_column: Ray's, in which rows travel.
            adapters: that requests name.
            deaths: handle of the actor `suspects.Deaths`.
            engine: of Ray's stage.
        """
        self._sampling, self._deaths = sampling, deaths
        self._circle = Circle(engine["batch_size"] * engine["max_concurrent_batches"])
        self.load(data_column, adapters, engine)

    def load(self, data_column: str, adapters: Sequence[Adapter], engine: Mapping[str, Any]) -> None:
        """Load the engine, and bring the adapters; vLLM reads them when they are first asked."""
        self._adapters = lora_requests(adapters)
        super().__init__(data_column, **{**engine, "expected_input_keys": []})

    async def udf(self, batch: list[Row]) -> AsyncIterator[Row]:  # type: ignore[override]
        """A batch's answers as they come, each with Ray's number of its row."""
        ids = [row["request_id"] for row in batch]
        deaths = await self._deaths.unfinished.remote(ids)
        fresh = [i for i, n in zip(ids, deaths, strict=True) if n == 0]
        self._deaths.begin.remote(fresh)  # in one message; a suspect is begun when its turn has come
        tasks = [asyncio.create_task(self._answer(row, n)) for row, n in zip(batch, deaths, strict=True)]
        for answer in asyncio.as_completed(tasks):
            yield await answer
        self._deaths.finish.remote(ids)

    async def _answer(self, row: Row, deaths: int) -> Row:
        place = {self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN]}
        attempts = row["attempts"] + 1 + deaths
        if row["error"] is not None:
            return {**answer_row(row, error=row["error"]), **place}
        if deaths >= MAX_DEATHS:
            return {**answer_row(row, error=GIVEN_UP, attempts=attempts - 1), **place}
        async with self._circle.enter(deaths):
            if deaths:
                await self._deaths.begin.remote([row["request_id"]])
            asked_at_s, start = time.time(), time.perf_counter()
            try:
                found = await self.generate(row)
            except EngineDeadError:
                # Ray restarts the actor and gives it the same batches again. It would do neither after an orderly
                # exit, and an actor that lives on would never get another engine.
                os._exit(1)
            except (ValueError, VLLMError) as error:  # a request that it refuses, or fails at
                found = {"error": f"{type(error).__name__}: {one_line(error)}"}
            seconds = time.perf_counter() - start
        return {**answer_row(row, **found, asked_at_s=asked_at_s, latency_s=seconds, attempts=attempts), **place}

    async def generate(self, row: Row) -> Row:
        """One request through the engine -> output, finish_reason, and tokens of ANSWERS.

        Raises:
            ValueError, VLLMError: the engine refuses the request, or fails at it.
            EngineDeadError: there is no engine any more.
        """
        from vllm.inputs.llm import TokensPrompt

        stream = self.llm.engine.generate(
            request_id=f"{row['request_id']}-{row['attempts']}",
            prompt=TokensPrompt(prompt_token_ids=list(map(int, row["prompt_ids"]))),
            sampling_params=sampling_parameters(row, self._sampling),
            lora_request=self._adapters[row["adapter"]] if row["adapter"] else None,
        )
        async for output in stream:
            if output.finished:
                return read_output(row, output)
        raise RuntimeError("the engine ended a request without an answer")
