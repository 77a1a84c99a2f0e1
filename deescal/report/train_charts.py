"""The charts of a fine-tune, each drawn into an empty Matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deescal.report.charts import COLOURS, SERIES, thin
from deescal.schema import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deescal.train.tracking import Metrics

LOSS = "loss, nats a target token"
_DASHES = ("-", "--", ":")


def draw_loss(figure: Figure, metrics: Metrics) -> None:
    """Training loss as logged and smoothed, validation loss, the base's as a line, the best step, restarts."""
    from deescal.train.tracking import smooth

    axes = _axes(figure, LOSS)
    steps, losses = [row["step"] for row in metrics.training], [row["loss"] for row in metrics.training]
    axes.plot(*thin(steps, losses), color=COLOURS["blue"], alpha=0.3, linewidth=1)
    smoothed = smooth(losses)
    axes.plot(*thin(steps, smoothed), color=COLOURS["blue"], label="training, smoothed")
    points = [row for row in metrics.validation if row["validation_loss"] is not None]
    axes.plot(
        [row["step"] for row in points],
        [row["validation_loss"] for row in points],
        color=COLOURS["orange"],
        marker="o",
        markersize=4,
        label="validation",
    )
    base, best = metrics.base, metrics.best
    if base and base["validation_loss"] is not None:
        axes.axhline(base["validation_loss"], color=COLOURS["ink"], linestyle="--", linewidth=1.2, label="base model")
    if best:
        at = (best["step"], best["validation_loss"])
        axes.plot(*at, "D", markersize=9, markerfacecolor="none", markeredgecolor=COLOURS["ink"], label="best")
    for i, restart in enumerate(metrics.restarts):
        label = "restart" if i == 0 else None
        axes.axvline(restart.step, color=COLOURS["purple"], linestyle=":", linewidth=1.6, label=label)
    _ignore_spikes(axes, losses, [*smoothed, *(row["validation_loss"] for row in points)])
    _legend(figure)


def draw_series(figure: Figure, metrics: Metrics, name: str, form: Callable[[float], str]) -> None:
    """One number of the training rows over steps. Args: name: its key; form: a tick's value to its text."""
    axes = _axes(figure, "")
    xs, ys = thin([row["step"] for row in metrics.training], [row.get(name) for row in metrics.training])
    axes.plot(xs, ys, color=COLOURS["blue"], linewidth=1.4)
    axes.set_ylim(0, 1.1 * max((y for y in ys if not math.isnan(y)), default=1.0) or None)
    axes.yaxis.set_major_formatter(lambda value, _: form(value))
    for restart in metrics.restarts:
        axes.axvline(restart.step, color=COLOURS["purple"], linestyle=":", linewidth=1.6)


def draw_scenarios(figure: Figure, validation: Sequence[Row]) -> None:
    """Loss of each scenario before against after, and the line on which nothing changed."""
    axes = figure.add_subplot()
    base, tuned = _losses(validation, "base_nll"), _losses(validation, "tuned_nll")
    low, high = min(base + tuned), max(base + tuned)
    room = 0.05 * (high - low) or 0.1
    ends = (low - room, high + room)
    axes.plot(ends, ends, color=COLOURS["muted"], linewidth=1, linestyle="--")
    for better, colour, marker in ((True, "blue", "o"), (False, "orange", "^")):
        chosen = [(b, t) for b, t in zip(base, tuned, strict=True) if (t < b) == better]
        axes.plot(*_columns(chosen), marker, color=COLOURS[colour], alpha=0.7, markersize=5, markeredgewidth=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="base, nats a token", ylabel="tuned, nats a token")


def draw_differences(figure: Figure, validation: Sequence[Row]) -> None:
    """How many scenarios changed by how much; the bars meet at no change."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    base, tuned = _losses(validation, "base_nll"), _losses(validation, "tuned_nll")
    changes = np.subtract(tuned, base)
    width = float(np.ptp(np.append(changes, 0.0))) / 15 or 0.1
    edges = width * np.arange(math.floor(changes.min() / width), math.ceil(changes.max() / width) + 2)
    counts, _ = np.histogram(changes, edges)
    # A change of exactly none is in the first bar from 0 on, with those that did not get better.
    colours = [COLOURS["blue"] if edge < -width / 2 else COLOURS["orange"] for edge in edges[:-1]]
    axes = figure.add_subplot()
    axes.bar(edges[:-1], counts, width=0.92 * width, align="edge", color=colours)
    axes.axvline(0, color=COLOURS["ink"], linewidth=1)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel="tuned less base, nats a token", ylabel="scenarios")


def draw_runs(figure: Figure, curves: Sequence[tuple[Sequence[int], Sequence[float | None]]], label: str) -> None:
    """(steps, values) of several runs; a line bears the number of its run, from 1, at its end."""
    axes = _axes(figure, label)
    for i, (steps, values) in enumerate(curves):
        xs, ys = thin(steps, values)
        colour, dashes = COLOURS[SERIES[i % len(SERIES)]], _DASHES[i // len(SERIES) % len(_DASHES)]
        axes.plot(xs, ys, color=colour, linestyle=dashes, marker="o" if len(xs) < 20 else None, markersize=4)
        if known := [(x, y) for x, y in zip(xs, ys, strict=True) if not math.isnan(y)]:
            axes.annotate(str(i + 1), known[-1], xytext=(6, 0), textcoords="offset points", va="center", color=colour)
    _ignore_spikes(axes, [value for _, values in curves for value in values])


def _axes(figure: Figure, label: str) -> Axes:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return axes


def _ignore_spikes(axes: Axes, noisy: Sequence[float | None], others: Sequence[float | None] = ()) -> None:
    """An axis for all values but single spikes of a noisy series, which would press the curves flat."""
    import numpy as np

    known = [value for value in noisy if value is not None]
    if len(known) > 20:
        shown = [value for value in others if value is not None]
        low, high = min(known + shown), max([float(np.percentile(known, 99)), *shown])
        room = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - room, high + room)


def _legend(figure: Figure) -> None:
    # As many columns as there is room for: a legend above the curve hides none of it.
    figure.legend(loc="outside upper left", ncols=5 if figure.get_figwidth() * 72 > 600 else 3, handlelength=1.6)


def _losses(validation: Sequence[Row], name: str) -> list[float]:
    return [row[name] / row["n_target_tokens"] for row in validation]


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]
