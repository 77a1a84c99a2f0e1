"""Which replies are rated: the same number of every system's, from all scenarios, the same for the same seed.

Replies are grouped by the officer's line that they answer. The Likert form takes lines that every system answered, and
all replies to them; the pairwise form takes all pairs of systems equally often, each system of a pair equally often
as A, and never two replies of the same words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pyarrow as pa

from deescal.errors import UserError
from deescal.evaluate.humans.config import PackConfig
from deescal.schema import Row

REFERENCE = "reference"  # the system that is the real civilian
_COLUMNS = ["item_id", "scenario_id", "incident_id", "protocol", "model", "seed", "reference", "reply"]


@dataclass(frozen=True)
class Reply:
    """What a system answered to a line."""

    text: str  # without white space around it; may be empty
    seed: int | None  # of its generation; null: the real reply
    row: int  # of the table

    def same_words(self, other: Reply) -> bool:
        return self.text.split() == other.text.split()


@dataclass(frozen=True)
class Line:
    """An officer's line and what was answered."""

    item_id: str
    scenario_id: str
    incident_id: str
    replies: dict[str, Reply]  # by system, sorted


@dataclass(frozen=True)
class Item:
    """What is to be rated: one reply, or two, to one line."""

    line: Line
    systems: tuple[str, ...]

    @property
    def replies(self) -> tuple[Reply, ...]:
        return tuple(self.line.replies[system] for system in self.systems)


def read_lines(turns: pa.Table, config: PackConfig, rng: random.Random) -> tuple[list[Line], Counter[str]]:
    """Lines by id, with one reply of every system that answered, of one seed drawn at random; rows without a reply.

    Args:
        turns: as `deescal.evaluate.humans.pack.make_pack` takes it.

    Raises:
        UserError: no rows of this protocol, one reply twice, or a model that is named as the real reply.
    """
    rows = [{**row, "row": i} for i, row in enumerate(turns.select(_COLUMNS).to_pylist())]
    there = {row["protocol"] for row in rows}
    if config.protocol not in there:
        raise UserError(f"no replies of protocol '{config.protocol}' to rate (there are: {', '.join(sorted(there))})")
    by_line: dict[str, list[Row]] = defaultdict(list)
    failed: Counter[str] = Counter()
    # Sorted, so that what is drawn does not depend on the order in which an evaluation wrote its rows.
    for row in sorted(rows, key=lambda row: (row["item_id"], row["model"], row["seed"])):
        if row["protocol"] == config.protocol:
            by_line[row["item_id"]].append(row)
            failed[row["model"]] += row["reply"] is None
    if REFERENCE in failed:
        raise UserError(f"a model is named '{REFERENCE}', which stands for the real reply: rename it")
    return [_line(rows, config, rng) for rows in by_line.values()], failed


def _line(rows: Sequence[Row], config: PackConfig, rng: random.Random) -> Line:
    found: dict[str, dict[int, Reply]] = defaultdict(dict)  # model -> seed
    for row in rows:
        if row["reply"] is None:
            continue
        if row["seed"] in found[row["model"]]:
            raise UserError(f"two replies of {row['model']} to {row['item_id']} with seed {row['seed']}")
        found[row["model"]][row["seed"]] = Reply(row["reply"].strip(), row["seed"], row["row"])
    # One seed for all where there is one that all answered with: the judge compares replies of one seed, too.
    shared = sorted(set.intersection(*map(set, found.values()))) if found else []
    seed = rng.choice(shared) if shared else None
    replies = {model: by_seed[rng.choice(list(by_seed)) if seed is None else seed] for model, by_seed in found.items()}
    first = rows[0]
    if config.include_reference and (first["reference"] or "").strip():
        replies[REFERENCE] = Reply(first["reference"].strip(), None, first["row"])
    return Line(first["item_id"], first["scenario_id"], first["incident_id"], dict(sorted(replies.items())))


def spread(lines: Sequence[Line], rng: random.Random) -> list[Line]:
    """At random, one line of every scenario before the second of any."""
    order = rng.sample(lines, len(lines))
    seen: Counter[str] = Counter()
    ranks = {}
    for line in order:
        ranks[line.item_id] = seen[line.scenario_id]
        seen[line.scenario_id] += 1
    return sorted(order, key=lambda line: ranks[line.item_id])


def draw_replies(order: Sequence[Line], systems: Sequence[str], config: PackConfig) -> tuple[list[list[Item]], Row]:
    """Groups of items, one a line, of the first lines that every system answered; what to tell of them.

    Raises:
        UserError: there are none, or fewer items are asked for than there are systems.
    """
    complete = [line for line in order if len(line.replies) == len(systems)]
    if not complete:
        answered = Counter(system for line in order for system in line.replies)
        each = ", ".join(f"{system} {answered[system]}" for system in systems)
        raise UserError(f"no line was answered by every system (of {len(order)} lines: {each or 'none answered'})")
    n_lines = config.n_items // len(systems)
    if not n_lines:
        raise UserError(f"n_items={config.n_items}: expected at least {len(systems)}, one for every system")
    groups = [[Item(line, (system,)) for system in systems] for line in complete[:n_lines]]
    return groups, {"incomplete_lines": len(order) - len(complete)}


def draw_pairs(
    order: Sequence[Line], systems: Sequence[str], config: PackConfig, rng: random.Random
) -> tuple[list[list[Item]], Row]:
    """Groups of one item: the pairs of systems in turn, each on a line that few other pairs have; what to tell.

    Raises:
        UserError: fewer than two systems, or none that differ.
    """
    if len(systems) < 2:
        raise UserError(f"form=pairwise needs two systems, there are: {', '.join(systems) or 'none'}")
    pairs = list(combinations(systems, 2))
    both = {pair: [line for line in order if line.replies.keys() >= set(pair)] for pair in pairs}
    free = {pair: [line for line in both[pair] if not _identical(line, pair)] for pair in pairs}
    identical = {pair: len(both[pair]) - len(free[pair]) for pair in pairs}
    flips = {pair: rng.randrange(2) for pair in pairs}
    drawn: Counter[tuple[str, str]] = Counter()
    used: Counter[str] = Counter()  # by line
    items: list[Item] = []
    while len(items) < config.n_items and any(free.values()):
        for pair in pairs:
            if not free[pair] or len(items) == config.n_items:
                continue
            line = min(free[pair], key=lambda line: used[line.item_id])
            free[pair].remove(line)
            used[line.item_id] += 1
            items.append(Item(line, pair if (drawn[pair] + flips[pair]) % 2 else pair[::-1]))
            drawn[pair] += 1
    if not items:
        raise UserError("no two systems answered one line in different words")
    told = [
        {"model": a, "model_b": b, "lines": len(both[a, b]), "identical": identical[a, b], "items": drawn[a, b]}
        for a, b in pairs
    ]
    return [[item] for item in items], {"pairs": told}


def _identical(line: Line, pair: tuple[str, str]) -> bool:
    a, b = (line.replies[system] for system in pair)
    return a.same_words(b)
