from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from deescal.errors import UserError
from deescal.ingest.archives import unpack_archives
from deescal.ingest.transcripts import list_transcripts


def pack(path: Path, members: dict[str, str]) -> str:
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "").replace("tgz", "gz")) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return str(path)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tgz"])
def test_an_archive_becomes_a_folder_of_its_transcripts(tmp_path: Path, suffix: str) -> None:
    members = {"train/youtube_1.csv": "a", "./test/b.jsonl": "{}", "read.me": "x"}
    archive = pack(tmp_path / f"corpus-1.0.{suffix}", members)
    out = tmp_path / "run" / "sources"
    assert unpack_archives(["s3://bucket/x", archive], str(out)) == ["s3://bucket/x", f"{out}/corpus-1.0"]
    first, second = list_transcripts([f"{out}/corpus-1.0"])
    assert first.uri.endswith("corpus-1.0/test/b.jsonl#1")
    assert second.extra == {"platform": "youtube", "official_split": "train"}


def test_what_is_unpacked_is_left_as_it_is(tmp_path: Path) -> None:
    archive, out = pack(tmp_path / "c.tar", {"a.csv": "a", "b.csv": "b"}), tmp_path / "out"
    unpack_archives([archive], str(out))
    before = list_transcripts([str(out)])
    (out / "c" / "archive.json").unlink()  # as if killed before the end
    unpack_archives([archive, archive], str(out))
    assert list_transcripts([str(out)]) == before
    pack(tmp_path / "c.tar", {"a.csv": "a", "c.csv": "longer than b"})
    unpack_archives([archive], str(out))
    after = list_transcripts([str(out)])
    assert [Path(i.uri).name for i in after] == ["a.csv", "c.csv"]
    assert after[0] == before[0]


@pytest.mark.parametrize("member", ["../evil.csv", "/etc/evil.csv", "a/../../evil.csv"])
def test_a_member_that_would_land_outside_is_refused(tmp_path: Path, member: str) -> None:
    archive = pack(tmp_path / "c.tar", {member: "x"})
    with pytest.raises(UserError, match="would land outside"):
        unpack_archives([archive], str(tmp_path / "out"))
    assert not list(tmp_path.rglob("evil.csv"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "none.tar", "cannot be unpacked"),
        (lambda d: (d / "x.tar.gz").write_bytes(b"\x1f\x8bno") and d / "x.tar.gz", "damaged"),
        (lambda d: (d / "x.tar").write_bytes(b"no archive") and d / "x.tar", "damaged"),
        (lambda d: pack(d / "x.tar", {"a.txt": ""}), r"no \.csv or \.jsonl"),
    ],
)
def test_a_bad_archive_is_one_line_that_names_it(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        unpack_archives([str(make(tmp_path))], str(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_damaged(tmp_path: Path) -> None:
    for suffix in ("tar.xz", "tar.gz", "tar"):
        path = Path(pack(tmp_path / f"c.{suffix}", {f"{i}.csv": f"{i * 7919}" * 300 for i in range(50)}))
        path.write_bytes(path.read_bytes()[:-700] if suffix != "tar" else path.read_bytes()[:3000])
        with pytest.raises(UserError, match="damaged"):
            unpack_archives([str(path)], str(tmp_path / suffix))


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    both = [pack(tmp_path / "c.tar", {"a.csv": "a"}), pack(tmp_path / "a" / "c.tar.gz", {"a.csv": "b"})]
    with pytest.raises(UserError, match="both would be unpacked as 'c'"):
        unpack_archives(both, str(tmp_path / "out"))
