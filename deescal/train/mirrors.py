"""A run's numbers for other tools, while it goes: TensorBoard, and MLflow where the config names a server."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from deescal.errors import UserError
from deescal.schema import Row
from deescal.storage import is_local, join, locate, put_folder
from deescal.train.config import TrackingConfig

NOT_SHOWN = ("step", "attempt", "epoch")


def check_tracking(config: TrackingConfig) -> None:
    """Raises UserError where MLflow is asked for and not installed."""
    if config.mlflow_uri and find_spec("mlflow") is None:
        raise UserError(f"tracking.mlflow_uri={config.mlflow_uri}: the package mlflow is not here: pip install mlflow")


class Mirrors:
    """A context; rows may be added in any order, a step that is repeated after a fault is shown again."""

    def __init__(self, config: TrackingConfig, out: str, params: dict[str, Any]) -> None:
        self._config, self._out, self._params = config, out, params
        self._writer: Any = None
        self._mlflow: Any = None

    def __enter__(self) -> Mirrors:
        if self._config.tensorboard:
            from tensorboardX import SummaryWriter

            place = join(self._out, "tensorboard")
            self._folder = locate(place)[1] if is_local(self._out) else tempfile.mkdtemp()
            self._writer = SummaryWriter(logdir=self._folder)
        if self._config.mlflow_uri:
            import mlflow

            mlflow.set_tracking_uri(self._config.mlflow_uri)
            mlflow.start_run(run_name=self._out)
            mlflow.log_params(self._params)
            self._mlflow = mlflow
        return self

    def add(self, row: Row) -> None:
        """A row of metrics.jsonl."""
        values = {k: float(v) for k, v in row.items() if k not in NOT_SHOWN and isinstance(v, int | float)}
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, row["step"])
        if self._mlflow:
            self._mlflow.log_metrics(values, step=row["step"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()
            if not is_local(self._out):
                put_folder(self._folder, join(self._out, "tensorboard"))
        if self._mlflow:
            self._mlflow.end_run("FAILED" if error else "FINISHED")
