"""Requests that die with their engine: poison is found and given up, its neighbours are not."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from deescal.score.suspects import MAX_DEATHS, Circle, Deaths


def test_deaths_are_starts_without_an_end() -> None:
    deaths = Deaths()
    deaths.begin(["a", "b"])
    deaths.finish(["a"])
    deaths.begin(["b"])
    assert deaths.unfinished(["a", "b", "c"]) == [0, 2, 0]


@given(st.lists(st.integers(0, MAX_DEATHS - 1), max_size=40), st.integers(1, 16))
def test_a_last_attempt_is_alone_and_everyone_gets_in(deaths: list[int], capacity: int) -> None:
    inside: list[int] = []
    done: list[int] = []

    async def visit(circle: Circle, n: int) -> None:
        async with circle.enter(n):
            inside.append(n)
            assert len(inside) <= capacity
            if MAX_DEATHS - 1 in inside:
                assert len(inside) == 1
            await asyncio.sleep(0)
            inside.remove(n)
            done.append(n)

    async def run() -> None:
        circle = Circle(capacity)
        await asyncio.gather(*(visit(circle, n) for n in deaths))

    asyncio.run(run())
    assert sorted(done) == sorted(deaths)


@given(st.sets(st.integers(0, 29), max_size=6))
def test_whatever_dies_together_only_poison_is_given_up(poison: set[int]) -> None:
    """The worker's rules, with an engine that dies of poison as soon as it is asked, over and over."""
    deaths, given_up, answered = Deaths(), set(), set()
    while len(given_up) + len(answered) < 30:
        left = [n for n in range(30) if n not in given_up | answered]
        counts = dict(zip(left, deaths.unfinished([str(n) for n in left]), strict=True))
        given_up |= {n for n in left if counts[n] >= MAX_DEATHS}
        circle = Circle(8)
        asked: list[int] = []  # at once
        room = 8
        for n in sorted((n for n in left if counts[n] < MAX_DEATHS), key=counts.__getitem__):
            weight = circle.weight(counts[n])
            if weight <= room:
                room -= weight
                asked.append(n)
        deaths.begin([str(n) for n in asked])
        if not poison & set(asked):
            deaths.finish([str(n) for n in asked])
            answered |= set(asked)
    assert given_up == poison
