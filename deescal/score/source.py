"""What is scored: a dataset's split, or any Parquet; rows by number, and the order in which they are best asked.

Prompts that begin alike are asked one after the other, so that the engine's prefix cache has the beginning: the
replies of a scenario in order, where each prompt holds the one before it. A dataset's rows are in that order; a
table's are brought into it by its columns `scenario_id` and `turn_id`, where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from deescal.config import fingerprint
from deescal.dataset.chat import to_messages
from deescal.dataset.examples import ExamplesConfig, to_lines
from deescal.errors import UserError, one_line
from deescal.schema import MESSAGE, Row, to_table
from deescal.score.config import Split
from deescal.score.tasks import Task
from deescal.storage import STORAGE_ERRORS, exists, join, locate, read_table, version

SCORES_FILE = "scores.parquet"  # of a run, which another one can read

# One civilian reply of a dataset.
REPLIES = pa.schema(
    {
        "scenario_id": pa.string(),
        "incident_id": pa.string(),
        "example_id": pa.string(),
        "message": pa.int32(),  # the reply's number in the example's messages
        "messages": pa.list_(MESSAGE),  # what came before it
        "reference": pa.string(),  # what was really said
    }
)

# One scenario of a dataset.
SCENARIOS = pa.schema(
    {
        "scenario_id": pa.string(),
        "incident_id": pa.string(),
        "context": pa.string(),
        "character": pa.string(),
        "messages": pa.list_(MESSAGE),  # the whole dialogue
        "turns": pa.list_(
            pa.struct({"turn_id": pa.int32(), "speaker": pa.string(), "role": pa.string(), "text": pa.string()})
        ),
    }
)


@dataclass(frozen=True)
class Inputs:
    """A table of rows by number, 0 to n_rows - 1."""

    n_rows: int
    order: Sequence[int]  # in which rows are asked
    schema: pa.Schema
    take: Callable[[Sequence[int]], pa.Table]  # numbers -> their rows, in this order
    version: str  # changes when the files do


def read_inputs(data: str, task: Task, split: Split) -> Inputs:
    """The rows to score.

    Args:
        data: folder of `deescal dataset build`, of whose `split` every civilian reply (task `replies`) or every
            scenario is a row; or a Parquet file, a folder of them, or the folder of another scoring run.

    Raises:
        UserError: nothing there, no rows, or a column that the task needs is missing.
    """
    try:
        inputs = _read_dataset(data, task, split) if exists(join(data, "examples")) else _read_parquet(data)
    except (*STORAGE_ERRORS, pa.ArrowInvalid) as error:
        raise UserError(f"--data '{data}': cannot be read: {one_line(error)}") from error
    for column in task.needs:
        if column not in inputs.schema.names:
            raise UserError(
                f"column '{column}' missing in {data}; task {task.name} needs {', '.join(task.needs)}, "
                f"there are {', '.join(inputs.schema.names)}"
            )
    if "messages" in task.needs:
        _check_messages_type(inputs.schema, data)
    if not inputs.n_rows:
        raise UserError(f"--data '{data}': no rows to score")
    return inputs


def _read_dataset(data: str, task: Task, split: Split) -> Inputs:
    uri = join(data, "examples", f"{split}.parquet")
    if not exists(uri):
        raise UserError(f"--data '{data}': a dataset without a {split} split ({uri})")
    inputs = _replies(uri) if task.name == "replies" else _scenarios(data, split)
    if not inputs.n_rows:
        raise UserError(f"--data '{data}': its {split} split is empty")
    return inputs


def _replies(uri: str) -> Inputs:
    """Every civilian reply once: of an example's messages those that no earlier example has."""
    columns = ["scenario_id", "incident_id", "example_id", "window", "n_context_messages", "messages"]
    examples = read_table(uri, columns).sort_by([("scenario_id", "ascending"), ("window", "ascending")])
    places = [
        (example, number)
        for example, row in enumerate(examples.select(["n_context_messages", "messages"]).to_pylist())
        for number, message in enumerate(row["messages"])
        if message["role"] == "assistant" and number >= row["n_context_messages"]
    ]

    def take(numbers: Sequence[int]) -> pa.Table:
        wanted = [places[n] for n in numbers]
        rows = examples.take([example for example, _ in wanted]).to_pylist()
        return to_table([_reply(row, number) for row, (_, number) in zip(rows, wanted, strict=True)], REPLIES)

    return Inputs(len(places), range(len(places)), REPLIES, take, _version([uri]))


def _reply(example: Row, number: int) -> Row:
    return {
        **{name: example[name] for name in ("scenario_id", "incident_id", "example_id")},
        "message": number,
        "messages": example["messages"][:number],
        "reference": example["messages"][number]["content"],
    }


def _scenarios(data: str, split: Split) -> Inputs:
    """Kept scenarios of a split with their kept turns."""
    files = {folder: _list(join(data, folder)) for folder in ("scenarios", "turns")}
    wanted = ["scenario_id", "incident_id", "split", "status", "context", "character"]
    scenarios = pa.concat_tables([read_table(uri, wanted) for uri in files["scenarios"]])
    scenarios = scenarios.filter((pc.field("split") == split) & (pc.field("status") == "kept")).sort_by("scenario_id")
    columns = ["scenario_id", "turn_id", "speaker", "role", "text", "status"]
    turns = pa.concat_tables([read_table(uri, columns) for uri in files["turns"]])
    turns = turns.filter(
        (pc.field("status") == "kept") & pc.field("scenario_id").isin(scenarios["scenario_id"].combine_chunks())
    )
    said: dict[str, list[Row]] = {}
    for turn in turns.sort_by([("scenario_id", "ascending"), ("turn_id", "ascending")]).to_pylist():
        said.setdefault(turn["scenario_id"], []).append(turn)
    rows = [_scenario(row, said.get(row["scenario_id"], [])) for row in scenarios.to_pylist()]
    return _of_table(to_table(rows, SCENARIOS), [*files["scenarios"], *files["turns"]])


def _scenario(row: Row, turns: Sequence[Row]) -> Row:
    stretches, _ = to_lines(turns, ExamplesConfig())
    return {
        **{name: row[name] for name in ("scenario_id", "incident_id", "context", "character")},
        "messages": to_messages([line for stretch in stretches for line in stretch]),
        "turns": [{name: turn[name] for name in ("turn_id", "speaker", "role", "text")} for turn in turns],
    }


def _read_parquet(data: str) -> Inputs:
    if not exists(data):
        raise UserError(f"--data '{data}': there is no such file or folder")
    files = _files(data)
    if not files:
        raise UserError(
            f"--data '{data}': neither a dataset of `deescal dataset build` nor a Parquet file nor a folder of them"
        )
    return _of_table(pa.concat_tables([read_table(uri) for uri in files], promote_options="default"), files)


def _files(data: str) -> list[str]:
    filesystem, path = locate(data)
    if filesystem.isfile(path):
        return [data]
    return [join(data, SCORES_FILE)] if exists(join(data, SCORES_FILE)) else _list(data)


def _of_table(table: pa.Table, files: Sequence[str]) -> Inputs:
    keys = [(name, "ascending") for name in ("scenario_id", "turn_id") if name in table.schema.names]
    numbered = table.select([name for name, _ in keys]).append_column("n", pa.array(range(table.num_rows)))
    order = numbered.sort_by([*keys, ("n", "ascending")])["n"].to_pylist()
    return Inputs(table.num_rows, order, table.schema, lambda numbers: table.take(list(numbers)), _version(files))


def _check_messages_type(schema: pa.Schema, data: str) -> None:
    found = schema.field("messages").type
    inner = found.value_type if pa.types.is_list(found) or pa.types.is_large_list(found) else None
    names = {inner.field(i).name for i in range(inner.num_fields)} if inner and pa.types.is_struct(inner) else set()
    if not {"role", "content"} <= names:
        raise UserError(f"column 'messages' of {data} is {found}; expected a list of {{role, content}}")


def _list(folder: str) -> list[str]:
    """Its Parquet files, in order of their names."""
    filesystem, path = locate(folder)
    names = sorted(entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False))
    return [join(folder, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]


def _version(files: Sequence[str]) -> str:
    infos = [locate(uri)[0].info(locate(uri)[1]) for uri in files]
    return fingerprint([version(info) for info in infos])
