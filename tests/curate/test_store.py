from __future__ import annotations

from pathlib import Path

import pytest

from deescal.curate import store
from deescal.curate.flow import write_rows
from deescal.schema import Row, empty_row, to_table


def clip(clip_id: str, uri: str, status: str = "accepted", version: str = "v", **values) -> Row:
    return empty_row(
        clip_id=clip_id, uri=uri, source_version=version, source={}, aliases=[], status=status, stages=[], **values
    )


def uris(out: str) -> dict[str, list[str]]:
    """clip_id -> all its names."""
    return {row["clip_id"]: [row["uri"], *(a["uri"] for a in row["aliases"])] for row in store.read_clips(out)}


def test_rows_come_back_in_order_and_whole(tmp_path: Path) -> None:
    rows = [clip("b", "2.mp4", words=[]), clip("a", "1.mp4", duration_s=2.5)]
    for row in rows:
        store.write_clip(str(tmp_path), row)
    assert list(store.read_clips(str(tmp_path))) == [rows[1], rows[0]]
    assert list(store.read_clips(str(tmp_path / "none"))) == []


def test_settle_gives_every_name_to_one_row(tmp_path: Path) -> None:
    out = str(tmp_path)
    write_rows(to_table([clip("x", "m.mp4", duration_s=1.0)]), out)
    write_rows(to_table([clip("x", "z.mp4", "duplicate"), clip("x", "a.mp4", "duplicate")]), out)
    assert not store.is_settled(out)
    for _ in range(2):  # a kill in the middle means doing it again
        store.settle(out)
        (row,) = store.read_clips(out)
        assert row["uri"] == "a.mp4"  # the first by name, whichever was met first
        assert [alias["uri"] for alias in row["aliases"]] == ["m.mp4", "z.mp4"]
        assert row["duration_s"] == 1.0
    assert store.is_settled(out)


def test_a_name_whose_content_changed_leaves_its_old_row(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("old", "a.mp4"))
    store.finish_clip(out, clip("new", "a.mp4", version="v2"))
    # Killed here, before `settle`: the next run begins with it.
    assert [row["clip_id"] for row in store.settle(out)] == ["new"]
    assert uris(out) == {"new": ["a.mp4"]}


def test_a_clip_that_could_not_be_read_is_one_row_when_it_can(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("of-the-uri", "a.mp4", "failed", failed_stage="extract_audio"))
    store.finish_clip(out, clip("of-the-content", "a.mp4"))
    store.settle(out)
    assert uris(out) == {"of-the-content": ["a.mp4"]}


def test_a_kill_between_name_and_clip_leaves_the_input_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("old", "a.mp4"))

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_clip", killed)
    with pytest.raises(KeyboardInterrupt):
        store.finish_clip(out, clip("new", "a.mp4", version="v2"))
    monkeypatch.undo()
    (row,) = store.settle(out)
    assert (row["clip_id"], row["source_version"]) == ("old", "v"), "its old version tells that it is to be read again"
    assert store.is_settled(out)


def test_a_row_done_again_under_another_name_keeps_its_names(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("x", "a.mp4") | {"aliases": [{"uri": "b.mp4", "source_version": "v", "source": {}}]})
    store.finish_clip(out, clip("x", "c.mp4", "rejected"))
    store.settle(out)
    assert uris(out) == {"x": ["a.mp4", "b.mp4", "c.mp4"]}
    assert [row["status"] for row in store.read_clips(out)] == ["rejected"]


def test_a_touched_file_and_a_changed_manifest_reach_the_row(tmp_path: Path) -> None:
    out = str(tmp_path)
    store.write_clip(out, clip("x", "a.mp4"))
    store.finish_clip(out, clip("x", "a.mp4", "duplicate", "v2"))
    store.settle(out, {"a.mp4": {"city": "Mesa"}})
    (row,) = store.read_clips(out)
    assert (row["status"], row["source_version"], row["source"]) == ("accepted", "v2", {"city": "Mesa"})
    store.settle(out, {"a.mp4": {}})  # listed by a source without columns
    (row,) = store.read_clips(out)
    assert row["source"] == {"city": "Mesa"}


def test_a_row_that_no_stage_finished_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"a\.mp4.*None"):
        write_rows(to_table([clip("x", "a.mp4") | {"status": None}]), str(tmp_path))
    assert list(store.read_clips(str(tmp_path))) == []
