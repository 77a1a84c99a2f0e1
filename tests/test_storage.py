from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deescal import storage
from deescal.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a" / "f.json"
    storage.write_json(str(target), {"n": 1})

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_json(str(target), {"n": 2})
    assert storage.read_json(str(target)) == {"n": 1}
    assert [p.name for p in target.parent.iterdir()] == ["f.json"]


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match="ftp"):
        storage.locate("ftp://host/file")


def test_a_place_stays_the_same_wherever_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/a/") == f"{tmp_path}/runs/a" == storage.absolute(f"file://{tmp_path}/runs/a")
    assert storage.absolute("s3://bucket/runs/a/") == "s3://bucket/runs/a"


def test_file_uris_and_paths_are_the_same(tmp_path: Path) -> None:
    assert storage.locate(f"file://{tmp_path}/x") == storage.locate(f"{tmp_path}/x")


def test_a_table_is_read_from_bytes_with_the_columns_asked_for_or_none() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1], "b": [2]}), buffer)
    assert storage.parse_table(buffer.getvalue(), ["b"]).to_pylist() == [{"b": 2}]
    with pytest.raises(pa.ArrowInvalid, match="no column zz"):
        storage.parse_table(buffer.getvalue(), ["a", "zz"])
    with pytest.raises(pa.ArrowInvalid):
        storage.parse_table(b"no table")
