"""An evaluation from the command to the page: generate, score, judge, test, report.

<out>/job.json        what was asked for, written first: the same command goes on, other data or sampling is refused
<out>/config.json     the whole config, as YAML that --config takes
<out>/items.parquet   the lines that everybody answers
<out>/replies/, rollout/, interactive/, judge/   see generate.py and judging.py
<out>/steps.json      steps that are done, each with a fingerprint of what it was made from
<out>/turns.parquet   SCORED_TURNS: every prompt, reference, reply and score
<out>/judged.parquet  JUDGED, where there is a judge; preferences.parquet, where it compares, too
<out>/summary.csv, significance.csv, report.html
<out>/run.json        how it ended, written last: its presence says complete

Generation is asked for whenever the job runs, and knows itself what is there. The steps after it are done again where
what they are made from has changed, or where `--from` says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deescal import __version__
from deescal.config import fingerprint, load_config
from deescal.errors import UserError, one_line
from deescal.evaluate import judging, steps
from deescal.evaluate.config import STEPS, EvaluateConfig, StepName
from deescal.evaluate.contestants import Contestant, check_keys, key_variable, pairs_to_compare, parse_contestants
from deescal.evaluate.generate import ITEMS_FILE, look_at, officer_folder
from deescal.evaluate.interactive import conversation_items
from deescal.evaluate.rows import make_items, read_test_rows
from deescal.models import resolve
from deescal.score.job import Watch as ScoreWatch
from deescal.score.plan import check_room
from deescal.score.tasks import REPLIES
from deescal.serve.client import base_url, check_endpoint
from deescal.storage import STORAGE_ERRORS, absolute, exists, join, read_json, write_json, write_table

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Ended:
    """How an evaluation ended."""

    out: str
    run: dict[str, Any]  # the content of run.json

    @property
    def failed(self) -> dict[str, str]:
        """Contestants that could not be asked, label -> why."""
        return dict(self.run["failed"])


class Watch(ScoreWatch):
    """What a run tells whoever waits for it; the terminal's version is in deescal.evaluate.terminal."""

    def step(self, text: str) -> None:
        """Something else begins."""

    def failed(self, label: str, why: str) -> None:
        """A contestant is out."""


def evaluate(
    data: str,
    models: Sequence[str],
    out: str,
    config: EvaluateConfig,
    *,
    retry_failed: bool = False,
    watch: Watch | None = None,
) -> Ended:
    """Compare contestants on the test split of a dataset; an evaluation at `out` that was stopped goes on.

    Args:
        data: folder of `deescal dataset build`, local or s3://.
        models: see `parse_contestants`.
        out: folder of the evaluation, local or s3://. Contestants may be added to one that is there: what others
            answered is not asked again.
        retry_failed: ask again what has an error.

    Raises:
        UserError: anything wrong with these, before an engine starts or a request is sent; or nobody can be asked.
    """
    data, out = absolute(data), absolute(out)
    contestants = parse_contestants(models)
    check(contestants, config)
    check_judge_is_there(config, has_judged=exists(join(out, steps.JUDGED_FILE)))
    check_officer_is_there(config, out)
    inputs = read_test_rows(data, config.generate.split)
    items = make_items(inputs)
    if "interactive" in config.protocols and not conversation_items(items, 1).num_rows:
        raise UserError(f"protocol interactive: in no scenario of {data} does an officer speak before a reply")
    askable = look_at(out, contestants, config, retry_failed=retry_failed)
    identity = fingerprint(data, inputs.version, config.generate.split, config.generate.deciding)
    _begin(out, identity, {"data": data, "contestants": [c.model_dump(mode="json") for c in contestants]}, config)
    if not exists(join(out, ITEMS_FILE)):
        write_table(join(out, ITEMS_FILE), items)
    work = steps.Work(out, contestants, config.with_room(), watch or Watch(), retry_failed, askable)
    return _run(work, STEPS, config)


def evaluate_from(out: str, step: StepName, config: EvaluateConfig, watch: Watch | None = None) -> Ended:
    """A step of an evaluation that is there, and the ones after it, once more; and what settings changed before it.

    Args:
        config: of the steps; `generate`, `protocols` and `officer` are what the replies were made with.

    Raises:
        UserError: no evaluation at `out`, one that has not come so far, or a config that asks for other replies.
    """
    out = absolute(out)
    job = read_job(out)
    contestants = [Contestant.model_validate(c) for c in job["contestants"]]
    stored = load_config(join(out, CONFIG_FILE), EvaluateConfig)
    for name in ("generate", "protocols", "officer"):
        if getattr(config, name) != getattr(stored, name):
            raise UserError(f"--from {step}: '{name}' differs from that of {out}, whose replies are kept; leave it out")
    check(contestants, config)
    done, work = steps.read_done(out), steps.Work(out, contestants, config, watch or Watch())
    for before in STEPS[: STEPS.index(step)]:
        if before not in done:
            raise UserError(f"--from {step}: step '{before}' of {out} is not done yet; leave --from out")
    if done["generate"]["fingerprint"] != work.made_from("generate"):
        raise UserError(f"--from {step}: {out} was asked for other replies than those that are there; leave --from out")
    is_before = STEPS.index(step) > STEPS.index("judge")
    check_judge_is_there(config, has_judged=is_before and done["judge"].get("settings") == work.settings("judge"))
    write_json(join(out, CONFIG_FILE), config.model_dump(mode="json"))
    work = steps.Work(out, contestants, config.with_room(), watch or Watch(), forced=step)
    return _run(work, STEPS[1:], config)  # one before `step` that is up to date does nothing


def read_job(out: str) -> dict[str, Any]:
    """The content of job.json.

    Raises:
        UserError: there is none.
    """
    file = join(absolute(out), "job.json")
    try:
        return dict(read_json(file))
    except FileNotFoundError as error:
        raise UserError(f"{out}: no evaluation is there (no job.json)") from error
    except (*STORAGE_ERRORS, ValueError) as error:
        raise UserError(f"{out}: job.json cannot be read: {one_line(error)}") from error


def check(contestants: Sequence[Contestant], config: EvaluateConfig) -> None:
    """What can be wrong before anything is asked.

    Raises:
        UserError: a key that is not set, a judge that is a contestant, an unknown label, no WordNet, or no model for
            BERTScore.
    """
    from deescal.judge.independence import check_judge

    check_keys(contestants, config.keys)
    check_room(config.generate, config.generate.sampling.tokens_of(REPLIES.answer_tokens))
    if "interactive" in config.protocols:
        check_room(config.officer.score, config.officer.score.sampling.tokens_of(REPLIES.answer_tokens))
    pairs_to_compare(contestants, config.pairs)
    if (judge := config.judge).model is not None:
        name = f"{base_url(judge.endpoint)}#{judge.model}" if judge.endpoint else judge.model
        check_judge(name, [c.stands_for for c in contestants], allow=judge.allow_contestant)
    if "bertscore" in config.metrics.metrics:
        from deescal.evaluate.bertscore import find_model

        find_model(config.metrics.bertscore_model)
    if "meteor" in config.metrics.metrics:
        from deescal.evaluate.nltk_data import load_wordnet

        load_wordnet()


def check_judge_is_there(config: EvaluateConfig, *, has_judged: bool = False) -> None:
    """Of a judge that is going to be asked.

    Args:
        has_judged: its endpoint may be gone by now; where there is more to judge, the step itself will say so.

    Raises:
        UserError: no such model, a key that is not set, or an endpoint that does not serve it to us.
    """
    if (judge := config.judge).model is not None:
        _check_is_there(judging.JUDGE, judge.model, judge.endpoint, config, may_be_gone=has_judged)


def check_officer_is_there(config: EvaluateConfig, out: str) -> None:
    """Of the officer simulator, where there are conversations; of one that has talked, the endpoint may be gone.

    Raises:
        UserError: as `check_judge_is_there`.
    """
    officer = config.officer
    if "interactive" in config.protocols and officer.model is not None:
        has_talked = exists(join(out, "interactive", officer_folder(config)))
        _check_is_there("the officer simulator", officer.model, officer.endpoint, config, may_be_gone=has_talked)


def _check_is_there(who: str, model: str, endpoint: str | None, config: EvaluateConfig, *, may_be_gone: bool) -> None:
    if endpoint is None:
        resolve(model)
    elif not may_be_gone:
        check_keys([Contestant(label=who, model=model, endpoint=endpoint)], config.keys)
        check_endpoint(endpoint, model, key_variable(endpoint, config.keys))


def _begin(out: str, identity: str, asked: Mapping[str, Any], config: EvaluateConfig) -> None:
    """Claim the folder."""
    file = join(out, "job.json")
    try:
        if exists(file) and read_json(file).get("fingerprint") != identity:
            raise UserError(
                f"--out '{out}': holds an evaluation on other data, or with other sampling or dtype; "
                "give another folder"
            )
        write_json(file, {"deescal": __version__, "fingerprint": identity, **asked})
        write_json(join(out, CONFIG_FILE), config.model_dump(mode="json"))
    except STORAGE_ERRORS as error:
        raise UserError(f"--out '{out}': cannot be read and written: {one_line(error)}") from error


def _run(work: steps.Work, names: Sequence[StepName], config: EvaluateConfig) -> Ended:
    started_at, began = datetime.now(UTC), time.monotonic()
    steps.forget(join(work.out, "run.json"))  # it says 'complete', which is not true from here on
    for name in names:
        work.do(name)
    run = {
        **steps.describe(work),
        "config": config.model_dump(mode="json"),
        "started_at": started_at.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - began, 3),  # of this invocation
    }
    work.report(run)
    write_json(join(work.out, "run.json"), run)
    return Ended(work.out, run)
