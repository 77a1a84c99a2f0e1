"""Filled sheets come back, from pages and spreadsheets alike: checked cell by cell, and joined with the key.

A file that does not fit is refused in one line that names the cell. Half-filled files are welcome. Raters who fail the
attention checks stay in the table but are not counted, unless that is asked for.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from deescal.errors import UserError, one_line
from deescal.evaluate.humans.criteria import QUESTIONS, Question
from deescal.evaluate.humans.export import ID_COLUMNS, KEY
from deescal.evaluate.humans.outcome import outcome
from deescal.schema import Row, to_table
from deescal.storage import STORAGE_ERRORS, exists, join, read_bytes, read_json

RATINGS = pa.schema(
    {
        "pack_id": pa.string(),
        "rater": pa.string(),
        "rated_id": pa.string(),  # blinded id of what was rated
        "item_id": pa.string(),  # as in turns.parquet, as are the next five
        "scenario_id": pa.string(),
        "incident_id": pa.string(),
        "protocol": pa.string(),
        "model": pa.string(),  # whose value it is; "reference" is the real reply
        "seed": pa.int64(),  # of the reply; null for the real one
        "words": pa.string(),  # fingerprint of the reply
        "model_b": pa.string(),  # pairwise: the other, later in the alphabet; null in the Likert form
        "seed_b": pa.int64(),
        "words_b": pa.string(),
        "question": pa.string(),  # realism, helpfulness, more_real
        "choice": pa.string(),  # as in the sheet
        "value": pa.float64(),  # Likert: 1 to 5; pairwise: 1 for model, 0 for model_b, 0.5 for no difference
        "counted": pa.bool_(),  # false: the rater failed the attention checks
    }
)


@dataclass(frozen=True)
class Answers:
    """What a rater chose for one item; questions left empty are not there."""

    rater: str
    rated_id: str
    choices: dict[str, str]  # question -> choice
    place: str  # file and row


def import_ratings(out_uri: str, files: Sequence[str], *, count_inattentive: bool = False) -> tuple[pa.Table, Row]:
    """Filled sheets of a pack -> ratings and what they come to.

    Args:
        out_uri: the folder that `export_pack` wrote.
        files: paths or URIs of the raters' CSV files; a rater may send several, each with other items.
        count_inattentive: whether raters who fail the attention checks are counted nevertheless.

    Returns:
        Rows as `RATINGS`, without the attention checks; and what `deescal.evaluate.humans.outcome.outcome` makes of
        them.

    Raises:
        UserError: no pack, a missing file, one of another pack or form, an unknown rater or item, a value that is
            not allowed, or an item rated twice by one rater.
    """
    key = read_key(out_uri)
    answers: dict[tuple[str, str], Answers] = {}
    for file in files:
        for given in read_sheet(file, key):
            before = answers.setdefault((given.rater, given.rated_id), given)
            if before is not given:
                raise UserError(f"{given.place}: {given.rater} rated '{given.rated_id}' before, in {before.place}")
    raters = judge_raters(key, answers.values(), count_inattentive)
    table = to_table(_rows(key, answers.values(), raters), RATINGS)
    return table, {**outcome(table, key["summary"]), "files": len(files), "raters": raters}


def read_key(out_uri: str) -> dict[str, Any]:
    """The content of key.json.

    Raises:
        UserError: there is none.
    """
    uri = join(out_uri, KEY)
    if not exists(uri):
        raise UserError(f"{out_uri}: no {KEY}, so no folder of `deescal evaluate humans export`")
    return read_json(uri)


def read_sheet(file: str, key: Mapping[str, Any]) -> Iterator[Answers]:
    """The rows of a file that have an answer, checked.

    Raises:
        UserError: as `import_ratings`.
    """
    questions = {question.name: question for question in QUESTIONS[key["config"]["form"]]}
    for n, cells in _read_cells(file, [*ID_COLUMNS, *questions]):
        place = f"{file} row {n}"
        _allow(place, "pack_id", cells["pack_id"], [key["pack_id"]])
        _allow(place, "rater", cells["rater"], key["sheets"])
        if cells["item"] not in key["sheets"][cells["rater"]]:
            raise UserError(f"{place}, item: '{cells['item']}' is none of the items of {cells['rater']}")
        choices = {name: choice for name, q in questions.items() if (choice := _choice(place, q, cells[name]))}
        if choices:
            yield Answers(cells["rater"], cells["item"], choices, place)


def _read_cells(file: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(row as a spreadsheet counts it, column -> cell) of the rows that are not empty."""
    try:
        # All that is read is ASCII: what another code page makes of the replies does not matter.
        text = read_bytes(file).decode("utf-8-sig", errors="replace")
    except STORAGE_ERRORS as error:
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or one_line(error)}") from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # of the country whose spreadsheet saved it
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise UserError(f"{file}: not CSV: {one_line(error)}") from error
    names = [name.strip().lower() for name in rows[0]] if rows else []
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{file}: no column {', '.join(missing)} (expected: {', '.join(columns)})")
    for n, row in enumerate(rows[1:], 2):
        cells = dict(zip(names, (cell.strip() for cell in row), strict=False))
        if any(cells.values()):
            yield n, {name: cells.get(name, "") for name in columns}


def _allow(place: str, column: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UserError(f"{place}, {column}: '{value}' (allowed: {', '.join(allowed)})")


def _choice(place: str, question: Question, cell: str) -> str | None:
    """The choice that a cell stands for, if any; a spreadsheet may write 4 as 4.0 or 4,0."""
    plain = re.sub(r"[.,]0+$", "", cell).lower()
    choice = next((choice for choice in question.choices if choice.lower() == plain), None)
    if cell and choice is None:
        raise UserError(f"{place}, {question.name}: '{cell}' (allowed: {question.allowed}, or empty)")
    return choice


def judge_raters(key: Mapping[str, Any], answers: Iterable[Answers], count_inattentive: bool) -> dict[str, Row]:
    """Every rater of the pack: items, rated, partly_rated, checks, checks_due, checks_passed, attentive, counted.

    Due are the checks up to the last answer of a sheet: one that was passed over is not passed. Who passes less than
    the config's share of them is not attentive; a check with a question left empty is judged by the other.
    """
    config, form = key["config"], key["config"]["form"]
    raters: dict[str, Row] = {}
    places: dict[str, set[int]] = {name: set() for name in key["sheets"]}  # on the sheet, of what was answered
    checks: dict[str, list[int]] = {}
    for name, sheet in key["sheets"].items():
        checks[name] = [i for i, blinded in enumerate(sheet) if key["items"][blinded]["item_id"] is None]
        zero = dict.fromkeys(("rated", "partly_rated", "checks_due", "checks_passed"), 0)
        raters[name] = {"items": len(sheet) - len(checks[name]), "checks": len(checks[name]), **zero}
    for given in answers:
        origin, rater = key["items"][given.rated_id], raters[given.rater]
        places[given.rater].add(key["sheets"][given.rater].index(given.rated_id))
        if origin["item_id"] is None:
            rater["checks_passed"] += set(given.choices.values()) == {origin["answer"]}
        else:
            whole = len(given.choices) == len(QUESTIONS[form])
            rater["rated" if whole else "partly_rated"] += 1
    for name, rater in raters.items():
        rater["checks_due"] = sum(i <= max(places[name], default=-1) for i in checks[name])
        rater["attentive"] = rater["checks_passed"] >= config["min_attention"] * rater["checks_due"]
        rater["counted"] = rater["attentive"] or count_inattentive
    return raters


def _rows(key: Mapping[str, Any], answers: Iterable[Answers], raters: Mapping[str, Row]) -> Iterator[Row]:
    for given in answers:
        origin = key["items"][given.rated_id]
        if origin["item_id"] is None:
            continue
        order = sorted(zip(origin["systems"], origin["seeds"], origin["words"], "AB", strict=False))
        model, seed, words, side = order[0]
        model_b, seed_b, words_b, _ = order[1] if order[1:] else (None,) * 4
        for question, choice in given.choices.items():
            yield {
                "pack_id": key["pack_id"],
                "rater": given.rater,
                "rated_id": given.rated_id,
                **{name: origin[name] for name in ("item_id", "scenario_id", "incident_id")},
                "protocol": key["config"]["protocol"],
                "model": model,
                "seed": seed,
                "words": words,
                "model_b": model_b,
                "seed_b": seed_b,
                "words_b": words_b,
                "question": question,
                "choice": choice,
                "value": float(choice) if model_b is None else {side: 1.0, "tie": 0.5}.get(choice, 0.0),
                "counted": raters[given.rater]["counted"],
            }
