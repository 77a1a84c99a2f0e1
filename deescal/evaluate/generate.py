"""Step `generate`: the replies of every contestant, by bulk scoring; one that cannot be loaded is out alone.

<out>/items.parquet               ITEMS, what everybody is asked
<out>/replies/<pass>/             a run of `deescal.score`, teacher-forced
<out>/rollout/<pass>/parts/, turns.parquet   ANSWERS as they come, and the TURNS of complete rollouts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import pyarrow as pa

from deescal.errors import UserError, one_line
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.contestants import Contestant, Pass, check_contestant, passes, with_key
from deescal.evaluate.rollout import Ask, dialogues, play
from deescal.evaluate.rows import TURNS, to_turns, with_labels
from deescal.schema import Row, to_table
from deescal.score import job as scoring
from deescal.score.config import SamplingConfig
from deescal.score.source import SCORES_FILE
from deescal.score.store import read_answers, write_part
from deescal.score.tables import ANSWERS, pending
from deescal.score.tasks import REPLIES
from deescal.storage import exists, join, read_table, write_table

ITEMS_FILE = "items.parquet"
TURNS_FILE = "turns.parquet"


class Replies(TypedDict):
    """Where the replies of one pass are."""

    protocol: str
    folder: str  # relative to the run
    labels: dict[str, str]  # name in `deescal.score` -> label


@dataclass(frozen=True)
class Generated:
    """Where all replies are, and of whom there are none."""

    files: list[Replies]
    failed: dict[str, str]  # label -> why
    weights: dict[str, str]  # label -> identity of its base, and digest of its adapter; not of endpoints


def generate(
    out: str,
    contestants: Sequence[Contestant],
    config: EvaluateConfig,
    watch: scoring.Watch,
    *,
    retry_failed: bool = False,
    on_failed: Callable[[str, str], None] = lambda label, why: None,
) -> Generated:
    """Ask all contestants; what has an answer already is not asked again.

    Raises:
        UserError: none of the contestants can be asked, with the reason of the first.
    """
    files: list[Replies] = []
    failed: dict[str, str] = {}
    weights: dict[str, str] = {}

    def fail(whom: Sequence[Contestant], why: str) -> None:
        for contestant in whom:
            failed[contestant.label] = why
            on_failed(contestant.label, why)

    # An endpoint that has answered everything may be gone; weights may be others by now, so they are looked at again.
    answered = [p for p in passes(contestants) if p.endpoint and _is_complete(out, p, config) and not retry_failed]
    files += [place for together in answered for place in _places(together, config)]
    settled = {contestant.label for together in answered for contestant in together.contestants}
    usable = []
    for contestant in contestants:
        if contestant.label in settled:
            continue
        try:
            usable.append(check_contestant(contestant, config.generate, config.keys))
        except UserError as error:
            fail([contestant], str(error))
    for together in passes(usable):
        try:
            files += _ask_pass(out, together, config, watch, retry_failed)
            weights |= {c.label: c.weights for c in together.contestants if not c.endpoint}
        except Exception as error:
            fail(together.contestants, why_failed(error))
    if len(failed) == len(contestants):
        raise UserError(f"no contestant can be asked: {next(iter(failed.values()))}")
    return Generated(files, failed, weights)


def why_failed(error: Exception) -> str:
    """One line, of a user's error or of an engine that did not load; what is neither is a bug and goes on."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__module__.startswith("ray."):
        # Ray's text is the worker's traceback, with the error itself at its end.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"its engine failed: {lines[-1] if lines else one_line(error)}"
    raise error


def _places(together: Pass, config: EvaluateConfig) -> list[Replies]:
    """Where the replies of a pass are, or will be."""
    tops = {"teacher_forced": "replies", "rollout": "rollout"}
    return [
        {"protocol": protocol, "folder": f"{tops[protocol]}/{together.folder()}", "labels": together.labels}
        for protocol in config.protocols
    ]


def _is_complete(out: str, together: Pass, config: EvaluateConfig) -> bool:
    last = {"teacher_forced": "run.json", "rollout": TURNS_FILE}
    return all(exists(join(out, place["folder"], last[place["protocol"]])) for place in _places(together, config))


def _ask_pass(
    out: str, together: Pass, config: EvaluateConfig, watch: scoring.Watch, retry_failed: bool
) -> list[Replies]:
    places = _places(together, config)
    config = config.model_copy(update={"generate": with_key(config.generate, together.endpoint, config.keys)})
    for place in places:
        folder = join(out, place["folder"])
        if place["protocol"] == "rollout":
            _roll(out, folder, together, config, watch, retry_failed)
            continue
        scoring.score(
            join(out, ITEMS_FILE),
            folder,
            "replies",
            [c.option for c in together.contestants],
            config.generate,
            endpoint=together.endpoint,
            retry_failed=retry_failed,
            watch=watch,
        )
    return places


def _roll(
    out: str, folder: str, together: Pass, config: EvaluateConfig, watch: scoring.Watch, retry_failed: bool
) -> None:
    """Rollouts of one pass; answers that are stored are taken up again, turn by turn."""
    sampling = config.generate.sampling
    sampling = sampling.model_copy(update={"max_tokens": sampling.max_tokens or REPLIES.answer_tokens})
    if exists(join(folder, TURNS_FILE)) and not retry_failed:
        return
    known = read_answers(folder)
    waiting = dialogues(read_table(join(out, ITEMS_FILE)).to_pylist(), together.contestants, sampling.samples)
    watch.begin(sum(len(d.items) for d in waiting), len(known))
    with ExitStack() as stack:
        asking: list[Ask] = []  # opened when the first request has no answer

        def ask(requests: Sequence[Row]) -> Mapping[str, Row]:
            todo = list(pending(requests, known, retry_failed))
            if todo and not asking:
                asking.append(stack.enter_context(_asking(together, config, sampling, folder)))
            if todo:
                answers = asking[0](todo)
                known.update(answers)
                watch.answers(to_table([known[r["request_id"]] for r in todo], ANSWERS))
            return known

        turns = play(waiting, ask)
    write_table(join(folder, TURNS_FILE), to_table(turns, TURNS))


@contextmanager
def _asking(together: Pass, config: EvaluateConfig, sampling: SamplingConfig, folder: str) -> Iterator[Ask]:
    """Asks requests, and stores their answers: of an endpoint, or of engines that stay loaded."""
    if (url := together.endpoint) is not None:
        from deescal.score.online import ask_online

        def ask_endpoint(requests: Sequence[Row]) -> Mapping[str, Row]:
            found: list[Row] = []
            keep = partial(_keep, found)
            ask_online(requests, folder, url, sampling, config.generate.online, keep)
            return {row["request_id"]: row for row in found}

        yield ask_endpoint
        return
    from deescal.evaluate.rollout_engine import engines

    settings = config.generate
    settings = settings.model_copy(
        update={"llm": settings.llm.model_copy(update={"model": together.contestants[0].model})}
    )
    with engines(config.rollout_engine, settings, sampling, together.contestants) as ask:

        def ask_engines(requests: Sequence[Row]) -> Mapping[str, Row]:
            answers = ask(requests)
            write_part(folder, to_table([answers[r["request_id"]] for r in requests], ANSWERS))
            return answers

        yield ask_engines


def _keep(found: list[Row], answers: pa.Table) -> None:
    found += answers.to_pylist()


def read_turns(out: str, generated: Generated) -> pa.Table:
    """TURNS of all that was generated, by labels; what is stored has the names in `deescal.score`."""
    tables = []
    for file in generated.files:
        folder = join(out, file["folder"])
        if file["protocol"] == "rollout":
            tables.append(with_labels(read_table(join(folder, TURNS_FILE)).cast(TURNS), file["labels"]))
        else:
            tables.append(to_turns(read_table(join(folder, SCORES_FILE)), file["protocol"], file["labels"]))
    return pa.concat_tables(tables)


def files_of(out: str, generated: Generated) -> list[str]:
    """The files that `read_turns` reads."""
    names = {"teacher_forced": SCORES_FILE, "rollout": TURNS_FILE}
    return [join(out, file["folder"], names[file["protocol"]]) for file in generated.files]
