"""What the page of an evaluation says of its judge: tables in words and numbers, pure functions of rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deescal.report.evaluate_findings import NOT_KNOWN, interval_text, known, number, p_text
from deescal.schema import Row

if TYPE_CHECKING:
    from deescal.evaluate.agreement import Agreement
    from deescal.evaluate.calibration import Calibration


def judged_rows(judged: Sequence[Row], summary: Sequence[Row], test: Mapping[str, Any]) -> list[Row]:
    """A row for each rubric, protocol and contestant: mean with interval clustered by incident, bands, what was unread.

    Real replies first, which tell what the judge's scores are worth.

    Args:
        judged: rows of JUDGED.
        summary: rows of SUMMARY_TABLE, whose means and intervals are those of contestants.
        test: seed and n_resamples of the interval of the real replies, who are no contestant.
    """
    from deescal.evaluate.contestants import REFERENCE
    from deescal.evaluate.stats import bootstrap_mean

    means = {(row["protocol"], row["model"]): row for row in summary}

    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in judged:
        groups[row["rubric"], row["protocol"], row["contestant"]].append(row)
    real: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in judged:
        if row["contestant"] == REFERENCE and row["score"] is not None:
            real[row["rubric"], row["protocol"]][row["item_id"]] = row["score"]
    found = []
    for (rubric, protocol, contestant), rows in sorted(
        groups.items(), key=lambda g: (g[0][0], g[0][1], g[0][2] != REFERENCE, g[0][2])
    ):
        scores = [math.nan if row["score"] is None else row["score"] for row in rows]
        mean: tuple[float | None, ...]
        if contestant == REFERENCE:
            estimate = bootstrap_mean(scores, [row["incident_id"] or row["scenario_id"] for row in rows], **test)
            mean = estimate.mean, estimate.low, estimate.high
        else:
            of = means[protocol, contestant]
            mean = of[rubric], of[f"{rubric}_low"], of[f"{rubric}_high"]
        found.append(
            {
                "rubric": rubric,
                "protocol": protocol,
                "contestant": "the real replies" if contestant == REFERENCE else contestant,
                "n": len(rows),
                "score": interval_text(*mean, 1),
                "beaten": NOT_KNOWN if contestant == REFERENCE else beaten_text(rows, real[rubric, protocol]),
                "bands": bands_text(scores) if rubric == "realism" else NOT_KNOWN,
                "unread": sum(row["n_unread"] for row in rows),
                "unsupported": sum(row["unsupported"] for row in rows),
            }
        )
    return found


def beaten_text(rows: Sequence[Row], real: Mapping[str, float]) -> str:
    """'54 % of 24': lines on which the real reply was scored above a contestant's; a tie is half a line."""
    margins = [real[r["item_id"]] - r["score"] for r in rows if r["item_id"] in real and r["score"] is not None]
    above = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins)
    return f"{100 * above / len(margins):.0f} % of {len(margins):,}" if margins else NOT_KNOWN


def bands_text(scores: Sequence[float]) -> str:
    """'60, 30, 10 %' of realism scores look real, marginal and artificial; NaN have no part."""
    from deescal.judge.realism import BANDS, realism_band

    found = [realism_band(score) for score in scores if known(score)]
    shares = ", ".join(f"{100 * found.count(band) / len(found):.0f}" for band in BANDS) if found else ""
    return f"{shares} %" if found else NOT_KNOWN


def repeat_rows(judged: Sequence[Row]) -> list[Row]:
    """How far several samples of the judge agree with each other, by rubric and protocol; none of a single one.

    Krippendorff's alpha of scores; of realism, Fleiss' kappa of bands as well.
    """
    from deescal.evaluate.agreement import fleiss_kappa, krippendorff_alpha
    from deescal.judge.realism import BANDS, realism_band

    def text(found: Agreement) -> str:
        return number(found.value, 2) if known(found.value) else f"none: {found.reason}"

    def band(score: float) -> float:
        return BANDS.index(realism_band(score)) if known(score) else math.nan

    groups: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for row in judged:
        groups[row["rubric"], row["protocol"]].append([math.nan if s is None else s for s in row["scores"]])
    found = []
    for (rubric, protocol), samples in sorted(groups.items()):
        if max(map(len, samples)) > 1:
            by_sample = list(zip(*samples, strict=True))
            alpha = krippendorff_alpha(by_sample, "interval")
            kappa = text(fleiss_kappa([[band(s) for s in of] for of in by_sample])) if rubric == "realism" else None
            values = {"n": alpha.n_items, "alpha": text(alpha), "kappa": kappa}
            found.append({"rubric": rubric, "protocol": protocol, **values})
    return found


def choice_rows(choices: Sequence[Row]) -> list[Row]:
    """CHOICES with texts: rate, p."""
    rows = []
    for of in choices:
        rate = interval_text(100 * of["win_rate"], 100 * of["low"], 100 * of["high"], 1)
        shown = {"rate": f"{rate} %" if known(of["win_rate"]) else f"none: {of['reason']}", "p": p_text(of["p_holm"])}
        rows.append({**of, **shown})
    return rows


def calibration_rows(found: Sequence[Calibration]) -> list[Row]:
    """The judge against people, as texts."""
    what = {
        "realism": "its realism ranks replies as people do (Spearman's rho)",
        "plausibility": "its plausibility ranks replies as people do (Spearman's rho)",
        "pairwise": "it prefers the same of two (Cohen's kappa)",
    }
    return [
        {
            "what": what[of.rubric],
            "protocol": of.protocol,
            "n_incidents": of.n_incidents,
            "n": of.n,
            "value": number(of.value, 2) if known(of.value) else f"none: {of.reason}",
            "agreed": f"{100 * of.agreed:.0f} %" if known(of.agreed) else NOT_KNOWN,
        }
        for of in found
    ]
