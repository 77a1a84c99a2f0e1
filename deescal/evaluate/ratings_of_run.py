"""Human ratings and a run: packs are drawn from its turns, what comes back is stored beside them.

<out>/humans/<pack_id>/ratings.parquet   RATINGS
<out>/humans/<pack_id>/outcome.json      what they come to, as `deescal.evaluate.humans.ratings.import_ratings` says
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.evaluate.calibration import Calibration, calibrate
from deescal.evaluate.contestants import REFERENCE
from deescal.evaluate.humans.config import PackConfig
from deescal.evaluate.steps import JUDGED_FILE, PREFERENCES_FILE, TURNS_FILE
from deescal.schema import Row, to_table
from deescal.storage import absolute, exists, join, locate, read_json, read_table, write_json, write_table

RATINGS_FILE, OUTCOME_FILE = "ratings.parquet", "outcome.json"


def export_from(run: str, out: str, config: PackConfig) -> Row:
    """Write a pack of an evaluation's replies -> its summary.

    Raises:
        UserError: no turns there, or see `make_pack` and `export_pack`.
    """
    from deescal.evaluate.humans.export import export_pack
    from deescal.evaluate.humans.pack import make_pack

    file = join(run, TURNS_FILE)
    if not exists(file):
        raise UserError(f"{run}: no {TURNS_FILE}, so no evaluation whose replies are scored")
    judged: set[str] = set()
    if exists(place := join(run, JUDGED_FILE)):
        judged = set(read_table(place, ["item_id"])["item_id"].to_pylist())
    pack = make_pack(read_table(file), config, judged)
    export_pack(pack, out)
    return pack.summary


def import_into(pack: str, files: Sequence[str], run: str | None, *, count_inattentive: bool = False) -> dict[str, Any]:
    """Filled sheets -> what they come to, stored in the pack's folder, and in the run whose page shall show it.

    Raises:
        UserError: see `import_ratings`; or there is no such run.
    """
    from deescal.evaluate.humans.ratings import import_ratings, read_key

    ratings, found = import_ratings(pack, files, count_inattentive=count_inattentive)
    found = without_nan(found)
    folders = [pack]
    if run is not None:
        if not exists(join(run, TURNS_FILE)):
            raise UserError(f"--run '{run}': no {TURNS_FILE}, so no evaluation")
        if ratings.num_rows and not _of_these_replies(ratings.to_pylist(), run):
            raise UserError(f"--run '{run}': has none of the replies that were rated: another evaluation's pack")
        folders.append(join(run, "humans", read_key(pack)["pack_id"]))
    for folder in folders:
        write_table(join(folder, RATINGS_FILE), ratings)
        write_json(join(folder, OUTCOME_FILE), found)
    if run is not None and exists(join(run, "run.json")):
        from deescal.report.evaluate_page import write_evaluate_page

        write_evaluate_page(read_json(join(run, "run.json")), absolute(run))
    return found


def read_outcomes(run: str) -> list[dict[str, Any]]:
    """What every pack of a run came to, by its ratings of replies as they are now; `replaced`: how many others."""
    from deescal.evaluate.humans.outcome import outcome

    found = []
    for place in _of_packs(run, RATINGS_FILE):
        stored = read_json(join(place.removesuffix(RATINGS_FILE), OUTCOME_FILE))
        ratings = read_table(place)
        valid = _of_these_replies(ratings.to_pylist(), run)
        if len(valid) < ratings.num_rows:
            stored |= without_nan(outcome(to_table(valid, ratings.schema), stored["pack"]))
        found.append({**stored, "replaced": ratings.num_rows - len(valid)})
    return found


def read_ratings(run: str) -> list[Row]:
    """RATINGS of all packs of a run."""
    return [row for place in _of_packs(run, RATINGS_FILE) for row in read_table(place).to_pylist()]


def read_calibration(run: str) -> list[Calibration]:
    """The run's judge, where it has one, against the people who rated its replies as they are now."""
    judge = read_json(join(run, "config.json"))["judge"] if exists(join(run, "config.json")) else {"model": None}
    if judge["model"] is None:
        return []
    asked = {JUDGED_FILE: True, PREFERENCES_FILE: judge["pairwise"]}
    judged, preferences = (
        read_table(join(run, name)).to_pylist() if is_asked and exists(join(run, name)) else []
        for name, is_asked in asked.items()
    )
    return calibrate(judged, preferences, _of_these_replies(read_ratings(run), run))


def _of_these_replies(ratings: Sequence[Row], run: str) -> list[Row]:
    """Ratings of replies that have not been replaced since, as by another adapter of the same label."""
    names = ["protocol", "item_id", "model", "seed", "reply", "reference"]
    there: dict[tuple[object, ...], str] = {}
    for row in read_table(join(run, TURNS_FILE), names).to_pylist():
        if row["reply"] is not None:
            there[row["protocol"], row["item_id"], row["model"], row["seed"]] = fingerprint(row["reply"].strip())
        if row["reference"] is not None:
            there[row["protocol"], row["item_id"], REFERENCE, None] = fingerprint(row["reference"].strip())

    def same(row: Row, end: str) -> bool:
        key = (row["protocol"], row["item_id"], row[f"model{end}"], row[f"seed{end}"])
        return there.get(key) == row[f"words{end}"]

    return [row for row in ratings if same(row, "") and (row["model_b"] is None or same(row, "_b"))]


def _of_packs(run: str, name: str) -> list[str]:
    filesystem, path = locate(join(run, "humans"))
    try:
        packs = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))
    except FileNotFoundError:
        return []
    return [place for pack in packs if exists(place := join(run, "humans", pack, name))]


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have; the reason stands beside it."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def outcome_lines(found: Mapping[str, Any]) -> list[str]:
    """What ratings came to, for the terminal."""
    rated = found["rated"]
    lines = [
        f"{rated['ratings']:,} ratings of {rated['items']:,} items, {rated['twice']:,} of them rated twice or more"
    ]
    lines += [
        f"not counted: {name} passed {rater['checks_passed']} of {rater['checks_due']} attention checks"
        for name, rater in found["raters"].items()
        if not rater["counted"]
    ]
    for question, agreement in found["agreement"].items():
        alpha, kappa = agreement["alpha"], agreement["kappa"]
        lines.append(f"agreement on {question}: alpha {_coefficient(alpha)}, kappa {_coefficient(kappa)}")
    for question, means in found.get("means", {}).items():
        lines += [f"{question}: {model} {_estimate(mean)}" for model, mean in means.items()]
    for of in found.get("pairs", ()):
        counts = f"{of['wins']:,} wins, {of['ties']:,} ties, {of['losses']:,} losses"
        lines.append(f"more real: {of['model']} against {of['model_b']}: {counts}, rate {_estimate(of['win_rate'])}")
    lines += [f"more real: {model} {_estimate(rate)}" for model, rate in found.get("win_rates", {}).items()]
    return lines


def calibration_lines(found: Sequence[Calibration]) -> list[str]:
    """The judge against people, for the terminal."""
    lines = []
    for of in found:
        what = "Spearman's rho" if of.question == "realism" else "Cohen's kappa"
        value = f"none ({of.reason})" if math.isnan(of.value) else f"{of.value:.2f}"
        lines.append(
            f"the judge's {of.rubric} against people, {of.protocol}: {what} {value} over {of.n:,} of "
            f"{of.n_incidents:,} incidents"
        )
    return lines


def _coefficient(found: Mapping[str, Any]) -> str:
    return f"none ({found['reason']})" if found["value"] is None else f"{found['value']:.2f}"


def _estimate(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return f"none ({found['reason']})"
    bounds = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['mean']:.2f}{bounds} of {found['n_items']} ratings"
