"""Who is compared: what the option may say, labels, pairs, and keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deescal.errors import UserError
from deescal.evaluate.contestants import (
    Contestant,
    check_keys,
    key_variable,
    known_pairs,
    pairs_to_compare,
    parse_contestants,
    passes,
    with_key,
)
from deescal.score.config import ScoreConfig, parse_models
from deescal.serve.client import KEY_ENV


def labels(*texts: str) -> list[str]:
    return [c.label for c in parse_contestants(texts)]


def test_names_adapters_and_urls_are_told_apart() -> None:
    found = parse_contestants(
        ["org/Base-3B,org/Base-3B:tuned=s3://bucket/run", "org/Base-3B:s3://bucket/other/adapter", "https://h:1/v1#m"]
    )
    assert [(c.model, c.adapter and (c.adapter.name, c.adapter.uri), c.endpoint) for c in found] == [
        ("org/Base-3B", None, None),
        ("org/Base-3B", ("tuned", "s3://bucket/run"), None),
        ("org/Base-3B", ("other", "s3://bucket/other/adapter"), None),
        ("m", None, "https://h:1/v1"),
    ]
    assert [c.label for c in found] == ["Base-3B", "Base-3B:tuned", "Base-3B:other", "m"]
    assert found[1].option == "org/Base-3B:tuned=s3://bucket/run"


def test_labels_are_unique_and_plain() -> None:
    assert labels("a/model", "b/model") == ["model", "model-2"]
    assert labels("a/model", "b/model", "c/model-2") == ["model", "model-2", "model-2-2"]
    assert labels("https://one.example/v1#gpt", "https://two.example/v1#gpt") == ["gpt@one.example", "gpt@two.example"]
    assert labels("https://h.example/v1#<b>x</b>") == ["b"]
    assert labels("somewhere/reference") == ["reference-2"]  # the real civilian's


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--models is required"),
        (" , ", "--models is required"),
        ("a,a", "'a' is given twice"),
        ("a:x=s3://1,a:x=s3://1", "'a:x=s3://1' is given twice"),
        (
            "org/a:s3://b/1/final,org/a:s3://b/2/final",
            "two adapters of org/a are called 'final'; name them: org/a:first=",
        ),
        ("https://h/v1#a=b", "a name with '=' cannot be asked for"),
        ("a:", "expected NAME"),
        ("x=y", "expected NAME"),
        ("https://h/v1", "expected URL#MODEL"),
        ("https://user:secret@h/v1#m", "put the key into the environment"),
        ("a:.b=s3://x", "a name has letters"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_contestants([text])
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_base_is_one_pass_in_any_order_and_names_of_an_endpoint_are_alone() -> None:
    found = passes(parse_contestants(["a,b,a:x=s3://1,https://h/v1#m:8b,a:w=s3://2,https://h/v1#n"]))
    assert [[c.label for c in p.contestants] for p in found] == [["a", "a:w", "a:x"], ["b"], ["m-8b"], ["n"]]
    assert found[0].labels == {"a": "a", "a:w": "a:w", "a:x": "a:x"}
    assert found[2].labels == {"m:8b": "m-8b"}
    assert parse_models([found[2].contestants[0].option])[0].name == "m:8b"


def test_tuned_is_compared_with_its_base(tmp_path: Path) -> None:
    contestants = parse_contestants(["a,b,a:x=s3://1,b:y=s3://2,c:z=s3://3"])
    known = [("a:x", "a"), ("b:y", "b")]
    assert pairs_to_compare(contestants, ()) == [*known, ("a:x", "c:z"), ("b:y", "c:z")]
    assert pairs_to_compare(contestants[:4], ()) == known
    assert pairs_to_compare(contestants, (("a", "b"),)) == [("a", "b")]
    with pytest.raises(UserError, match="no contestant 'q'; there are a, b, a:x"):
        pairs_to_compare(contestants, (("a", "q"),))
    for twice in ((("a", "a"),), (("a", "b"), ("b", "a"))):
        with pytest.raises(UserError, match="each pair once, of two contestants"):
            pairs_to_compare(contestants, twice)
    assert pairs_to_compare(parse_contestants(["a,b,c"]), ()) == [("b", "a"), ("c", "a"), ("c", "b")]
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "base.json").write_text(json.dumps({"model": "org/a"}))
    assert known_pairs(parse_contestants([f"org/a,{tmp_path}/whole"])) == [("whole", "a")]


def test_a_key_has_the_name_that_the_config_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    contestant = Contestant(label="m", model="m", endpoint="https://api.example/v1")
    assert key_variable("https://api.example/v1", {}) == KEY_ENV
    assert key_variable("http://localhost:8000/v1", {"localhost:8000": "A", "localhost": "B"}) == "A"
    keys = {"api.example": "EXAMPLE_KEY"}
    assert with_key(ScoreConfig(), "https://api.example", keys).online.key_env == "EXAMPLE_KEY"
    assert with_key(ScoreConfig(), None, keys) == ScoreConfig()
    monkeypatch.delenv("EXAMPLE_KEY", raising=False)
    with pytest.raises(UserError, match="EXAMPLE_KEY, which `keys` names, is not set"):
        check_keys([contestant], keys)
    monkeypatch.setenv("EXAMPLE_KEY", "one")
    check_keys([contestant], keys)
