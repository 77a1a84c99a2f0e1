"""What a judge's scores are worth: beside the ratings that people gave the same replies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deescal.judge.pairwise import WORTH
from deescal.schema import Row

MIN_REPLIES = 3  # of a rank correlation; with two it is 1 or -1


@dataclass(frozen=True)
class Calibration:
    """A judge against the people who rated one pack, on what both judged."""

    pack_id: str
    protocol: str
    question: str  # of the people. realism: Spearman's rank correlation; more_real: Cohen's kappa
    rubric: str  # of the judge: realism or plausibility, to people's realism; pairwise, to their more_real
    n: int  # replies, or pairs of them
    n_incidents: int  # that they are of
    value: float
    agreed: float  # more_real: share of pairs on which both say the same, 0..1; else NaN
    reason: str = ""  # why `value` is NaN


def calibrate(judged: Sequence[Row], preferences: Sequence[Row], ratings: Sequence[Row]) -> list[Calibration]:
    """How far the judge ranks replies, and decides between two, as people do: one for each pack and question.

    Args:
        judged: rows of `deescal.evaluate.judging.JUDGED`.
        preferences: rows of `deescal.evaluate.preferences.PREFERENCES`.
        ratings: rows of `deescal.evaluate.humans.ratings.RATINGS`, of any packs; those not counted are left out.
    """
    scores: dict[str, dict[tuple, float]] = defaultdict(dict)
    for r in judged:
        if r["rubric"] in ("realism", "plausibility") and r["score"] is not None:
            scores[r["rubric"]][r["protocol"], r["item_id"], r["contestant"], r["seed"]] = r["score"]
    decided = _means(
        _pair(r["item_id"], (r["a"], r["seed"]), (r["b"], r["seed"]), WORTH[r["winner"]])
        for r in preferences
        if r["winner"]
    )
    packs: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in ratings:
        if row["counted"] and row["question"] in ("realism", "more_real"):
            packs[row["pack_id"], row["protocol"], row["question"]].append(row)
    found = []
    for (pack, protocol, question), rows in sorted(packs.items()):
        likert = question == "realism"
        people = _means((_key(r), r["value"]) if likert else _rated_pair(r) for r in rows)
        measure = _ranks if likert else _decisions
        for rubric, judge in sorted(scores.items()) if likert else [("pairwise", decided)]:
            both = sorted(people.keys() & judge.keys(), key=str)
            value, agreed, reason = measure([people[key] for key in both], [judge[key] for key in both])
            items = {key[1] if likert else key[0] for key in both}
            incidents = {r["incident_id"] or r["scenario_id"] for r in rows if r["item_id"] in items}
            n = len(both), len(incidents)
            found.append(Calibration(pack, protocol, question, rubric, *n, value, agreed, reason))
    return found


def _key(row: Row) -> tuple[object, ...]:
    return row["protocol"], row["item_id"], row["model"], row["seed"]


def _rated_pair(row: Row) -> tuple[tuple[object, ...], float]:
    return _pair(row["item_id"], (row["model"], row["seed"]), (row["model_b"], row["seed_b"]), row["value"])


def _pair(
    item: str, one: tuple[str, int | None], other: tuple[str, int | None], value: float
) -> tuple[tuple[object, ...], float]:
    """Key of two replies, (label, seed) each, by label, and what the decision is worth to the first of them."""
    return ((item, one, other), value) if one[0] <= other[0] else ((item, other, one), 1 - value)


def _means(values: Iterable[tuple[tuple, float]]) -> dict[tuple, float]:
    groups: dict[tuple, list[float]] = defaultdict(list)
    for key, value in values:
        groups[key].append(value)
    return {key: sum(of) / len(of) for key, of in groups.items()}


def _ranks(people: Sequence[float], judge: Sequence[float]) -> tuple[float, float, str]:
    """Spearman's rho, no share, and why there is none."""
    from scipy.stats import spearmanr

    reason = ""
    if len(people) < MIN_REPLIES:
        reason = f"{len(people)} replies have both, at least {MIN_REPLIES} are needed"
    elif len(set(people)) == 1 or len(set(judge)) == 1:
        reason = f"{'people' if len(set(people)) == 1 else 'the judge'} gave all the same"
    return math.nan if reason else float(spearmanr(people, judge).statistic), math.nan, reason


def _decisions(people: Sequence[float], judge: Sequence[float]) -> tuple[float, float, str]:
    """Cohen's kappa and the share of equal ones, of majorities; a split is a tie."""
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    theirs, its = ([(x > 0.5) - (x < 0.5) for x in of] for of in (people, judge))
    if not theirs:
        return math.nan, math.nan, "no pair was judged by both"
    agreed = sum(a == b for a, b in zip(theirs, its, strict=True)) / len(theirs)
    if len({*theirs, *its}) == 1:
        return math.nan, agreed, "all decisions are the same"
    counts, _ = to_table(list(zip(theirs, its, strict=True)), bins=[-1.5, -0.5, 0.5, 1.5])
    return float(cohens_kappa(counts).kappa), agreed, ""
