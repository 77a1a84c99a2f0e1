"""Which split a scenario belongs to: by incident, stable under growth, with what leaks counted.

A split is drawn from a hash of the seed and the incident's id, so it depends on nothing else in the dataset. What a
dataset already holds never moves when it grows: a new scenario joins its incident's split or, where it would tie
incidents of two splits together, is left out.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from deescal.config import Config
from deescal.dataset.dedup import DUPLICATE_KINDS, Kind, Link, components
from deescal.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class SplitConfig(Config):
    """Shares of incidents; `official` keeps the publisher's test set and carves validation out of its train set."""

    train: float = Field(default=0.9, ge=0, le=1)
    validation: float = Field(default=0.05, ge=0, le=1)
    test: float = Field(default=0.05, ge=0, le=1)
    seed: int = 0
    official: bool = False

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test = {total:g}, they must sum to 1")
        return self


class LeakageError(UserError):
    """Duplicates lie in different splits: the dataset must not be built."""


class Place(NamedTuple):
    """Where a scenario is."""

    incident_id: str
    split: str


@dataclass(frozen=True)
class Splits:
    """Every scenario is in exactly one of the two."""

    places: dict[str, Place]  # id -> incident and split
    dropped: dict[str, str]  # id -> reason


def draw(incident_id: str, config: SplitConfig) -> Split:
    """The split of a new incident."""
    u = _uniform(incident_id, config.seed)
    if u < config.test:
        return "test"
    return "validation" if u < config.test + config.validation else "train"


def _uniform(key: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def assign_splits(
    ids: Iterable[str],
    links: Sequence[Link],
    config: SplitConfig,
    *,
    duplicates: Mapping[str, str] | None = None,
    previous: Mapping[str, Place] | None = None,
    official: Mapping[str, str] | None = None,
) -> Splits:
    """Scenarios and how they are linked -> incident and split of each, or why it is dropped.

    Without `previous` and `official` no link joins two splits. With them, old (or officially split) scenarios keep
    their place whatever links them; a new one takes the place of those it is linked to, nearest first, and is dropped
    where they are in two splits.

    Args:
        ids: all scenarios, old ones and duplicates too.
        duplicates: dropped id -> kept id (`dedup.choose_duplicates`).
        previous: places in the dataset that is extended.
        official: id -> split as published, used when `config.official`.

    Raises:
        UserError: a split would be empty, or an official split is none of train, validation, test.
    """
    ids, duplicates, previous = sorted(set(ids)), duplicates or {}, previous or {}
    fixed = dict(previous)
    if config.official:
        fixed = {**_official_places(ids, links, config, official or {}), **previous}
    exact = [link for link in links if link.kind == "exact"]
    same = components(ids, [*exact, *(Link(a, b, "exact", 1.0) for a, b in duplicates.items())])
    graph = _Graph(same, links, {i: place for i, place in fixed.items() if i not in duplicates})
    new = [i for i in ids if i not in duplicates and i not in fixed]
    dropped = {i: f"duplicate of {kept}" for i, kept in duplicates.items()}
    dropped |= graph.join(new)
    graph.found([i for i in new if i not in dropped and i not in graph.places], config)
    places = {i: graph.places[i] for i in ids if i in graph.places}
    _check_filled(places, config, free=not fixed)
    return Splits(places, dropped)


def _official_places(
    ids: Collection[str], links: Iterable[Link], config: SplitConfig, official: Mapping[str, str]
) -> dict[str, Place]:
    unknown = sorted(set(official.values()) - set(SPLITS))
    if unknown:
        raise UserError(f"official split '{unknown[0]}': expected one of {', '.join(SPLITS)}")
    carve = "validation" not in official.values()
    share = config.validation / (config.train + config.validation) if carve and config.validation else 0.0
    incident = components(ids, links)
    places = {}
    for i in ids:
        if i in official:
            held_out = official[i] == "train" and _uniform(incident[i], config.seed) < share
            places[i] = Place(incident[i], "validation" if held_out else official[i])
    return places


class _Graph:
    """Scenarios with the same words are one node; `places` grows, and no place in it ever changes."""

    def __init__(self, node: Mapping[str, str], links: Iterable[Link], places: Mapping[str, Place]) -> None:
        self.node = node
        self.places = dict(places)
        self._near: dict[str, set[str]] = defaultdict(set)  # node -> linked nodes, itself among them
        for n in node.values():
            self._near[n].add(n)
        for link in links:
            a, b = node[link.a], node[link.b]
            self._near[a].add(b)
            self._near[b].add(a)
        self._placed: dict[str, set[Place]] = defaultdict(set)  # node -> places of its scenarios
        for i, place in self.places.items():
            if i in node:
                self._placed[node[i]].add(place)

    def join(self, new: Collection[str]) -> dict[str, str]:
        """Give new scenarios the place of what they are linked to, nearest to the old first; id -> why dropped."""
        waiting = defaultdict(list)
        for i in new:
            waiting[self.node[i]].append(i)
        dropped: dict[str, str] = {}
        queue = [(1, i) for n in waiting if self._around(n) for i in waiting[n]]
        heapq.heapify(queue)
        seen = {i for _, i in queue}
        while queue:
            distance, i = heapq.heappop(queue)
            around = self._around(self.node[i])
            splits = sorted({place.split for place in around}, key=SPLITS.index)
            if len(splits) > 1:
                dropped[i] = f"bridges {' and '.join(splits)}"
                continue
            self._put(i, min(around))
            for j in sorted(j for n in self._near[self.node[i]] for j in waiting.get(n, ()) if j not in seen):
                seen.add(j)
                heapq.heappush(queue, (distance + 1, j))
        return dropped

    def found(self, rest: Collection[str], config: SplitConfig) -> None:
        """Make incidents of what is linked to nothing placed."""
        nodes: dict[str, list[str]] = defaultdict(list)
        for i in sorted(rest):
            nodes[self.node[i]].append(i)
        joined = (Link(a, b, "overlap", 1.0) for a in nodes for b in self._near[a] if b in nodes)
        smallest: dict[str, str] = {}  # component -> its smallest scenario
        component = components(nodes, joined)
        for i in sorted(rest):
            smallest.setdefault(component[self.node[i]], i)
        for i in rest:
            incident = smallest[component[self.node[i]]]
            self._put(i, Place(incident, draw(incident, config)))

    def _around(self, node: str) -> set[Place]:
        return {place for n in self._near[node] for place in self._placed.get(n, ())}

    def _put(self, i: str, place: Place) -> None:
        self.places[i] = place
        self._placed[self.node[i]].add(place)


def _check_filled(places: Mapping[str, Place], config: SplitConfig, *, free: bool) -> None:
    """Args: free: whether nothing had a place before, so that another seed moves everything."""
    sizes = Counter(place.split for place in places.values())
    for split in SPLITS:
        share = getattr(config, split)
        if share > 0 and not sizes[split]:
            incidents = {place.incident_id for place in places.values()}
            seed = _filling_seed(incidents, config) if free else None
            raise UserError(
                f"split '{split}' would be empty: {len(places)} scenarios of {len(incidents)} incidents at a share of "
                f"{share:g}; add scenarios, raise the share, set it to 0, or try another seed"
                + (f", such as split.seed={seed}" if seed is not None else "")
            )


def _filling_seed(incidents: Collection[str], config: SplitConfig, tries: int = 1000) -> int | None:
    """The first seed that puts something into every split, if there is one among so many."""
    wanted = {split for split in SPLITS if getattr(config, split) > 0}
    seeded = (config.model_copy(update={"seed": seed}) for seed in range(tries))
    return next((c.seed for c in seeded if {draw(i, c) for i in incidents} == wanted), None)


# --- leakage --------------------------------------------------------------------------------------------------


def spanning(links: Sequence[Link], split_of: Mapping[str, str]) -> Iterator[Link]:
    """The links that join scenarios of different splits; what has no split counts only through its exact copies."""
    exact = [link for link in links if link.kind == "exact"]
    same = components({i for link in links for i in (link.a, link.b)}, exact)
    splits: dict[str, set[str]] = defaultdict(set)
    for i, n in same.items():
        if i in split_of:
            splits[n].add(split_of[i])
    for link in links:
        a, b = splits[same[link.a]], splits[same[link.b]]
        if a and b and len(a | b) > 1:
            yield link


def leakage(links: Sequence[Link], split_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Clusters that lie in more than one split, largest first, without names.

    Each is {"n_scenarios", "splits": {split: scenarios}, "links": {kind: links that join two splits}}.
    """
    across = list(spanning(links, split_of))
    ids = {i for link in links for i in (link.a, link.b)}
    cluster = components(ids, links)
    members: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[str, Counter[Kind]] = defaultdict(Counter)
    for i in ids & split_of.keys():
        members[cluster[i]][split_of[i]] += 1
    for link in across:
        kinds[cluster[link.a]][link.kind] += 1
    rows = [
        {"n_scenarios": members[c].total(), "splits": dict(sorted(members[c].items())), "links": dict(kinds[c])}
        for c in sorted(kinds)
    ]
    return sorted(rows, key=lambda row: -row["n_scenarios"])


def check_leakage(links: Sequence[Link], split_of: Mapping[str, str]) -> None:
    """Fail when duplicates, exact or near or contained, are in different splits.

    Raises:
        LeakageError: with the number of links of each kind and of clusters.
    """
    found = [link for link in links if link.kind in DUPLICATE_KINDS]
    counts = Counter(link.kind for link in spanning(found, split_of))
    if counts:
        each = ", ".join(f"{counts[kind]} {kind}" for kind in DUPLICATE_KINDS if counts[kind])
        clusters = len(leakage(found, split_of))
        raise LeakageError(f"duplicates span splits: {each} link(s) in {clusters} cluster(s) of scenarios")
