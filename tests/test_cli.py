"""The command line: one line and exit code 2 for a user's mistake, and nothing heavy before it is found."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from deescal.cli import Format, Include, app
from deescal.command import split_overrides, user_errors_are_one_line
from deescal.curate.config import CurateConfig
from deescal.doctor import local_memory_gib
from deescal.export import FORMATS, INCLUDES
from deescal.models import MANIFEST
from deescal.storage import _filesystem


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


@pytest.mark.parametrize(
    "command",
    [
        ["curate", "s3://b/videos", "--out", "{tmp}/run"],
        ["curate", "{clip}", "--out", "s3://b/run"],
        ["curate", "{clip}", "--out", "{tmp}/run", "--config", "s3://b/c.yaml"],
        ["curate", "--resume", "--out", "s3://b/run"],
        ["curate", "--from", "judge", "s3://b/run"],
        ["judge", "s3://b/transcripts", "--out", "{tmp}/run"],
        ["export", "s3://b/run"],
    ],
)
def test_an_unreachable_store_is_one_line_and_exit_code_2(
    command: list[str], clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:  # nobody listens at its port once it is closed
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(CurateConfig, "fingerprints", lambda *arguments: {"select": "x"})  # no weights needed
    monkeypatch.setattr(CurateConfig, "models", lambda *arguments: {})
    _filesystem.cache_clear()
    code, output = run(*(part.replace("{tmp}", str(tmp_path)).replace("{clip}", clip) for part in command))
    _filesystem.cache_clear()
    assert code == 2, output
    assert output.count("\n") == 1
    assert f"127.0.0.1:{port}" in output


def test_judge_wants_a_source(tmp_path: Path) -> None:
    code, output = run("judge", "select.rule=paper", "--out", str(tmp_path / "run"))
    assert (code, output) == (2, "deescal: no SOURCE given: a file, folder or glob of transcripts\n")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_version_is_one_line(tmp_path: Path) -> None:
    for content, words in [
        ('{"config": {"transcribe": {"beams": 1}}}', "unknown key 'transcribe.beams' (allowed: "),
        ("{", "none of this version"),
        ('{"config": {}, "else": 1}', "none of this version"),
    ]:
        (tmp_path / "job.json").write_text(content)
        code, output = run("export", str(tmp_path))
        assert (code, output.count("\n")) == (2, 1)
        assert words in output


def test_the_choices_of_export_are_those_of_its_function() -> None:
    assert (get_args(Format), get_args(Include)) == (FORMATS, INCLUDES)


def test_overrides_are_told_from_sources() -> None:
    assert split_overrides(["a.mp4", "s3://b/x=1/y.mp4", "judge.x=2", "dir/k=v.mp4"]) == (
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


def test_doctor_asks_for_the_memory_that_the_stages_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CurateConfig()
    pools = [config.transcribe.resources, config.diarize.resources, config.interpret.resources]
    assert local_memory_gib() > sum(r.workers * r.memory_gib for r in pools) + config.ray.object_store_gib
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=10 * 2**30))
    code, output = run("doctor")
    assert code == 1
    assert f"ask for {local_memory_gib():.1f} GiB together" in output


def test_storage_that_fails_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from botocore.exceptions import NoCredentialsError

    @user_errors_are_one_line
    def command(error: Exception) -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command(NoCredentialsError())
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "deescal: storage: NoCredentialsError: Unable to locate credentials\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        command(ZeroDivisionError())
