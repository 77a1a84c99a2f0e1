"""Human ratings: what is drawn and who rates it, blinding, refusals, and known outcomes back from filled sheets."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deescal.errors import UserError
from deescal.evaluate.humans.config import PackConfig
from deescal.evaluate.humans.criteria import CRITERIA, QUESTIONS, instructions
from deescal.evaluate.humans.export import export_pack
from deescal.evaluate.humans.outcome import outcome
from deescal.evaluate.humans.pack import Pack, make_pack
from deescal.evaluate.humans.page import render_pack_page
from deescal.evaluate.humans.ratings import RATINGS, import_ratings
from deescal.schema import MESSAGE, to_table

TURNS = pa.schema(
    {
        **{name: pa.string() for name in ("item_id", "scenario_id", "incident_id")},
        **{"turn_id": pa.int32(), "protocol": pa.string(), "model": pa.string(), "seed": pa.int64()},
        **{"messages": pa.list_(MESSAGE), "reference": pa.string(), "reply": pa.string()},
    }
)
MODELS = ("zeta-135m", "omega-3b", "kappa-api")
LIKERT = PackConfig(n_items=48, raters=("ann", "bob", "cyd"))
PAIRWISE = PackConfig(form="pairwise", n_items=48, raters=("ann", "bob", "cyd"))
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def make_turn(scenario: int, turn: int, model: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    said = [("user", "Evening. Do you know why I stopped you?"), ("assistant", "No. I was just driving home.")]
    talk = [said[i % 2] for i in range(2 * turn + 1)]
    return {
        **{"item_id": f"s{scenario}-{turn}", "scenario_id": f"s{scenario}", "incident_id": f"i{scenario // 2}"},
        **{"turn_id": turn, "protocol": "teacher_forced", "model": model, "seed": seed},
        "messages": [{"role": "system", "content": "A traffic stop at night."}]
        + [{"role": role, "content": content} for role, content in talk],
        "reference": f"real words of {scenario} {turn}",
        "reply": f"{sum(map(ord, model))} says {scenario} {turn} {seed}",
        **changes,
    }


def make_turns(scenarios: int = 10, turns: int = 4, models: tuple[str, ...] = MODELS) -> pa.Table:
    rows = [make_turn(s, t, m) for s in range(scenarios) for t in range(turns) for m in models]
    return pa.Table.from_pylist(rows, schema=TURNS)


def rated_items(pack: Pack) -> dict[str, Any]:
    return {blinded: origin for blinded, origin in pack.key.items() if origin.item_id is not None}


# --- packs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LIKERT, PAIRWISE])
def test_every_item_is_rated_by_as_many_as_asked(config):
    pack = make_pack(make_turns(), config)
    assert pack.shown.keys() == pack.key.keys()
    assert len(rated_items(pack)) == pack.summary["n_items"] == 48
    on_sheets = Counter(blinded for sheet in pack.sheets.values() for blinded in sheet)
    for blinded, origin in pack.key.items():
        assert on_sheets[blinded] == len(origin.raters) == (2 if origin.item_id else 1)
        assert all(blinded in pack.sheets[rater] for rater in origin.raters)
    assert on_sheets.keys() == pack.key.keys()
    for rater, size in pack.summary["sheets"].items():
        assert size["items"] + size["checks"] == len(pack.sheets[rater]) == len(set(pack.sheets[rater]))
        assert size["checks"] == math.ceil(size["items"] / 12)
    loads = [size["items"] for size in pack.summary["sheets"].values()]
    assert max(loads) - min(loads) <= (4 if config.form == "likert" else 1)  # a line brings one item of every system


def test_likert_shows_every_rater_as_many_replies_of_every_system():
    pack = make_pack(make_turns(), LIKERT)
    assert pack.summary["systems"] == dict.fromkeys(("kappa-api", "omega-3b", "reference", "zeta-135m"), 12)
    for sheet in pack.sheets.values():
        systems = Counter(system for blinded in sheet for system in pack.key[blinded].systems)
        assert len(set(systems.values())) == 1
        lines = [pack.key[blinded].item_id for blinded in sheet if pack.key[blinded].item_id]
        n_lines = len(set(lines))
        assert all(len(set(lines[i : i + n_lines])) == n_lines for i in range(0, len(lines), n_lines))


def test_lines_come_from_all_scenarios():
    pack = make_pack(make_turns(scenarios=12, turns=9), LIKERT)
    assert pack.summary["n_lines"] == pack.summary["n_scenarios"] == 12


def test_pairs_and_their_order_are_balanced():
    pack = make_pack(make_turns(), PAIRWISE)
    items = [origin.systems for origin in rated_items(pack).values()]
    systems = sorted([*MODELS, "reference"])
    assert Counter(tuple(sorted(pair)) for pair in items) == dict.fromkeys(combinations(systems, 2), 8)
    assert Counter(items) == {pair: 4 for a, b in combinations(systems, 2) for pair in ((a, b), (b, a))}
    assert max(Counter(origin.item_id for origin in rated_items(pack).values()).values()) == 2  # 40 lines, 48 pairs


systems_answer = st.lists(st.sampled_from(["", "no", "No", "no  ", "why", None]), min_size=3, max_size=3)


@settings(max_examples=60)
@given(
    answers=st.lists(systems_answer, min_size=1, max_size=12),
    n_items=st.integers(3, 30),
    per_item=st.integers(2, 4),
    spare=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_pairs_of_any_replies(answers, n_items, per_item, spare, seed):
    rows = [
        make_turn(i // 3, i % 3, model, reply=reply)
        for i, replies in enumerate(answers)
        for model, reply in zip(MODELS, replies, strict=True)
    ]
    how = {
        "form": "pairwise",
        "n_items": n_items,
        "raters": per_item + spare,
        "raters_per_item": per_item,
        "seed": seed,
    }
    config = PackConfig(**how, include_reference=False)
    try:
        pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), config)
    except UserError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert reason.startswith(("form=pairwise needs two", "no two systems")) or reason.endswith("raise n_items")
        return
    items = rated_items(pack)
    for blinded in items:
        a, b = pack.shown[blinded].replies
        assert a.split() != b.split()
    pairs = pack.summary["pairs"]
    assert sum(pair["items"] for pair in pairs) == len(items) <= n_items
    shortfall = [pair for pair in pairs if pair["items"] < max(p["items"] for p in pairs) - 1]
    assert all(pair["items"] == pair["lines"] - pair["identical"] for pair in shortfall)
    order = Counter(origin.systems for origin in items.values())
    assert all(abs(order[a, b] - order[b, a]) <= 1 for a, b in order)
    loads = [size["items"] for size in pack.summary["sheets"].values()]
    assert max(loads) - min(loads) <= 1
    failed = {model: sum(replies[i] is None for replies in answers) for i, model in enumerate(MODELS)}
    assert pack.summary["failed"] == failed


@pytest.mark.parametrize("config", [LIKERT, PAIRWISE])
def test_same_for_the_same_seed_and_rows_in_any_order(config):
    rows = [*make_turns().to_pylist(), make_turn(0, 0, MODELS[0], seed=1)]
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), config)
    random.Random(1).shuffle(rows)
    again = make_pack(pa.Table.from_pylist(rows, schema=TURNS), config)
    assert again == pack
    other = make_pack(make_turns(), config.model_copy(update={"seed": 1}))
    assert other.pack_id != pack.pack_id
    assert not other.key.keys() & pack.key.keys()


def test_one_seed_of_each_system_and_errors_counted():
    rows = [make_turn(s, 0, m, seed) for s in range(8) for m in MODELS for seed in (0, 1, 2)]
    rows += [make_turn(8, 0, m, reply=None if m == MODELS[0] else "yes") for m in MODELS]
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), LIKERT)
    assert pack.summary["n_items"] == 32
    assert pack.summary["failed"][MODELS[0]] == 1
    assert pack.summary["incomplete_lines"] == 1
    seeds = {origin.seeds[0] for origin in rated_items(pack).values() if origin.systems != ("reference",)}
    assert seeds == {0, 1, 2}
    for blinded, origin in rated_items(pack).items():
        if origin.systems != ("reference",):
            assert pack.shown[blinded].replies[0].endswith(f" {origin.seeds[0]}")
    # The judge compares replies of one seed; so do people.
    pairs = make_pack(pa.Table.from_pylist(rows, schema=TURNS), PackConfig(form="pairwise", include_reference=False))
    assert all(len(set(origin.seeds)) == 1 for origin in rated_items(pairs).values())


def test_history_does_not_tell_systems_apart():
    """One model is given a shorter history and another setting; every reply is shown with the same."""
    rows = make_turns().to_pylist()
    for row in rows:
        if row["model"] == MODELS[1]:
            row["messages"] = [{"role": "system", "content": f"You are {MODELS[1]}."}, *row["messages"][-1:]]
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), LIKERT)
    shown: dict[str, set[Any]] = {}
    for blinded, origin in rated_items(pack).items():
        item = pack.shown[blinded]
        shown.setdefault(origin.item_id, set()).add((item.setting, item.messages))
        assert item.setting is None
        assert item.messages[-1][0] == "officer"
        assert len(item.messages) == 2 * int(origin.item_id.split("-")[1]) + 1
    assert all(len(ways) == 1 for ways in shown.values())


def test_rollout_shows_each_systems_own_history():
    rows = make_turns().to_pylist()
    for row in rows:
        row["protocol"] = "rollout"
        row["messages"][0]["content"] = "A traffic stop at night."
        for message in row["messages"]:
            if message["role"] == "assistant":
                message["content"] = f"history {row['reply']}"
    config = PackConfig(n_items=30, protocol="rollout", include_reference=False)
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), config)
    assert pack.summary["systems"] == dict.fromkeys(sorted(MODELS), 10)
    for blinded in rated_items(pack):
        shown = pack.shown[blinded]
        assert shown.setting == "A traffic stop at night."
        assert {text for speaker, text in shown.messages if speaker == "civilian"} <= {f"history {shown.replies[0]}"}


def test_attention_checks_say_what_to_choose_and_their_answers_differ():
    for config in (LIKERT, PAIRWISE):
        pack = make_pack(make_turns(), config.model_copy(update={"attention_share": 0.5}))
        checks = {blinded: origin for blinded, origin in pack.key.items() if origin.item_id is None}
        for blinded, origin in checks.items():
            told = "No difference" if origin.answer == "tie" else origin.answer
            assert all(f"Please choose {told}" in reply for reply in pack.shown[blinded].replies)
            assert len(pack.shown[blinded].replies) == (1 if config.form == "likert" else 2)
        assert {origin.answer for origin in checks.values()} == set(QUESTIONS[config.form][0].choices)
    none = make_pack(make_turns(), LIKERT.model_copy(update={"attention_share": 0.0}))
    assert rated_items(none) == none.key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"raters": 1}, "at least 2 items"),
        ({"raters": ("ann", "Ann")}, "two raters have the same name"),
        ({"raters": ("ann", "../bob")}, "should match pattern"),
        ({"raters_per_item": 1}, "greater than or equal to 2"),
        ({"raters": 2, "raters_per_item": 3}, "raters_per_item=3, but there are 2 raters"),
        ({"protocol": "rollout", "form": "pairwise"}, "pairwise needs teacher_forced"),
        ({"protocol": "interactive"}, "include_reference=true needs teacher_forced"),
    ],
)
def test_config_refuses_what_does_not_fit(values, message):
    with pytest.raises(ValidationError, match=message):
        PackConfig(**values)


def test_raters_by_number_or_by_name():
    assert PackConfig(raters=2).raters == ("r1", "r2")
    assert PackConfig(raters=["ann", "bob"]).raters == ("ann", "bob")


@pytest.mark.parametrize(
    ("turns", "config", "message"),
    [
        (make_turns(), PackConfig(protocol="rollout", include_reference=False), r"there are: teacher_forced\)"),
        (make_turns(models=("reference",)), LIKERT, "a model is named 'reference'"),
        (make_turns(), PackConfig(n_items=3), "n_items=3: expected at least 4"),
        (make_turns(), PackConfig(n_items=4), "nothing to rate for r[123]: raise n_items"),
        (make_turns(models=MODELS[:1]), PAIRWISE.model_copy(update={"include_reference": False}), "needs two systems"),
        (pa.concat_tables([make_turns(), make_turns(1, 1)]), LIKERT, "two replies of .* to s0-0 with seed 0"),
        (
            pa.Table.from_pylist([make_turn(i, 0, MODELS[i]) for i in (0, 1)], schema=TURNS),
            LIKERT.model_copy(update={"include_reference": False}),
            "no line was answered by every system .of 2 lines: omega-3b 1, zeta-135m 1.",
        ),
    ],
)
def test_refuses_what_cannot_be_rated(turns, config, message):
    with pytest.raises(UserError, match=message):
        make_pack(turns, config)


# --- what raters are handed -----------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


@pytest.mark.parametrize("config", [LIKERT, PAIRWISE])
def test_files_tell_nothing_of_the_key(tmp_path, config):
    pack = make_pack(make_turns(), config)
    export_pack(pack, str(tmp_path))
    names = {f"rate-{rater}.{kind}" for rater in pack.sheets for kind in ("html", "csv")}
    assert {path.name for path in tmp_path.iterdir()} == {"key.json", "instructions.md", *names}
    for name in names:
        text = (tmp_path / name).read_text("utf-8-sig")
        assert pack.pack_id in text
        for secret in (
            *MODELS,
            '"reference"',
            ",reference",
            *{origin.item_id for origin in rated_items(pack).values()},
        ):
            assert secret not in text
    assert "Not for raters" in json.loads((tmp_path / "key.json").read_text())["warning"]
    for rater, sheet in pack.sheets.items():
        assert [row["item"] for row in read_rows(tmp_path / f"rate-{rater}.csv")] == list(sheet)
    for text in (instructions(config.form), render_pack_page(pack, "ann")):
        assert all(point in text for points in CRITERIA.values() for point in points)
        assert all(meaning in text for q in QUESTIONS[config.form] for meaning in q.choices.values())


def test_words_of_others_are_text_in_page_and_sheet(tmp_path):
    rows = make_turns(4, 3).to_pylist()
    for i, row in enumerate(rows):
        row["reply"] = (EVIL, "=cmd|'/c calc'!A1", "", "-1\n+2")[i % 4]
        row["messages"][0]["content"] = f"@{EVIL}"
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), LIKERT)
    export_pack(pack, str(tmp_path))
    page = (tmp_path / "rate-ann.html").read_text()
    assert "alert(1)" in page
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    cells = [cell for row in read_rows(tmp_path / "rate-ann.csv") for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert "“(says nothing)”" in cells


def test_export_keeps_filled_sheets_and_the_key(tmp_path):
    pack = make_pack(make_turns(), LIKERT)
    files = export_pack(pack, str(tmp_path))
    assert len(files) == 8
    (tmp_path / "rate-ann.csv").write_text("filled")
    (tmp_path / "rate-bob.html").write_text("of an older version")
    assert export_pack(pack, str(tmp_path)) == files
    assert (tmp_path / "rate-ann.csv").read_text() == "filled"
    assert pack.pack_id in (tmp_path / "rate-bob.html").read_text()
    with pytest.raises(UserError, match="another pack"):
        export_pack(make_pack(make_turns(), PAIRWISE), str(tmp_path))


# --- ratings --------------------------------------------------------------------------------------------------


def fill(
    folder: Path, pack: Pack, rater: str, choose: Any, only: slice = slice(None), inattentive: bool = False
) -> str:
    """Fill a rater's sheet; choose(origin, question) -> choice. Returns the file."""
    path = folder / f"rate-{rater}.csv"
    rows = read_rows(path)
    questions = [question.name for question in QUESTIONS[pack.config.form]]
    for row in rows[only]:
        origin = pack.key[row["item"]]
        right = {"1": "2"}.get(origin.answer, "1") if inattentive else origin.answer
        wrong = "A" if origin.answer == "tie" else "tie"
        for name in questions:
            check = wrong if inattentive and pack.config.form == "pairwise" else right
            row[name] = check if origin.item_id is None else choose(origin, name)
    return write(folder / f"filled-{rater}-{only.start}.csv", rows)


def write(path: Path, rows: list[dict[str, str]], **how: Any) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def exported(folder: Path, config: PackConfig) -> Pack:
    pack = make_pack(make_turns(), config)
    export_pack(pack, str(folder))
    return pack


MEANS = {"reference": ("5", "4"), "zeta-135m": ("1", "2"), "omega-3b": ("3", "3"), "kappa-api": ("2", "5")}


def test_likert_there_and_back(tmp_path):
    pack = exported(tmp_path, LIKERT)

    def choose(origin, question):
        return MEANS[origin.systems[0]][question == "helpfulness"]

    table, result = import_ratings(str(tmp_path), [fill(tmp_path, pack, rater, choose) for rater in pack.sheets])
    assert table.schema == RATINGS
    assert table.num_rows == 48 * 2 * 2
    for i, question in enumerate(("realism", "helpfulness")):
        means = {model: estimate["mean"] for model, estimate in result["means"][question].items()}
        assert means == {model: float(values[i]) for model, values in MEANS.items()}
        assert all(estimate["n_items"] == 24 for estimate in result["means"][question].values())
        assert result["agreement"][question]["alpha"]["value"] == pytest.approx(1)
        assert result["agreement"][question]["kappa"]["value"] == pytest.approx(1)
        assert result["agreement"][question]["level"] == "ordinal"
    assert result["rated"] == {"items": 48, "twice": 48, "ratings": 192}
    assert result["files"] == 3
    assert all(rater["counted"] and rater["rated"] == rater["items"] for rater in result["raters"].values())
    row = table.to_pylist()[0]
    assert row["item_id"].startswith(f"{row['scenario_id']}-")
    assert row["value"] == float(row["choice"])
    assert (row["model_b"], row["seed_b"]) == (None, None)


def test_pairwise_there_and_back(tmp_path):
    """The real one always wins, zeta always loses, the others tie."""
    pack = exported(tmp_path, PAIRWISE)
    rank = {"reference": 2, "omega-3b": 1, "kappa-api": 1, "zeta-135m": 0}

    def choose(origin, _):
        a, b = (rank[system] for system in origin.systems)
        return "tie" if a == b else "A" if a > b else "B"

    table, result = import_ratings(str(tmp_path), [fill(tmp_path, pack, rater, choose) for rater in pack.sheets])
    assert {model: estimate["mean"] for model, estimate in result["win_rates"].items()} == pytest.approx(
        {"reference": 1.0, "zeta-135m": 0.0, "omega-3b": 0.5, "kappa-api": 0.5}
    )
    pairs = {(pair["model"], pair["model_b"]): pair for pair in result["pairs"]}
    assert len(pairs) == 6
    assert (pairs["kappa-api", "omega-3b"]["ties"], pairs["kappa-api", "omega-3b"]["wins"]) == (16, 0)
    assert (pairs["reference", "zeta-135m"]["wins"], pairs["kappa-api", "reference"]["losses"]) == (16, 16)
    assert result["chose_a"] == {"a": 40, "b": 40}
    assert result["agreement"]["more_real"]["alpha"]["value"] == pytest.approx(1)
    assert table.num_rows == 96
    assert all(row["model"] < row["model_b"] for row in table.to_pylist())


def test_identical_replies_are_ties_that_nobody_rates(tmp_path):
    rows = [make_turn(s, 0, m, reply="no" if s < 3 else f"{m} {s}") for s in range(10) for m in MODELS[:2]]
    config = PAIRWISE.model_copy(update={"include_reference": False})
    pack = make_pack(pa.Table.from_pylist(rows, schema=TURNS), config)
    names = {"model": "omega-3b", "model_b": "zeta-135m"}
    assert pack.summary["pairs"] == [{**names, "lines": 10, "identical": 3, "items": 7}]
    export_pack(pack, str(tmp_path))
    _, result = import_ratings(str(tmp_path), [fill(tmp_path, pack, rater, lambda *_: "A") for rater in pack.sheets])
    assert result["pairs"][0]["identical"] == 3
    assert result["win_rates"]["omega-3b"]["n_items"] == 14


def test_disagreement_is_measured(tmp_path):
    pack = exported(tmp_path, PackConfig(n_items=48, raters=("ann", "bob")))
    ann = fill(tmp_path, pack, "ann", lambda *_: "1")
    bob = fill(tmp_path, pack, "bob", lambda *_: "5")
    _, result = import_ratings(str(tmp_path), [ann, bob])
    assert result["agreement"]["realism"]["kappa"]["value"] == pytest.approx(-1)
    assert result["agreement"]["realism"]["alpha"]["value"] < -0.9
    assert result["agreement"]["realism"]["observed"]["value"] == 0
    _, alone = import_ratings(str(tmp_path), [ann])
    assert math.isnan(alone["agreement"]["realism"]["alpha"]["value"])
    assert alone["agreement"]["realism"]["alpha"]["reason"] == "no item has two ratings"
    assert alone["rated"]["twice"] == 0


def test_lines_that_a_judge_has_read_come_first():
    turns = make_turns(scenarios=12, turns=9)
    drawn = make_pack(turns, LIKERT)
    used = {origin.item_id for origin in drawn.key.values() if origin.item_id}
    judged = sorted(set(turns["item_id"].to_pylist()) - used)[:5]
    again = {origin.item_id for origin in make_pack(turns, LIKERT, judged).key.values()}
    assert set(judged) <= again


def test_checks_that_were_passed_over_are_not_passed(tmp_path):
    pack = exported(tmp_path, LIKERT)
    rows = read_rows(Path(fill(tmp_path, pack, "ann", lambda *_: "4")))
    for row in rows:
        row["realism"] = row["helpfulness"] = "" if pack.key[row["item"]].item_id is None else "4"
    _, result = import_ratings(str(tmp_path), [write(tmp_path / "ann.csv", rows)])
    ann = result["raters"]["ann"]
    assert (ann["checks_passed"], ann["attentive"], ann["counted"]) == (0, False, False)
    assert ann["checks_due"] > 0


@pytest.mark.parametrize("config", [LIKERT, PAIRWISE])
def test_inattentive_raters_are_kept_but_not_counted(tmp_path, config):
    pack = exported(tmp_path, config)
    fine, other = ("5", "1") if config.form == "likert" else ("A", "B")
    files = [fill(tmp_path, pack, rater, lambda *_: fine) for rater in ("ann", "cyd")]
    files.append(fill(tmp_path, pack, "bob", lambda *_: other, inattentive=True))
    table, result = import_ratings(str(tmp_path), files)
    bob = result["raters"]["bob"]
    assert (bob["attentive"], bob["counted"], bob["checks_passed"]) == (False, False, 0)
    assert bob["checks_due"] == bob["checks"] > 0
    rows = table.to_pylist()
    assert {row["counted"] for row in rows if row["rater"] == "bob"} == {False}
    assert {row["choice"] for row in rows if row["counted"]} == {fine}
    again, everybody = import_ratings(str(tmp_path), files, count_inattentive=True)
    assert again.num_rows == table.num_rows
    assert everybody["raters"]["bob"]["counted"]
    assert not everybody["raters"]["bob"]["attentive"]
    assert everybody["rated"]["ratings"] > result["rated"]["ratings"]


def test_half_filled_sheets_are_welcome(tmp_path):
    pack = exported(tmp_path, LIKERT)
    halves = [fill(tmp_path, pack, "ann", lambda *_: "4", part) for part in (slice(0, 10), slice(10, 15))]
    rows = read_rows(tmp_path / "rate-bob.csv")
    item = next(row for row in rows if pack.key[row["item"]].item_id)
    item["realism"] = "3"
    table, result = import_ratings(str(tmp_path), [*halves, write(tmp_path / "bob.csv", rows)])
    ann, bob, cyd = (result["raters"][name] for name in ("ann", "bob", "cyd"))
    assert ann["rated"] + ann["checks_due"] == 15
    assert (bob["rated"], bob["partly_rated"]) == (0, 1)
    assert cyd["rated"] == 0
    assert cyd["attentive"]
    assert table.num_rows == 2 * ann["rated"] + 1
    nothing, result = import_ratings(str(tmp_path), [])
    assert nothing.num_rows == 0
    assert result["means"] == {}


def test_sheets_as_spreadsheets_save_them(tmp_path):
    pack = exported(tmp_path, PAIRWISE)
    rows = read_rows(Path(fill(tmp_path, pack, "ann", lambda *_: " a ")))
    plain = import_ratings(str(tmp_path), [write(tmp_path / "plain.csv", rows)])[0]
    semicolons = Path(write(tmp_path / "semicolons.csv", rows, delimiter=";"))
    text = semicolons.read_text("utf-8").replace("pack_id", "Pack_ID", 1) + ";;;\n"
    semicolons.write_bytes(text.encode("cp1252", errors="replace"))
    assert import_ratings(str(tmp_path), [str(semicolons)])[0] == plain
    numbers = exported(tmp_path / "likert", LIKERT)
    rows = read_rows(Path(fill(tmp_path / "likert", numbers, "ann", lambda *_: "4.0")))
    table = import_ratings(str(tmp_path / "likert"), [write(tmp_path / "numbers.csv", rows, delimiter="\t")])[0]
    assert set(table["value"].to_pylist()) == {4.0}
    assert set(table["choice"].to_pylist()) == {"4"}


def changed(column: str, value: str) -> Any:
    def change(rows):
        rows[3][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("pack_id", "pack-other"), r"bad\.csv row 5, pack_id: 'pack-other' \(allowed: pack-\w+\)"),
        (changed("rater", "dan"), r"bad\.csv row 5, rater: 'dan' \(allowed: ann, bob, cyd\)"),
        (changed("item", "q00000000"), r"bad\.csv row 5, item: 'q00000000' is none of the items of ann"),
        (changed("realism", "6"), r"bad\.csv row 5, realism: '6' \(allowed: 1, 2, 3, 4, 5, or empty\)"),
        (changed("helpfulness", "3.5"), r"bad\.csv row 5, helpfulness: '3\.5' \(allowed"),
        (lambda rows: rows.append(rows[0]), r"row \d+: ann rated 'q\w+' before, in .*bad\.csv row 2"),
        (lambda rows: [row.pop("realism") for row in rows], r"bad\.csv: no column realism \(expected: pack_id, rater"),
    ],
)
def test_bad_sheet_is_refused_in_one_line(tmp_path, change, message):
    pack = exported(tmp_path, LIKERT)
    rows = read_rows(Path(fill(tmp_path, pack, "ann", lambda *_: "3")))
    change(rows)
    with pytest.raises(UserError, match=message) as error:
        import_ratings(str(tmp_path), [write(tmp_path / "bad.csv", rows)])
    assert "\n" not in str(error.value)


def test_files_that_are_no_sheets_are_refused(tmp_path):
    pack = exported(tmp_path, LIKERT)
    filled = fill(tmp_path, pack, "ann", lambda *_: "3")
    with pytest.raises(UserError, match=r"ann rated 'q\w+' before, in .* row 2"):
        import_ratings(str(tmp_path), [filled, filled])
    with pytest.raises(UserError, match=r"none\.csv: No such file"):
        import_ratings(str(tmp_path), [str(tmp_path / "none.csv")])
    with pytest.raises(UserError, match=r"no key\.json"):
        import_ratings(str(tmp_path / "elsewhere"), [filled])
    for content in (b"", b"\xff\xfep\x00a\x00", b"PK\x03\x04\x00\x00"):
        (tmp_path / "odd.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"odd\.csv: no"):
            import_ratings(str(tmp_path), [str(tmp_path / "odd.csv")])


def test_ratings_of_one_incident_are_one_cluster() -> None:
    row = {**dict.fromkeys(RATINGS.names), "rater": "r1", "model": "m", "question": "realism", "counted": True}
    for incidents, n_clusters in ((["i", "i", "i"], 1), ([None, None, None], 3), (["i", "i", None], 2)):
        rows = [
            {**row, "rated_id": f"x{n}", "scenario_id": f"s{n}", "incident_id": incident, "choice": "4", "value": 4.0}
            for n, incident in enumerate(incidents)
        ]
        found = outcome(to_table(rows, RATINGS), {})
        assert found["means"]["realism"]["m"]["n_clusters"] == n_clusters
