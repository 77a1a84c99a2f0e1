"""A run's numbers for other tools, while it goes: TensorBoard, and MLflow where the config names a server."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from deescal.errors import UserError, one_line
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
            self._mlflow = self._start_mlflow(self._config.mlflow_uri)
        return self

    def _start_mlflow(self, uri: str) -> Any:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # seven take minutes to say that nobody is there
        import mlflow

        mlflow.set_tracking_uri(uri)
        try:
            mlflow.start_run(run_name=self._out)
            mlflow.log_params(self._params)
        except mlflow.MlflowException as error:
            raise UserError(f"tracking.mlflow_uri={uri}: {one_line(error)}") from error
        return mlflow

    def add(self, row: Row) -> None:
        """A row of metrics.jsonl."""
        values = {k: float(v) for k, v in row.items() if k not in NOT_SHOWN and isinstance(v, int | float)}
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, row["step"])
        self._tell_mlflow(lambda mlflow: mlflow.log_metrics(values, step=row["step"]))

    def _tell_mlflow(self, tell: Callable[[Any], Any]) -> None:
        if self._mlflow is None:
            return
        try:
            tell(self._mlflow)
        except self._mlflow.MlflowException as error:  # a run does not end because a server does
            self._mlflow = None
            warnings.warn(f"MLflow hears no more of this run: {one_line(error)}", stacklevel=2)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()
            if not is_local(self._out):
                put_folder(self._folder, join(self._out, "tensorboard"))
        self._tell_mlflow(lambda mlflow: mlflow.end_run("FAILED" if error else "FINISHED"))
