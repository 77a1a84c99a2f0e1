"""What a load test measured: percentiles of each level, as a table, a picture and a page.

Percentiles are of observed values (nearest rank), over all requests of a level or over all its tokens: never means of
means. They are None where nothing was observed.
"""

from __future__ import annotations

import io
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from deescal.report.charts import COLOURS, svg, write_png
from deescal.report.page import flat, moment, template_environment
from deescal.schema import Row, to_table
from deescal.storage import join, write_bytes, write_json, write_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from rich.console import Console

QUANTILES = (50, 95, 99)
MEASURES = {"first_token": "time to first token", "per_token": "time per token after it", "latency": "whole request"}
# Pieces nearer than this came in one burst: servers collect tokens for some milliseconds before they send them.
BURST_S = 2e-4

REQUESTS = pa.schema(
    {
        "concurrency": pa.int32(),  # the level
        "request": pa.int32(),  # 0, 1, ... within it
        "prompt": pa.string(),  # <conversation>:<number of the message asked for>
        "started_s": pa.float64(),  # since the level's start
        "ended_s": pa.float64(),
        "latency_s": pa.float64(),  # from the first attempt to the last byte; null: no answer
        "pieces_s": pa.list_(pa.float64()),  # when each piece of text came, from the first attempt on; null: no stream
        "n_prompt_tokens": pa.int32(),  # null where the server does not tell, as the next two
        "n_cached_tokens": pa.int32(),
        "n_output_tokens": pa.int32(),
        "finish_reason": pa.string(),
        "attempts": pa.int32(),
        "error": pa.string(),  # its kind; null: answered
        "message": pa.string(),  # the error in words
    }
)

LOAD = pa.schema(
    {
        "concurrency": pa.int32(),
        "requests": pa.int32(),  # asked for: answered + failed + unsent
        "answered": pa.int32(),
        "failed": pa.int32(),
        "unsent": pa.int32(),  # as the time was over
        "retries": pa.int32(),
        "errors": pa.map_(pa.string(), pa.int32()),  # kind -> requests that failed by it
        "wall_s": pa.float64(),
        "requests_per_s": pa.float64(),  # answered ones
        "prompt_tokens": pa.int64(),
        "cached_tokens": pa.int64(),  # of the prompts', found in the server's prefix cache
        "output_tokens": pa.int64(),
        "output_tokens_per_s": pa.float64(),
        "total_tokens_per_s": pa.float64(),  # of prompts and outputs
        **{f"{measure}_p{q}_s": pa.float64() for measure in MEASURES for q in QUANTILES},
    }
)


@dataclass(frozen=True)
class LoadResult:
    """A load test."""

    out: str
    url: str
    model: str
    data: str | None  # None: made-up encounters
    config: dict[str, Any]
    started_at: str  # ISO
    levels: list[Row]  # LOAD
    requests: list[Row]  # REQUESTS

    @property
    def lost(self) -> int:
        """Requests that got no answer, sent or not."""
        return sum(row["failed"] + row["unsent"] for row in self.levels)


def level_row(concurrency: int, rows: Sequence[Row], requests: int, wall_s: float) -> Row:
    """REQUESTS rows of a level -> its LOAD row. Args: requests: how many should have been sent."""
    good = [row for row in rows if row["error"] is None]
    prompt, cached, output = (_sum(row[f"n_{name}_tokens"] for row in good) for name in ("prompt", "cached", "output"))
    tokens = [token_times(row["pieces_s"], row["n_output_tokens"]) for row in good if row["pieces_s"]]
    per_token, weights = (np.concatenate([pair[i] for pair in tokens] or [np.empty(0)]) for i in (0, 1))
    first = np.array([row["pieces_s"][0] for row in good if row["pieces_s"]])
    latency = np.array([row["latency_s"] for row in good])
    return {
        "concurrency": concurrency,
        "requests": requests,
        "answered": len(good),
        "failed": len(rows) - len(good),
        "unsent": requests - len(rows),
        "retries": sum(row["attempts"] - 1 for row in rows),
        "errors": dict(sorted(Counter(row["error"] for row in rows if row["error"] is not None).items())),
        "wall_s": wall_s,
        "requests_per_s": _rate(len(good), wall_s),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "output_tokens": output,
        "output_tokens_per_s": _rate(output, wall_s),
        "total_tokens_per_s": _rate(None if prompt is None or output is None else prompt + output, wall_s),
        **_quantiles("first_token", first, np.ones_like(first)),
        **_quantiles("per_token", per_token, weights),
        **_quantiles("latency", latency, np.ones_like(latency)),
    }


def token_times(pieces_s: Sequence[float], n_tokens: int | None) -> tuple[np.ndarray, np.ndarray]:
    """When pieces came -> (seconds for a token, number of such tokens), of all tokens after the first burst.

    The tokens of a burst share the wait before it; one piece is one token unless `n_tokens` says that it is more.
    """
    times = np.asarray(pieces_s, dtype=float)
    starts = np.flatnonzero(np.diff(times, prepend=-np.inf) >= BURST_S)
    a_piece = max(1.0, (n_tokens or 0) / len(times))
    counts = a_piece * np.diff(starts, append=len(times))[1:]
    return np.diff(times[starts]) / counts, counts


def _quantiles(measure: str, values: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return {f"{measure}_p{q}_s": None for q in QUANTILES}
    found = np.quantile(values, np.divide(QUANTILES, 100), weights=weights, method="inverted_cdf")
    return {f"{measure}_p{q}_s": float(value) for q, value in zip(QUANTILES, found, strict=True)}


def _sum(counts: Any) -> int | None:
    known = [n for n in counts if n is not None]
    return sum(known) if known else None


def _rate(n: int | None, seconds: float) -> float | None:
    return None if n is None or not seconds else n / seconds


def write_load(result: LoadResult, out: str) -> None:
    """Write requests.parquet, load.png, load.html and, last, load.json to a folder, local or s3://."""
    write_table(join(out, "requests.parquet"), to_table(result.requests, REQUESTS))
    picture = io.BytesIO()
    write_png(lambda figure: draw_load(figure, result.levels), picture, 920, 360)
    write_bytes(join(out, "load.png"), picture.getvalue())
    write_bytes(join(out, "load.html"), render_load_page(result).encode())
    levels = to_table(result.levels, LOAD).to_pylist(maps_as_pydicts="strict")
    told = {name: getattr(result, name) for name in ("url", "model", "data", "config", "started_at")}
    versions = {"deescal": version("deescal"), "python": platform.python_version()}
    write_json(join(out, "load.json"), {**told, "versions": versions, "levels": levels})


HEADINGS = (
    *("at once", "answered", "lost", "retries", "req/s", "out tok/s", "all tok/s", "cached"),
    *("first token ms", "per token ms", "request s"),
)


def cells(level: Row) -> list[str]:
    """A LOAD row's cells, in order of HEADINGS; percentiles as 'p50/p95/p99'."""
    cached = (
        level["cached_tokens"] / level["prompt_tokens"] if level["cached_tokens"] and level["prompt_tokens"] else None
    )
    return [
        f"{level['concurrency']:,}",
        f"{level['answered']:,}",
        f"{level['failed'] + level['unsent']:,}",
        f"{level['retries']:,}",
        _number(level["requests_per_s"], ".2f"),
        _number(level["output_tokens_per_s"], ",.1f"),
        _number(level["total_tokens_per_s"], ",.0f"),
        _number(cached, ".0%"),
        *(
            "/".join(_number(_times(level[f"{measure}_p{q}_s"], scale), form) for q in QUANTILES)
            for measure, scale, form in (
                ("first_token", 1e3, ",.0f"),
                ("per_token", 1e3, ",.1f"),
                ("latency", 1, ",.2f"),
            )
        ),
    ]


def losses(level: Row) -> str:
    """'3 at once: 2 HTTP 503, 1 timeout, 5 not sent', or nothing where all were answered."""
    found = [f"{n} {kind}" for kind, n in level["errors"].items()]
    found += [f"{level['unsent']} not sent"] if level["unsent"] else []
    return f"{level['concurrency']} at once: {', '.join(found)}" if found else ""


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def show_load(result: LoadResult, console: Console) -> None:
    """The levels as a table, what was lost and why, and where the rest is."""
    from rich.table import Table

    table = Table(box=None, caption="times: p50/p95/p99", caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", overflow="fold")
    for level in result.levels:
        table.add_row(*cells(level), style="red" if losses(level) else "")
    console.print(table)
    for line in filter(None, map(losses, result.levels)):
        console.print(f"lost, {line}", style="red", markup=False)
    console.print(f"page  {join(result.out, 'load.html')}", markup=False, soft_wrap=True)


def draw_load(figure: Figure, levels: Sequence[Row]) -> None:
    """Throughput beside times."""
    halves = figure.subfigures(1, 2, squeeze=False)[0]
    draw_throughput(halves[0], levels)
    draw_times(halves[1], levels)


def draw_throughput(figure: Figure | SubFigure, levels: Sequence[Row]) -> None:
    """Output tokens a second against clients; requests a second where the server counts no tokens."""
    name, label = "output_tokens_per_s", "output tokens a second"
    if all(level[name] is None for level in levels):
        name, label = "requests_per_s", "requests a second"
    axes = _axes(figure, levels, label)
    axes.plot(*_line(levels, name), "o-", color=COLOURS["blue"])
    axes.set_ylim(bottom=0)


def draw_times(figure: Figure | SubFigure, levels: Sequence[Row]) -> None:
    """p50 (whole lines) and p95 (dashed) of each measure against clients, on a logarithmic scale."""
    from matplotlib.ticker import LogLocator

    axes = _axes(figure, levels, "seconds")
    for (measure, label), colour, marker in zip(MEASURES.items(), ("orange", "green", "blue"), "s^o", strict=True):
        if all(level[f"{measure}_p50_s"] is None for level in levels):
            continue
        look: dict[str, Any] = {"color": COLOURS[colour], "marker": marker, "markersize": 5}
        axes.plot(*_line(levels, f"{measure}_p50_s"), "-", label=label, **look)
        axes.plot(*_line(levels, f"{measure}_p95_s"), "--", **{**look, "markerfacecolor": "none"})
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.plot([], [], "--", color=COLOURS["muted"], label="dashed: p95")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)


def _axes(figure: Figure | SubFigure, levels: Sequence[Row], label: str) -> Axes:
    axes: Axes = figure.add_subplot()
    axes.set(xlabel="requests at once", ylabel=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({level["concurrency"] for level in levels}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    return axes


def _line(levels: Sequence[Row], name: str) -> tuple[list[int], list[float]]:
    points = sorted((row["concurrency"], float("nan") if row[name] is None else row[name]) for row in levels)
    return [x for x, _ in points], [y for _, y in points]


def render_load_page(result: LoadResult) -> str:
    """The page's HTML: self-contained, without a script; others' words through Jinja's escaping only."""
    source = {"url": result.url, "model": result.model, "data": result.data or "made-up encounters"}
    return (
        template_environment()
        .get_template("load.html.jinja")
        .render(
            result=result,
            headings=HEADINGS,
            rows=[cells(level) for level in result.levels],
            losses=list(filter(None, map(losses, result.levels))),
            n_requests=sum(level["requests"] for level in result.levels),
            n_prompts=len({row["prompt"] for row in result.requests}),
            charts=[
                ("Throughput", svg(lambda f: draw_throughput(f, result.levels), "throughput", 440, 330)),
                ("Times", svg(lambda f: draw_times(f, result.levels), "times", 440, 330)),
            ],
            settings=[*source.items(), *flat(result.config)],
            started=moment(result.started_at),
        )
    )
