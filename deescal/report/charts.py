"""Matplotlib's charts for the pages: inline SVG that takes the page's colours and letters, and PNG files.

The texts of a chart are our own (axes, numbers, legends): words of others belong in the template, which escapes them.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

# Okabe & Ito's palette, which the colour-blind can tell apart, and greys. On a page each is the CSS variable
# --chart-<name>, so that a chart is dark where the page is.
COLOURS = {
    "ink": "#191d23",
    "muted": "#5b6470",
    "line": "#e2e2dc",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky": "#56b4e9",
    "yellow": "#e69f00",
}
SERIES = ("blue", "orange", "green", "purple", "sky", "yellow")
_STYLE: Any = {  # Matplotlib's stubs want its keys as literals
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def svg(draw: Callable[[Figure], None], name: str, width: int, height: int) -> Markup:
    """The `<svg>` element of a chart.

    Args:
        draw: fills the figure that it is given, in colours of COLOURS.
        name: one for each chart of a page: what it refers to within itself is named after it.
        width, height: in CSS pixels where the page does not scale it; letters have 12.
    """
    from markupsafe import Markup
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.fonttype": "none", "svg.hashsalt": name}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        _figure(draw, width, height).savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would hold for all the page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every chart
    text = re.sub(r"font-size: [^;]*; font-family: [^;\"]*;?", "", text)  # the page's
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--chart-{name})")
    return Markup(text)


def write_png(
    draw: Callable[[Figure], None], file: str | os.PathLike[str] | IO[bytes], width: int, height: int
) -> None:
    """A chart as a PNG on white, at twice as many pixels as given, into a local path or an open file."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        _figure(draw, width, height).savefig(file, format="png", dpi=2 * 72)


def _figure(draw: Callable[[Figure], None], width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")  # an SVG has 72 units an inch
    draw(figure)
    return figure


def thin(xs: Sequence[float], ys: Sequence[float | None], bins: int = 400) -> tuple[list[float], list[float]]:
    """Points of a line that can be told apart: the lowest and the highest of each bin of neighbours.

    Few enough points stay as they are, None as NaN, which is a gap in the line.
    """
    points = [(x, float("nan") if y is None else y) for x, y in zip(xs, ys, strict=True)]
    if len(points) > 2 * bins:
        size = -(-len(points) // bins)
        points = [point for i in range(0, len(points), size) for point in _extremes(points[i : i + size])]
    return [x for x, _ in points], [y for _, y in points]


def _extremes(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    by_height = sorted((p for p in points if not math.isnan(p[1])), key=lambda p: p[1])
    return sorted({by_height[0], by_height[-1]}) if by_height else [points[0]]
