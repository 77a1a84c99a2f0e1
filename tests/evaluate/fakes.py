"""An engine without a model that will not load some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deescal.serve.adapters import Adapter
from tests.score.fakes import FakeWorker


class PickyWorker(FakeWorker):
    """Behind the production worker: fails where the model's folder is named `broken`, as vLLM does."""

    def load(self, data_column: str, adapters: Sequence[Adapter], engine: Mapping[str, Any]) -> None:
        if engine["model"].rstrip("/").endswith("broken"):
            raise RuntimeError("weights do not fit")
        super().load(data_column, adapters, engine)
