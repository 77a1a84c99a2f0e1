from __future__ import annotations

from pathlib import Path

from deescal.curate import store
from deescal.schema import Row, empty_row


def clip(clip_id: str, uri: str, **values) -> Row:
    return empty_row(clip_id=clip_id, uri=uri, source_version="v", source={}, aliases=[], status="accepted", **values)


def test_rows_come_back_in_order_and_whole(tmp_path: Path) -> None:
    rows = [clip("b", "2.mp4", words=[]), clip("a", "1.mp4", duration_s=2.5)]
    for row in rows:
        store.write_clip(str(tmp_path), row)
    assert list(store.read_clips(str(tmp_path))) == [rows[1], rows[0]]
    assert list(store.read_clips(str(tmp_path / "none"))) == []


def test_settle_gives_every_name_to_one_row(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("x", "m.mp4", duration_s=1.0))
    store.write_alias(out, clip("x", "z.mp4"))
    store.write_alias(out, clip("x", "a.mp4"))
    for _ in range(2):  # a kill in the middle means doing it again
        store.settle(out, {"m.mp4": "x", "z.mp4": "x", "a.mp4": "x"})
        (row,) = store.read_clips(out)
        assert row["uri"] == "a.mp4"  # the first by name, whichever was met first
        assert [alias["uri"] for alias in row["aliases"]] == ["m.mp4", "z.mp4"]
        assert row["duration_s"] == 1.0
    assert list((tmp_path / "aliases").iterdir()) == []


def test_a_name_whose_content_changed_leaves_its_old_row(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("old", "a.mp4"))
    store.write_clip(out, clip("new", "a.mp4"))
    index = store.settle(out, {"a.mp4": "new"})
    assert [row["clip_id"] for row in index] == ["new"]
    assert [row["clip_id"] for row in store.read_clips(out)] == ["new"]
