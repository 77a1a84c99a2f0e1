"""What each protocol shows a model: every turn once, real or its own; and what becomes of its answers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.dataset.chat import Line, to_messages
from deescal.evaluate.config import JudgingConfig
from deescal.evaluate.contestants import Contestant
from deescal.evaluate.judging import dialogue_rows, error_causes, read_judged, realism_rows, sample_items
from deescal.evaluate.rollout import EARLIER, Dialogue, dialogues, play, rollout_messages
from deescal.evaluate.rollout_engine import engines
from deescal.evaluate.rows import (
    ITEMS,
    SCORED_TURNS,
    TURNS,
    check_complete,
    make_items,
    read_test_rows,
    with_labels,
)
from deescal.schema import EXAMPLES, Row, to_table
from deescal.score.config import SamplingConfig, ScoreConfig
from deescal.score.tables import ANSWERS, answer_row
from deescal.serve.adapters import Adapter

CONTESTANT = Contestant(label="tiny", model="tiny")


def write_split(folder: Path, examples: Sequence[Row]) -> str:
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    empty = dict.fromkeys(EXAMPLES.names)
    pq.write_table(to_table([{**empty, **e} for e in examples], EXAMPLES), folder / "examples" / "test.parquet")
    return str(folder)


def window(scenario: str, number: int, messages: list[dict[str, str]], n_context: int) -> Row:
    return {
        "example_id": f"{scenario}-{number}",
        "scenario_id": scenario,
        "incident_id": scenario,
        "window": number,
        "n_context_messages": n_context,
        "messages": messages,
    }


# A scenario: who speaks each turn, whose words are its number; cut into windows that repeat whole messages.
scenarios = st.lists(st.booleans(), min_size=1, max_size=24).map(lambda sides: [True, *sides, False])


def cut(scenario: str, sides: Sequence[bool], n_new: int, n_repeated: int) -> list[Row]:
    """Windows of an officer and a civilian message each, `n_new` pairs new, `n_repeated` from the one before."""
    lines = [Line(i, "user" if user else "assistant", "O" if user else "C", f"<{i}>") for i, user in enumerate(sides)]
    messages = to_messages(lines)
    found = []
    for number, start in enumerate(range(0, len(messages), 2 * n_new)):
        first = max(0, start - 2 * n_repeated)
        found.append(window(scenario, number, messages[first : start + 2 * n_new], start - first))
    return found


@given(st.lists(scenarios, min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 3))
def test_teacher_forced_history_has_every_turn_once(
    tmp_path_factory: pytest.TempPathFactory, many: list[list[bool]], n_new: int, n_repeated: int
) -> None:
    examples = [e for i, sides in enumerate(many) for e in cut(f"s{i}", sides, n_new, n_repeated)]
    data = write_split(tmp_path_factory.mktemp("data"), examples)
    items = make_items(read_test_rows(data, "test")).to_pylist()
    for i, sides in enumerate(many):
        of = [item for item in items if item["scenario_id"] == f"s{i}"]
        # Every civilian turn is what is asked for, once; and none of it stands in the history it is asked after.
        asked = Counter(word for item in of for word in item["reference"].split())
        assert asked == Counter(f"<{n}>" for n, user in enumerate(sides) if not user)
        for item in of:
            said = [word for m in item["messages"] for word in m["content"].split()]
            assert said == sorted(set(said), key=lambda word: int(word[1:-1]))
            assert not set(said) & set(item["reference"].split())
            assert item["messages"][-1]["role"] == "user"
            # In order, without a gap, up to the last turn before the reply.
            numbers = [int(word[1:-1]) for word in [*said, *item["reference"].split()]]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))


def items_of(n_pairs: int, first: int = 0, example: str = "s-0") -> list[Row]:
    """ITEMS of a window of `n_pairs` exchanges, of which those before `first` are repeated from another."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{'OC'[i % 2]}{i // 2}"} for i in range(2 * n_pairs)]
    return [
        {
            "item_id": f"{example}-{2 * i + 1}",
            "scenario_id": "s",
            "incident_id": None,
            "turn_id": i,
            "example_id": example,
            "message": 2 * i + 1,
            "messages": messages[: 2 * i + 1],
            "reference": f"C{i}",
        }
        for i in range(first, n_pairs)
    ]


class Parrot:
    """Answers with a number of its own, fails where it is told to, and counts how often it is asked."""

    def __init__(self, fail_at: frozenset[int] = frozenset()) -> None:
        self.fail_at, self.rounds, self.seen = fail_at, 0, list[Row]()

    def __call__(self, requests: Sequence[Row]) -> Mapping[str, Row]:
        self.rounds += 1
        self.seen += copy.deepcopy(list(requests))
        return {r["request_id"]: self.answer(r) for r in requests}

    def answer(self, request: Row) -> Row:
        if request["row"] in self.fail_at:
            return answer_row(request, error="no")
        return answer_row(request, output=f" M{request['row']} ", finish_reason="stop")


@given(st.integers(1, 8), st.integers(0, 7))
def test_rollout_history_has_every_turn_once_and_the_models_own_words(n_pairs: int, first: int) -> None:
    first = min(first, n_pairs - 1)
    items = items_of(n_pairs, first)
    parrot = Parrot()
    turns = play(dialogues(items, [CONTESTANT], 1), parrot)
    assert [t["reply"] for t in turns] == [f"M{i}" for i in range(first, n_pairs)]
    for item, turn in zip(items, turns, strict=True):
        said = [m["content"] for m in turn["messages"]]
        civilian = [f"C{i}" if i < first else f"M{i}" for i in range(item["turn_id"])]
        assert said[0::2] == [f"O{i}" for i in range(item["turn_id"] + 1)]
        assert said[1::2] == civilian
        assert [m["role"] for m in turn["messages"]] == [m["role"] for m in item["messages"]]
    assert parrot.rounds == n_pairs - first
    to_table(turns, TURNS)


def test_dialogues_go_turn_by_turn_together_and_a_silent_model_is_quoted() -> None:
    items = [*items_of(3), *items_of(1, example="t-0")]
    parrot = Parrot()
    turns = play(dialogues(items, [CONTESTANT, Contestant(label="other", model="other")], 2), parrot)
    assert parrot.rounds == 3
    assert len(turns) == len({(t["item_id"], t["model"], t["seed"]) for t in turns}) == 4 * 2 * 2
    assert len({r["request_id"] for r in parrot.seen}) == len(parrot.seen) == len(turns)
    assert rollout_messages(items[1], {1: ""})[1] == {"role": "assistant", "content": "..."}


def test_a_reply_without_an_answer_ends_its_dialogue_alone() -> None:
    waiting = [Dialogue(CONTESTANT, 0, items_of(4)), Dialogue(CONTESTANT, 0, items_of(2, example="t-0"))]
    parrot = Parrot(frozenset({2}))
    turns = play(waiting, parrot)
    assert [t["error"] for t in turns] == [None, None, "no", EARLIER, None, None]
    assert len(parrot.seen) == 5
    assert [t["reply"] for t in turns][2:4] == [None, None]


class FakeEngine:
    """Behind the production actor: a number of its own for every line, as `Parrot`'s."""

    def __init__(self, config: object, sampling: object, adapters: Sequence[Adapter]) -> None:
        self._names = [None, *(adapter.name for adapter in adapters)]

    def answer(self, requests: pa.Table) -> pa.Table:
        rows = [answer_row(r, output=f"{self._names.index(r['adapter'])}") for r in requests.to_pylist()]
        return to_table(rows, ANSWERS)


@pytest.mark.ray
def test_engines_stay_loaded_over_all_turns() -> None:
    import ray

    config = ScoreConfig.model_validate(
        {"workers": {"workers": 2, "num_cpus": 0.5, "memory_gib": 0.1}, "ray": {"object_store_gib": 0.2}}
    )
    tuned = CONTESTANT.model_copy(update={"label": "t", "adapter": Adapter(name="x", uri="u")})
    waiting = dialogues([*items_of(3), *items_of(2, example="t-0")], [CONTESTANT, tuned], 1)
    try:
        with engines(f"{__name__}:FakeEngine", config, SamplingConfig(max_tokens=8), [CONTESTANT, tuned]) as ask:
            turns = play(waiting, ask)
    finally:
        ray.shutdown()
    assert [(t["model"], t["reply"]) for t in turns] == [("tiny", "0")] * 5 + [("tiny:x", "1")] * 5


def turn(item: str, model: str, reply: str | None = "Why?", protocol: str = "teacher_forced", **more: object) -> Row:
    scenario, _, number = item.partition("-")
    row: Row = dict.fromkeys(SCORED_TURNS.names)
    row |= {"item_id": item, "scenario_id": scenario, "turn_id": int(number.rpartition("-")[2] or 0), "seed": 0}
    row |= {"protocol": protocol, "model": model, "reply": reply, "error": None if reply is not None else "no"}
    row |= {"messages": [{"role": "user", "content": "Stop."}], "reference": "What?", "incident_id": scenario}
    return {**row, **more}


def turns_table(rows: Sequence[Row]) -> pa.Table:
    return to_table(rows, SCORED_TURNS)


def test_the_judge_gets_lines_that_all_answered_spread_over_scenarios() -> None:
    rows = [
        turn(f"s{s}-0-{i}", m, None if (s, i, m) == (0, 0, "b") else "x")
        for s in range(3)
        for i in range(4)
        for m in "ab"
    ]
    table = turns_table(rows)
    chosen = sample_items(table, 3, seed=1)
    assert sorted(item.partition("-")[0] for item in chosen) == ["s0", "s1", "s2"]
    assert "s0-0-0" not in sample_items(table, 99, seed=1)
    assert len(sample_items(table, 99, seed=1)) == 11
    assert chosen == sample_items(table, 3, seed=1) != sample_items(table, 3, seed=2)
    silent = [turn(row["item_id"], "c", None) for row in rows if row["model"] == "a"]  # each request was an error
    assert sample_items(turns_table([*rows, *silent]), 3, seed=1) == chosen


def test_real_replies_are_judged_unknown_to_the_judge() -> None:
    table = turns_table([turn("s0-0-1", "a"), turn("s0-0-1", "a", protocol="rollout")])
    rows = realism_rows(table, JudgingConfig(model="j"))
    assert [(r["protocol"], r["contestant"], r["reference"], r["reply"]) for r in rows] == [
        ("rollout", "a", None, "Why?"),
        ("teacher_forced", "a", None, "Why?"),
        ("teacher_forced", "reference", None, "What?"),
    ]
    rows = realism_rows(table, JudgingConfig(model="j", include_reference=False))
    assert [(r["protocol"], r["contestant"], r["reference"]) for r in rows] == [
        ("rollout", "a", None),
        ("teacher_forced", "a", "What?"),
    ]


def test_whole_rollouts_that_all_came_through_are_judged_up_to_their_end() -> None:
    rows = [turn(f"s0-0-{i}", m, protocol="rollout", seed=s) for i in range(3) for m in "ab" for s in range(2)]
    rows += [turn("s0-1-0", m, None if m == "a" else "No.", protocol="rollout") for m in "ab"]
    rows[-3] = {**rows[-3], "reply": None}  # the last turn of b's second draw
    found = dialogue_rows(turns_table(rows), JudgingConfig(model="j"))
    assert [(r["item_id"], r["contestant"], r["seed"]) for r in found] == [("s0-0-2", "a", 0), ("s0-0-2", "b", 0)]
    assert found[0]["messages"][-1] == {"role": "assistant", "content": "Why?"}
    many = turns_table([turn(f"s{s}-{w}-0", m, protocol="rollout") for s in range(3) for w in range(4) for m in "ab"])
    silent = turns_table([turn(f"s{s}-{w}-0", "c", None, protocol="rollout") for s in range(3) for w in range(4)])
    few = dialogue_rows(pa.concat_tables([many, silent]), JudgingConfig(model="j", n_items=3))
    assert sorted((r["scenario_id"], r["contestant"]) for r in few) == [(f"s{s}", m) for s in range(3) for m in "ab"]


def test_samples_of_a_judge_are_averaged_and_the_unread_counted() -> None:
    key = {"protocol": "p", "item_id": "i", "scenario_id": "s", "incident_id": "s", "contestant": "a", "seed": 0}
    scores = [
        {**key, "sample": n, "score": s, "unsupported": u, "error": None, "unread": why}
        for n, s, u, why in ((1, 90, 0, None), (2, None, None, "not JSON"), (0, 80, 1, None))
    ]
    judged = read_judged(pa.Table.from_pylist(scores), "realism")
    (row,) = judged.to_pylist()
    assert (row["score"], row["n_read"], row["n_unread"], row["unsupported"]) == (85.0, 2, 1, 1)
    assert row["scores"] == [80.0, 90.0, None]
    assert error_causes(judged) == {"the judge, realism": {"not JSON": 1}}


def test_lost_and_doubled_rows_are_a_bug_that_is_said() -> None:
    items = pa.table({"item_id": ["s0-0-1", "s0-0-2"]})
    good = [turn(item, m) for item in items["item_id"].to_pylist() for m in "ab"]
    others = [turn(item, "a", protocol="rollout") for item in items["item_id"].to_pylist()]
    check_complete(turns_table([*good, *others]), "teacher_forced", "ab", items, 1)
    other = turn("s0-0-3", "b")
    for rows, protocol, samples, says in (
        (good[1:], "teacher_forced", 1, "teacher_forced, a: 1 rows are missing"),
        ([*good, good[0]], "teacher_forced", 1, "teacher_forced, a: 1 rows are there twice"),
        ([*good[:3], other], "teacher_forced", 1, "teacher_forced, b: 1 rows are missing, 1 rows are of no item"),
        (good, "teacher_forced", 2, "teacher_forced, a: 2 rows are missing"),
        ([*good, *others], "rollout", 1, "rollout, b: 2 rows are missing"),
        (good, "interactive", 1, "interactive, a: 2 rows are missing"),
    ):
        with pytest.raises(RuntimeError, match=says):
            check_complete(turns_table(rows), protocol, "ab", items, samples)


def test_stored_rows_have_the_names_that_models_are_asked_by() -> None:
    contestants = [Contestant(label="b-2", model="org/b"), Contestant(label="b", model="other/b")]
    parrot, renamed = Parrot(), Parrot()
    turns = to_table(play(dialogues(items_of(2), contestants, 1), parrot), TURNS)
    play(dialogues(items_of(2), [c.model_copy(update={"label": "x"}) for c in contestants], 1), renamed)
    assert [r["request_id"] for r in parrot.seen] == [r["request_id"] for r in renamed.seen]
    assert with_labels(turns, {"org/b": "mine"})["model"].to_pylist() == ["mine"] * 2


def test_items_fit_their_schema(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Stop."}, {"role": "assistant", "content": "No."}]
    items = make_items(read_test_rows(write_split(tmp_path, [window("s", 0, messages, 0)]), "test"))
    assert items.schema.equals(ITEMS)
    assert items.to_pylist()[0]["item_id"] == "s-0-1"
