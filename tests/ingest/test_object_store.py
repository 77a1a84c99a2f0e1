"""Archives, transcripts, exports and configs in an object store, over HTTP."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from deescal.config import load_config
from deescal.curate.config import CurateConfig
from deescal.errors import UserError
from deescal.export import export_run
from deescal.ingest.archives import unpack_archives
from deescal.ingest.formats import parse_csv
from deescal.ingest.sources import list_inputs
from deescal.ingest.transcripts import list_transcripts
from deescal.schema import empty_row
from deescal.storage import locate, read_bytes, write_bytes

CSV = b"start_time,speaker_label,transcript\n00:01,[Officer],Step out.\n"


@pytest.fixture
def bucket(s3: object) -> str:
    return "s3://videos"


def names(folder: str) -> list[str]:
    filesystem, path = locate(folder)
    return sorted(name.removeprefix(f"{path}/") for name in filesystem.find(path))


def test_an_object_store_is_a_folder_like_any_other(bucket: str, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        info = tarfile.TarInfo("train/youtube_1.csv")
        info.size = len(CSV)
        archive.addfile(info, io.BytesIO(CSV))
    write_bytes(f"{bucket}/corpus.tar.xz", packed.getvalue())
    for _ in range(2):
        folders = unpack_archives([f"{bucket}/corpus.tar.xz"], f"{bucket}/run/sources")
    assert folders == [f"{bucket}/run/sources/corpus"]
    write_bytes(f"{bucket}/run/sources/more/b.jsonl", b"{}\n{}\n")
    found = list_transcripts([f"{bucket}/run/sources"])
    assert [i.uri.removeprefix(f"{bucket}/run/sources/") for i in found] == [
        "corpus/train/youtube_1.csv",
        "more/b.jsonl#1",
        "more/b.jsonl#2",
    ]
    assert found[0].extra == {"platform": "youtube", "official_split": "train"}

    turns = parse_csv(read_bytes(found[0].uri)).turns
    rows = [empty_row(clip_id=f"{i:032x}", status="accepted", turns=turns) for i in range(3)]
    assert export_run(rows, "csv", f"{bucket}/run/export-csv") == 3
    assert export_run(rows[:1], "csv", f"{bucket}/run/export-csv") == 1
    assert names(f"{bucket}/run/export-csv") == [f"{0:032x}.csv"]

    write_bytes(f"{bucket}/c.yaml", b"profile: cluster\n")
    assert load_config(f"{bucket}/c.yaml", CurateConfig).profile == "cluster"
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config(f"{bucket}/none.yaml", CurateConfig)
    for wrong in ("s3://no-such-bucket/x", f"{bucket}/none"):
        with pytest.raises(UserError, match=r"no such|cannot be reached"):
            list_inputs([wrong])
        with pytest.raises(UserError, match=r"no \.csv|cannot be reached"):
            list_transcripts([wrong])
