"""The numbers of a dataset: counted in a stream, kept as one JSON-able dict, `stats.json`.

Nothing here grows with the number of rows but counters of distinct small values. All sums are of integers, so the
order in which rows come does not matter and the same dataset gives the same bytes.

Layout (counts are integers; every mapping is sorted by key; a section that was not computed is null):

    tokenizer, max_tokens     str, int: what `tokens` are counted with, and the budget of an example
    clips                     null, or {status: n}: clips of the runs that the scenarios come from
    scenarios                 {total, kept, with_examples, with_context, with_character, dropped: {reason: n},
                              hours}: hours of the kept ones whose length is known
    turns                     {total, kept, dropped: {reason: n}}
    words                     {total, kept, dropped: {reason: n}}; as transcribed, split at white space
    by_split, by_source       {name: {scenarios, turns, words, tokens}} of kept scenarios; by_split also has
                              examples, example_tokens, target_tokens
    by_role                   {role: {speakers, turns, words}} of kept turns
    role_methods              {method: speakers}: what decided the role
    features                  {name: {judged, present, mean_probability}} over kept scenarios
    scores                    {group: {score: scenarios}}
    redactions                {kind: places}
    examples                  {total, tokens, target_tokens, unused: {reason: {turns, tokens}}}: `unused` are kept
                              turns in no example; tokens counts the overlap of windows every time, target_tokens once
    histograms                {turn_words, officer_turn_words, civilian_turn_words, scenario_turns, scenario_tokens,
                              example_tokens: {n, mean, p10, median, p90, max, edges, counts}}; counts[i] is the
                              number of values with edges[i] <= value < edges[i + 1]
    incidents                 null, or {size: number of incidents}: clusters of scenarios of one incident
    duplicates                null, or {kind: scenarios}, such as exact, near
    leakage                   null, or {ours, official: null or the same for the publishers' split}, each {pairs, kinds:
                              {link: pairs}, incidents, by_size: {scenarios: incidents}}: what spans splits; `ours`
                              is zero unless the publishers' split was kept
    bias                      null, or what `deescal.dataset.bias.bias_report` gives
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")
_PPM = 1_000_000  # probabilities are summed as integers
_SCENARIO_COLUMNS = (
    "status",
    "reason",
    "split",
    "source",
    "duration_s",
    "n_turns",
    "n_words",
    "n_tokens",
    "speakers",
    "features",
    "scores",
    "redactions",
    "context",
    "character",
)


class Distribution:
    """Counts of a non-negative integer; exact quantiles."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: int, n: int = 1) -> None:
        self._counts[value] += n

    def summary(self) -> dict[str, Any]:
        """n, mean, p10, median, p90, max, and a histogram over edges that double every second step."""
        n = sum(self._counts.values())
        if not n:
            return {**dict.fromkeys(("mean", "p10", "median", "p90", "max")), "n": 0, "edges": [], "counts": []}
        ordered = sorted(self._counts.items())
        edges = _edges(ordered[0][0], ordered[-1][0])
        counts = [sum(c for v, c in ordered if low <= v < high) for low, high in pairwise(edges)]
        mean = round(sum(v * c for v, c in ordered) / n, 3)
        quantiles = {name: _quantile(ordered, q * n) for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))}
        return {"n": n, "mean": mean, **quantiles, "max": ordered[-1][0], "edges": edges, "counts": counts}


class StatsBuilder:
    """Counts tables of SCENARIOS, DIALOGUE and EXAMPLES, in any order and any pieces."""

    def __init__(self, tokenizer: str, max_tokens: int) -> None:
        self._made = {"tokenizer": tokenizer, "max_tokens": max_tokens}
        self._scenarios: Counter[str] = Counter()
        self._turns: Counter[str] = Counter()
        self._words: Counter[str] = Counter()
        self._dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)  # scenarios, turns, words -> reason -> n
        self._groups: dict[str, defaultdict[str, Counter[str]]] = {
            name: defaultdict(Counter) for name in ("split", "source", "role", "feature", "score", "unused")
        }
        self._methods: Counter[str] = Counter()
        self._redactions: Counter[str] = Counter()
        self._examples: Counter[str] = Counter()
        self._duration_ms = 0
        self._distributions: defaultdict[str, Distribution] = defaultdict(Distribution)

    def add_scenarios(self, table: pa.Table) -> None:
        """SCENARIOS rows."""
        for row in table.select(list(_SCENARIO_COLUMNS)).to_pylist(maps_as_pydicts="strict"):
            self._scenarios["total"] += 1
            if row["status"] != "kept":
                self._dropped["scenarios"][row["reason"] or "unknown"] += 1
                continue
            self._scenarios["kept"] += 1
            self._scenarios["with_context"] += row["context"] is not None
            self._scenarios["with_character"] += row["character"] is not None
            self._duration_ms += round(1000 * (row["duration_s"] or 0))
            size = {"turns": row["n_turns"] or 0, "words": row["n_words"] or 0, "tokens": row["n_tokens"] or 0}
            for group in ("split", "source"):
                self._groups[group][row[group] or "unknown"].update(scenarios=1, **size)
            self._distributions["scenario_turns"].add(size["turns"])
            self._distributions["scenario_tokens"].add(size["tokens"])
            for speaker in row["speakers"] or ():
                self._groups["role"][speaker["role"] or "unknown"]["speakers"] += 1
                self._methods[speaker["method"] or "unknown"] += 1
            for feature in row["features"] or ():
                found = {"judged": 1, "present": int(bool(feature["present"]))}
                ppm = round(_PPM * (feature["probability"] or 0))
                self._groups["feature"][feature["name"]].update(**found, ppm=ppm)
            for group, score in (row["scores"] or {}).items():
                self._groups["score"][group][f"{score}"] += 1
            self._redactions.update(row["redactions"] or {})

    def add_turns(self, table: pa.Table) -> None:
        """DIALOGUE rows."""
        columns = ["status", "reason", "role", "n_words"]
        for row in table.select(columns).group_by(columns).aggregate([([], "count_all")]).to_pylist():
            n, length = row["count_all"], row["n_words"] or 0
            words = n * length
            self._turns["total"] += n
            self._words["total"] += words
            if row["status"] != "kept":
                self._dropped["turns"][row["reason"] or "unknown"] += n
                self._dropped["words"][row["reason"] or "unknown"] += words
                continue
            self._turns["kept"] += n
            self._words["kept"] += words
            self._groups["role"][row["role"] or "unknown"].update(turns=n, words=words)
            self._distributions["turn_words"].add(length, n)
            if row["role"] in ("officer", "civilian"):
                self._distributions[f"{row['role']}_turn_words"].add(length, n)

    def add_examples(self, table: pa.Table, split: str) -> None:
        """EXAMPLES rows of one split."""
        n_tokens = table["n_tokens"].to_pylist()
        target_tokens = pc.sum(table["n_target_tokens"], min_count=0).as_py()
        self._groups["split"][split].update(
            examples=table.num_rows, example_tokens=sum(n_tokens), target_tokens=target_tokens
        )
        self._examples.update(total=table.num_rows, tokens=sum(n_tokens), target_tokens=target_tokens)
        self._scenarios["with_examples"] += pc.sum(pc.equal(table["window"], 0), min_count=0).as_py()
        for n in n_tokens:
            self._distributions["example_tokens"].add(n)

    def add_unused(self, unused: Mapping[str, tuple[int, int]]) -> None:
        """Kept turns in no example: reason -> turns, tokens, as `deescal.dataset.examples.Built` has it."""
        for reason, (turns, tokens) in unused.items():
            self._groups["unused"][reason].update(turns=turns, tokens=tokens)

    def result(
        self,
        *,
        clips: Mapping[str, int] | None = None,
        incidents: Mapping[int, int] | None = None,
        duplicates: Mapping[str, int] | None = None,
        leakage: Mapping[str, Any] | None = None,
        bias: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The dict that the module's docstring describes. Args: what only other steps know, as described there."""
        size = ("scenarios", "turns", "words", "tokens")
        in_split = (*size, "examples", "example_tokens", "target_tokens")
        with_ = ("total", "kept", "with_examples", "with_context", "with_character")
        split = self._groups["split"]
        names = [*SPLITS, *sorted(set(split) - set(SPLITS))]
        histograms = ("turn_words", "officer_turn_words", "civilian_turn_words")
        return {
            **self._made,
            "clips": None if clips is None else _sorted(clips),
            "scenarios": {
                **_numbers(self._scenarios, with_),
                "dropped": _sorted(self._dropped["scenarios"]),
                "hours": round(self._duration_ms / 3_600_000, 3),
            },
            "turns": {**_numbers(self._turns, ("total", "kept")), "dropped": _sorted(self._dropped["turns"])},
            "words": {**_numbers(self._words, ("total", "kept")), "dropped": _sorted(self._dropped["words"])},
            "by_split": {name: _numbers(split[name], in_split) for name in names},
            "by_source": {k: _numbers(v, size) for k, v in sorted(self._groups["source"].items())},
            "by_role": {
                k: _numbers(v, ("speakers", "turns", "words")) for k, v in sorted(self._groups["role"].items())
            },
            "role_methods": _sorted(self._methods),
            "features": {k: _feature(v) for k, v in sorted(self._groups["feature"].items())},
            "scores": {
                k: dict(sorted(v.items(), key=lambda i: int(i[0]))) for k, v in sorted(self._groups["score"].items())
            },
            "redactions": _sorted(self._redactions),
            "examples": {
                **_numbers(self._examples, ("total", "tokens", "target_tokens")),
                "unused": {k: _numbers(v, ("turns", "tokens")) for k, v in sorted(self._groups["unused"].items())},
            },
            "histograms": {
                name: self._distributions[name].summary()
                for name in (*histograms, "scenario_turns", "scenario_tokens", "example_tokens")
            },
            "incidents": None if incidents is None else {str(s): incidents[s] for s in sorted(incidents)},
            "duplicates": None if duplicates is None else _sorted(duplicates),
            "leakage": leakage,
            "bias": bias,
        }


def imbalances(stats: Mapping[str, Any]) -> list[str]:
    """What does not add up, a sentence each; none in a sound dataset."""
    found = []
    for name in ("scenarios", "turns", "words"):
        section = stats[name]
        if (known := section["kept"] + sum(section["dropped"].values())) != section["total"]:
            found.append(f"{name}: {section['total']:,} in, but {known:,} kept or dropped with a reason")
    for group in ("by_split", "by_source"):
        for name, total in (("scenarios", stats["scenarios"]), ("turns", stats["turns"]), ("words", stats["words"])):
            if (known := sum(part[name] for part in stats[group].values())) != total["kept"]:
                found.append(f"{name}: {total['kept']:,} kept, but {known:,} {group.replace('_', ' ')}")
    if (total := stats["incidents"]) is not None:
        known = sum(int(size) * n for size, n in total.items())
        if known != stats["scenarios"]["kept"]:
            found.append(f"scenarios: {stats['scenarios']['kept']:,} kept, but {known:,} in incidents")
    return found


def _edges(low: int, high: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ...: as many of them as hold low..high, the last one above high."""
    edges = [0, 1, 2, 3, 4]
    while edges[-1] <= high:
        edges.append(edges[-1] * 3 // 2 if len(edges) % 2 else edges[-2] * 2)
    first = max(i for i, edge in enumerate(edges) if edge <= low)
    last = min(i for i, edge in enumerate(edges) if edge > high)
    return edges[first : last + 1]


def _quantile(ordered: Iterable[tuple[int, int]], rank: float) -> int:
    """The smallest value with at least `rank` values at or below it."""
    seen = 0
    for value, count in ordered:  # noqa: B007 the last value is the answer where rounding leaves a rest
        seen += count
        if seen >= rank:
            break
    return value


def _feature(counts: Mapping[str, int]) -> dict[str, Any]:
    judged = counts["judged"]
    return {"judged": judged, "present": counts["present"], "mean_probability": round(counts["ppm"] / judged / _PPM, 6)}


def _numbers(counts: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    return {name: counts.get(name, 0) for name in names}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
