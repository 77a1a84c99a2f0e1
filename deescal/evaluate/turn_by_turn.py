"""The protocols in which a prompt holds earlier replies: rollouts and conversations, a pass of contestants at a time.

<folder>/parts/               ANSWERS as they come
<folder>/turns.parquet        TURNS, once all is answered
<folder>/../officer/parts/    ANSWERS of the officer simulator
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from deescal.cluster import why_failed
from deescal.errors import UserError
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.contestants import Contestant, Pass, with_key
from deescal.evaluate.interactive import conversation_items, conversations, converse
from deescal.evaluate.rollout import dialogues, play
from deescal.evaluate.rows import TURNS
from deescal.schema import Row, to_table
from deescal.score.config import SamplingConfig, ScoreConfig
from deescal.score.job import Watch
from deescal.score.store import read_answers, write_part
from deescal.score.tables import ANSWERS, pending
from deescal.score.tasks import REPLIES
from deescal.serve.client import check_endpoint
from deescal.storage import exists, join, write_table

TURNS_FILE = "turns.parquet"
OFFICER_FOLDER = "officer"  # no pass is called so: their names end in a hash

AskInto = Callable[[Sequence[Row], str], Mapping[str, Row]]  # REQUESTS, folder of their answers -> as `Ask`


@dataclass
class Asked:
    """A model that is asked again and again: its engine or endpoint is opened when the first request has no answer."""

    model: str
    contestants: Sequence[Contestant]  # for their adapters; the officer has none
    endpoint: str | None
    config: ScoreConfig
    engine: str  # import path
    at_once: Mapping[str, float]  # what engines loaded at the same time ask for, by Ray's names
    stack: ExitStack  # keeps it open
    _ask: AskInto | None = field(default=None, init=False)

    def answer(self, requests: Sequence[Row], folder: str) -> Mapping[str, Row]:
        """Answers, stored in `folder`."""
        if self._ask is None:
            self._ask = self.stack.enter_context(self._open())
        return self._ask(requests, folder)

    @property
    def sampling(self) -> SamplingConfig:
        sampling = self.config.sampling
        return sampling.model_copy(update={"max_tokens": sampling.tokens_of(REPLIES.answer_tokens)})

    @contextmanager
    def _open(self) -> Iterator[AskInto]:
        if (url := self.endpoint) is not None:
            from deescal.score.online import ask_online

            check_endpoint(url, self.model, self.config.online.key_env)

            def ask_endpoint(requests: Sequence[Row], folder: str) -> Mapping[str, Row]:
                found: list[Row] = []
                ask_online(requests, folder, url, self.sampling, self.config.online, partial(_keep, found))
                return {row["request_id"]: row for row in found}

            yield ask_endpoint
            return
        from deescal.evaluate.rollout_engine import engines

        llm = self.config.llm.model_copy(update={"model": self.model})
        settings = self.config.model_copy(update={"llm": llm})
        with engines(self.engine, settings, self.sampling, self.contestants, self.at_once) as ask:

            def ask_engines(requests: Sequence[Row], folder: str) -> Mapping[str, Row]:
                answers = ask(requests)
                write_part(folder, to_table([answers[r["request_id"]] for r in requests], ANSWERS))
                return answers

            yield ask_engines


@contextmanager
def speakers(together: Pass, config: EvaluateConfig) -> Iterator[tuple[Asked, Asked | None]]:
    """The contestants of a pass, and the officer simulator where there is one, both not loaded yet."""
    first, officer, engine = together.contestants[0], config.officer, config.rollout_engine
    talks = officer.model is not None and "interactive" in config.protocols
    here = [config.generate] if first.endpoint is None else []
    here += [officer.score] if talks and officer.endpoint is None else []
    at_once: Counter[str] = Counter()
    for score in here:
        at_once.update(score.demand)
    with ExitStack() as stack:
        model = Asked(first.model, together.contestants, first.endpoint, config.generate, engine, at_once, stack)
        simulator = None
        if officer.model is not None:
            settings = with_key(officer.score, officer.endpoint, config.keys)
            simulator = Asked(officer.model, (), officer.endpoint, settings, engine, at_once, stack)
        yield model, simulator


def roll(items: pa.Table, folder: str, model: Asked, config: EvaluateConfig, watch: Watch, retry_failed: bool) -> None:
    """Rollouts of one pass; answers that are stored are taken up again, turn by turn.

    Args:
        items: ITEMS of the test split.
    """
    if exists(join(folder, TURNS_FILE)) and not retry_failed:
        return
    known = read_answers(folder)
    waiting = dialogues(items.to_pylist(), model.contestants, config.samples("rollout"))
    watch.begin(sum(len(d.items) for d in waiting), len(known))
    turns = play(waiting, partial(_resumed, model, folder, known, retry_failed, watch))
    write_table(join(folder, TURNS_FILE), to_table(turns, TURNS))


def talk(
    items: pa.Table,
    folder: str,
    model: Asked,
    officer: Asked,
    config: EvaluateConfig,
    watch: Watch,
    retry_failed: bool,
) -> None:
    """Conversations of one pass with the officer simulator; arguments and resuming as of `roll`.

    The officer's lines lie beside the passes, so that the same words get the same line in all of them.
    """
    if exists(join(folder, TURNS_FILE)) and not retry_failed:
        return
    shared = join(folder.rpartition("/")[0], OFFICER_FOLDER)
    known, known_lines = read_answers(folder), read_answers(shared)
    rows = conversation_items(items, config.officer.n_turns).to_pylist()
    waiting = conversations(rows, model.contestants, config.samples("interactive"))
    watch.begin(sum(len(c.items) for c in waiting), len(known))
    ask = partial(_resumed, model, folder, known, retry_failed, watch)

    def ask_officer(requests: Sequence[Row]) -> Mapping[str, Row]:
        try:
            return _resumed(officer, shared, known_lines, retry_failed, None, requests)
        except Exception as error:
            raise UserError(f"the officer simulator: {why_failed(error)}") from error

    turns = converse(waiting, ask, officer.model, ask_officer)
    write_table(join(folder, TURNS_FILE), to_table(turns, TURNS))


def _resumed(
    asked: Asked,
    folder: str,
    known: dict[str, Row],
    retry_failed: bool,
    watch: Watch | None,
    requests: Sequence[Row],
) -> Mapping[str, Row]:
    """Answers to requests, and to all before; only what is not known is asked."""
    if todo := list(pending(requests, known, retry_failed)):
        known.update(asked.answer(todo, folder))
        if watch is not None:
            watch.answers(to_table([known[r["request_id"]] for r in todo], ANSWERS))
    return known


def _keep(found: list[Row], answers: pa.Table) -> None:
    found += answers.to_pylist()
