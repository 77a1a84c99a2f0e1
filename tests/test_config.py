from __future__ import annotations

import json
from pathlib import Path

import pytest

from deescal.config import Config, fingerprint, load_config, load_engine
from deescal.curate.config import CurateConfig
from deescal.errors import UserError
from deescal.judge import calibration, cues
from deescal.judge.prompts import PROMPT_VERSION


class Inner(Config):
    size: int = 1


class Outer(Config):
    inner: Inner = Inner()
    name: str = "x"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("inner: {size: 2}\nname: file\n")
    assert load_config(path, Outer, ["inner.size=3"]) == Outer(inner=Inner(size=3), name="file")


def test_a_section_given_in_part_keeps_the_rest_of_its_default(tmp_path: Path) -> None:
    """`resources` of transcribe are other ones than those of the class."""
    (tmp_path / "part.yaml").write_text("transcribe: {resources: {workers: 3}}\n")
    default = load_config(None, CurateConfig).transcribe.resources
    assert default.num_cpus != type(default)().num_cpus
    for config in (
        load_config(tmp_path / "part.yaml", CurateConfig),
        load_config(None, CurateConfig, ["transcribe.resources.workers=3"]),
    ):
        assert config.transcribe.resources == default.model_copy(update={"workers": 3})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inner.sise=3"], ["unknown key 'inner.sise'", "allowed: size"]),
        (["inner.size=many"], ["inner.size='many'", "integer"]),
        (["nonsense"], ["'nonsense'", "key=value"]),
        (["name.deep=1", "name=2"], ["name"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, Outer, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml", Outer)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_config(bad, Outer)
    bad.write_text("- 1")
    with pytest.raises(UserError, match="found a list"):
        load_config(bad, Outer)
    bad.write_bytes("name: Señor".encode("cp1252"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        load_config(bad, Outer)


def test_a_config_is_read_from_any_place(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("\ufeffname: Señor".encode())
    assert load_config(f"file://{tmp_path}/c.yaml", Outer).name == "Señor"
    with pytest.raises(UserError, match="scheme 'ftp'"):
        load_config("ftp://host/c.yaml", Outer)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("transcribe.resources.workers=0", "transcribe.resources.workers=0: "),
        ("diarize.resources.memory_gib=-1", "greater than or equal to 0"),
        ("interpret.batch_size=0", "interpret.batch_size=0"),
        ("select.resources.workers=2", "unknown key 'select.resources.workers' (allowed: num_cpus, "),
        ("audio.resources.workers=2", "unknown key 'audio.resources.workers'"),
        ("turns.resources.workers=2", "unknown key 'turns.resources.workers'"),
        ("transcribe.engine=no.such.module:Engine", "there is no module 'no.such.module'"),
        ("transcribe.engine=deescal.speech.wisper:Engine", "there is no module 'deescal.speech.wisper'"),
        ("interpret.judge.window_tokens=4000", "leaves 96 of llm.max_model_len=4096 tokens"),
        ("interpret.roles.max_tokens=4090", "roles.max_tokens=4090 leaves 6"),
        ("interpret.llm.max_model_len=1024", "judge.window_tokens=1500 leaves -476"),
    ],
)
def test_what_no_worker_could_run_with_is_refused_at_once(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, CurateConfig, [override])
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


def test_an_engine_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_engine_of_a_test.py").write_text("class Mine: ...")
    monkeypatch.chdir(tmp_path)
    assert load_config(None, CurateConfig, ["transcribe.engine=my_engine_of_a_test:Mine"])


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"model": "x"}'])
def test_a_wrong_calibration_is_the_users_mistake(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=r"judge\.calibration .*c\.json: no calibration"):
        calibration.load("x", str(tmp_path / "c.json"))


def test_a_calibration_of_another_shape_is_the_users_mistake(tmp_path: Path) -> None:
    data = json.loads(calibration.PACKAGED.read_text())
    data |= {"prompt_version": PROMPT_VERSION, "cues_version": cues.VERSION}
    next(iter(data["features"].values()))["weights"].pop()
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="no calibration"):
        calibration.load(data["model"], str(tmp_path / "c.json"))


def test_fingerprint_depends_on_values_not_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(Inner(size=1)) != fingerprint(Inner(size=2))


def test_load_engine_finds_a_class_by_path() -> None:
    assert load_engine("deescal.errors:UserError") is UserError


def test_every_shipped_config_is_valid() -> None:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert files
    for file in files:
        load_config(file, CurateConfig)
