"""The whole job on a real Ray with fake engines: conservation, reruns, and what each flag does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deescal.curate.config import CurateConfig
from deescal.curate.job import Watch, curate, curate_from, judge_transcripts, read_job, resume
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
    record, page = (tmp_path / "run" / "run.json").read_text(), (tmp_path / "run" / "report.html").stat().st_mtime_ns
    rerun = curate([str(folder)], out, fast_config, watch=Watch(on_clip=again.append))
    assert again == []
    assert list(read_clips(out)) == rows
    assert (tmp_path / "run" / "run.json").read_text() == record  # it says what the work took, not the look at it
    assert (tmp_path / "run" / "report.html").stat().st_mtime_ns == page
    assert rerun.run == result.run

    os.utime(folder / "clip003.wav", (1, 1))  # touched: its content is hashed, and nothing else
    curate([str(folder)], out, fast_config, watch=Watch(on_clip=again.append))
    assert [(Path(o["uri"]).name, o["status"], o["stages"]) for o in again] == [("clip003.wav", "duplicate", [])]
    assert untouched(read_clips(out)) == untouched(rows)
    again.clear()
    curate([str(folder)], out, fast_config, watch=Watch(on_clip=again.append))
    assert again == []

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


def untouched(rows) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "source_version"} for row in rows]


def test_a_setting_under_which_clips_failed_can_be_taken_back(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig
) -> None:
    folder, out = make_clips(2), str(tmp_path / "run")
    curate([str(folder)], out, fast_config)
    before = comparable(read_clips(out))
    short = fast_config.model_copy(update={"audio": fast_config.audio.model_copy(update={"max_duration_s": 10.0})})
    curate([str(folder)], out, short)
    for row in read_clips(out):
        assert (row["status"], row["failed_stage"], row["turns"], row["features"]) == (
            *("failed", "extract_audio"),
            *(None, None),
        )
        assert len(row["stages"]) == 1
    curate([str(folder)], out, fast_config)
    assert comparable(read_clips(out)) == before


def test_a_renamed_clip_is_judged_by_the_rules_of_today(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_clips(2), str(tmp_path / "run")
    transcribe = fast_config.transcribe.model_copy(update={"engine": "tests.curate.engines:Transcriber"})
    config = fast_config.model_copy(update={"transcribe": transcribe})
    curate([str(folder)], out, config)
    stricter = with_rules(config, code_min_police=99)
    monkeypatch.setenv("DEESCAL_TEST_UNLOADABLE", "1")
    ray_shutdown()  # for its workers to see it
    result = curate([str(folder)], out, stricter)  # only the rules changed: no speech model is loaded
    assert result.run["status"] == {"accepted": 0, "rejected": 2, "failed": 1}

    monkeypatch.delenv("DEESCAL_TEST_UNLOADABLE")
    ray_shutdown()
    (folder / "clip001.wav").rename(folder / "other.wav")
    result = curate([str(folder)], out, config)
    assert result.run["status"] == {"accepted": 2, "rejected": 0, "failed": 1}
    (renamed,) = [row for row in read_clips(out) if "other.wav" in str(row["aliases"])]
    assert Path(renamed["uri"]).name == "clip001.wav"  # it was an input of this run too


def with_rules(config: CurateConfig, **rules: int) -> CurateConfig:
    return config.model_copy(update={"select": config.select.model_copy(update=rules)})


def ray_shutdown() -> None:
    import ray

    ray.shutdown()


def test_new_rules_on_old_transcripts_do_no_speech_work(
    make_clips: Callable[[int], Path], tmp_path: Path, fast_config: CurateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clips(2)
    out, other = "run", str(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights"
    weights.mkdir()
    transcribe = fast_config.transcribe.model_copy(update={"model": str(weights)})
    first = curate(["clips"], out, fast_config.model_copy(update={"transcribe": transcribe}))
    weights.rmdir()  # a later stage needs no model of an earlier one
    before = list(read_clips(out))
    stricter = with_rules(fast_config, code_min_police=99)
    unloadable = fast_config.interpret.model_copy(update={"engine": "tests.fakes:NoSuchEngine"})
    second = curate_from("select", out, "other", stricter.model_copy(update={"interpret": unloadable}))
    assert second.run["models"] == first.run["models"]
    after = list(read_clips(other))
    assert [row["turns"] for row in after] == [row["turns"] for row in before]
    assert {row["status"] for row in after} == {"rejected", "failed"}
    assert [row["clip_id"] for row in after] == [row["clip_id"] for row in before]
    assert list(read_clips(out)) == before  # the origin is as it was

    monkeypatch.chdir("/")
    out = str(tmp_path / "run")
    assert all(Path(row["audio"]).is_file() for row in after if row["audio"])  # the sound stays where it was
    assert resume(other).new == {}
    with pytest.raises(UserError, match=r"override of 'turns'.*before select"):
        curate_from("select", out, out, overrides=["turns.max_gap_s=1"])

    curate_from("select", out, out, overrides=["select.code_min_police=99"])
    assert read_job(out).config.diarize.engine == "tests.fakes:FakeDiarizer"  # all else as it was asked for
    in_place = [{**row, "audio": row["audio"] and f"{out}/{row['audio']}"} for row in read_clips(out)]
    assert comparable(in_place) == comparable(after)
    weights.mkdir()
    assert resume(out).new == {}  # in place it is still a run of its sources
    with pytest.raises(UserError, match="not a run"):
        curate_from("judge", str(tmp_path), out)
    with pytest.raises(UserError, match="allowed are roles, judge, select"):
        curate_from("diarize", out, out)


def test_a_start_takes_each_row_as_it_was_made(tmp_path: Path, fast_config: CurateConfig) -> None:
    """Two commands with two configs filled one folder; in the first, one clip failed."""
    out, other = str(tmp_path / "run"), str(tmp_path / "other")
    for name, seconds in (("a", 12.0), ("b", 14.0), ("c", 12.0)):
        write_wav(tmp_path / f"{name}.wav", seconds, ord(name))
    short = fast_config.model_copy(update={"audio": fast_config.audio.model_copy(update={"max_duration_s": 13.0})})
    curate([str(tmp_path / "a.wav"), str(tmp_path / "b.wav")], out, short)
    curate([str(tmp_path / "c.wav")], out, fast_config)
    first = curate_from("judge", out, other, overrides=["interpret.judge.window_tokens=700"])
    assert first.run["status"] == {"accepted": 2, "rejected": 0, "failed": 1}
    assert first.run["config"]["interpret"]["engine"] == fast_config.interpret.engine
    in_place = curate_from("judge", out, out, overrides=["interpret.judge.window_tokens=700"])
    assert in_place.new == {"accepted": 2}
    assert [row["stages"][0]["fingerprint"] for row in read_clips(out)] == [
        row["stages"][0]["fingerprint"] for row in read_clips(other)
    ]
    for again in (curate_from("judge", out, out), curate_from("judge", out, other), resume(other)):
        assert again.new == {}


def test_transcripts_made_elsewhere_give_the_same_verdicts(tmp_path: Path, fast_config: CurateConfig) -> None:
    out, exported, judged = str(tmp_path / "run"), tmp_path / "jsonl", str(tmp_path / "judged")
    for seconds in (8, 12):  # their transcripts differ in length: two contents
        write_wav(tmp_path / "clips" / f"{seconds}.wav", float(seconds), seconds)
    curate([str(tmp_path / "clips")], out, fast_config)
    rows = list(read_clips(out))
    export_run(rows, "jsonl", str(exported), "all")
    (exported / "bad.csv").write_text("a,b\n1,2\n")
    judge_transcripts([str(exported)], judged, fast_config)
    failed, *mine = sorted(read_clips(judged), key=lambda row: row["status"] != "failed")
    assert (failed["status"], failed["failed_stage"]) == ("failed", "import")
    assert sorted(verdict(row) for row in mine) == sorted(verdict(row) for row in rows)
    again = judge_transcripts([str(exported)], judged, fast_config, retry_failed=True)
    assert again.new == {"failed": 1}


def verdict(row: dict) -> tuple:
    present = tuple((f["name"], f["present"], tuple(f["evidence"])) for f in row["features"])
    return row["status"], row["reason"], tuple(t["text"] for t in row["turns"]), present


def test_a_worker_that_refuses_its_config_ends_in_one_line(tmp_path: Path, fast_config: CurateConfig) -> None:
    clip = write_wav(tmp_path / "a.wav", 2.0, 0)
    engine = fast_config.interpret.model_copy(update={"engine": "tests.curate.engines:Misconfigured"})
    with pytest.raises(UserError, match=r"^interpret\.judge\.window_tokens=9 leaves no room \(at least 99\)$"):
        curate([str(clip)], str(tmp_path / "run"), fast_config.model_copy(update={"interpret": engine}))


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
