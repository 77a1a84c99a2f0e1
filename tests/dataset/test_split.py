"""Splits: by incident, stable, leak-free; leakage counted without names."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deescal.dataset.dedup import Kind, Link, choose_duplicates
from deescal.dataset.split import (
    LeakageError,
    Place,
    SplitConfig,
    Splits,
    assign_splits,
    check_leakage,
    draw,
    leakage,
    spanning,
)
from deescal.errors import UserError

THIRDS = SplitConfig(train=0.4, validation=0.3, test=0.3)
ONLY_TRAIN = SplitConfig(train=1, validation=0, test=0)
IDS = [f"s{i:02d}" for i in range(24)]
FILLED = {f"filled {name}": Place(f"filled {name}", name) for name in ("train", "validation", "test")}
KINDS: tuple[Kind, ...] = ("near", "contained", "overlap", "title")


@dataclass(frozen=True)
class World:
    """Which scenarios have the same words, and which words are linked: what `find_links` would see."""

    words: dict[str, int]
    edges: list[tuple[int, int, Kind]]

    def links(self, ids: Collection[str]) -> list[Link]:
        first: dict[int, str] = {}
        exact = [
            Link(first[self.words[i]], i, "exact", 1.0) for i in sorted(ids) if first.setdefault(self.words[i], i) != i
        ]
        return exact + [Link(first[a], first[b], k, 0.8) for a, b, k in self.edges if a in first and b in first]


_words = st.integers(0, 30)
_edges = st.tuples(_words, _words, st.sampled_from(KINDS)).filter(lambda edge: edge[0] != edge[1])
worlds = st.builds(
    World,
    words=st.lists(_words, min_size=len(IDS), max_size=len(IDS)).map(lambda w: dict(zip(IDS, w, strict=True))),
    edges=st.lists(_edges, max_size=25),
)


def split(ids: list[str], links: list[Link], previous: dict[str, Place] | None = None) -> Splits:
    """Choose duplicates and split `ids`, beside one old scenario in each split so that none is empty by chance."""
    previous = {**FILLED, **(previous or {})}
    lengths = {i: 100 + int(i[1:]) % 7 for i in ids}
    duplicates = choose_duplicates(lengths, links, previous)
    return assign_splits([*FILLED, *ids], links, THIRDS, duplicates=duplicates, previous=previous)


def split_of(result: Splits) -> dict[str, str]:
    return {i: place.split for i, place in result.places.items()}


@settings(deadline=None)
@given(worlds)
def test_every_scenario_is_placed_or_dropped_and_none_leaks(world: World) -> None:
    links = world.links(IDS)
    result = split(IDS, links)
    assert sorted([*result.places, *result.dropped]) == sorted([*IDS, *FILLED])
    assert not list(spanning(links, split_of(result)))
    check_leakage(links, split_of(result))
    by_incident = {}
    for place in result.places.values():
        assert by_incident.setdefault(place.incident_id, place.split) == place.split


@settings(deadline=None)
@given(worlds, st.randoms(use_true_random=False))
def test_the_order_of_ids_and_links_makes_no_difference(world: World, rng: random.Random) -> None:
    ids, links = list(IDS), world.links(IDS)
    rng.shuffle(ids)
    rng.shuffle(links)
    assert split(ids, links) == split(IDS, world.links(IDS))


@settings(max_examples=150, deadline=None)
@given(worlds, st.permutations(IDS), st.lists(st.integers(1, 23), max_size=4))
def test_growth_never_moves_a_scenario_and_never_leaks(world: World, order: list[str], cuts: list[int]) -> None:
    previous: dict[str, Place] = {}
    for cut in [*sorted(cuts), len(order)]:
        links = world.links(order[:cut])
        result = split(order[:cut], links, previous)
        assert all(result.places[i] == place for i, place in previous.items())
        assert not list(spanning(links, split_of(result)))
        check_leakage(links, split_of(result))
        previous = result.places


@settings(deadline=None)
@given(st.sets(st.sampled_from(IDS), min_size=1))
def test_a_new_incident_draws_the_same_split_in_any_company(some: set[str]) -> None:
    alone, together = split(sorted(some), []), split(IDS, [])
    assert all(alone.places[i] == together.places[i] for i in some)


def test_shares_are_met_about() -> None:
    config = SplitConfig(train=0.8, validation=0.1, test=0.1)
    counts = Counter(draw(f"incident {i}", config) for i in range(20_000))
    assert counts["test"] == pytest.approx(2000, rel=0.1)
    assert counts["validation"] == pytest.approx(2000, rel=0.1)


def test_the_draw_is_pinned() -> None:
    """Known answers: a change of the hash would move every scenario of every dataset that is built anew."""
    config = SplitConfig(train=0.4, validation=0.3, test=0.3)
    drawn = {"train": "ad", "validation": "bcf", "test": "e"}
    assert {s: "".join(i for i in "abcdef" if draw(i, config) == s) for s in drawn} == drawn


def test_a_new_scenario_joins_its_incident() -> None:
    previous = {"old": Place("incident", "test"), "more": Place("more", "train")}
    config = SplitConfig(train=0.5, validation=0, test=0.5)
    links = [Link("new", "old", "overlap", 0.3), Link("new", "newer", "title", 1.0)]
    result = assign_splits(["old", "more", "new", "newer"], links, config, previous=previous)
    assert result.places["new"] == result.places["newer"] == Place("incident", "test")


def test_a_bridge_between_splits_is_dropped() -> None:
    previous = {"a": Place("a", "train"), "b": Place("b", "test")}
    config = SplitConfig(train=0.5, validation=0, test=0.5)
    links = [Link("a", "x", "overlap", 0.3), Link("b", "x", "title", 1.0)]
    result = assign_splits(["a", "b", "x"], links, config, previous=previous)
    assert result.dropped == {"x": "bridges train and test"}
    assert result.places == previous


def test_a_chain_of_new_ones_is_cut_once() -> None:
    previous = {"a": Place("a", "train"), "b": Place("b", "test")}
    config = SplitConfig(train=0.5, validation=0, test=0.5)
    links = [Link("a", "x", "overlap", 0.3), Link("x", "y", "overlap", 0.3), Link("b", "y", "overlap", 0.3)]
    result = assign_splits(["a", "b", "x", "y"], links, config, previous=previous)
    assert result.dropped == {"y": "bridges train and test"}
    assert result.places["x"] == Place("a", "train")


def test_a_dropped_duplicate_still_ties_its_incident() -> None:
    previous = {"old": Place("old", "test"), "more": Place("more", "train")}
    config = SplitConfig(train=0.5, validation=0, test=0.5)
    links = [Link("copy", "old", "near", 0.9), Link("copy", "part", "title", 1.0)]
    result = assign_splits(
        ["old", "more", "copy", "part"], links, config, duplicates={"copy": "old"}, previous=previous
    )
    assert result.dropped == {"copy": "duplicate of old"}
    assert result.places["part"] == Place("old", "test")


def test_an_empty_split_is_one_line_with_the_numbers() -> None:
    with pytest.raises(UserError, match="would be empty: 1 scenarios of 1 incidents") as error:
        assign_splits(["a"], [], SplitConfig())
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"or try another seed, such as split\.seed=") as error:
        assign_splits("abcd", [], SplitConfig())
    seed = int(str(error.value).rpartition("=")[2])
    filled = assign_splits("abcd", [], SplitConfig(seed=seed)).places.values()
    assert {place.split for place in filled} == {"train", "validation", "test"}
    assert assign_splits(["a"], [], ONLY_TRAIN).places == {"a": Place("a", "train")}


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match="must sum to 1"):
        SplitConfig(train=0.9, test=0.2)


# --- official splits ------------------------------------------------------------------------------------------

OFFICIAL = SplitConfig(official=True, validation=0.3, train=0.6, test=0.1)


def test_official_test_stays_and_validation_comes_out_of_train() -> None:
    official = {i: "test" if n < 4 else "train" for n, i in enumerate(IDS)}
    result = assign_splits(IDS, [Link("s05", "s06", "near", 0.9)], OFFICIAL, official=official)
    assert {i for i, s in split_of(result).items() if s == "test"} == set(IDS[:4])
    assert set(split_of(result).values()) == {"train", "validation", "test"}
    assert result.places["s05"] == result.places["s06"]
    assert result.dropped == {}


def test_official_leakage_is_reported_and_not_mended() -> None:
    official = {i: "test" if n < 4 else "train" for n, i in enumerate(IDS)}
    links = [Link("s00", "s10", "near", 0.9), Link("s10", "s11", "title", 1.0)]
    result = assign_splits(IDS, links, OFFICIAL, official=official)
    assert split_of(result)["s00"] == "test" != split_of(result)["s10"]
    assert leakage(links, official) == [
        {"n_scenarios": 3, "splits": {"test": 1, "train": 2}, "links": {"near": 1}},
    ]


def test_a_new_source_beside_an_official_split_does_not_bridge_it() -> None:
    official = {i: "test" if n < 4 else "train" for n, i in enumerate(IDS)}
    config = SplitConfig(official=True, validation=0, train=0.9, test=0.1)
    links = [Link("s00", "x", "near", 0.9), Link("s10", "x", "near", 0.9), Link("s00", "y", "title", 1.0)]
    result = assign_splits([*IDS, "x", "y"], links, config, official=official)
    assert result.dropped == {"x": "bridges train and test"}
    assert result.places["y"].split == "test"


def test_an_unknown_official_split_is_named() -> None:
    with pytest.raises(UserError, match="official split 'dev': expected one of train, validation, test"):
        assign_splits(["a"], [], OFFICIAL, official={"a": "dev"})


# --- leakage --------------------------------------------------------------------------------------------------


def test_leakage_lists_no_names() -> None:
    links = [Link("ann", "bob", "near", 0.9), Link("bob", "cyd", "overlap", 0.3), Link("eve", "fay", "title", 1.0)]
    places = {"ann": "train", "bob": "test", "cyd": "train", "eve": "train", "fay": "test"}
    found = leakage(links, places)
    assert [row["n_scenarios"] for row in found] == [3, 2]
    assert found[0]["links"] == {"near": 1, "overlap": 1}
    assert not any(name in str(found) for name in places)


def test_near_duplicates_across_splits_fail_the_build() -> None:
    links = [Link("a", "b", "near", 0.9), Link("a", "c", "exact", 1.0), Link("c", "d", "overlap", 0.3)]
    with pytest.raises(LeakageError, match=r"1 exact, 1 near link\(s\) in 1 cluster"):
        check_leakage(links, {"a": "train", "b": "test", "c": "test", "d": "train"})
    check_leakage(links, {"a": "train", "b": "train", "d": "test"})


def test_exact_copies_leak_over_one_that_is_in_no_split() -> None:
    links = [Link("a", "b", "exact", 1.0), Link("a", "c", "exact", 1.0)]
    with pytest.raises(LeakageError):
        check_leakage(links, {"b": "train", "c": "test"})
