"""The command line: one line and exit code 2 for a user's mistake, and nothing heavy before it is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deescal.cli import _split_overrides, app
from deescal.models import MANIFEST


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "a.mp4"
    path.write_text("not read before the config is right")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--out is required"),
        (["--out", "{tmp}/run"], "no SOURCE given"),
        (["{tmp}/none", "--out", "{tmp}/run"], "no such file, folder or prefix"),
        (["{tmp}", "--out", "{tmp}/run", "transcribe.modle=x"], "unknown key 'transcribe.modle' (allowed: "),
        (["{tmp}", "--out", "{tmp}/run", "transcribe.beam_size=wide"], "transcribe.beam_size='wide'"),
        (["{tmp}", "--out", "{tmp}/run", "select.rule=best"], "select.rule='best'"),
        (["{tmp}", "--out", "{tmp}/run", "transcribe.model=nothing"], "model 'nothing'"),
        (["{tmp}", "--out", "{tmp}/run", "--config", "{tmp}/none.yaml"], "No such file"),
        (["{tmp}", "--out", "{tmp}/run", "--resume"], "give only --out"),
        (["--resume", "--out", "{tmp}/run"], "not a run"),
        (["{tmp}", "--from", "judge"], "not a run"),
        (["{tmp}", "--from", "diarize"], "allowed are roles, judge, select"),
        (["ftp://host/a.mp4", "--out", "{tmp}/run"], "scheme 'ftp'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: str, clip: str, tmp_path: Path) -> None:
    code, output = run("curate", *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert code == 2, output
    assert words in output
    assert output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_overrides_are_told_from_sources() -> None:
    assert _split_overrides(["a.mp4", "s3://b/x=1/y.mp4", "judge.x=2", "dir/k=v.mp4"]) == (
        ["a.mp4", "s3://b/x=1/y.mp4", "dir/k=v.mp4"],
        ["judge.x=2"],
    )


def test_help_starts_without_heavy_imports() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom deescal.cli import app\n"
        "assert CliRunner().invoke(app, ['curate', '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'pyannote', 'transformers', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_models_are_listed_and_a_damaged_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "ge2e"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    (folder / MANIFEST).write_text(json.dumps({"files": {"model.safetensors": "0" * 64, "gone": "0" * 64}}))
    code, output = run("models", "list")
    assert code == 0
    assert "whisper-base" in output
    code, output = run("models", "verify")
    assert code == 1
    assert "ge2e: damaged: model.safetensors, gone" in output
    assert run("models", "fetch")[0] == 2
    code, output = run("models", "fetch", "nothing")
    assert code == 2
    assert "not in the registry" in output


def test_doctor_says_what_to_do_about_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path))
    code, output = run("doctor")
    assert code == 1
    assert "deescal models fetch whisper-base" in output
