"""Which request killed its engine? Each death draws the circle of suspects closer, until one is found alone.

When an engine dies, all requests that it had are suspects. What was asked together with many is asked again with a
few, then alone; a request that its engine has not survived MAX_DEATHS times is given up. One that is alone at its
last attempt cannot be given up for another's fault.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

MAX_DEATHS = 3  # of engines on one request
GIVEN_UP = f"the engine died {MAX_DEATHS} times on this request"


class Deaths:
    """How often each request was begun and came to no end; an actor, since it must outlive engines."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def unfinished(self, request_ids: Sequence[str]) -> list[int]:
        """Of each request: so often its engine has died."""
        return [self._begun[i] for i in request_ids]

    def begin(self, request_ids: Sequence[str]) -> None:
        self._begun.update(request_ids)

    def finish(self, request_ids: Sequence[str]) -> None:
        for i in request_ids:
            self._begun.pop(i, None)


class Circle:
    """Lets requests into the engine: any number without deaths, four with one, one with more and nothing beside it."""

    def __init__(self, capacity: int) -> None:
        """Args: capacity: requests that are there at once at most."""
        self._capacity = self._free = capacity
        self._changed = asyncio.Condition()

    def weight(self, deaths: int) -> int:
        """What a request takes of the capacity."""
        if deaths == 0:
            return 1
        return max(1, self._capacity // 4) if deaths < MAX_DEATHS - 1 else self._capacity

    @asynccontextmanager
    async def enter(self, deaths: int) -> AsyncIterator[None]:
        weight = self.weight(deaths)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= weight)
            self._free -= weight
        try:
            yield
        finally:
            async with self._changed:
                self._free += weight
                self._changed.notify_all()
