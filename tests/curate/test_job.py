"""The whole job on a real Ray with fake engines: conservation, reruns, and what each flag does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deescal.curate.config import CurateConfig
from deescal.curate.job import Watch, curate, curate_from, judge_transcripts, resume
from deescal.curate.store import read_clips
from deescal.errors import UserError
from deescal.export import export_run

from .conftest import comparable, write_wav

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def touched(watch_calls: list[dict]) -> set[str]:
    return {Path(outcome["uri"]).name for outcome in watch_calls}


def test_a_run_accounts_for_every_input_and_a_rerun_does_nothing(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    folder, out = make_clips(5), str(tmp_path / "run")
    first: list[dict] = []
    result = curate([str(folder)], out, fast_config, watch=Watch(on_clip=first.append))
    rows = list(read_clips(out))
    assert result.run["inputs"] == 7 == len(rows) + sum(len(row["aliases"]) for row in rows)
    assert len(first) == 7
    (copied,) = [row for row in rows if row["aliases"]]
    assert Path(copied["uri"]).name == "clip000.wav"
    assert Path(copied["aliases"][0]["uri"]).name == "copy_of_000.wav"
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (Path(failed["uri"]).name, failed["failed_stage"]) == ("broken.mp4", "extract_audio")
    assert all(row["status"] in ("accepted", "rejected", "failed") and row["reason"] for row in rows)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == result.run["status"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert {p.stem for p in (tmp_path / "run" / "audio").iterdir()} == {
        row["clip_id"] for row in rows if row["status"] != "failed"
    }

    again: list[dict] = []
    curate([str(folder)], out, fast_config, watch=Watch(on_clip=again.append))
    assert again == []
    assert list(read_clips(out)) == rows

    write_wav(folder / "new.wav", 12.0, 99)
    resume(out, watch=Watch(on_clip=again.append))
    assert touched(again) == {"new.wav"}

    again.clear()
    resume(out, retry_failed=True, watch=Watch(on_clip=again.append))
    assert touched(again) == {"broken.mp4"}
    (failed,) = [row for row in read_clips(out) if row["status"] == "failed"]
    assert failed["attempts"] == 2

    write_wav(folder / "broken.mp4", 12.0, 77)  # mended
    resume(out)
    rows = list(read_clips(out))
    assert len(rows) == 7
    assert not [row for row in rows if row["status"] == "failed"]


def test_new_rules_on_old_transcripts_do_no_speech_work(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    out, other = str(tmp_path / "run"), str(tmp_path / "other")
    curate([str(make_clips(2))], out, fast_config)
    before = list(read_clips(out))
    stricter = fast_config.model_copy(
        update={
            "transcribe": fast_config.transcribe.model_copy(update={"engine": "tests.fakes:NoSuchEngine"}),
            "select": fast_config.select.model_copy(update={"code_min_police": 99}),
        }
    )
    curate_from("select", out, other, stricter)
    after = list(read_clips(other))
    assert [row["turns"] for row in after] == [row["turns"] for row in before]
    assert {row["status"] for row in after} == {"rejected", "failed"}
    assert [row["clip_id"] for row in after] == [row["clip_id"] for row in before]
    assert list(read_clips(out)) == before  # the origin is as it was

    assert all(Path(row["audio"]).is_file() for row in after if row["audio"])  # the sound stays where it was

    curate_from("select", out, out, stricter)
    in_place = [{**row, "audio": row["audio"] and f"{out}/{row['audio']}"} for row in read_clips(out)]
    assert comparable(in_place) == comparable(after)
    with pytest.raises(UserError, match="not a run"):
        curate_from("judge", str(tmp_path), out, fast_config)
    with pytest.raises(UserError, match="allowed are roles, judge, select"):
        curate_from("diarize", out, out, fast_config)


def test_transcripts_made_elsewhere_give_the_same_verdicts(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    out, exported, judged = str(tmp_path / "run"), tmp_path / "jsonl", str(tmp_path / "judged")
    curate([str(make_clips(2))], out, fast_config)
    rows = [row for row in read_clips(out) if row["status"] != "failed"]
    export_run(rows, "jsonl", str(exported), "all")
    (exported / "bad.csv").write_text("a,b\n1,2\n")
    judge_transcripts([str(exported)], judged, fast_config)
    mine = list(read_clips(judged))
    assert len(mine) == len({tuple(t["text"] for t in row["turns"]) for row in rows}) + 1 or len(mine) == len(rows) + 1
    (bad,) = [row for row in mine if row["status"] == "failed"]
    assert bad["failed_stage"] == "import"
    features = [{f["name"]: f["present"] for f in row["features"]} for row in rows]
    assert all({f["name"]: f["present"] for f in r["features"]} in features for r in mine if r is not bad)


def test_wrong_sources_and_models_fail_before_ray_starts(tmp_path: Path, fast_config: CurateConfig) -> None:
    import ray

    with pytest.raises(UserError, match="no such file"):
        curate([str(tmp_path / "none")], str(tmp_path / "run"), fast_config)
    unknown = fast_config.model_copy(
        update={"transcribe": fast_config.transcribe.model_copy(update={"model": "no-such-model"})}
    )
    clip = write_wav(tmp_path / "a.wav", 2.0, 0)
    with pytest.raises(UserError, match="no-such-model"):
        curate([str(clip)], str(tmp_path / "run"), unknown)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read and written"):
        curate([str(clip)], str(tmp_path / "file" / "run"), fast_config)
    assert not ray.is_initialized()
