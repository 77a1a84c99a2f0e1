"""Several fine-tunes side by side: a table for the terminal, and a page with the curves of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deescal.report.charts import svg
from deescal.report.page import PAGE, span, template_environment
from deescal.report.train_charts import LOSS, draw_runs
from deescal.storage import join, read_bytes, write_bytes
from deescal.train.tracking import METRICS_FILE, Metrics, read_metrics, smooth

if TYPE_CHECKING:
    from rich.table import Table

# column -> whether it is a number
COLUMNS = {
    "run": False,
    "model": False,
    "method": False,
    "lr": True,
    "r / alpha": True,
    "steps": True,
    "loss, base": True,
    "loss, tuned": True,
    "tokens/s": True,
    "peak GiB": True,
    "time": True,
    "export": False,
}


def sweep_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a run; the best of each model is bold.

    Args:
        runs: the content of each run.json, with `name`, `config` (resolved) and `result` (as
            `deescal.train.outcome.outcome` gives it); `error`, a line, in place of `result` where a run failed.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name, is_number in COLUMNS.items():
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
    best = best_runs(runs)
    for i, run in enumerate(runs):
        style = "bold green" if i in best else "red" if "error" in run else ""
        table.add_row(*(Text(cell) for cell in cells(run)), style=style)  # Text: no markup in others' words
    return table


def write_sweep_page(runs: Sequence[Mapping[str, Any]], out_uri: str) -> str:
    """Write `<out>/report.html` and return its URI.

    Args:
        runs: as `sweep_table` takes them, each with `out`, the URI of the folder that has its metrics.jsonl.
        out_uri: the sweep's folder.
    """
    metrics = {
        i: read_metrics(read_bytes(join(run["out"], METRICS_FILE)).decode().splitlines())
        for i, run in enumerate(runs)
        if "error" not in run
    }
    uri = join(out_uri, PAGE)
    write_bytes(uri, render_sweep_page(runs, metrics).encode())
    return uri


def render_sweep_page(runs: Sequence[Mapping[str, Any]], metrics: Mapping[int, Metrics]) -> str:
    """The page's HTML. Args: runs: as `sweep_table` takes them; metrics: of the runs that have any, by their place."""
    best = best_runs(runs)
    training, validation = _training_curves(len(runs), metrics), _validation_curves(len(runs), metrics)
    return (
        template_environment()
        .get_template("sweep.html.jinja")
        .render(
            columns=COLUMNS,
            rows=[{"cells": cells(run), "best": i in best, "error": run.get("error")} for i, run in enumerate(runs)],
            n_models=len({run["config"]["model"] for run in runs}),
            charts=[
                ("Validation loss", svg(lambda f: draw_runs(f, validation, LOSS), "validation", 440, 330)),
                ("Training loss, smoothed", svg(lambda f: draw_runs(f, training, LOSS), "training", 440, 330)),
            ],
        )
    )


def best_runs(runs: Sequence[Mapping[str, Any]]) -> set[int]:
    """Places of the runs with the lowest validation loss of their model, among those whose export is not refused.

    Of their model, because a nat a token means another thing with another tokenizer.
    """
    best: dict[str, tuple[float, int]] = {}
    for i, run in enumerate(runs):
        result = run.get("result")
        if not result or result["tuned_loss"] is None or (result["export"] and not result["export"]["good"]):
            continue
        model = run["config"]["model"]
        best[model] = min(best.get(model, (float("inf"), -1)), (result["tuned_loss"], i))
    return {i for _, i in best.values()}


def cells(run: Mapping[str, Any]) -> list[str]:
    """A run's row, in order of COLUMNS."""
    config, result = run["config"], run.get("result")
    rank = "–" if config["method"] == "full" else f"{config['lora']['r']} / {config['lora']['alpha']}"
    asked = [run["name"], config["model"], config["method"], f"{config['optim']['learning_rate']:.2g}", rank]
    if result is None:
        return [*asked, *["–"] * (len(COLUMNS) - len(asked) - 1), run.get("error", "")]
    export = result["export"]
    return [
        *asked,
        f"{result['steps']:,}",
        _number(result["base_loss"], ".3f"),
        _number(result["tuned_loss"], ".3f"),
        _number(result["tokens_per_s"], ",.0f"),
        _number(result["peak_memory_gib"], ".1f"),
        span(result["seconds"]),
        "not checked" if export is None else "good" if export["good"] else f"refused: {export['reason']}",
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _training_curves(n: int, metrics: Mapping[int, Metrics]) -> list[tuple[list[int], list[float | None]]]:
    """(steps, values) of every run by its place; one without metrics has no points."""
    found = [metrics[i].training if i in metrics else [] for i in range(n)]
    return [([row["step"] for row in rows], smooth([row["loss"] for row in rows])) for rows in found]


def _validation_curves(n: int, metrics: Mapping[int, Metrics]) -> list[tuple[list[int], list[float | None]]]:
    found = [metrics[i].validation if i in metrics else [] for i in range(n)]
    return [([row["step"] for row in rows], [row["validation_loss"] for row in rows]) for rows in found]
