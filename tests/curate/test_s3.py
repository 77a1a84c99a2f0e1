"""`s3://` as source and output against a real S3-protocol server in its own process, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deescal.curate.config import CurateConfig
from deescal.curate.job import curate
from deescal.curate.store import read_clips
from deescal.errors import UserError
from deescal.storage import exists

from .conftest import comparable

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def without_places(rows) -> list[dict]:
    """Rows without URIs and what hangs on them: ids of unreadable content, versions."""
    return [
        {key: value for key, value in row.items() if key not in ("uri", "source_version", "aliases")}
        | {"name": Path(row["uri"]).name, "aliases": [Path(a["uri"]).name for a in row["aliases"]]}
        for row in comparable(rows)
    ]


def test_s3_gives_the_same_table_as_local_paths(
    s3, make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    folder = make_clips(3)
    for path in folder.iterdir():
        s3.upload_file(str(path), "videos", f"raw/{path.name}")
    curate([str(folder)], str(tmp_path / "run"), fast_config)
    remote = curate(["s3://videos/raw"], "s3://videos/runs/a", fast_config)
    assert remote.run["inputs"] == 5
    assert without_places(read_clips("s3://videos/runs/a")) == without_places(read_clips(str(tmp_path / "run")))
    assert all(exists(f"s3://videos/runs/a/{name}") for name in ("run.json", "report.html", "job.json"))
    assert curate(["s3://videos/raw"], "s3://videos/runs/a", fast_config).new == {}


def test_an_unreachable_bucket_is_one_line(s3, tmp_path: Path, fast_config: CurateConfig) -> None:
    with pytest.raises(UserError, match=r"no-such-bucket.*(no such|cannot be reached)"):
        curate(["s3://no-such-bucket/x"], str(tmp_path / "run"), fast_config)
