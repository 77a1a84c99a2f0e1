"""The numbers of a dataset as one self-contained page: no script, no fetch, readable offline.

Words of others (reasons, source names, config values) reach the page through Jinja's autoescape only, and the page's
content security policy allows no script at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deescal.dataset.card import figure, measure_name
from deescal.dataset.stats import imbalances
from deescal.judge.taxonomy import BY_GROUP, GROUP_NAMES
from deescal.report.page import PAGE, made, moment, template_environment
from deescal.storage import join, write_bytes

# histogram -> heading, what is counted, what a value is
HISTOGRAMS = {
    "turn_words": ("Words per turn", "turns", "words"),
    "officer_turn_words": ("Words per officer turn", "turns", "words"),
    "civilian_turn_words": ("Words per civilian turn", "turns", "words"),
    "scenario_turns": ("Turns per scenario", "scenarios", "turns"),
    "scenario_tokens": ("Tokens per scenario", "scenarios", "tokens"),
    "example_tokens": ("Tokens per example", "examples", "tokens"),
}
ROLES = ("officer", "civilian", "dispatcher", "bystander", "medic", "narrator", "other")
_CAUSES_SHOWN = 12


def write_dataset_page(stats: Mapping[str, Any], build: Mapping[str, Any], out_uri: str) -> str:
    """Write `<out>/report.html` and return its URI. Args: as `render_dataset_page`; out_uri: the dataset's folder."""
    uri = join(out_uri, PAGE)
    write_bytes(uri, render_dataset_page(stats, build).encode())
    return uri


def render_dataset_page(stats: Mapping[str, Any], build: Mapping[str, Any]) -> str:
    """The page's HTML.

    Args:
        stats: as `deescal.dataset.stats` describes it.
        build: as `deescal.dataset.card.render_card` takes it; also started_at (ISO time), versions (nested), and
            models as [name@version].
    """
    environment = template_environment()
    environment.filters.update(figure=figure)
    return environment.get_template("dataset.html.jinja").render(
        stats=stats,
        build=build,
        title=build.get("title") or "Police-civilian encounters",
        trouble=imbalances(stats),
        funnels=[scenario_steps(stats), turn_steps(stats)],
        dropped={
            "Scenarios left out": causes(stats["scenarios"]["dropped"]),
            "Turns left out": causes(stats["turns"]["dropped"]),
            "Kept turns in no example": causes({k: v["turns"] for k, v in stats["examples"]["unused"].items()}),
        },
        histograms=[(*names, bars(stats["histograms"][key])) for key, names in HISTOGRAMS.items()],
        roles=role_rows(stats),
        features=feature_groups(stats),
        bias=bias_rows(stats["bias"]) if stats["bias"] else [],
        by_source=source_rows(stats["bias"]) if stats["bias"] else ([], []),
        started=moment(build.get("started_at")),
        made=made({**build, "models": dict(_model(identity) for identity in build.get("models") or ())}),
    )


def _model(identity: str) -> tuple[str, str]:
    name, _, version = identity.partition("@")
    return name, version or "as the hub has it"


def scenario_steps(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Clips -> scenarios -> kept -> with examples: name, number, share of the first step, and what was lost."""
    scenarios = stats["scenarios"]
    steps = [("Scenarios", scenarios["total"]), ("Kept", scenarios["kept"])]
    if stats["clips"] is not None:
        steps.insert(0, ("Clips", sum(stats["clips"].values())))
    return _steps([*steps, ("With an example", scenarios["with_examples"])])


def turn_steps(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same for turns."""
    kept, unused = stats["turns"]["kept"], sum(n["turns"] for n in stats["examples"]["unused"].values())
    return _steps([("Turns", stats["turns"]["total"]), ("Kept", kept), ("In an example", kept - unused)])


def _steps(named: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    most = max((n for _, n in named), default=0) or 1
    before = [named[0][1], *(n for _, n in named[:-1])]
    return [
        {"name": name, "n": n, "share": n / most, "lost": max(b - n, 0), "lost_share": max(b - n, 0) / most}
        for (name, n), b in zip(named, before, strict=True)
    ]


def causes(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """(reason, number, share), the commonest first; the rest as one."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ordered[_CAUSES_SHOWN:])
    shown = ordered[:_CAUSES_SHOWN] + ([("other reasons", rest)] if rest else [])
    return [(reason, n, n / total) for reason, n in shown if n]


def bars(histogram: Mapping[str, Any]) -> dict[str, Any]:
    """A histogram to draw: 0..1 heights, the values a bar stands for, and a few ticks as (position, value)."""
    edges, counts = histogram["edges"], histogram["counts"]
    tallest = max(counts, default=0) or 1
    width = 1 / max(len(counts), 1)
    step = -(-len(counts) // 5) or 1
    shown = [i for i in range(0, len(counts), step) if i * width <= 0.82]
    return {
        **histogram,
        "bars": [
            {
                "x": i * width,
                "width": width,
                "height": n / tallest,
                "n": n,
                "values": f"{edges[i]:,}" if edges[i + 1] == edges[i] + 1 else f"{edges[i]:,} to {edges[i + 1] - 1:,}",
            }
            for i, n in enumerate(counts)
        ],
        "ticks": [(i * width, edges[i]) for i in shown] + [(1.0, edge) for edge in edges[-1:]],
    }


def role_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Role, its counts, and its share of turns and of words; in order of the roles."""
    by_role = stats["by_role"]
    totals = {key: sum(n[key] for n in by_role.values()) or 1 for key in ("turns", "words")}
    order = [*(r for r in ROLES if r in by_role), *sorted(set(by_role) - set(ROLES))]
    return [
        {
            "role": role,
            "colour": role if role in ROLES else "other",
            **by_role[role],
            "turn_share": by_role[role]["turns"] / totals["turns"],
            "word_share": by_role[role]["words"] / totals["words"],
        }
        for role in order
    ]


def feature_groups(stats: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float, int]]]]:
    """Group -> (feature, share of scenarios that show it, scenarios judged), where any was judged."""
    found = stats["features"]
    groups = [
        (GROUP_NAMES[group], [(f, found[f]["present"] / found[f]["judged"], found[f]["judged"]) for f in names])
        for group, names in ((group, [f for f in names if f in found]) for group, names in BY_GROUP.items())
    ]
    return [(name, rows) for name, rows in groups if rows]


def bias_rows(bias: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A measure each: both groups' numbers, their places on a scale of the measure's own, and the test."""
    rows = []
    for measure, test in bias["tests"].items():
        groups = {status: bias["groups"].get(status, {}).get(measure) for status in ("accepted", "rejected")}
        present = [g for g in groups.values() if g]
        low, high = min((g["p10"] for g in present), default=0), max((g["p90"] for g in present), default=1)
        spread = (high - low) or 1
        rows.append(
            {
                "name": measure_name(measure),
                "groups": {
                    status: g and {**g, **{f"at_{q}": (g[q] - low) / spread for q in ("p10", "median", "p90")}}
                    for status, g in groups.items()
                },
                "low": low,
                "high": high,
                "test": test,
            }
        )
    return rows


def source_rows(bias: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Mapping[str, Any] | None]]]]:
    """Measures, and for each source the numbers of its accepted clips by measure."""
    measures = list(bias["tests"])
    rows = [(source, [found.get(m) for m in measures]) for source, found in bias["by_source"].items()]
    return [measure_name(m) for m in measures], rows
