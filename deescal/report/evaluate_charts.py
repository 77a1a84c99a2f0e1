"""The charts of an evaluation, each drawn into an empty Matplotlib figure.

Labels of contestants are letters, digits and `._:@-` only, so that they can stand in a chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deescal.report.charts import COLOURS, SERIES
from deescal.schema import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":")
_BINS = 20


def draw_forest(figure: Figure, rows: Sequence[Row]) -> None:
    """Differences a minus b with their intervals, one line each, and no difference as a line.

    Args:
        rows: of one metric: a, b, difference, low, high (NaN: no interval), significant (filled, else hollow).
    """
    axes = figure.add_subplot()
    axes.axvline(0, color=COLOURS["ink"], linewidth=1)
    for i, row in enumerate(reversed(rows)):
        colour = COLOURS["blue" if row["difference"] >= 0 else "orange"]
        if not math.isnan(row["low"]):
            axes.plot([row["low"], row["high"]], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
        filled = colour if row["significant"] else "white"
        axes.plot(row["difference"], i, "o", markersize=7, markerfacecolor=filled, markeredgecolor=colour)
    axes.set_yticks(range(len(rows)), [f"{row['a']}\nless {row['b']}" for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    low, high = axes.get_xlim()
    room = 0.08 * (high - low)
    axes.set_xlim(min(low, -room), max(high, room))  # 0 is never at the very edge
    axes.grid(axis="y", visible=False)


def draw_distribution(figure: Figure, scores: Mapping[str, Sequence[float]], unit: str) -> None:
    """A histogram of each contestant's scores, one above the other over one axis, with its mean as a line.

    Args:
        scores: label -> finite scores, not empty.
        unit: of the axis.
    """
    import numpy as np

    axes = figure.add_subplot()
    every = np.concatenate([np.asarray(values, float) for values in scores.values()])
    high = float(every.max()) or 1.0
    low = float(every.min())
    low = low if low > 0.5 * high else min(low, 0.0)  # BERTScore has nothing near 0
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    shares = {label: np.histogram(values, edges)[0] / len(values) for label, values in scores.items()}
    tallest = max(float(share.max()) for share in shares.values())
    labels = list(scores)[::-1]  # the first is the topmost
    for i, label in enumerate(labels):
        colour = COLOURS[SERIES[(len(labels) - 1 - i) % len(SERIES)]]
        heights = 0.85 * shares[label] / tallest
        axes.stairs(i + heights, edges, baseline=i, fill=True, color=colour, alpha=0.55)
        axes.stairs(i + heights, edges, baseline=i, color=colour, linewidth=1.2)
        axes.plot([float(np.mean(scores[label]))] * 2, [i, i + 0.9], color=COLOURS["ink"], linewidth=1.6)
    axes.set_yticks(range(len(labels)), labels, va="bottom")
    axes.set_ylim(-0.02, len(scores))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)


def draw_latency(figure: Figure, seconds: Mapping[str, Sequence[float]]) -> None:
    """Share of replies that were there after so many seconds. Args: seconds: label -> latencies, not empty."""
    import numpy as np

    axes = figure.add_subplot()
    for i, (label, values) in enumerate(seconds.items()):
        xs = np.quantile(values, np.linspace(0, 1, 101))
        colour, dashes = COLOURS[SERIES[i % len(SERIES)]], _DASHES[i // len(SERIES) % len(_DASHES)]
        axes.plot(xs, np.linspace(0, 100, 101), color=colour, linestyle=dashes, label=label)
    axes.set(xlabel="seconds", ylabel="% of replies answered", ylim=(0, 101))
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
