"""A rating pack: what raters see, apart from the key that tells whose replies they are.

An item is rated by at least two people. In the Likert form a rater of a line rates every system's reply to it, far
apart in the sheet, so that how severe a rater is falls on all systems alike. Blinded ids are drawn, attention checks
look like any other item, and the same table, config and seed give the same pack.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.evaluate.humans.config import PackConfig
from deescal.evaluate.humans.criteria import QUESTIONS, check_text
from deescal.evaluate.humans.draw import Item, draw_pairs, draw_replies, read_lines, spread
from deescal.schema import Row

_SPEAKERS = {"user": "officer", "assistant": "civilian"}


@dataclass(frozen=True)
class Shown:
    """What raters see of an item."""

    setting: str | None  # what the civilian's part is
    messages: tuple[tuple[str, str], ...]  # (officer or civilian, text); the last is the officer's
    replies: tuple[str, ...]  # one in the Likert form; A and B in the pairwise form


@dataclass(frozen=True)
class Origin:
    """What raters must not see of it."""

    raters: tuple[str, ...]
    item_id: str | None = None  # null: an attention check
    scenario_id: str | None = None
    incident_id: str | None = None
    systems: tuple[str, ...] = ()  # in the order of Shown.replies
    seeds: tuple[int | None, ...] = ()  # of their generation; null for the real reply
    words: tuple[str, ...] = ()  # fingerprints of the replies, by which they are known again
    answer: str | None = None  # of an attention check, to each question


@dataclass(frozen=True)
class Pack:
    """`shown` and `key` have the same blinded ids; nothing in `shown` and `sheets` tells what is in `key`."""

    pack_id: str
    config: PackConfig
    shown: dict[str, Shown]
    key: dict[str, Origin]
    sheets: dict[str, tuple[str, ...]]  # rater -> blinded ids, in the order of rating
    summary: Row


def make_pack(turns: pa.Table, config: PackConfig, judged: Collection[str] = ()) -> Pack:
    """Draw, blind, assign and shuffle.

    Args:
        turns: of an evaluation, in any order. Columns item_id (an officer's line), scenario_id, incident_id, protocol,
            model, seed, messages (system where there is one, then user = officer and assistant = civilian in turn, the
            officer last), reference (the real reply; null where there is none), reply (null where generation failed:
            left out and counted).
        judged: item_ids that a judge has read: drawn first, so that it can be compared with the raters.

    Returns:
        The pack. Its summary: n_items, n_lines, n_scenarios, systems {name: items it is in}, failed {model: rows
        without a reply}, sheets {rater: {items, checks}}; Likert: incomplete_lines, left out as some system did not
        answer; pairwise: pairs [{model, model_b, lines, identical, items}]: of the lines that both answered, those in
        the same words are ties that nobody needs to rate.

    Raises:
        UserError: there is nothing to rate, or less than there are systems or raters, or one reply is there twice.
    """
    rng = random.Random(config.seed)
    lines, failed = read_lines(turns, config, rng)
    systems = sorted({system for line in lines for system in line.replies})
    order = sorted(spread(lines, rng), key=lambda line: line.item_id not in judged)
    if config.form == "likert":
        groups, told = draw_replies(order, systems, config)
    else:
        groups, told = draw_pairs(order, systems, config, rng)
    items = [item for group in groups for item in group]
    summary = {
        "n_items": len(items),
        "n_lines": len({item.line.item_id for item in items}),
        "n_scenarios": len({item.line.scenario_id for item in items}),
        "systems": {system: sum(system in item.systems for item in items) for system in systems},
        "failed": dict(sorted(failed.items())),
        **told,
    }
    return _blind(turns, groups, config, summary, rng)


def _blind(
    turns: pa.Table, groups: Sequence[Sequence[Item]], config: PackConfig, summary: Row, rng: random.Random
) -> Pack:
    shown: dict[str, Shown] = {}
    key: dict[str, Origin] = {}
    rated: dict[str, list[list[str]]] = {name: [] for name in config.raters}  # groups of blinded ids
    for group, raters in _assign(groups, config, rng):
        ids = []
        for item in group:
            ids.append(_new_id(shown, rng))
            line, seeds = item.line, tuple(reply.seed for reply in item.replies)
            shown[ids[-1]] = show(turns, item, config)
            words = tuple(fingerprint(reply.text) for reply in item.replies)
            key[ids[-1]] = Origin(raters, line.item_id, line.scenario_id, line.incident_id, item.systems, seeds, words)
        for name in raters:
            rated[name].append(ids)
    if idle := [name for name, ids in rated.items() if not ids]:
        raise UserError(f"{len(groups)} item(s) leave nothing to rate for {', '.join(idle)}: raise n_items")
    sheets = {name: _sheet(ids, rng) for name, ids in rated.items()}
    sizes = {}
    for name, sheet in sheets.items():
        sheets[name] = _with_checks(name, sheet, shown, key, config, rng)
        sizes[name] = {"items": len(sheet), "checks": len(sheets[name]) - len(sheet)}
    content = {blinded: [asdict(shown[blinded]), asdict(key[blinded])] for blinded in shown}
    # A letter first, as of every id here: spreadsheets take digits, also with one e among them, for a number.
    pack_id = f"pack-{fingerprint(config, content, sheets)}"
    return Pack(pack_id, config, shown, key, sheets, {**summary, "sheets": sizes})


def show(turns: pa.Table, item: Item, config: PackConfig) -> Shown:
    """What raters see of an item: nothing but its replies may tell systems apart.

    In the teacher-forced protocol all systems answer the same history, of which a model with less room may have been
    given less: the longest is shown with every reply. The setting is shown where all were given the same one.
    """
    replies = item.line.replies
    column = turns["messages"]
    every = {system: column[reply.row].as_py() for system, reply in replies.items()}
    shared = config.protocol == "teacher_forced"
    messages = max(every.values(), key=len) if shared else every[item.systems[0]]
    settings = {_setting(given) for given in every.values()}
    said = tuple((_SPEAKERS[m["role"]], m["content"].strip()) for m in messages if m["role"] in _SPEAKERS)
    return Shown(settings.pop() if len(settings) == 1 else None, said, tuple(reply.text for reply in item.replies))


def _setting(messages: Sequence[Mapping[str, str]]) -> str | None:
    return next((m["content"].strip() for m in messages if m["role"] == "system"), None) or None


def _assign(
    groups: Sequence[Sequence[Item]], config: PackConfig, rng: random.Random
) -> Iterator[tuple[Sequence[Item], tuple[str, ...]]]:
    """Groups, each with the raters that have fewest, so that their numbers differ by one at most.

    Of raters with the same number, those who met the group's systems least often come first; then it is drawn.
    """
    load: Counter[str] = Counter()
    met: Counter[tuple[str, str]] = Counter()
    for group in groups:
        systems = [system for item in group for system in item.systems]
        burden = {
            name: (load[name], sum(met[name, system] for system in systems), rng.random()) for name in config.raters
        }
        raters = sorted(burden, key=burden.__getitem__)[: config.raters_per_item]
        load.update(raters)
        met.update((name, system) for name in raters for system in systems)
        yield group, tuple(sorted(raters))


def _sheet(groups: Iterable[Sequence[str]], rng: random.Random) -> tuple[str, ...]:
    """A rater's ids in order: one of every group, then the second of every group, and so on."""
    rounds: dict[int, list[str]] = defaultdict(list)
    for group in groups:
        for i, blinded in enumerate(rng.sample(group, len(group))):
            rounds[i].append(blinded)
    return tuple(blinded for i in sorted(rounds) for blinded in rng.sample(rounds[i], len(rounds[i])))


def _with_checks(
    rater: str,
    sheet: Sequence[str],
    shown: dict[str, Shown],
    key: dict[str, Origin],
    config: PackConfig,
    rng: random.Random,
) -> tuple[str, ...]:
    """The sheet with attention checks of this rater, one in each of its stretches; they join `shown` and `key`."""
    n_checks = math.ceil(config.attention_share * len(sheet))
    places = [int((i + rng.random()) * len(sheet) / n_checks) for i in range(n_checks)]
    with_checks = list(sheet)
    for place in reversed(places):
        # Next to the item whose conversation it borrows, a check would stand out: from half a sheet away.
        like = shown[sheet[(place + len(sheet) // 2) % len(sheet)]]
        answer = rng.choice(list(QUESTIONS[config.form][0].choices))
        blinded = _new_id(shown, rng)
        shown[blinded] = Shown(like.setting, like.messages, (check_text(config.form, answer),) * len(like.replies))
        key[blinded] = Origin((rater,), answer=answer)
        with_checks.insert(place, blinded)
    return tuple(with_checks)


def _new_id(taken: Mapping[str, Any], rng: random.Random) -> str:
    while (blinded := f"q{rng.getrandbits(32):08x}") in taken:
        pass
    return blinded
