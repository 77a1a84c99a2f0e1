"""What a fine-tune says while it runs: `metrics.jsonl`, one JSON object a line, in order of time.

A row of training has

    step                   optimizer steps so far
    epoch                  passes over the data so far
    loss                   mean over the target tokens of the steps since the last row, nats
    learning_rate, grad_norm
    tokens, target_tokens  seen so far, over all workers
    seconds                spent in training so far, over all attempts
    tokens_per_s, target_tokens_per_s, memory_gib, mfu (null without a GPU)
    attempt                1, then one more after every restart, whoever restarted it

and a row of validation `step`, `validation_loss` (nats a target token) and `attempt`; that of step 0 is the base
model's. A number that is not finite, such as the loss of a run that diverged, is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from deescal.errors import UserError
from deescal.schema import Row

METRICS_FILE = "metrics.jsonl"


def metrics_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The content of metrics.jsonl."""
    return "".join(
        json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}) + "\n"
        for row in rows
    )


@dataclass(frozen=True)
class Restart:
    """Where a later attempt went on."""

    attempt: int
    step: int  # of its first row
    reached: int  # the last step that was logged before it

    @property
    def repeated(self) -> int:
        """Logged steps that were done again."""
        return max(self.reached - self.step + 1, 0)


@dataclass(frozen=True)
class Metrics:
    """The history that led to the model: every step once."""

    training: list[Row]  # by step
    validation: list[Row]  # by step; step 0 is the base
    restarts: list[Restart]

    @property
    def base(self) -> Row | None:
        """The base model's validation row."""
        return next((row for row in self.validation if row["step"] == 0), None)

    @property
    def best(self) -> Row | None:
        """The validation row with the lowest loss after training began; the first of equals."""
        rows = [row for row in self.validation if row["step"] > 0 and row["validation_loss"] is not None]
        return min(rows, key=lambda row: row["validation_loss"], default=None)


def read_metrics(lines: Iterable[str]) -> Metrics:
    """The lines of a metrics file -> one row a step.

    After a restart from a checkpoint the steps that follow it are seen again: the later attempt's rows stand, and what
    an earlier one logged beyond that point led nowhere and is left out. A last line that is cut off is skipped.

    Raises:
        UserError: another line is not JSON.
    """
    rows = sorted(_parse(lines), key=lambda row: row["attempt"])
    training: dict[int, Row] = {}
    validation: dict[int, Row] = {}
    restarts = []
    for attempt, group in groupby(rows, key=lambda row: row["attempt"]):
        of_attempt = list(group)
        trained = [row for row in of_attempt if "loss" in row]
        if training and trained:
            first = min(row["step"] for row in trained)
            restarts.append(Restart(attempt, first, max(training)))
            training = {step: row for step, row in training.items() if step < first}
            validation = {step: row for step, row in validation.items() if step < first}
        training.update((row["step"], row) for row in trained)
        validation.update((row["step"], row) for row in of_attempt if "validation_loss" in row)
    return Metrics([training[s] for s in sorted(training)], [validation[s] for s in sorted(validation)], restarts)


def _parse(lines: Iterable[str]) -> list[Row]:
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = []
    for number, line in numbered:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number != numbered[-1][0]:
                raise UserError(f"{METRICS_FILE}, line {number}: not JSON: {error.msg}") from error
    return rows


def smooth(values: Sequence[float | None], weight: float = 0.9) -> list[float | None]:
    """Exponential moving average, corrected for its start at zero as in Adam (Kingma & Ba 2015) and TensorBoard.

    Args:
        values: in order; None is a gap and stays one.
        weight: of the past, 0 (nothing is smoothed) to below 1.
    """
    smoothed: list[float | None] = []
    average = total_weight = 0.0
    for value in values:
        if value is None:
            smoothed.append(None)
            continue
        average = weight * average + (1 - weight) * value
        total_weight = weight * total_weight + (1 - weight)
        smoothed.append(average / total_weight)
    return smoothed


def loss_png(metrics: Metrics, file: str | os.PathLike[str] | IO[bytes]) -> None:
    """The loss curves as a PNG of 1600 x 800 pixels, into a local path or an open file."""
    from deescal.report.charts import write_png
    from deescal.report.train_charts import draw_loss

    write_png(lambda figure: draw_loss(figure, metrics), file, width=800, height=400)
