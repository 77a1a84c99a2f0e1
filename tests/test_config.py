from __future__ import annotations

from pathlib import Path

import pytest

from deescal.config import Config, fingerprint, load_config, load_engine
from deescal.errors import UserError


class Inner(Config):
    size: int = 1


class Outer(Config):
    inner: Inner = Inner()
    name: str = "x"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("inner: {size: 2}\nname: file\n")
    assert load_config(path, Outer, ["inner.size=3"]) == Outer(inner=Inner(size=3), name="file")


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


def test_fingerprint_depends_on_values_not_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(Inner(size=1)) != fingerprint(Inner(size=2))


def test_load_engine_finds_a_class_by_path() -> None:
    assert load_engine("deescal.errors:UserError") is UserError


def test_every_shipped_config_is_valid() -> None:
    from deescal.curate.config import CurateConfig

    files = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert files
    for file in files:
        load_config(file, CurateConfig)
