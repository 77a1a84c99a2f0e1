"""Where every scenario goes: its links to others, its incident, its split, or why it is dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from deescal.dataset.bias import bias_report
from deescal.dataset.config import DatasetConfig
from deescal.dataset.dedup import SIGNATURE, Link, Signature, choose_duplicates, components, find_links
from deescal.dataset.split import Place, assign_splits, check_leakage, leakage
from deescal.schema import to_table
from deescal.storage import join, read_table, write_table

PLACES = pa.schema(
    {
        "scenario_id": pa.string(),
        "incident_id": pa.string(),  # null where dropped, as split
        "split": pa.string(),
        "reason": pa.string(),  # why dropped
        "duplicate_of": pa.string(),
    }
)
DUPLICATE = "duplicate"


def link_parts(work: str, n_parts: int, config: DatasetConfig, previous: Mapping[str, Place]) -> dict[str, Any]:
    """Read the signatures of all parts, write `<work>/places.parquet` (PLACES of every accepted clip).

    Returns:
        incidents ({size: n} of kept scenarios), duplicates ({kind: dropped scenarios}), leakage and bias, each as
        `deescal.dataset.stats` describes it.

    Raises:
        LeakageError, UserError: as `assign_splits` and `check_leakage`.
    """
    columns = ["scenario_id", "official_split", "status", "source", "measures", *SIGNATURE.names]
    ids: list[str] = []
    signatures: list[Signature] = []
    official: dict[str, str] = {}
    talk: list[dict[str, Any]] = []
    for part in range(n_parts):
        table = read_table(join(work, "prepared", f"part-{part:05d}.parquet"), columns)
        for row in table.to_pylist(maps_as_pydicts="strict"):
            talk.append({name: row[name] for name in ("status", "source", "measures")})
            if row["status"] == "accepted":
                ids.append(row["scenario_id"])
                signatures.append(Signature(**{name: row[name] for name in SIGNATURE.names}))
                if row["official_split"]:
                    official[row["scenario_id"]] = row["official_split"]
    links = find_links(ids, signatures, config.dedup)
    lengths = {i: s.n_shingles for i, s in zip(ids, signatures, strict=True)}
    kept_official = official if config.split.official else None
    duplicates = choose_duplicates(lengths, links, previous.keys(), kept_official)
    splits = assign_splits(ids, links, config.split, duplicates=duplicates, previous=previous, official=kept_official)
    split_of = {i: place.split for i, place in splits.places.items()}
    if not config.split.official:
        check_leakage(links, split_of)
    rows = [place_row(i, splits.places.get(i), splits.dropped.get(i), duplicates.get(i)) for i in sorted(ids)]
    write_table(join(work, "places.parquet"), to_table(rows, PLACES))
    sizes = Counter(place.incident_id for place in splits.places.values())
    return {
        "incidents": Counter(sizes.values()),
        "duplicates": duplicate_kinds(duplicates, links),
        "leakage": {"ours": spanned(links, split_of), "official": spanned(links, official) if official else None},
        "bias": bias_report(talk),
    }


def place_row(scenario_id: str, place: Place | None, dropped: str | None, duplicate_of: str | None) -> dict[str, Any]:
    """PLACES row of one scenario."""
    return {
        "scenario_id": scenario_id,
        "incident_id": place.incident_id if place else None,
        "split": place.split if place else None,
        "reason": DUPLICATE if duplicate_of else dropped,
        "duplicate_of": duplicate_of,
    }


def duplicate_kinds(duplicates: Mapping[str, str], links: Sequence[Link]) -> dict[str, int]:
    """Kind of the link that made a scenario a duplicate -> how many; 'exact' goes before 'near' and 'contained'."""
    kinds: dict[frozenset[str], str] = {}
    for link in links:
        if link.kind != "title":
            kinds.setdefault(frozenset((link.a, link.b)), link.kind)
    exact = components(duplicates.keys() | set(duplicates.values()), [link for link in links if link.kind == "exact"])
    return dict(
        Counter(
            "exact" if exact[a] == exact[b] else kinds.get(frozenset((a, b)), "near") for a, b in duplicates.items()
        )
    )


def spanned(links: Sequence[Link], split_of: Mapping[str, str]) -> dict[str, Any]:
    """Links and clusters that span splits; `by_size`: {scenarios in the cluster: clusters}."""
    found = leakage(links, split_of)
    kinds: Counter[str] = Counter()
    for cluster in found:
        kinds.update(cluster["links"])
    return {
        "pairs": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "incidents": len(found),
        "by_size": {str(size): n for size, n in sorted(Counter(c["n_scenarios"] for c in found).items())},
    }
