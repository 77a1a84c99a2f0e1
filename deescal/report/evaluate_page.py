"""An evaluation as one self-contained page: no script, no fetch, readable offline and in print.

Words of others (messages, replies, errors, config values) reach the page through Jinja's autoescape only; the charts
hold numbers, our own words and contestants' labels. The page's content security policy allows no script at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from deescal.report import evaluate_findings as findings
from deescal.report import judge_findings
from deescal.report.charts import svg
from deescal.report.evaluate_charts import draw_distribution, draw_forest, draw_latency
from deescal.report.page import PAGE, flat, moment, template_environment, words
from deescal.schema import Row
from deescal.storage import exists, join, read_table, write_bytes

if TYPE_CHECKING:
    from markupsafe import Markup

    from deescal.evaluate.calibration import Calibration

_SHOWN_MESSAGES = 4  # of a prompt; the ones before can be unfolded
PROTOCOLS = {
    "teacher_forced": ("Teacher-forced", "Each reply answers the conversation as it really was."),
    "rollout": (
        "Rollout",
        "The model answers its own earlier replies, against the officer's lines as they really were; the officer does "
        "not react to what it says.",
    ),
    "interactive": (
        "Interactive",
        "Each scenario begins as it really did; then the model talks with an officer whom another model plays.",
    ),
}


def write_evaluate_page(run: Mapping[str, Any], out_uri: str) -> str:
    """Write `<out>/report.html` from the files of an evaluation and return its URI. Args: run: of run.json."""
    from deescal.evaluate import steps
    from deescal.evaluate.judging import with_judged
    from deescal.evaluate.preferences import CHOICES
    from deescal.evaluate.ratings_of_run import read_calibration, read_outcomes
    from deescal.evaluate.significance import SIGNIFICANCE
    from deescal.evaluate.summary import SUMMARY_TABLE

    turns = read_table(join(out_uri, steps.TURNS_FILE))
    judged_file = join(out_uri, steps.JUDGED_FILE)
    judge = run["config"]["judge"]
    judged = read_table(judged_file) if judge["model"] and exists(judged_file) else None
    choices = join(out_uri, steps.CHOICES_FILE)
    has_chosen = judged is not None and judge["pairwise"] and exists(choices)
    page = render_evaluate_page(
        run,
        turns if judged is None else with_judged(turns, judged),
        findings.read_csv(join(out_uri, steps.SUMMARY_FILE), SUMMARY_TABLE),
        findings.read_csv(join(out_uri, steps.SIGNIFICANCE_FILE), SIGNIFICANCE),
        judged=judged.to_pylist() if judged is not None else [],
        choices=findings.read_csv(choices, CHOICES) if has_chosen else [],
        humans=read_outcomes(out_uri),
        calibration=read_calibration(out_uri) if judged is not None else [],
    )
    uri = join(out_uri, PAGE)
    write_bytes(uri, page.encode())
    return uri


def render_evaluate_page(
    run: Mapping[str, Any],
    turns: pa.Table,
    summary: Sequence[Row],
    tests: Sequence[Row],
    *,
    judged: Sequence[Row] = (),
    choices: Sequence[Row] = (),
    humans: Sequence[Mapping[str, Any]] = (),
    calibration: Sequence[Calibration] = (),
) -> str:
    """The page's HTML.

    Args:
        run: the content of run.json.
        turns: SCORED_TURNS, with columns of RUBRICS where there was a judge.
        summary: rows of SUMMARY_TABLE.
        tests: rows of SIGNIFICANCE.
        judged: rows of JUDGED.
        choices: rows of CHOICES.
        humans: what packs came to, as `deescal.evaluate.ratings_of_run.read_outcomes` gives it.
        calibration: the judge against people.
    """
    models = {c["label"]: c["model"] for c in run["contestants"]}
    protocols = []
    for protocol in sorted({row["protocol"] for row in summary}, reverse=True):
        of = turns.filter(pc.equal(turns["protocol"], protocol))
        mine = [row for row in summary if row["protocol"] == protocol]
        compared = [
            row for row in tests if row["protocol"] == protocol and not {row["a"], row["b"]} & run["failed"].keys()
        ]
        heading, what = PROTOCOLS.get(protocol, (words(protocol).capitalize(), ""))
        metrics = findings.shown_metrics(mine)
        talked = protocol == "interactive"  # each contestant had a conversation of its own
        pair, best, worst = (None, [], []) if talked else _examples(of, metrics, run)
        protocols.append(
            {
                "name": protocol,
                "heading": heading,
                "what": what,
                "first": mine[0],
                "metrics": metrics,
                "lines": findings.paper_lines(mine, run["tuned"], metrics, models),
                "more": findings.more_measures(mine),
                "tests": _by_pair(compared),
                "verdicts": [(a, b, findings.verdict(rows)) for (a, b), rows in _by_pair(compared).items()],
                "forests": forest_charts(compared, protocol),
                "distributions": distribution_charts(of, metrics, protocol),
                "latency": latency_chart(of, protocol),
                "example_pair": pair,
                "best": best,
                "worst": worst,
                "talks": findings.conversation_cards(of, metrics, run["config"]["examples"]) if talked else [],
            }
        )
    environment = template_environment()
    environment.filters.update(
        difference=findings.difference_text,
        is_significant=findings.is_significant,
        p=findings.p_text,
        number=findings.number,
        known=findings.known,
    )
    return environment.get_template("evaluate.html.jinja").render(
        run=run,
        metric_names=findings.METRIC_NAMES,
        test_names=findings.TEST_NAMES,
        protocols=protocols,
        n_errors=sum(row["n_errors"] for row in summary),
        published=findings.all_published(),
        judged=judge_findings.judged_rows(judged, summary, run["config"]["test"]),
        repeats=judge_findings.repeat_rows(judged),
        judge_is_officer=_judge_is_officer(run["config"]),
        choices=judge_findings.choice_rows(choices),
        calibration=judge_findings.calibration_rows(calibration),
        humans=[human_tables(outcome) for outcome in humans],
        started=moment(run.get("started_at")),
        made=made_of(run),
        shown_messages=_SHOWN_MESSAGES,
    )


def _judge_is_officer(config: Mapping[str, Any]) -> bool:
    """Whether it scores conversations in which half of the lines are its own."""
    judge, officer = (config[who] for who in ("judge", "officer"))
    talked = "interactive" in config["protocols"]
    return talked and (judge["model"], judge["endpoint"]) == (officer["model"], officer["endpoint"])


def _by_pair(tests: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in tests:
        found.setdefault((row["a"], row["b"]), []).append(row)
    return found


def _examples(
    turns: pa.Table, metrics: Sequence[str], run: Mapping[str, Any]
) -> tuple[tuple[str, str] | None, list[Row], list[Row]]:
    """The pair by whose difference they are chosen (None: by all contestants' scores), best and worst."""
    labels = set(turns["model"].to_pylist())
    pair = next(((a, b) for a, b in run["pairs"] if a in labels and b in labels), None)
    if not metrics:
        return None, [], []
    best, worst = findings.choose_examples(turns, metrics[0], pair, run["config"]["examples"])
    return pair, findings.example_cards(turns, best, metrics), findings.example_cards(turns, worst, metrics)


def forest_charts(tests: Sequence[Row], protocol: str) -> list[tuple[str, Markup]]:
    """(metric, chart) of what was compared."""
    return [
        (
            metric,
            svg(partial(draw_forest, rows=rows), f"forest-{protocol}-{metric}", 520, 74 + 44 * len(rows)),
        )
        for metric, rows in findings.forest_rows(tests).items()
    ]


def distribution_charts(turns: pa.Table, metrics: Sequence[str], protocol: str) -> list[tuple[str, Markup]]:
    """(metric, chart) of what was scored."""
    from deescal.evaluate.summary import scale_of

    charts = []
    for metric in metrics:
        scores = _by_model(turns, metric, scale_of(metric))
        if scores:
            unit = findings.METRIC_NAMES[metric]
            draw = partial(draw_distribution, scores=scores, unit=unit)
            charts.append((metric, svg(draw, f"scores-{protocol}-{metric}", 520, 90 + 46 * len(scores))))
    return charts


def latency_chart(turns: pa.Table, protocol: str) -> Markup | None:
    seconds = _by_model(turns, "latency_s")
    return svg(partial(draw_latency, seconds=seconds), f"latency-{protocol}", 520, 300) if seconds else None


def _by_model(turns: pa.Table, column: str, scale: float = 1.0) -> dict[str, list[float]]:
    """Label -> values that are there."""
    found: dict[str, list[float]] = {}
    for row in turns.select(["model", column]).to_pylist():
        if row[column] is not None and math.isfinite(row[column]):
            found.setdefault(row["model"], []).append(scale * row[column])
    return dict(sorted(found.items()))


def human_tables(outcome: Mapping[str, Any]) -> Row:
    """What a pack came to, as texts: rows (question, system, estimate, ratings), pairs of systems, and agreement."""
    rows = []
    for question, means in outcome.get("means", {}).items():
        rows += [(question, model, *_estimate(mean)) for model, mean in means.items()]
    rows += [("more real", model, *_estimate(rate)) for model, rate in outcome.get("win_rates", {}).items()]
    agreement = [
        (question, *(_coefficient(of[name]) for name in ("alpha", "kappa", "observed")))
        for question, of in outcome["agreement"].items()
    ]
    left_out = [name for name, rater in outcome["raters"].items() if not rater["counted"]]
    pairs = [{**of, "rate": _estimate(of["win_rate"])[0]} for of in outcome.get("pairs", ())]
    told = {"rated": outcome["rated"], "left_out": left_out, "replaced": outcome.get("replaced", 0)}
    return {**told, "rows": rows, "pairs": pairs, "agreement": agreement}


def _estimate(found: Mapping[str, Any]) -> tuple[str, int]:
    return findings.interval_text(found["mean"], found["low"], found["high"], 2), found["n_items"]


def _coefficient(found: Mapping[str, Any]) -> str:
    return f"none: {found['reason']}" if found["value"] is None else findings.number(found["value"], 2)


def made_of(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of (name, value): who was asked, how scores are made, config, hashes and versions."""
    contestants = {
        c["label"]: {k: v for k, v in c.items() if k != "label" and v is not None} for c in run["contestants"]
    }
    parts: list[tuple[str, Mapping[str, Any]]] = [
        ("Data", {"data": run["data"], "fingerprint": run["fingerprint"]}),
        ("Contestants", contestants),
        ("Weights", run.get("weights", {})),
        ("Metrics", run["signatures"]),
        ("Replies", {str(i): folder for i, folder in enumerate(run["replies"], 1)}),
        ("Fingerprints", run["fingerprints"]),
        ("Seconds by step", run["seconds"]),
        ("Configuration", run["config"]),
        ("Versions", {"deescal": run["deescal"], **run["versions"]}),
    ]
    return [(name, list(flat(value))) for name, value in parts if value]
