"""What a run still has to do: pure decisions from the inputs, the rows that are there, and the fingerprints.

A row's `stages` say what was done to it, in order, each with the fingerprint of what decided the result. What still
stands of a row are its leading entries that this run would make the same; all that came after is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deescal.ingest.sources import Input
from deescal.schema import Row
from deescal.stage import STAGES

FINAL = ("accepted", "rejected", "failed")
NAME = ("uri", "source_version", "source")  # what a name of a clip consists of
STORED = ""  # as a content's owner: its row is there and current, so that every name that claims it is an alias
COLUMNS = {  # stage -> the columns it sets; roles also fills them into `turns`
    "import": ("duration_s", "turns", "oddities"),
    "extract_audio": ("duration_s", "container", "audio_codec", "audio"),
    "transcribe": (
        *("language", "language_probability", "words", "speech_s", "covered_share"),
        *("redecoded_s", "dropped_text"),
    ),
    "diarize": ("speaker_spans", "exclusive_spans"),
    "turns": ("turns",),
    "roles": ("speakers",),
    "judge": ("features", "scores"),
    "select": ("status", "reason"),
}


@dataclass(frozen=True)
class Plan:
    """Rows to send through the stages (new ones, and old ones of which a stage is out of date), and the rest."""

    todo: list[Row]  # seeds
    done: int  # inputs that need nothing
    owed: list[str]  # stages that some row of `todo` owes, in order
    inputs: dict[str, Mapping[str, str]]  # every name that must be in a row in the end, and its manifest's columns
    owners: dict[str, str] = field(default_factory=dict)  # clip_id -> the name under which it is processed, or STORED
    unseen: list[str] = field(default_factory=list)  # inputs that cannot be looked at now; their good rows stay


def expected(row: Row, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Stage -> fingerprint as this run would leave the row; stages before the run's first are taken as they are."""
    first = STAGES.index(next(iter(fingerprints)))
    return {**{s["stage"]: s["fingerprint"] for s in before(row, first)}, **fingerprints}


def before(row: Row, first: int) -> list[Row]:
    """The row's entries of the stages before the `first` one (its index in STAGES)."""
    return [s for s in row["stages"] or () if STAGES.index(s["stage"]) < first]


def is_current(row: Row, fingerprints: Mapping[str, str], retry_failed: bool = False) -> bool:
    """Whether a stored row is what a run with these fingerprints would give.

    A failed row is current when the stage it failed in, and those before it, are unchanged.
    """
    if row["status"] not in FINAL:
        return False
    wanted = expected(row, fingerprints)
    stages = list(wanted)
    if row["status"] == "failed":
        if row["failed_stage"] not in wanted or (retry_failed and row["failed_stage"] in fingerprints):
            return False
        stages = stages[: stages.index(row["failed_stage"]) + 1]
    return [(s["stage"], s["fingerprint"]) for s in row["stages"] or ()] == [(s, wanted[s]) for s in stages]


def standing(row: Row, fingerprints: Mapping[str, str]) -> list[Row]:
    """The row's leading entries in `stages` that this run would make the same, up to the stage it failed in."""
    kept = []
    for entry, wanted in zip(row["stages"] or (), expected(row, fingerprints).items(), strict=False):
        if (entry["stage"], entry["fingerprint"]) != wanted or entry["stage"] == row["failed_stage"]:
            break
        kept.append(entry)
    return kept


def reopen(row: Row, fingerprints: Mapping[str, str]) -> Row:
    """The row as one under way again: only what stands is left, verdict and failure are withdrawn.

    `attempts` are kept. Where nothing stands, the id goes too: the first stage looks at the content anew.
    """
    kept = standing(row, fingerprints)
    done = {entry["stage"] for entry in kept}
    left = {column for stage in done for column in COLUMNS[stage]}
    lost = {column for columns in COLUMNS.values() for column in columns} - left
    opened = {**row, **dict.fromkeys(lost), "stages": kept, "failed_stage": None, "error": None}
    if not kept:
        opened["clip_id"] = None
    if opened["turns"] and "roles" not in done:
        opened["turns"] = [{**turn, "role": None} for turn in opened["turns"]]
    return opened


def plan_work(
    inputs: Sequence[Input], existing: Sequence[Row], fingerprints: Mapping[str, str], retry_failed: bool = False
) -> Plan:
    """Decide for each input: done, to be updated from its row, or new.

    Args:
        inputs: what the sources hold now.
        existing: the index of the run's rows (`store.read_index`).
        fingerprints: stage -> fingerprint of this run, in order.
        retry_failed: run failed clips again though nothing changed.
    """
    by_name = {name["uri"]: (row, name) for row in existing for name in names(row)}
    current = {row["clip_id"] for row in existing if is_current(row, fingerprints, retry_failed)}
    new: list[Row] = []
    known: dict[str, Row] = {}  # clip_id -> seed: two names of one clip are one row to do
    reopened: list[Row] = []
    unseen: list[str] = []
    done = 0
    for item in inputs:
        row, name = by_name.get(item.uri, ({}, {}))
        hidden = item.version is None and row.get("status") in ("accepted", "rejected")
        if hidden:
            unseen.append(item.uri)
        if not row or not (hidden or item.version == name["source_version"]):
            new.append(seed(None, {"uri": item.uri, "source_version": item.version, "source": item.extra}))
        elif row["clip_id"] in current or row["clip_id"] in known or (hidden and not standing(row, fingerprints)):
            done += 1
        else:
            known[row["clip_id"]] = seed(row["clip_id"], {**name, "source": item.extra or name["source"]})
            reopened.append(row)
    return Plan(
        todo=[*known.values(), *new],
        done=done,
        owed=_owed(reopened, fingerprints, bool(new)),
        inputs={item.uri: item.extra for item in inputs},
        owners={**dict.fromkeys(current, STORED), **{clip_id: s["uri"] for clip_id, s in known.items()}},
        unseen=unseen,
    )


def plan_rejudge(
    origin: Sequence[Row], existing: Sequence[Row], fingerprints: Mapping[str, str], retry_failed: bool = False
) -> Plan:
    """Decide for each row of the run `origin`: done, to be updated here, or to be brought over.

    What another config did here, or what has been done anew there, is told by the entries of the earlier stages.

    Args:
        origin: the index of the run whose rows are the start.
        existing: that of the run's own rows; the same one where it is updated in place.
        fingerprints: of the stages to do, in order; earlier ones are taken as they are, row by row.
        retry_failed: run clips again that failed in one of these stages.
    """
    first = STAGES.index(next(iter(fingerprints)))
    here = {row["clip_id"]: row for row in existing}
    todo, reopened = [], []
    done = 0
    for row in origin:
        mine = here.get(row["clip_id"])
        if mine is None or _start(mine, first) != _start(row, first) or not _uris(row) <= _uris(mine):
            todo.append(seed(row["clip_id"], row, from_origin=True))
            reopened.append(row)
        elif is_current(mine, fingerprints, retry_failed):
            done += len(names(row))
        else:
            todo.append(seed(row["clip_id"], mine))
            reopened.append(mine)
    reopened = [row for row in reopened if not is_current(row, fingerprints, retry_failed)]
    everything = {name["uri"]: name["source"] or {} for row in origin for name in names(row)}
    return Plan(todo, done, _owed(reopened, fingerprints), everything)


def names(row: Row) -> list[Row]:
    """All names of a row's content: itself and its aliases, each with uri, source_version and source."""
    return [row, *(row["aliases"] or [])]


def seed(clip_id: str | None, name: Row, from_origin: bool = False) -> Row:
    """What a row is made of when its turn comes: its id where it is stored, and the name it goes under.

    That name can be read now, which the first of its names may not be any more.
    """
    source = dict(name["source"] or {})
    return {**{key: name[key] for key in NAME}, "source": source, "clip_id": clip_id, "from_origin": from_origin}


def _owed(reopened: Iterable[Row], fingerprints: Mapping[str, str], new: bool = False) -> list[str]:
    """The stages that some row owes: from the earliest on, since a row owes all after its first."""
    stages = list(fingerprints)
    if new:
        return stages
    starts = [STAGES.index(kept[-1]["stage"]) + 1 if (kept := standing(row, fingerprints)) else 0 for row in reopened]
    return [stage for stage in stages if starts and STAGES.index(stage) >= min(starts)]


def _start(row: Row, first: int) -> tuple[list[tuple[str, str]], str | None]:
    """What was done before the stage `first`: entries, and the stage in which the row failed there."""
    entries = [(s["stage"], s["fingerprint"]) for s in before(row, first)]
    failed = row["failed_stage"]
    return entries, failed if failed and STAGES.index(failed) < first else None


def _uris(row: Row) -> set[str]:
    return {name["uri"] for name in names(row)}
