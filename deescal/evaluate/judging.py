"""Step `judge`: a judge's opinion of a sample of replies (realism, plausibility) and of dialogues (de-escalation).

The sample is seeded, spread over scenarios, and of what every contestant answered, so that all are judged on the same.
The real replies are among them, and the judge does not know which they are: how it scores those is what its other
scores are worth. Asked by `deescal.score`, which counts answers that cannot be read and resumes.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from deescal.config import fingerprint
from deescal.evaluate.config import JudgingConfig
from deescal.evaluate.contestants import REFERENCE
from deescal.evaluate.rows import RUBRICS, TURNS
from deescal.schema import MESSAGE, Row, to_table
from deescal.score import job as scoring
from deescal.score.config import TaskName
from deescal.score.source import SCORES_FILE
from deescal.score.summary import cause
from deescal.score.tasks import find_task
from deescal.storage import exists, join, read_table, write_table

# What a judge is asked about; the columns of `deescal.score`'s judging tasks, and whose reply it is.
TO_JUDGE = pa.schema(
    {
        **{name: TURNS.field(name).type for name in ("item_id", "scenario_id", "incident_id", "turn_id", "protocol")},
        "contestant": pa.string(),  # label, or "reference"
        "seed": pa.int32(),  # null: the real reply
        "messages": pa.list_(MESSAGE),
        "reference": pa.string(),  # null where the judge shall not know it
        "reply": pa.string(),
    }
)
# A judged reply or dialogue: means over the judge's samples.
JUDGED = pa.schema(
    {
        "rubric": pa.string(),  # realism, plausibility, deescalation
        **{name: TO_JUDGE.field(name).type for name in ("protocol", "item_id", "scenario_id", "incident_id")},
        "contestant": pa.string(),
        "seed": pa.int32(),
        "score": pa.float64(),  # 0..100; null where no answer could be read
        "n_read": pa.int32(),
        "n_unread": pa.int32(),  # answers that are not what was asked for, and requests without an answer
        "unsupported": pa.int32(),  # deductions whose evidence is not there
        "scores": pa.list_(pa.float64()),  # by the judge's samples in turn; null where one could not be read
        "error": pa.string(),  # why not, of the first such
    }
)

JUDGE = "the judge"  # among those that failed; no contestant's label has a space


def sample_items(turns: pa.Table, n: int, seed: int) -> list[str]:
    """Ids of up to `n` items of one protocol that all contestants answered, one of a scenario before its second.

    A contestant that answered nothing at all, with an error each time, is not waited for.
    """
    replied: dict[tuple[str, str], set[str]] = defaultdict(set)
    models = _with_replies(turns)
    for row in turns.select(["scenario_id", "item_id", "model", "reply"]).to_pylist():
        if row["reply"] is not None:
            replied[row["scenario_id"], row["item_id"]].add(row["model"])
    return _spread([item for item, of in replied.items() if of == models], n, seed)


def _with_replies(turns: pa.Table) -> set[str]:
    return set(turns.filter(pc.is_valid(turns["reply"]))["model"].to_pylist())


def _spread(found: Iterable[tuple[str, str]], n: int, seed: int) -> list[str]:
    """(scenario, id) -> up to `n` ids drawn from them, one of a scenario before its second."""
    complete = sorted(found)
    seen: Counter[str] = Counter()
    ranked = []
    for scenario, item in random.Random(seed).sample(complete, len(complete)):
        ranked.append((seen[scenario], item))
        seen[scenario] += 1
    return [item for _, item in sorted(ranked, key=lambda place: place[0])[:n]]


def realism_rows(turns: pa.Table, config: JudgingConfig) -> list[Row]:
    """TO_JUDGE of sampled replies, and of the real ones to the same lines; for realism and plausibility."""
    rows: list[Row] = []
    for protocol in sorted(set(turns["protocol"].to_pylist())):
        of = turns.filter(pc.equal(turns["protocol"], protocol))
        chosen = pa.array(sample_items(of, config.n_items, config.seed), pa.string())
        replies = of.filter(pc.is_in(of["item_id"], chosen)).filter(pc.field("reply").is_valid()).to_pylist()
        # In a rollout the real reply does not fit the history. Where it is judged itself, the judge is told it for no
        # reply: what has nothing to compare with would stand out, and be scored by another measure.
        fits = protocol == "teacher_forced"
        shown = fits and not config.include_reference
        rows += [_to_judge(row, row["model"], row["seed"], row["reference"] if shown else None) for row in replies]
        if config.include_reference and fits:
            lines = {row["item_id"]: row for row in replies}.values()
            rows += [_to_judge({**row, "reply": row["reference"]}, REFERENCE, None, None) for row in lines]
    return rows


def dialogue_rows(turns: pa.Table, config: JudgingConfig) -> list[Row]:
    """TO_JUDGE of sampled rollouts and conversations, whole, of the seeds that every contestant came through."""
    found: list[Row] = []
    for protocol in ("rollout", "interactive"):
        of = turns.filter(pc.equal(turns["protocol"], protocol))
        replied = pa.array(sorted(_with_replies(of)), pa.string())
        found += _dialogues(of.filter(pc.is_in(of["model"], replied)).to_pylist(), config)
    return found


def _dialogues(turns: Sequence[Row], config: JudgingConfig) -> list[Row]:
    """Of one protocol: the last turn of each."""
    last: dict[tuple[str, int], dict[str, Row]] = defaultdict(dict)  # window and seed -> contestant -> its last turn
    broken = set()
    for row in turns:
        key = (row["item_id"].rpartition("-")[0], row["seed"])
        if row["reply"] is None:
            broken.add(key)
        elif row["model"] not in last[key] or row["turn_id"] > last[key][row["model"]]["turn_id"]:
            last[key][row["model"]] = row
    whole = {key: list(of.values()) for key, of in last.items() if key not in broken}
    windows = {(of[0]["scenario_id"], window) for (window, _), of in whole.items()}
    chosen = set(_spread(windows, config.n_items, config.seed))
    return [_dialogue(row) for (window, _), of in whole.items() if window in chosen for row in of]


def _dialogue(row: Row) -> Row:
    said = {"role": "assistant", "content": row["reply"] or "..."}
    return {**_to_judge(row, row["model"], row["seed"], None), "messages": [*row["messages"], said], "reply": None}


def _to_judge(row: Row, contestant: str, seed: int | None, reference: str | None) -> Row:
    kept = {name: row[name] for name in TO_JUDGE.names if name in row}
    return {**kept, "contestant": contestant, "seed": seed, "reference": reference}


def judge(
    out: str,
    turns: pa.Table,
    config: JudgingConfig,
    watch: scoring.Watch,
    asked: str,
    *,
    retry_failed: bool = False,
) -> pa.Table:
    """All rubrics that there is something to judge by -> JUDGED.

    Args:
        out: folder of the run; what is asked lies in `judge/<fingerprint>-<rubric>.parquet`.
        turns: turns.parquet.
        asked: fingerprint of the turns, the judge and the config: another one is judged anew.
        retry_failed: ask again what has an error.
    """
    tables = []
    for rubric in config.asked:
        rows = (dialogue_rows if rubric == "deescalation" else realism_rows)(turns, config)
        if not rows:
            continue
        place = join(out, "judge", f"{fingerprint(asked, find_task(rubric).version)}-{rubric}")
        how = once(config) if rubric == "plausibility" else config
        scores = ask_judge(place, to_table(rows, TO_JUDGE), rubric, how, watch, retry_failed)
        tables.append(read_judged(scores, rubric))
    return pa.concat_tables(tables) if tables else JUDGED.empty_table()


def once(config: JudgingConfig) -> JudgingConfig:
    """Of a rubric that reads probabilities, which nothing is drawn for: several samples would be one."""
    sampling = config.score.sampling.model_copy(update={"temperature": 0.0, "samples": 1})
    return config.model_copy(update={"score": config.score.model_copy(update={"sampling": sampling})})


def why_useless(judged: pa.Table, preferences: pa.Table | None) -> str | None:
    """Why there is no opinion at all in what a judge was asked, if so. Args: JUDGED; PREFERENCES or None."""
    choices = preferences.to_pylist() if preferences is not None else []
    asked = [row["error"] for row in [*judged.to_pylist(), *(row for row in choices if not row["same_words"])]]
    if not asked and not choices:
        return "there is nothing to judge: no line that all contestants answered"
    if any(judged["n_read"].to_pylist()) or any(row["winner"] for row in choices):
        return None
    return f"none of {len(asked):,} answers could be read, the first: {asked[0]}"


def ask_judge(
    place: str, table: pa.Table, task: TaskName, config: JudgingConfig, watch: scoring.Watch, retry_failed: bool
) -> pa.Table:
    """The judge's answers about a table: SCORES of a task.

    Args:
        place: folder of the scoring run, beside its data of this name.
    """
    assert config.model is not None
    if not exists(f"{place}.parquet"):  # once: a scoring run knows its input by its time, too
        write_table(f"{place}.parquet", table)
    scoring.score(
        f"{place}.parquet",
        place,
        task,
        [config.model],
        config.score,
        endpoint=config.endpoint,
        retry_failed=retry_failed,
        watch=watch,
    )
    return read_table(join(place, SCORES_FILE))


def read_judged(scores: pa.Table, rubric: str) -> pa.Table:
    """SCORES of a judging task over TO_JUDGE -> JUDGED."""
    by_reply: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    names = ["protocol", "item_id", "scenario_id", "incident_id", "contestant", "seed"]
    columns = [n for n in (*names, "sample", "score", "unsupported", "error", "unread") if n in scores.column_names]
    for row in scores.select(columns).sort_by("sample").to_pylist():
        by_reply[tuple(row[name] for name in names)].append(row)
    rows = []
    for key, samples in by_reply.items():
        given = [row["score"] for row in samples]
        read = [score for score in given if score is not None]
        errors = [row["error"] or row.get("unread") for row in samples if row["score"] is None]
        rows.append(
            {
                "rubric": rubric,
                **dict(zip(names, key, strict=True)),
                "score": sum(read) / len(read) if read else None,
                "n_read": len(read),
                "n_unread": len(samples) - len(read),
                "unsupported": sum(row.get("unsupported") or 0 for row in samples),
                "scores": given,
                "error": errors[0] if errors else None,
            }
        )
    return to_table(rows, JUDGED)


def error_causes(judged: pa.Table | None) -> dict[str, dict[str, int]]:
    """'the judge, realism' -> cause -> its answers that are missing for it; without rubrics that miss none."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in judged.to_pylist() if judged is not None else []:
        if row["n_unread"]:
            found[f"{JUDGE}, {row['rubric']}"][cause(row["error"])] += row["n_unread"]
    return {name: dict(causes.most_common()) for name, causes in sorted(found.items())}


def with_judged(turns: pa.Table, judged: pa.Table) -> pa.Table:
    """Scored turns with columns RUBRICS, null where a reply was not judged.

    De-escalation, which is of a whole dialogue, stands in the row of its last reply.
    """
    known = {
        (row["rubric"], row["protocol"], row["item_id"], row["contestant"], row["seed"]): row["score"]
        for row in judged.to_pylist()
    }
    keys: Sequence[list] = [turns[name].to_pylist() for name in ("protocol", "item_id", "model", "seed")]
    for rubric in RUBRICS:
        scores = [known.get((rubric, *key)) for key in zip(*keys, strict=True)]
        turns = turns.append_column(rubric, pa.array(scores, pa.float64()))
    return turns
