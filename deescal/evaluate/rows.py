"""What is asked and what came of it: ITEMS of a dataset's test split, and TURNS, a row for every reply to one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.evaluate.metrics import REPLY_SCORES
from deescal.schema import MESSAGE, to_table
from deescal.score.config import Split, contestant_name
from deescal.score.source import Inputs, read_inputs
from deescal.score.tasks import REPLIES
from deescal.storage import exists, join

# One civilian reply of the test split.
ITEMS = pa.schema(
    {
        "item_id": pa.string(),  # <example_id>-<message>
        "scenario_id": pa.string(),
        "incident_id": pa.string(),
        "turn_id": pa.int32(),  # of the scenario's civilian replies, 0, 1, ...
        "example_id": pa.string(),  # the window of the scenario that it is in
        "message": pa.int32(),  # the reply's number in the window's messages
        "messages": pa.list_(MESSAGE),  # what came before it, as it really was
        "reference": pa.string(),  # what was really said
    }
)

# One reply of one contestant.
TURNS = pa.schema(
    {
        **{name: ITEMS.field(name).type for name in ("item_id", "scenario_id", "incident_id", "turn_id")},
        "protocol": pa.string(),
        "model": pa.string(),  # the contestant's label
        "seed": pa.int32(),  # 0, 1, ...: which of several draws; 0 where greedy
        "messages": pa.list_(MESSAGE),  # the prompt
        "reference": pa.string(),
        "reply": pa.string(),  # null where there is an error
        "finish_reason": pa.string(),  # stop: ended by itself; length: cut
        "error": pa.string(),
        "asked_at_s": pa.float64(),  # since 1970
        "latency_s": pa.float64(),  # until the whole reply was there, waits among many requests included
        "n_prompt_tokens": pa.int32(),
        "n_completion_tokens": pa.int32(),
    }
)
# turns.parquet: null where there is no reply, or the metric was not asked for.
SCORED_TURNS = pa.schema([*TURNS, *REPLY_SCORES])
RUBRICS = ("realism", "plausibility", "deescalation")  # columns that a judge adds, 0..100
ORDER = [(name, "ascending") for name in ("protocol", "scenario_id", "turn_id", "item_id", "model", "seed")]


def read_test_rows(data: str, split: Split) -> Inputs:
    """Every civilian reply of a dataset's split once, as `deescal score --task replies` asks for them.

    Raises:
        UserError: there is no dataset, no such split, or an empty one.
    """
    if not exists(data):
        raise UserError(f"--data '{data}': there is no such folder")
    if not exists(join(data, "examples")):
        raise UserError(f"--data '{data}': no dataset of `deescal dataset build`: it has no folder examples/")
    return read_inputs(data, REPLIES, split)


def make_items(inputs: Inputs) -> pa.Table:
    """ITEMS of the rows that `read_test_rows` found."""
    rows = inputs.take(range(inputs.n_rows)).to_pylist()
    n_before: Counter[str] = Counter()
    for row in rows:
        row["item_id"] = f"{row['example_id']}-{row['message']}"
        row["turn_id"] = n_before[row["scenario_id"]]
        n_before[row["scenario_id"]] += 1
    return to_table(rows, ITEMS)


def to_turns(scores: pa.Table, protocol: str, labels: Mapping[str, str]) -> pa.Table:
    """SCORES of `deescal.score`, over ITEMS -> TURNS.

    Args:
        labels: name in `deescal.score` -> label; rows of models without one are left out.
    """
    models, adapters = scores["model"].to_pylist(), scores["adapter"].to_pylist()
    names = [contestant_name(m, a) for m, a in zip(models, adapters, strict=True)]
    columns = {
        **{name: scores[name] for name in scores.column_names if name in TURNS.names},
        "protocol": pa.array([protocol] * scores.num_rows, pa.string()),
        "model": pa.array(names, pa.string()),
        "seed": scores["sample"],
    }
    return with_labels(pa.table({name: columns[name] for name in TURNS.names}).cast(TURNS), labels)


def with_labels(turns: pa.Table, labels: Mapping[str, str]) -> pa.Table:
    """TURNS by names in `deescal.score` -> by labels, without those of models that have none."""
    names = pa.array([labels.get(name) for name in turns["model"].to_pylist()], pa.string())
    turns = turns.set_column(turns.schema.get_field_index("model"), TURNS.field("model"), names)
    return turns.filter(pc.is_valid(turns["model"]))


def replies_version(turns: pa.Table) -> str:
    """Fingerprint of what was replied to what; not of times, which differ when the same is asked again."""
    deciding = ["protocol", "item_id", "model", "seed", "reference", "reply"]
    talks = turns.filter(pc.equal(turns["protocol"], "interactive"))["messages"].to_pylist()  # not in the items
    return fingerprint(turns.select(deciding).to_pydict(), talks)


def check_complete(turns: pa.Table, protocol: str, labels: Iterable[str], items: pa.Table, samples: int) -> None:
    """Raises RuntimeError unless every contestant has each item and seed of a protocol once: a bug else.

    Args:
        labels: of the contestants that were asked.
        items: ITEMS.
        samples: seeds of each.
    """
    turns = turns.filter(pc.equal(turns["protocol"], protocol))
    expected = set(product(items["item_id"].to_pylist(), range(samples)))
    found: dict[str, list[tuple[str, int]]] = {label: [] for label in labels}
    for model, item, seed in zip(*(turns[name].to_pylist() for name in ("model", "item_id", "seed")), strict=True):
        found.setdefault(model, []).append((item, seed))
    for model, rows in found.items():
        once = set(rows)
        trouble = {
            "are there twice": len(rows) - len(once),
            "are missing": len(expected - once),
            "are of no item": len(once - expected),
        }
        if said := [f"{n:,} rows {what}" for what, n in trouble.items() if n]:
            raise RuntimeError(f"{protocol}, {model}: {', '.join(said)}")


def metric_columns(turns: pa.Table) -> list[str]:
    """Columns of the metrics that were computed, the judge's scores among them where it judged."""
    names = [n for n in (*REPLY_SCORES.names, *RUBRICS) if n in turns.column_names and n != "rouge_l_stem"]
    return [name for name in names if cast(int, turns[name].null_count) < turns.num_rows]
