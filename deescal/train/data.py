"""Examples of a dataset -> tokens and targets, once for a run, with Ray Data; and how workers read them.

<out>/tokens/split=<split>/*.parquet   TOKENS
<out>/tokens/done.json                 written last: fingerprint of what decides the tokens, counts

The tokens of a run are kept rather than streamed into the workers: any worker can then read any sequence by its
number, which is what lets a run go on after a fault with exactly the sequences that are left, at any world size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deescal.config import fingerprint
from deescal.errors import UserError
from deescal.schema import EXAMPLES, TOKENS, Row, to_table
from deescal.storage import STORAGE_ERRORS, exists, join, locate, parse_table, read_json, remove_folder, write_json

COLUMNS = ["example_id", "scenario_id", "n_context_messages", "messages"]
BATCH = 256


class TokenData:
    """A split's TOKENS in memory, 5 bytes a token; a row by its number."""

    def __init__(self, table: pa.Table) -> None:
        table = table.sort_by("example_id").combine_chunks()
        self.example_ids: list[str] = table["example_id"].to_pylist()
        self.scenario_ids: list[str] = table["scenario_id"].to_pylist()
        ids = table["input_ids"].combine_chunks()
        self._ids = ids.flatten().to_numpy()
        self._target = table["is_target"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self._ends = np.cumsum(pc.list_value_length(ids).to_numpy())

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, i: int) -> Row:
        start, end = (self._ends[i - 1] if i else 0), self._ends[i]
        return {"input_ids": self._ids[start:end], "is_target": self._target[start:end]}

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example."""
        return np.diff(self._ends, prepend=0)

    @property
    def n_targets(self) -> np.ndarray:
        """Learned tokens of each example."""
        before = np.concatenate([[0], np.cumsum(self._target)])
        return before[self._ends] - before[self._ends - self.lengths]


class Sequences:
    """What a Trainer draws from: position in training -> the examples of that sequence."""

    def __init__(self, tokens: TokenData, packs: Sequence[Sequence[int]], order: Sequence[int]) -> None:
        self._tokens, self._packs, self._order = tokens, packs, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> list[Row]:
        return [self._tokens[example] for example in self._packs[self._order[i]]]


def check_dataset(data: str, splits: Sequence[str]) -> None:
    """Raises UserError where `data` is no dataset of `deescal dataset build`, or a split has nothing to learn."""
    import pyarrow.parquet as pq

    for split in splits:
        uri = _examples(data, split)
        filesystem, path = locate(uri)
        try:
            with filesystem.open(path) as file:
                parquet = pq.ParquetFile(file)
                missing = sorted(set(COLUMNS) - set(parquet.schema_arrow.names))
                rows = parquet.metadata.num_rows
                # Older datasets do not tell; `tokenize` counts for itself.
                told = parquet.read(["n_target_tokens"]) if "n_target_tokens" in parquet.schema_arrow.names else None
        except (*STORAGE_ERRORS, pa.ArrowInvalid) as error:
            raise UserError(
                f"--data '{data}': no examples at {uri}; give a folder of `deescal dataset build`"
            ) from error
        if missing:
            raise UserError(f"{uri}: column(s) {', '.join(missing)} missing; examples have {', '.join(EXAMPLES.names)}")
        if not rows:
            raise UserError(f"{uri}: the {split} split is empty")
        if told is not None and pc.sum(told["n_target_tokens"]).as_py() == 0:
            raise _nothing_to_learn(uri)


def read_examples(data: str, split: str, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """EXAMPLES of a split, in order of example_id."""
    from deescal.storage import read_table

    return read_table(_examples(data, split), columns).sort_by("example_id")


def tokenize(data: str, model: str, splits: Sequence[str], out: str, *, workers: int = 1) -> dict[str, Any]:
    """Write TOKENS of these splits to `<out>/tokens`, unless they are there.

    Returns:
        Per split: `examples`, `tokens`, `target_tokens`, `longest` (tokens of an example).

    Raises:
        UserError: the model's chat template cannot be masked, or no token of a split is the civilian's.
    """
    import ray

    from deescal.models import identity

    done = join(out, "tokens", "done.json")
    versions = [split_version(data, split) for split in splits]
    asked = fingerprint(identity(model), data, list(splits), versions)
    if exists(done) and (there := read_json(done))["fingerprint"] == asked:
        return dict(there["splits"])
    remove_folder(join(out, "tokens"))
    filesystem = locate(data)[0]
    paths = [locate(_examples(data, split))[1] for split in splits]
    examples = ray.data.read_parquet(paths, filesystem=filesystem, columns=COLUMNS, include_paths=True)
    tokens = examples.map_batches(
        Encode,
        fn_constructor_args=(model,),
        batch_format="pyarrow",
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    filesystem, path = locate(join(out, "tokens"))
    filesystem.makedirs(path, exist_ok=True)
    tokens.write_parquet(path, filesystem=filesystem, partition_cols=["split"])
    counts = {split: _count(read_tokens(out, split)) for split in splits}
    for split in splits:
        if not counts[split]["target_tokens"]:
            raise _nothing_to_learn(_examples(data, split))
    write_json(done, {"fingerprint": asked, "splits": counts})
    return counts


def _nothing_to_learn(uri: str) -> UserError:
    return UserError(f"{uri}: no civilian turn to learn: nothing there has role 'assistant'")


class Encode:
    """EXAMPLES -> TOKENS, with the split as a column where the files' paths are known; in Ray's worker."""

    def __init__(self, model: str) -> None:
        from deescal.dataset.chat import load_tokenizer
        from deescal.train.masks import ChatEncoder

        self._encoder = ChatEncoder(load_tokenizer(model))

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens = to_table([self._row(row) for row in table.to_pylist()], TOKENS)
        if "path" not in table.column_names:
            return tokens
        splits = [PurePosixPath(path).stem for path in table["path"].to_pylist()]
        return tokens.append_column("split", pa.array(splits, pa.string()))

    def _row(self, row: Mapping[str, Any]) -> Row:
        encoded = self._encoder.encode(row["messages"], row["n_context_messages"])
        return {
            "example_id": row["example_id"],
            "scenario_id": row["scenario_id"],
            "input_ids": encoded.input_ids,
            "is_target": encoded.is_target,
        }


def read_tokens(out: str, split: str) -> TokenData:
    """What `tokenize` wrote."""
    filesystem, path = locate(join(out, "tokens", f"split={split}"))
    tables = []
    for file in sorted(filesystem.ls(path, detail=False)):
        tables.append(parse_table(filesystem.cat_file(file), TOKENS.names).cast(TOKENS))
    return TokenData(pa.concat_tables(tables))


def _count(tokens: TokenData) -> dict[str, int]:
    return {
        "examples": len(tokens),
        "tokens": int(tokens.lengths.sum()),
        "target_tokens": int(tokens.n_targets.sum()),
        "longest": int(tokens.lengths.max(initial=0)),
    }


def _examples(data: str, split: str) -> str:
    return join(data, "examples", f"{split}.parquet")


def split_version(data: str, split: str) -> str:
    """Changes when the examples of a split do."""
    from deescal.storage import version

    filesystem, path = locate(_examples(data, split))
    return version(filesystem.info(path))
