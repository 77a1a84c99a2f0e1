"""A run over the sample clips against their exact scripts: `python bench/encounters.py RUN`.

WER of the words, DER of the speakers (no collar, overlap counted), cpWER (words under the right speaker), the role
of every speaker, and of the features that a clip shows how many were found. The measures are jiwer's,
pyannote.metrics' and meeteval's.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Score:
    """Of one clip; rates are shares of the reference."""

    name: str
    wer: float
    der: float
    cpwer: float
    roles: dict[str, tuple[str, str]]  # speaker of the script -> (true role, found role)

    @property
    def roles_right(self) -> bool:
        return all(true == found for true, found in self.roles.values())


def read_truth(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / "truth" / f"{name}.json").read_text())


def normalise(text: str) -> str:
    """Lower case, no punctuation: what a word error rate should not depend on."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("’", "'")).split())


def score(row: dict[str, Any], truth: dict[str, Any]) -> Score:
    """A finished CLIPS row against the truth of its clip."""
    import jiwer
    import meeteval
    from pyannote.core import Annotation, Segment
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(spans: Iterable[dict[str, Any]]) -> Annotation:
        made = Annotation()
        for i, span in enumerate(spans):
            made[Segment(span["start_s"], span["end_s"]), i] = span["speaker"]
        return made

    def by_speaker(turns: Iterable[dict[str, Any]]) -> dict[str, str]:
        texts: dict[str, list[str]] = {}
        for turn in turns:
            texts.setdefault(turn["speaker"], []).append(normalise(turn["text"]))
        return {speaker: " ".join(parts) for speaker, parts in texts.items()}

    said, heard = truth["turns"], row["turns"]
    true, found = annotation(said), annotation(row["speaker_spans"])
    metric = DiarizationErrorRate()
    whole = Annotation()
    whole[Segment(0, truth["duration_s"])] = "all"
    mapping = metric.optimal_mapping(true, found, uem=whole.get_timeline())  # found label -> true speaker
    roles = {turn["speaker"]: turn["role"] for turn in said}
    found_roles = {mapping.get(s["speaker"], "?"): s["role"] for s in row["speakers"]}
    return Score(
        truth["name"],
        jiwer.wer(normalise(" ".join(t["text"] for t in said)), normalise(" ".join(t["text"] for t in heard))),
        metric(true, found, uem=whole.get_timeline()),
        meeteval.wer.cp_word_error_rate(by_speaker(said), by_speaker(heard)).error_rate,
        {speaker: (role, found_roles.get(speaker, "nobody")) for speaker, role in roles.items()},
    )


@dataclass(frozen=True)
class Found:
    """Features of one clip, by name."""

    due: set[str]  # that the clip shows, by its truth
    present: set[str]  # of these, found
    with_evidence: set[str]  # of these, with a turn named at the time of a turn that shows it
    extra: set[str]  # found, but not due


def features_found(row: dict[str, Any], truth: dict[str, Any]) -> Found:
    """A finished CLIPS row against the features that the truth says it shows, and the turns that show them."""
    shows, turns = truth["shows"], {turn["turn_id"]: turn for turn in row["turns"]}
    present = {f["name"]: f["evidence"] for f in row["features"] if f["present"]}

    def meets(name: str) -> bool:
        named, marked = [turns[i] for i in present[name]], [truth["turns"][i] for i in shows[name]]
        return any(a["start_s"] < b["end_s"] and b["start_s"] < a["end_s"] for a in named for b in marked)

    right = set(shows) & set(present)
    return Found(set(shows), right, {name for name in right if meets(name)}, set(present) - set(shows))


def main(run: str) -> None:
    from deescal.curate.store import read_clips

    print(f"{'clip':<16} {'status':<9} {'WER %':>6} {'DER %':>6} {'cpWER %':>8}", end="")
    print("  features  roles (true -> found where different)")
    for row in sorted(read_clips(run), key=lambda r: r["uri"]):
        name = Path(row["uri"]).stem
        truth = read_truth(name)
        right = "" if row["status"] == truth["expected"]["status"] else f" (expected {truth['expected']['status']})"
        if not truth.get("turns") or row["status"] == "failed":
            print(f"{name:<16} {row['status']:<9}{right} {row['reason']}")
            continue
        s, f = score(row, truth), features_found(row, truth)
        found = f"{len(f.present)} of {len(f.due)}" + (f" +{len(f.extra)}" if f.extra else "")
        roles = ", ".join(f"{who}: {t}" + (f" -> {f}" if t != f else "") for who, (t, f) in s.roles.items())
        print(f"{name:<16} {row['status']:<9} {s.wer:6.1%} {s.der:6.1%} {s.cpwer:8.1%}  {found:<12} {roles}{right}")


if __name__ == "__main__":
    main(sys.argv[1])
