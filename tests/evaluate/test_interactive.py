"""Conversations with an officer simulator: every turn once, both see the same, and an error ends one alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from deescal.dataset.chat import system_prompt
from deescal.evaluate.contestants import Contestant
from deescal.evaluate.interactive import (
    ARRIVES,
    conversation_items,
    conversations,
    converse,
    officer_line,
    officer_messages,
)
from deescal.evaluate.rollout import EARLIER
from deescal.evaluate.rows import ITEMS, TURNS
from deescal.schema import Row, to_table
from deescal.score.tables import answer_row

ONE, OTHER = Contestant(label="one", model="one"), Contestant(label="other", model="other")
SYSTEM = {"role": "system", "content": str(system_prompt("A stop for speeding.", "Angry, in a hurry."))}


def items_of(*scenarios: str, begins: str = "user", system: bool = True) -> pa.Table:
    """ITEMS of scenarios with three exchanges each, in two windows."""
    rows = []
    for scenario in scenarios:
        messages = [SYSTEM] if system else []
        messages += [{"role": "assistant", "content": "Hey!"}] if begins == "assistant" else []
        for n in range(3):
            messages = [*messages, {"role": "user", "content": f"O{n} {scenario}"}]
            rows.append(
                {
                    "item_id": f"{scenario}-{n // 2}-{len(messages)}",
                    "scenario_id": scenario,
                    "incident_id": scenario,
                    "turn_id": n,
                    "example_id": f"{scenario}-{n // 2}",
                    "message": len(messages),
                    "messages": messages,
                    "reference": f"C{n}",
                }
            )
            messages = [*messages, {"role": "assistant", "content": f"C{n}"}]
    return to_table(rows[::-1], ITEMS)


class Voice:
    """Says the next of its own words, the same for equal requests; fails at a request that holds a word."""

    def __init__(self, name: str, fail_at: str = "nowhere") -> None:
        self.name, self.fail_at, self.seen = name, fail_at, list[list[Row]]()

    def __call__(self, requests: Sequence[Row]) -> Mapping[str, Row]:
        self.seen.append(copy.deepcopy(list(requests)))
        return {r["request_id"]: self.answer(r) for r in requests}

    def answer(self, request: Row) -> Row:
        if any(self.fail_at in m["content"] for m in request["messages"]):
            return answer_row(request, error="no")
        return answer_row(request, output=f" {self.name}{request['row']} ", finish_reason="stop")


def talk(items: pa.Table, contestants: Sequence[Contestant], seeds: int, model: Voice, officer: Voice) -> list[Row]:
    turns = converse(conversations(items.to_pylist(), contestants, seeds), model, "o", officer)
    to_table(turns, TURNS)
    return turns


def test_a_conversation_begins_as_the_scenario_did_and_has_no_reference() -> None:
    items = conversation_items(items_of("s", "t"), 4).to_pylist()
    assert [i["item_id"] for i in items] == [f"{s}-0-i{n}" for s in "st" for n in range(4)]
    assert all(i["messages"] == [SYSTEM, {"role": "user", "content": f"O0 {i['scenario_id']}"}] for i in items)
    assert {i["reference"] for i in items} == {None}
    spoke_first = conversation_items(items_of("s", begins="assistant", system=False), 1).to_pylist()
    assert [m["content"] for m in spoke_first[0]["messages"]] == ["Hey!", "O0 s"]


def test_a_scenario_without_an_officer_has_no_conversation() -> None:
    row = {**items_of("s").to_pylist()[0], "messages": [SYSTEM]}
    assert conversation_items(to_table([row], ITEMS), 3).num_rows == 0


@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from(["user", "assistant"]), st.booleans())
def test_both_see_every_turn_once(n_turns: int, seeds: int, begins: str, system: bool) -> None:
    model, officer = Voice("C"), Voice("P")
    items = conversation_items(items_of("s", "t", begins=begins, system=system), n_turns)
    turns = talk(items, [ONE, OTHER], seeds, model, officer)
    assert len(turns) == len({(t["item_id"], t["model"], t["seed"]) for t in turns}) == n_turns * 2 * 2 * seeds
    assert (len(model.seen), len(officer.seen)) == (n_turns, n_turns - 1)
    for turn in turns:
        n, said = turn["turn_id"], [m for m in turn["messages"] if m["role"] != "system"]
        opening = ["Hey!"] if begins == "assistant" else []
        replies = [f"O0 {turn['scenario_id']}", *(word for i in range(n) for word in (f"C{i}", f"P{i + 1}"))]
        assert [m["content"] for m in said] == [*opening, *replies]
        assert turn["reply"] == f"C{n}"
        roles = [m["role"] for m in said]
        assert roles == (["assistant", "user"] * len(roles))[1 - len(opening) :][: len(roles)]
    for request in (r for asked in officer.seen for r in asked):
        view = [m["role"] for m in request["messages"]]
        assert view == ["system", *(["user", "assistant"] * len(view))[: len(view) - 1]]
        assert view[-1] == "user"


def test_the_officer_knows_the_situation_but_not_the_character() -> None:
    system, begins, *said = officer_messages([SYSTEM, {"role": "user", "content": "Hi."}, reply("Go away.")])
    assert "A stop for speeding." in system["content"]
    assert "Angry" not in system["content"]
    assert begins == {"role": "user", "content": ARRIVES}
    assert said == [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Go away."}]


def test_others_at_the_scene_are_not_the_officer() -> None:
    heard = {"role": "user", "content": "[Bystander] He hit me!"}
    both = {"role": "user", "content": "[Medic] Let me see.\nSit down.\n[Bystander] Arrest him!"}
    _, *said = officer_messages([heard, reply("Liar!"), both, reply("No.")])
    assert [(m["role"], m["content"]) for m in said] == [
        ("user", f"{ARRIVES}\n[Bystander] He hit me!\nLiar!\n[Medic] Let me see."),
        ("assistant", "Sit down."),
        ("user", "[Bystander] Arrest him!\nNo."),
    ]
    items = items_of("s", system=False).to_pylist()
    for item in items:
        item["messages"] = [heard, reply("Liar!"), *item["messages"]]
    opening = conversation_items(to_table(items, ITEMS), 1).to_pylist()[0]["messages"]
    assert [m["content"] for m in opening] == ["[Bystander] He hit me!", "Liar!", "O0 s"]


def reply(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_equal_words_are_one_request_to_the_officer() -> None:
    officer = Voice("P")
    talk(conversation_items(items_of("s"), 3), [ONE, OTHER], 2, Voice("C"), officer)
    assert [len(asked) for asked in officer.seen] == [2, 2]  # seeds differ, contestants said the same


def test_an_error_ends_its_conversation_alone() -> None:
    items = conversation_items(items_of("s", "t"), 3)
    turns = talk(items, [ONE], 1, Voice("C"), Voice("P", fail_at="O0 s"))
    assert [t["error"] for t in turns] == [None, "the officer simulator: no", EARLIER, None, None, None]
    assert [t["reply"] for t in turns] == ["C0", None, None, "C0", "C1", "C2"]
    model = Voice("C", fail_at="P1")
    turns = talk(conversation_items(items_of("s"), 4), [ONE], 1, model, Voice("P"))
    assert [t["error"] for t in turns] == [None, "no", EARLIER, EARLIER]
    assert [len(asked) for asked in model.seen] == [1, 1, 0, 0]


def test_only_the_officers_own_words_are_spoken() -> None:
    for output, line in (
        ("  Sir, please step out. ", "Sir, please step out."),
        ("Police Officer: Easy.\nI hear you.", "Easy.\nI hear you."),
        ("Easy.\n\nCivilian: No!\nOfficer: Fine.", "Easy."),
        ("Easy.\n**Civilian**: No!", "Easy."),
        ("Sir, step out. Civilian: No!", "Sir, step out."),
        ("Civilian: No!", "..."),
        ("**Officer:** Easy.", "Easy."),
        ("[Officer] Easy.", "Easy."),
        ("Officer Smith is here. He is civilian staff.", "Officer Smith is here. He is civilian staff."),
        ("Tell me about the suspect: what did he look like?", "Tell me about the suspect: what did he look like?"),
        ("Easy. The suspect: No!", "Easy."),
        ("   ", "..."),
    ):
        assert officer_line(output) == line
