"""Step `generate`: the replies of every contestant, by bulk scoring; one that cannot be loaded is out alone.

<out>/items.parquet               ITEMS, what everybody is asked
<out>/replies/<pass>/             a run of `deescal.score`, teacher-forced
<out>/rollout/<pass>/, <out>/interactive/<officer>/<pass>/   see `deescal.evaluate.turn_by_turn`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from deescal.cluster import why_failed
from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.evaluate.config import PROTOCOLS, EvaluateConfig, ProtocolName
from deescal.evaluate.contestants import Contestant, Pass, check_contestant, passes, with_key
from deescal.evaluate.interactive import OFFICER_VERSION
from deescal.evaluate.rows import TURNS, to_turns, with_labels
from deescal.evaluate.turn_by_turn import TURNS_FILE, roll, speakers, talk
from deescal.models import identity
from deescal.score import job as scoring
from deescal.score.source import SCORES_FILE
from deescal.serve.client import base_url
from deescal.storage import exists, join, read_table

if TYPE_CHECKING:
    from deescal.evaluate.job import Watch

ITEMS_FILE = "items.parquet"
_FILES = {"teacher_forced": SCORES_FILE}  # of the other protocols: TURNS_FILE


class Replies(TypedDict):
    """Where the replies of one pass are."""

    protocol: str
    folder: str  # relative to the run
    labels: dict[str, str]  # name in `deescal.score` -> label


@dataclass(frozen=True)
class Generated:
    """Where all replies are, and of whom there are none."""

    files: list[Replies]
    failed: dict[str, str]  # label -> why; '<label> in <protocols>' where there are replies of others
    weights: dict[str, str]  # label -> identity of its base, and digest of its adapter; not of endpoints


@dataclass(frozen=True)
class Askable:
    """Who can be asked, as is known before anybody is."""

    answered: list[Pass]  # of endpoints, with nothing left to ask
    usable: list[Contestant]
    failed: dict[str, str]  # label -> why


def look_at(out: str, contestants: Sequence[Contestant], config: EvaluateConfig, *, retry_failed: bool) -> Askable:
    """Which of the contestants can be asked.

    Raises:
        UserError: none of them, with the reason of the first.
    """
    # An endpoint that has answered everything may be gone; weights may be others by now, so they are looked at again.
    answered = [p for p in passes(contestants) if p.endpoint and _is_complete(out, p, config, retry_failed)]
    settled = {contestant.label for together in answered for contestant in together.contestants}
    usable, failed = [], {}
    for contestant in contestants:
        if contestant.label in settled:
            continue
        try:
            usable.append(check_contestant(contestant, config.generate, config.keys))
        except UserError as error:
            failed[contestant.label] = str(error)
    if not answered and not usable:
        raise UserError(f"no contestant can be asked: {next(iter(failed.values()))}")
    return Askable(answered, usable, failed)


def generate(
    out: str, askable: Askable, config: EvaluateConfig, watch: Watch, *, retry_failed: bool = False
) -> Generated:
    """Ask all contestants; what has an answer already is not asked again.

    Raises:
        UserError: none of the contestants could be asked, with the reason of the first.
    """
    files = [place for together in askable.answered for place in _places(together, config)]
    failed: dict[str, str] = {}
    weights: dict[str, str] = {}

    def fail(whom: str, why: str) -> None:
        failed[whom] = why
        watch.failed(whom, why)

    for label, why in askable.failed.items():
        fail(label, why)
    for together in passes(askable.usable):
        places = _places(together, config)
        done: list[Replies] = []
        try:
            for place in _ask_pass(out, together, places, config, watch, retry_failed):
                done.append(place)
        except Exception as error:
            missed = "" if not done else " in " + ", ".join(p["protocol"] for p in places[len(done) :])
            for contestant in together.contestants:
                fail(contestant.label + missed, why_failed(error))
        files += done
        if done:
            weights |= {c.label: c.weights for c in together.contestants if not c.endpoint}
    if not files:
        raise UserError(f"no contestant can be asked: {next(iter(failed.values()))}")
    return Generated(files, failed, weights)


def _places(together: Pass, config: EvaluateConfig) -> list[Replies]:
    """Where the replies of a pass are, or will be."""
    return [
        {"protocol": protocol, "folder": f"{_top(protocol, config)}/{together.folder()}", "labels": together.labels}
        for protocol in PROTOCOLS  # the one that loads an engine of its own before those that keep one loaded
        if protocol in config.protocols
    ]


def _top(protocol: ProtocolName, config: EvaluateConfig) -> str:
    if protocol == "interactive":
        return f"interactive/{officer_folder(config)}"
    return "replies" if protocol == "teacher_forced" else protocol


def officer_folder(config: EvaluateConfig) -> str:
    """Another one for another officer simulator: its model, its words, how it is asked, how long it talks."""
    officer = config.officer
    assert officer.model is not None
    where = base_url(officer.endpoint) if officer.endpoint else identity(officer.model)
    return fingerprint(OFFICER_VERSION, officer.model, where, officer.n_turns, officer.score.deciding)


def _is_complete(out: str, together: Pass, config: EvaluateConfig, retry_failed: bool) -> bool:
    """Whether there is nothing left to ask: all answers are there, and errors, too, unless those are asked again."""
    last = {"teacher_forced": "run.json"}
    places = _places(together, config)
    if not all(exists(join(out, p["folder"], last.get(p["protocol"], TURNS_FILE))) for p in places):
        return False
    return not retry_failed or not any(pc.any(pc.is_valid(_stored(out, place)["error"])).as_py() for place in places)


def _ask_pass(
    out: str,
    together: Pass,
    places: Sequence[Replies],
    config: EvaluateConfig,
    watch: scoring.Watch,
    retry_failed: bool,
) -> Iterator[Replies]:
    """Each protocol's place, as soon as its replies are there."""
    config = config.model_copy(update={"generate": with_key(config.generate, together.endpoint, config.keys)})
    with speakers(together, config) as (model, officer):
        for place in places:
            folder, items = join(out, place["folder"]), join(out, ITEMS_FILE)
            if place["protocol"] == "teacher_forced":
                scoring.score(
                    items,
                    folder,
                    "replies",
                    [c.option for c in together.contestants],
                    config.generate,
                    endpoint=together.endpoint,
                    retry_failed=retry_failed,
                    watch=watch,
                )
            elif place["protocol"] == "rollout":
                roll(read_table(items), folder, model, config, watch, retry_failed)
            else:
                assert officer is not None
                talk(read_table(items), folder, model, officer, config, watch, retry_failed)
            yield place


def read_turns(out: str, generated: Generated) -> pa.Table:
    """TURNS of all that was generated, by labels; what is stored has the names in `deescal.score`."""
    tables = []
    for file in generated.files:
        stored = _stored(out, file)
        if file["protocol"] == "teacher_forced":
            tables.append(to_turns(stored, file["protocol"], file["labels"]))
        else:
            tables.append(with_labels(stored.cast(TURNS), file["labels"]))
    return pa.concat_tables(tables)


def _stored(out: str, place: Replies) -> pa.Table:
    """The replies of a pass: SCORES of `deescal.score`, or TURNS by its names."""
    return read_table(join(out, place["folder"], _FILES.get(place["protocol"], TURNS_FILE)))


def files_of(out: str, generated: Generated) -> list[str]:
    """The files that `read_turns` reads."""
    return [join(out, file["folder"], _FILES.get(file["protocol"], TURNS_FILE)) for file in generated.files]
