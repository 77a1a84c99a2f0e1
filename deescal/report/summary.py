"""CLIPS rows -> what the report shows, in one pass and in memory that does not grow with their number.

Kept are counts, histograms, and the few rows that the page shows in full. Which rows those are depends on their
ids only, never on the order in which they come. Which causes are counted apart does, where there are more than
MAX_CAUSES; rows are read in order of clip_id, so that the same run always gives the same page.
"""

from __future__ import annotations

import math
import re
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from deescal.judge.taxonomy import NAMES
from deescal.schema import Row
from deescal.stage import STAGES

STATUSES = ("accepted", "rejected", "failed")
MAX_SAMPLES = 12  # clips shown in full
MAX_LISTED = 200  # rows of the failures and aliases tables
MAX_CAUSES = 100  # distinct causes counted apart; the rest share one line
MAX_TURNS = 400  # of one clip shown in full
OTHER_CAUSES = "other causes"
BINS = 20  # of a histogram over 0..1, as drawn
FINER = 50  # bins within one of these, for the median
CLIP_METRICS = ("covered_share",)
TURN_METRICS = ("asr_confidence", "assignment_margin", "overlap_share")
# Columns that the page never shows and that are most of a row's bytes.
_HEAVY = ("words", "speaker_spans", "exclusive_spans", "dropped_text")

T = TypeVar("T")


class Smallest(Generic[T]):
    """The k values with the smallest keys of all that were offered, whatever their order."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._items: list[tuple[str, int, T]] = []
        self.offered = 0

    def wants(self, key: str) -> bool:
        return len(self._items) < self._k or key < self._items[-1][0]

    def offer(self, key: str, value: T) -> None:
        self.offered += 1
        if self.wants(key):
            insort(self._items, (key, self.offered, value))  # `offered` decides before values are compared
            del self._items[self._k :]

    def __iter__(self) -> Iterator[T]:
        return (value for _, _, value in self._items)

    def __len__(self) -> int:
        return len(self._items)


@dataclass
class Histogram:
    """Counts of a value between 0 and 1 in equal bins, fine enough for the median; 1.0 belongs to the last."""

    fine: list[int] = field(default_factory=lambda: [0] * BINS * FINER)

    def add(self, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self.fine[min(max(int(value * len(self.fine)), 0), len(self.fine) - 1)] += 1

    @property
    def n(self) -> int:
        return sum(self.fine)

    @property
    def bins(self) -> list[int]:
        """The counts in BINS bins, to be drawn."""
        return [sum(self.fine[i : i + FINER]) for i in range(0, len(self.fine), FINER)]

    def median(self) -> float | None:
        """The median, to a thousandth; None without values."""
        seen = 0
        for i, count in enumerate(self.fine):
            seen += count
            if seen and 2 * seen >= self.n:
                return i / len(self.fine)
        return None


@dataclass
class StageCost:
    """What a stage did: clips, seconds of audio in them, seconds of compute."""

    clips: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0

    @property
    def times_real_time(self) -> float | None:
        return self.audio_s / self.seconds if self.seconds > 0 and self.audio_s > 0 else None


@dataclass
class Step:
    """One bar of the funnel: `entered` clips reached the stage, `left` went on, the rest failed in it."""

    stage: str
    entered: int
    failed: Counter[str]  # cause -> clips

    @property
    def left(self) -> int:
        return self.entered - sum(self.failed.values())


@dataclass
class Summary:
    """Everything the report says about the clips of a run."""

    rows: int = 0
    aliases: int = 0
    audio_s: float = 0.0
    status: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STATUSES, 0)))
    failed: dict[str, Counter[str]] = field(default_factory=dict)  # stage -> cause -> clips
    rejected: Counter[str] = field(default_factory=Counter)  # rule -> clips
    judged: Counter[str] = field(default_factory=Counter)  # status -> clips with features
    present: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in NAMES})
    stages: dict[str, StageCost] = field(default_factory=dict)  # in the order of the run
    trust: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in (*CLIP_METRICS, *TURN_METRICS)}
    )
    samples: list[Row] = field(default_factory=list)  # without words and spans
    failures: list[Row] = field(default_factory=list)  # the first MAX_LISTED by id
    alias_names: list[dict[str, str]] = field(default_factory=list)  # uri, clip_id, alias; MAX_LISTED of them

    @property
    def inputs(self) -> int:
        return self.rows + self.aliases

    def funnel(self) -> list[Step]:
        """The stages in order, each with the clips that reached it and those that failed in it."""
        steps = []
        entered = self.rows
        for stage in in_order({*self.stages, *self.failed}):
            step = Step(stage, entered, self.failed.get(stage, Counter()))
            steps.append(step)
            entered = step.left
        return steps


def summarize(rows: Iterable[Row]) -> Summary:
    """Aggregate finished CLIPS rows; every row counts as exactly one of accepted, rejected, failed.

    Raises:
        ValueError: a row without one of these statuses: it is still under way, and no report can be made of it.
    """
    summary = Summary()
    samples: dict[str, dict[str, Smallest[Row]]] = {status: {} for status in STATUSES}
    failures: Smallest[Row] = Smallest(MAX_LISTED)
    aliases: Smallest[dict[str, str]] = Smallest(MAX_LISTED)
    for row in rows:
        status = row["status"]
        if status not in STATUSES:
            raise ValueError(f"clip {row['clip_id']}: status is {status!r}, expected one of {', '.join(STATUSES)}")
        cause = cause_of(row)
        _count(summary, row, cause)
        _offer_sample(samples[status], cause, row)
        if status == "failed":
            keys = ("clip_id", "uri", "failed_stage", "error", "attempts")
            failures.offer(f"{row['clip_id']} {row['uri']}", {key: row[key] for key in keys})
        for alias in row["aliases"] or ():
            name = {"clip_id": row["clip_id"], "uri": row["uri"], "alias": alias["uri"]}
            aliases.offer(f"{row['clip_id']} {alias['uri']}", name)
    summary.samples = choose_samples(samples)
    summary.failures = sorted(failures, key=lambda f: (_rank(f["failed_stage"] or ""), f["error"] or "", f["uri"]))
    summary.alias_names = list(aliases)
    summary.stages = {stage: summary.stages[stage] for stage in in_order(summary.stages)}
    return summary


def cause_of(row: Mapping[str, Any]) -> str:
    """Why a clip was rejected or failed, without this clip's own numbers and names, so that equals are counted.

    What stands in brackets and quotes goes, of a comparison the limit stays, and other numbers become "…":
    "code: police 1 < 2" -> "code: police < 2", "no speech in 20.1 s" -> "no speech in … s".
    An accepted clip has the cause "".
    """
    if row["status"] == "accepted":
        return ""
    text = (row["error"] if row["status"] == "failed" else row["reason"]) or "no reason given"
    text = re.sub(r"\s*(\([^()]*\)|\[[^\[\]]*\])", "", text)
    text = re.sub(r"""(?<!\w)(['"])[^'"]*\1""", "…", text)
    text = re.sub(r"\s*-?\b\d+(?:\.\d+)?(?=\s*[<>])", "", text)
    text = re.sub(r"(?<![<>] )(?<![<>]= )\b\d+(?:[.:]\d+)*", "…", text)
    text = " ".join(text.split()).strip(" :;,.")
    return text if len(text) <= 100 else text[:99].rstrip() + "…"


def _count(summary: Summary, row: Row, cause: str) -> None:
    status = row["status"]
    summary.rows += 1
    summary.status[status] += 1
    summary.aliases += len(row["aliases"] or ())
    summary.audio_s += row["duration_s"] or 0.0
    if status == "failed":
        _add(summary.failed.setdefault(row["failed_stage"] or "unknown", Counter()), cause)
    elif status == "rejected":
        _add(summary.rejected, cause)
    for entry in row["stages"] or ():
        cost = summary.stages.setdefault(entry["stage"], StageCost())
        cost.clips += 1
        cost.audio_s += row["duration_s"] or 0.0
        cost.seconds += entry["seconds"] or 0.0
    if row["features"] and status != "failed":
        summary.judged[status] += 1
        for feature in row["features"]:
            if feature["present"] and feature["name"] in summary.present:
                summary.present[feature["name"]][status] += 1
    for name in CLIP_METRICS:
        summary.trust[name].add(row[name])
    for turn in row["turns"] or ():
        for name in TURN_METRICS:
            summary.trust[name].add(turn[name])


def _add(causes: Counter[str], cause: str) -> None:
    causes[cause if cause in causes or len(causes) < MAX_CAUSES else OTHER_CAUSES] += 1


def _offer_sample(by_cause: dict[str, Smallest[Row]], cause: str, row: Row) -> None:
    """Keep the row if it may be shown: of each status the alphabetically first causes, of each the first ids."""
    kept = by_cause.setdefault(cause, Smallest(MAX_SAMPLES))
    if kept.wants(row["clip_id"]):
        light = {key: value for key, value in row.items() if key not in _HEAVY}
        turns = [{k: v for k, v in turn.items() if k != "words"} for turn in (row["turns"] or ())[:MAX_TURNS]]
        kept.offer(row["clip_id"], {**light, "turns": turns, "all_turns": len(row["turns"] or ())})
    if len(by_cause) > MAX_SAMPLES:
        del by_cause[max(by_cause)]


def choose_samples(kept: Mapping[str, Mapping[str, Smallest[Row]]]) -> list[Row]:
    """At most MAX_SAMPLES rows, by turns from each status, and within a status by turns from each cause."""
    queues = []
    for status in STATUSES:
        causes = [list(kept[status][cause]) for cause in sorted(kept[status])]
        queues.append([row for layer in zip_longest(*causes) for row in layer if row is not None])
    # Accepted clips are what the run is for: they get two places for each one of the others.
    accepted, rejected, failed = queues
    pairs = [accepted[i : i + 2] for i in range(0, len(accepted), 2)]
    rounds = zip_longest(pairs, [[r] for r in rejected], [[f] for f in failed], fillvalue=())
    chosen = [row for layer in rounds for group in layer for row in group][:MAX_SAMPLES]
    return sorted(chosen, key=lambda row: (STATUSES.index(row["status"]), row["uri"] or "", row["clip_id"]))


def _rank(stage: str) -> int:
    """A stage's place in the run; what is not a stage of curation (reading the input) comes before all of them."""
    return STAGES.index(stage) if stage in STAGES else -1


def judge_warning(run: Mapping[str, Any]) -> str | None:
    """What a reader must know of a run (run.json) whose judge gives raw answers."""
    interpret = run.get("config", {}).get("interpret", {})
    if interpret.get("judge", {}).get("calibration") != "none":
        return None
    return (
        f"Judge not calibrated for {interpret['llm']['model']}: its probabilities are raw answers, "
        "and verdicts that hang on them mean little. docs/judge.md says how to calibrate it."
    )


def in_order(stages: Iterable[str]) -> list[str]:
    """Stage names in the order of the run."""
    return sorted(stages, key=lambda stage: (_rank(stage), stage))
