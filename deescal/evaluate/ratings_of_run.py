"""Human ratings and a run: packs are drawn from its turns, what comes back is stored beside them.

<out>/humans/<pack_id>/ratings.parquet   RATINGS
<out>/humans/<pack_id>/outcome.json      what they come to, as `deescal.evaluate.humans.ratings.import_ratings` says
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deescal.errors import UserError
from deescal.evaluate.humans.config import PackConfig
from deescal.evaluate.steps import TURNS_FILE
from deescal.schema import Row
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
    pack = make_pack(read_table(file), config)
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
        folders.append(join(run, "humans", read_key(pack)["pack_id"]))
    for folder in folders:
        write_table(join(folder, RATINGS_FILE), ratings)
        write_json(join(folder, OUTCOME_FILE), found)
    if run is not None and exists(join(run, "run.json")):
        from deescal.report.evaluate_page import write_evaluate_page

        write_evaluate_page(read_json(join(run, "run.json")), absolute(run))
    return found


def read_outcomes(run: str) -> list[dict[str, Any]]:
    """What every pack of a run came to."""
    filesystem, path = locate(join(run, "humans"))
    try:
        names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))
    except FileNotFoundError:
        return []
    places = [join(run, "humans", name, OUTCOME_FILE) for name in names]
    return [read_json(place) for place in places if exists(place)]


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
        f"not counted: {name} passed {rater['checks_passed']} of {rater['checks_answered']} attention checks"
        for name, rater in found["raters"].items()
        if not rater["counted"]
    ]
    for question, agreement in found["agreement"].items():
        alpha, kappa = agreement["alpha"], agreement["kappa"]
        lines.append(f"agreement on {question}: alpha {_coefficient(alpha)}, kappa {_coefficient(kappa)}")
    for question, means in found.get("means", {}).items():
        lines += [f"{question}: {model} {_estimate(mean)}" for model, mean in means.items()]
    lines += [f"more real: {model} {_estimate(rate)}" for model, rate in found.get("win_rates", {}).items()]
    return lines


def _coefficient(found: Mapping[str, Any]) -> str:
    return f"none ({found['reason']})" if found["value"] is None else f"{found['value']:.2f}"


def _estimate(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return f"none ({found['reason']})"
    bounds = "" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]"
    return f"{found['mean']:.2f}{bounds} of {found['n_items']} ratings"
