"""The dataset card: README.md with Hugging Face front matter, from stats.json and how the dataset was built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deescal.dataset.stats import SPLITS
from deescal.judge.taxonomy import BY_GROUP, GROUP_NAMES

MEASURES = {
    "words_per_turn": "words per turn",
    "type_token_ratio": "type-token ratio (falls with length)",
    "moving_average_ttr": "type-token ratio, moving average",
    **{f"score_{group}": f"{name.lower()} score" for group, name in GROUP_NAMES.items()},
}
# Upper bounds of the Hub's size categories, in examples.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)
_CELL = str.maketrans({"|": "\\|", "\n": " ", "\r": " ", "<": "&lt;", ">": "&gt;", "`": "'"})


def render_card(stats: Mapping[str, Any], build: Mapping[str, Any]) -> str:
    """README.md of a dataset.

    Args:
        stats: as `deescal.dataset.stats` describes it.
        build: what the numbers do not tell; all keys are optional:
            title, licence (a Hub licence tag), language (code), deescal (version), seed;
            sources: [{name, uri, licence, note}];
            config: the resolved build config, nested;
            redaction: {recall, precision, sample, misses: [kinds]} where it was measured, shares 0..1;
            selection: the rule that accepted clips, as text;
            generator: {model, prompt_version} where context and character were written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deescal", "dataset"),
        autoescape=False,  # it is Markdown: text of others goes through `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        cell=cell, thousands="{:,}".format, percent=percent, figure=figure, words=words, measure_name=measure_name
    )
    known = {"title": "Police-civilian encounters", "sources": [], "config": {}, **build}
    for key in ("redaction", "selection", "generator", "seed", "deescal"):
        known.setdefault(key, None)
    body = environment.get_template("card.md.jinja").render(
        stats=stats, build=known, splits=_present_splits(stats), features=_feature_groups(stats), examples_of=_config
    )
    return f"---\n{front_matter(stats, known)}---\n{body}"


def front_matter(stats: Mapping[str, Any], build: Mapping[str, Any]) -> str:
    """The card's YAML: licence, language, task, size, tags, and which file is which split."""
    import yaml

    splits = _present_splits(stats)
    examples = {
        "config_name": "examples",
        "default": True,
        "data_files": [{"split": s, "path": f"examples/{s}.parquet"} for s in splits],
    }
    tables = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("scenarios", "turns")]
    data = {
        "pretty_name": build.get("title"),
        "license": build.get("licence") or "other",
        "language": [build.get("language") or "en"],
        "task_categories": ["text-generation"],
        "size_categories": [size_category(stats["examples"]["total"])],
        "tags": ["dialogue", "role-play", "de-escalation", "police", "conversational"],
        "configs": [examples, *tables] if splits else tables,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def size_category(n: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for bound, name in _SIZES if n < bound), "100M<n<1B")


def cell(text: object) -> str:
    """Text of others inside a Markdown table or line: no markup, one line."""
    return " ".join(str(text).translate(_CELL).split())


def figure(number: float) -> str:
    """Three digits that can be read: 1512.3 -> '1,512', 0.76312 -> '0.763'."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def measure_name(measure: str) -> str:
    return MEASURES.get(measure, words(measure))


def words(name: str) -> str:
    """`id_request_event` -> 'id request event'."""
    return name.replace("_", " ")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _present_splits(stats: Mapping[str, Any]) -> list[str]:
    return [s for s in SPLITS if stats["by_split"].get(s, {}).get("examples")]


def _feature_groups(stats: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(group, feature, numbers) of the judged ones, in the order of the taxonomy."""
    return [
        (GROUP_NAMES[group], name, stats["features"][name])
        for group, names in BY_GROUP.items()
        for name in names
        if name in stats["features"]
    ]


def _config(build: Mapping[str, Any], section: str, key: str) -> Any:
    """A value of the build's config, None where it is not known."""
    return (build["config"].get(section) or {}).get(key)
