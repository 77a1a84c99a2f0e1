"""Links and duplicates, on invented words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.dataset.dedup import (
    SIGNATURE,
    DedupConfig,
    Link,
    Signature,
    choose_duplicates,
    components,
    find_links,
    incident_title,
    signature,
)

CONFIG = DedupConfig()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st", "mo", "ki")]


def scenario(seed: int, n_words: int = 900) -> list[str]:
    """Turns of invented words."""
    rng = random.Random(seed)
    words = rng.choices(VOCABULARY, k=n_words)
    return [" ".join(words[i : i + 12]) for i in range(0, n_words, 12)]


def words_of(turns: Sequence[str]) -> list[str]:
    return " ".join(turns).split()


def links_of(texts: dict[str, list[str]], titles: dict[str, str] | None = None) -> list[Link]:
    signatures = [signature(turns, (titles or {}).get(i, ""), CONFIG) for i, turns in texts.items()]
    return find_links(list(texts), signatures, CONFIG)


def kinds(links: Sequence[Link]) -> list[tuple[str, str, str]]:
    return [(link.a, link.b, link.kind) for link in links]


def substituted(turns: Sequence[str], share: float, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(VOCABULARY) if rng.random() < share else word for word in words_of(turns)]


# --- signatures -----------------------------------------------------------------------------------------------


def test_signature_ignores_turns_case_and_punctuation() -> None:
    plain = signature(["do not touch that", "i wont"], "", CONFIG)
    assert plain == signature(["Do not", "touch THAT! I won\u2019t."], "", CONFIG)
    assert plain != signature(["do not that touch", "i wont"], "", CONFIG)


def test_signature_holds_no_words_and_is_small() -> None:
    words = [f"zebra{i}" for i in range(3000)]
    made = signature([" ".join(words)], "", CONFIG)
    assert len(made.shingles) < 4000
    assert b"zebra" not in made.shingles + (made.text_hash or b"")


def test_signature_goes_through_arrow() -> None:
    signatures = [signature(scenario(1), "tiktok_12_Part_1_Lost_Wallet_Returned", CONFIG), signature([], "", CONFIG)]
    table = pa.Table.from_pylist([asdict(s) for s in signatures], schema=SIGNATURE)
    assert [Signature(**row) for row in table.to_pylist()] == signatures


def test_seed_decides_the_sample() -> None:
    other = DedupConfig(seed=1)
    assert signature(scenario(1), "", other).shingles != signature(scenario(1), "", CONFIG).shingles


# --- links ----------------------------------------------------------------------------------------------------


def test_exact_copies_are_linked_to_the_smallest_id() -> None:
    links = links_of({"c": scenario(1), "a": scenario(1), "b": scenario(1), "d": scenario(2)})
    assert kinds(links) == [("a", "b", "exact"), ("a", "c", "exact")]


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_the_words_changed_is_a_near_duplicate(seed: int) -> None:
    links = links_of({"a": scenario(seed), "b": substituted(scenario(seed), 0.1), "c": scenario(seed + 100)})
    assert kinds(links) == [("a", "b", "near")]


def test_an_excerpt_is_contained_and_named_first() -> None:
    links = links_of({"a": scenario(1, 4000), "b": words_of(scenario(1, 4000))[1000:1300], "c": scenario(2)})
    assert kinds(links) == [("b", "a", "contained")]
    assert links[0].similarity > 0.9


def test_a_third_shared_is_an_overlap_not_a_duplicate() -> None:
    left, right = words_of(scenario(1)), words_of(scenario(2))
    assert kinds(links_of({"a": left, "b": left[600:] + right[:600]})) == [("a", "b", "overlap")]


def test_a_formula_that_many_speak_links_nobody() -> None:
    formula = words_of(scenario(99, 300))
    texts = {f"s{i}": formula + words_of(scenario(i, 600)) for i in range(12)}
    assert links_of(texts) == []


def test_loops_and_very_short_texts_link_only_when_exact() -> None:
    loops = {f"loop{n}": ["hey"] * n for n in (50, 400, 9000)}
    short = {"x": ["show me your hands"], "y": ["show me your hands now"]}
    blank = {"empty": [], "silent": ["", "..."]}
    assert links_of({**loops, **short, **blank, "talk": scenario(3) + ["hey"] * 60}) == []
    assert kinds(links_of({"x": ["Show me!"], "y": ["show", "me"]})) == [("x", "y", "exact")]


def test_more_copies_than_one_window_hang_together() -> None:
    texts = {f"s{i:03d}": substituted(scenario(1), 0.04, seed=i) for i in range(150)}
    links = links_of({**texts, "other": scenario(2)})
    clusters = components([*texts, "other"], links)
    assert set(clusters.values()) == {"s000", "other"}


@settings(deadline=None)
@given(order=st.permutations(range(8)))
def test_links_do_not_depend_on_the_order(order: list[int]) -> None:
    base = [scenario(1, 200), scenario(2, 200), scenario(3, 200)]
    made = [*base, *(substituted(turns, 0.05) for turns in base), words_of(base[0])[:120], base[1]]
    signatures = [signature(turns, "", CONFIG) for turns in made]
    ids = [f"s{i}" for i in range(8)]
    shuffled = find_links([ids[i] for i in order], [signatures[i] for i in order], CONFIG)
    assert shuffled == find_links(ids, signatures, CONFIG)
    assert len(shuffled) >= 5


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        find_links(["a", "a"], [signature([], "", CONFIG)] * 2, CONFIG)


# --- titles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tiktok_1025_Part_1_-_Goose_Invade_fd96d96e.csv", "tiktok_1025_Part_2__Goose_Invade_edba2d5e.csv"),
        ("tiktok_1030_Part_2_-_Grumpy_Farm_449e580f", "tiktok_1031_Part_4_-_Grumpy_Farm_104a6e3e"),
        ("tiktok_0412_Farmer_Finds_His_Go_0a73f22d", "tiktok_1003_Farmer_Finds_His_Go_d67ec393"),
        ("tiktok_1028_P1_cops_bodycam_c_3e7d5bdd", "tiktok_1028_P2_cops_copsoftikt_e6159324"),
        ("The runaway tractor, pt. 1.mp4", "The Runaway Tractor (2/3).mp4"),
    ],
)
def test_parts_share_a_title(one: str, other: str) -> None:
    assert incident_title(one) is not None
    assert incident_title(one) == incident_title(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tiktok_1028_P1_cops_bodycam_c_3e7d5bdd", "tiktok_1101_P2_cops_copsoftikt_e6159324"),
        ("tiktok_1028_P1_cops_bodycam_c_3e7d5bdd", "facebook_1028_P2_cops"),
        ("tiktok_1028_P1_cops_bodycam_c_3e7d5bdd", "tiktok_1028_Part_2_-_Lost_Dog_e6159324"),
        ("tiktok_1104_Goat_Learns_To_Dri_17c913b3", "tiktok_1104_Goat_Learns_To_Fly_b1d68a0f"),
        ("axon_front_door 2021-05-01.mp4", "axon_front_door 2021-05-02.mp4"),
    ],
)
def test_other_titles_differ(one: str, other: str) -> None:
    assert incident_title(one) != incident_title(other)


@pytest.mark.parametrize(
    "title",
    [
        *("", "youtube_991.csv", "facebook_1232268052153412", "tiktok_0827_Police__police__04752ec2", "Part 2.mp4"),
        *("tiktok_1014_bodycam_policebody_38201431", "IMG_2034.MOV", "Traffic Stop Full Footage", "dQw4w9WgXcQ"),
    ],
)
def test_titles_that_name_no_incident(title: str) -> None:
    assert incident_title(title) is None


def test_title_links_make_no_duplicates_and_a_programme_none() -> None:
    texts = {f"s{i}": scenario(i, 100) for i in range(60)}
    parts = {"s0": "Part 1 - The Runaway Tractor", "s1": "Part 2 - The Runaway Tractor"}
    links = links_of(texts, {**dict.fromkeys(texts, "Tuesday Night Patrol Hour"), **parts})
    assert kinds(links) == [("s0", "s1", "title")]
    assert choose_duplicates(dict.fromkeys(texts, 100), links) == {}


# --- clusters and choice --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30))
def test_components_are_what_links_connect(edges: list[tuple[int, int]]) -> None:
    ids = [f"s{i:02d}" for i in range(21)]
    found = components(ids, [Link(ids[a], ids[b], "near", 1.0) for a, b in edges])
    for a, b in edges:
        assert found[ids[a]] == found[ids[b]]
    reached = {i: {i} for i in ids}
    for _ in ids:
        for a, b in edges:
            reached[ids[a]] |= reached[ids[b]]
            reached[ids[b]] |= reached[ids[a]]
    assert found == {i: min(reached[i]) for i in ids}


def test_the_longest_is_kept_then_the_smallest_id() -> None:
    links = [Link("a", "b", "near", 0.9), Link("c", "d", "near", 0.9)]
    assert choose_duplicates({"a": 10, "b": 20, "c": 5, "d": 5}, links) == {"a": "b", "d": "c"}


def test_nothing_goes_for_words_that_only_a_dropped_one_has() -> None:
    chain = [Link(a, b, "near", 0.7) for a, b in pairwise("abc")]
    assert choose_duplicates({"a": 30, "b": 20, "c": 10}, chain) == {"b": "a"}


def test_an_excerpt_goes_and_its_source_stays() -> None:
    links = [Link("excerpt", "full", "contained", 1.0)]
    assert choose_duplicates({"excerpt": 10, "full": 90}, links) == {"excerpt": "full"}
    assert choose_duplicates({"excerpt": 10, "full": 90}, links, previous={"excerpt"}) == {}


def test_what_is_already_kept_stays() -> None:
    links = [Link("a", "b", "exact", 1.0), Link("a", "c", "exact", 1.0), Link("a", "d", "near", 0.9)]
    lengths = {"a": 9, "b": 9, "c": 9, "d": 99}
    assert choose_duplicates(lengths, links, previous={"c"}) == {"d": "c", "a": "c", "b": "c"}


def test_with_official_splits_copies_across_them_stay() -> None:
    links = [Link("a", "b", "exact", 1.0), Link("a", "c", "exact", 1.0)]
    official = {"a": "test", "b": "train", "c": "train"}
    assert choose_duplicates(dict.fromkeys("abc", 9), links, official=official) == {"c": "b"}
