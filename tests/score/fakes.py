"""An engine without a model behind the production worker: answers at once, dies of poison, and can be slow."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.llm._internal.batch.stages.base import StatefulStageUDF
from vllm.v1.engine.exceptions import EngineDeadError

from deescal.dataset.chat import load_tokenizer
from deescal.schema import Row
from deescal.score.worker import EngineWorker
from deescal.serve.adapters import Adapter

POISON, BAD = "poison", "refused"  # words of a prompt
LOG_ENV = "DEESCAL_TEST_ASKED"  # file with a line for each request that an engine got
SLOW_ENV = "DEESCAL_TEST_SLOW_S"


class FakeWorker(EngineWorker):
    """Repeats the last words of the prompt; a token is the tokenizer's."""

    def load(self, data_column: str, adapters: Sequence[Adapter], engine: Mapping[str, Any]) -> None:
        StatefulStageUDF.__init__(self, data_column, [])
        self._tokenizer = load_tokenizer(engine["model"])
        self._n_asked = 0

    async def generate(self, row: Row) -> Row:
        text = self._tokenizer.decode(list(row["prompt_ids"]))
        if LOG_ENV in os.environ:
            with open(os.environ[LOG_ENV], "a") as log:
                log.write(f"{row['request_id']}\n")
        await asyncio.sleep(float(os.environ.get(SLOW_ENV, 0)))
        if POISON in text:
            raise EngineDeadError()
        if BAD in text:
            raise ValueError("this is refused\nand more")
        return {
            "output": f" {row['adapter'] or 'base'}: {len(row['prompt_ids'])} ",
            "finish_reason": "stop",
            "n_prompt_tokens": len(row["prompt_ids"]),
            "n_cached_tokens": 0,
            "n_completion_tokens": 3,
        }

    def __del__(self) -> None:
        """Ray's would shut an engine down."""


def asked(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []
