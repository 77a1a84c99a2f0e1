"""The sample clips through the real engines, once, as `make demo` does it; then everything that must hold of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.encounters import features_found, read_truth, score
from deescal.curate.store import read_clips
from deescal.ingest.transcripts import parse_csv

ENCOUNTERS = ("traffic_stop", "crisis", "domestic", "trespass")
pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """The run's folder; made by the command itself, with its default config."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "deescal", "curate", str(examples / "clips"), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "warning: 4 clip(s) failed" in result.stdout
    return out


@pytest.fixture(scope="session")
def rows(run_folder: Path) -> dict[str, dict[str, Any]]:
    return {Path(row["uri"]).stem: row for row in read_clips(str(run_folder))}


def test_every_clip_is_there_once_with_the_expected_verdict(rows: dict[str, dict[str, Any]], examples: Path) -> None:
    names = {path.stem for path in (examples / "clips").iterdir()}
    assert set(rows) == names
    expected = {name: read_truth(name)["expected"]["status"] for name in names}
    assert {name: row["status"] for name, row in rows.items()} == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("everyday", "no_police_presence"),
        ("training_drill", "training_range_context"),
        ("narrated_crime", "advertisement_content_detected"),
        ("truncated", "extract_audio failed: truncated"),
        ("no_audio", "extract_audio failed: no audio stream"),
        ("silence", "transcribe failed: no speech found"),
        ("text", "extract_audio failed: not a media file"),
    ],
)
def test_the_reason_is_the_right_one(rows: dict[str, dict[str, Any]], name: str, words: str) -> None:
    assert words in rows[name]["reason"]


@pytest.mark.parametrize("name", ENCOUNTERS)
def test_words_speakers_and_roles(rows: dict[str, dict[str, Any]], name: str) -> None:
    found = score(rows[name], read_truth(name))
    assert found.wer <= 0.08
    assert found.der <= 0.10
    assert found.cpwer <= 0.15
    assert found.roles_right, found.roles


def test_features_and_their_evidence(rows: dict[str, dict[str, Any]]) -> None:
    found = [features_found(rows[name], read_truth(name)) for name in ENCOUNTERS]
    for clip in found:
        assert len(clip.present) >= 0.5 * len(clip.due), clip.due - clip.present
        assert len(clip.extra) <= 2, clip.extra  # of about ten that the clip does not show
    due, present, named = (sum(len(getattr(f, part)) for f in found) for part in ("due", "present", "with_evidence"))
    assert present >= 0.7 * due
    assert named >= 0.8 * present


@pytest.mark.parametrize("name", ENCOUNTERS)
def test_a_verdict_can_be_traced(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    turns = {turn["turn_id"] for turn in row["turns"]}
    assert len(row["features"]) == 30
    assert all(0 <= f["probability"] <= 1 for f in row["features"])
    assert all(set(f["evidence"]) <= turns for f in row["features"])
    shown = [f for f in row["features"] if f["present"] and not f["name"].startswith("no_")]
    assert sum(bool(f["evidence"]) for f in shown) >= 0.9 * len(shown)
    assert [s["stage"] for s in row["stages"]] == [
        "extract_audio",
        "transcribe",
        "diarize",
        "turns",
        "roles",
        "judge",
        "select",
    ]


def test_the_run_says_what_it_was(run_folder: Path) -> None:
    run = json.loads((run_folder / "run.json").read_text())
    assert run["inputs"] == run["clips"] == 11
    assert run["status"] == {"accepted": 4, "rejected": 3, "failed": 4}
    assert run["models"]["interpret"][0].startswith("qwen2.5-coder-1.5b@")
    assert (run_folder / "report.html").stat().st_size > 50_000


def test_strict_makes_failures_count_and_a_rerun_is_quick(run_folder: Path, examples: Path) -> None:
    command = [sys.executable, "-m", "deescal", "curate", str(examples / "clips"), "--out", str(run_folder), "--strict"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "11 input(s) are complete already" in result.stdout


@pytest.mark.parametrize("form", ["csv", "srt", "vtt", "rttm", "jsonl"])
def test_exports(run_folder: Path, tmp_path: Path, form: str) -> None:
    command = [sys.executable, "-m", "deescal", "export", str(run_folder), "--format", form, "--out", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    files = list(tmp_path.iterdir())
    assert len(files) == (1 if form == "jsonl" else 4)
    if form == "csv":
        assert all(len(parse_csv(file.read_bytes()).turns) > 5 for file in files)
