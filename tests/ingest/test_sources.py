from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deescal.errors import UserError
from deescal.ingest.sources import list_inputs


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("a.mp4", "deep/b.MKV", "notes.txt"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "videos"


def names(inputs) -> list[str]:
    return [Path(item.uri).name for item in inputs]


def test_folders_files_and_globs_name_each_video_once(videos: Path) -> None:
    assert names(list_inputs([str(videos)])) == ["a.mp4", "b.MKV"]
    assert names(list_inputs([str(videos), str(videos / "a.mp4"), f"{videos}/*.mp4"])) == ["a.mp4", "b.MKV"]
    assert names(list_inputs([str(videos / "notes.txt")])) == ["notes.txt"]  # named outright: the user's word counts


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_carries_its_other_columns(videos: Path, kind: str) -> None:
    rows = [{"uri": "a.mp4", "city": "Springfield"}, {"uri": str(videos / "gone.mp4"), "city": ""}]
    path = videos / f"list.{kind}"
    if kind == "csv":
        path.write_text("uri,city\n" + "".join(f"{r['uri']},{r['city']}\n" for r in rows))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    known, gone = list_inputs([str(path)])
    assert known.uri == str(videos / "a.mp4")
    assert known.extra == {"city": "Springfield"}
    assert known.version is not None
    assert gone.version is None  # listed but not there: it becomes a failed row, not an error of the run


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: str(d / "none"), "no such file"),
        (lambda d: str((d / "empty").mkdir() or d / "empty"), "no media"),
        (lambda d: str(d / "*.avi"), "matches no file"),
        (lambda d: str((d / "m.csv").write_text("url\nx\n") and d / "m.csv"), "no column 'uri'"),
        (lambda d: str((d / "m.csv").write_text("uri\n") and d / "m.csv"), "no rows"),
        (lambda d: str((d / "m.jsonl").write_text("{") and d / "m.jsonl"), "cannot be read as .jsonl"),
        (lambda d: str((d / "m.csv").write_text("uri,city\na.mp4,X\nb.mp4,Y,Z\n") and d / "m.csv"), "row 2 has more"),
        (
            lambda d: str((d / "m.jsonl").write_text('{"uri": "a"}\n[1]') and d / "m.jsonl"),
            "row 2 is not a JSON object",
        ),
        (lambda d: str((d / "m.csv").write_text("uri,city\na.mp4,X\na.mp4,Y\n") and d / "m.csv"), "other columns"),
        (lambda d: "ftp://host/x.mp4", "scheme 'ftp'"),
    ],
)
def test_a_bad_source_is_one_line_that_names_it(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(UserError) as caught:
        list_inputs([make(tmp_path)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_counts_beside_the_folder_of_its_files(videos: Path) -> None:
    (videos / "list.csv").write_text("uri,city\na.mp4,Springfield\n")
    for sources in ([str(videos), str(videos / "list.csv")], [str(videos / "list.csv"), str(videos)]):
        first, second = list_inputs(sources)
        assert (first.extra, second.extra) == ({"city": "Springfield"}, {})
    (videos / "other.csv").write_text("uri,city\na.mp4,Shelbyville\n")
    with pytest.raises(UserError, match=r"other\.csv.*a\.mp4' was named before with other columns.*Springfield"):
        list_inputs([str(videos / "list.csv"), str(videos / "other.csv")])


def test_a_jsonl_manifest_may_hold_other_line_separators(videos: Path) -> None:
    rows = [{"uri": "a.mp4", "title": "one\u2028two"}, {"uri": "deep/b.MKV", "title": "three\x85"}]
    (videos / "m.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [i.extra["title"] for i in list_inputs([str(videos / "m.jsonl")])] == ["one\u2028two", "three\x85"]


def test_a_changed_file_has_another_version(videos: Path) -> None:
    before = list_inputs([str(videos / "a.mp4")])[0].version
    (videos / "a.mp4").write_bytes(b"longer than before")
    assert list_inputs([str(videos / "a.mp4")])[0].version != before
