"""The answers of a run as files, written as they come: `<out>/parts/<hash of the requests' ids>.parquet`.

The name makes a task that Ray runs twice write one file. Which answer of a request counts is decided on reading
(`tables.merge_answers`), so a kill at any moment loses what was being asked, and nothing else.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from deescal.schema import Row
from deescal.score.tables import ANSWERS, merge_answers
from deescal.stage import digest
from deescal.storage import join, locate, read_table, write_table

_AT_ONCE = 16


def write_part(out: str, answers: pa.Table) -> None:
    """Store ANSWERS."""
    asked = sorted(
        f"{row['request_id']}-{row['attempts']}" for row in answers.select(["request_id", "attempts"]).to_pylist()
    )
    write_table(join(out, "parts", f"{digest(' '.join(asked).encode())}.parquet"), answers)


def read_answers(out: str) -> dict[str, Row]:
    """request_id -> ANSWERS row, of all that is stored."""
    folder = join(out, "parts")
    filesystem, path = locate(folder)
    try:
        names = [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)]
    except FileNotFoundError:
        return {}
    files = [join(folder, name) for name in sorted(names) if name.endswith(".parquet") and not name.startswith(".")]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = pool.map(read_table, files)
        return merge_answers(row for table in tables for row in table.cast(ANSWERS).to_pylist())
