"""A fine-tune as one self-contained page: no script, no fetch, readable offline.

Words of others (messages, replies, names, config values) reach the page through Jinja's autoescape only; the charts
hold numbers and our own words. The page's content security policy allows no script at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from deescal.dataset.card import figure
from deescal.report.charts import svg
from deescal.report.page import PAGE, flat, moment, template_environment
from deescal.report.train_charts import draw_differences, draw_loss, draw_scenarios, draw_series
from deescal.schema import Row
from deescal.storage import exists, join, read_bytes, read_json, read_table, write_bytes
from deescal.train.outcome import outcome
from deescal.train.tracking import METRICS_FILE, Metrics, read_metrics

if TYPE_CHECKING:
    from markupsafe import Markup

_SHOWN_MESSAGES = 4  # of a prompt; the ones before can be unfolded
# row's key -> heading, a value's text
SERIES = {
    "learning_rate": ("Learning rate", "{:.2g}".format),
    "grad_norm": ("Gradient norm before clipping", "{:.3g}".format),
    "tokens_per_s": ("Tokens a second", "{:,.0f}".format),
    "memory_gib": ("Peak memory, GiB", "{:.3g}".format),
    "mfu": ("Model FLOPs utilisation", "{:.0%}".format),
}


def write_train_page(run: Mapping[str, Any], out_uri: str, stats: Mapping[str, Any] | None = None) -> str:
    """Write `<out>/report.html` from the files of a run and return its URI.

    Args:
        run: as `render_train_page` takes it.
        out_uri: the run's folder. metrics.jsonl must be there; validation.parquet, replies.json and parity.json are
            shown where they are.
        stats: stats.json of the dataset, where it has one.
    """
    validation, replies, parity = (join(out_uri, n) for n in ("validation.parquet", "replies.json", "parity.json"))
    page = render_train_page(
        run,
        read_metrics(read_bytes(join(out_uri, METRICS_FILE)).decode().splitlines()),
        validation=read_table(validation).to_pylist() if exists(validation) else [],
        replies=read_json(replies) if exists(replies) else [],
        parity=read_json(parity) if exists(parity) else None,
        stats=stats,
    )
    uri = join(out_uri, PAGE)
    write_bytes(uri, page.encode())
    return uri


def render_train_page(
    run: Mapping[str, Any],
    metrics: Metrics,
    *,
    validation: Sequence[Row] = (),
    replies: Sequence[Mapping[str, Any]] = (),
    parity: Mapping[str, Any] | None = None,
    stats: Mapping[str, Any] | None = None,
) -> str:
    """The page's HTML.

    Args:
        run: the content of run.json. `config` is the resolved TrainConfig; the rest is optional: stopped (how training
            ended, as in "after 2 epochs"), started_at (ISO time), wall_s (of the whole run), base, data and versions
            (nested; what the base model and the data were, with their hashes), deescal (version).
        metrics: of the run.
        validation: as `deescal.train.outcome.outcome` takes it.
        replies: fixed prompts: example_id, scenario_id, messages, reference, base, tuned.
        parity: the export's gate: good, reason, and rows of what, mean_difference, max_difference (nats), same_text
            (share), allowed (in words; empty where a row is not judged), ok; a number may be None.
        stats: as `deescal.dataset.stats` describes it.
    """
    rows = [row for row in validation if row["n_target_tokens"] > 0]
    environment = template_environment()
    environment.filters.update(figure=figure, known=known, interval=interval)
    return environment.get_template("train.html.jinja").render(
        run=run,
        config=run["config"],
        result=outcome(metrics, validation, parity),
        metrics=metrics,
        not_finite=sum(row["loss"] is None for row in metrics.training),
        loss_charts={
            "wide": svg(lambda f: draw_loss(f, metrics), "loss-wide", 1080, 380),
            "narrow": svg(lambda f: draw_loss(f, metrics), "loss-narrow", 440, 330),
        },
        series=series_charts(metrics),
        scenario_charts=scenario_charts(rows) if rows else None,
        replies=[shown_reply(reply) for reply in replies],
        parity=parity,
        stats=stats,
        method=method_text(run["config"]),
        started=moment(run.get("started_at")),
        made=made_of(run),
    )


def series_charts(metrics: Metrics) -> list[tuple[str, Markup]]:
    """(heading, chart) of every number that the run has."""
    return [
        (heading, svg(partial(draw_series, metrics=metrics, name=name, form=form), name, 440, 190))
        for name, (heading, form) in SERIES.items()
        if any(row.get(name) is not None for row in metrics.training)
    ]


def scenario_charts(validation: Sequence[Row]) -> dict[str, Markup]:
    """Before against after, and the differences."""
    return {
        "scatter": svg(lambda f: draw_scenarios(f, validation), "scenarios", 440, 400),
        "differences": svg(lambda f: draw_differences(f, validation), "differences", 440, 400),
    }


def shown_reply(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A reply with its prompt in two parts: `earlier` messages, and the `last` few."""
    messages = reply["messages"]
    return {**reply, "earlier": messages[:-_SHOWN_MESSAGES], "last": messages[-_SHOWN_MESSAGES:]}


def method_text(config: Mapping[str, Any]) -> str:
    """How the model was tuned, in a few words: 'LoRA, r 16, alpha 32, learning rate 2e-04'."""
    name = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tune"}[config["method"]]
    ranks = "" if config["method"] == "full" else f", r {config['lora']['r']}, alpha {config['lora']['alpha']}"
    return f"{name}{ranks}, learning rate {config['optim']['learning_rate']:.2g}"


def made_of(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of (name, value): the config, and where base, data and software came from."""
    parts = [
        ("Configuration", list(flat(run["config"]))),
        ("Base model", list(flat(run.get("base") or {}))),
        ("Data", list(flat(run.get("data") or {}))),
        ("Versions", [("deescal", str(run.get("deescal", ""))), *sorted(flat(run.get("versions") or {}))]),
    ]
    return [(name, pairs) for name, pairs in parts if pairs]


def known(value: float | None, form: str = ",.0f") -> str:
    """A number in a format, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def interval(found: Mapping[str, Any], form: str = ".3f") -> str:
    """'2.411 (95 % interval 2.300 to 2.520)', or why it has no interval."""
    estimate, low, high = (
        None if found[k] is None else format(found[k], form).replace("-", "−") for k in ("estimate", "low", "high")
    )
    if low is None:
        return f"{estimate} (no interval: {found['reason']})"
    return f"{estimate} (95\u00a0% interval {low} to {high})"
