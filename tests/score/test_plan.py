"""Models as they are named, and bad input: one clear line before anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deescal.config import load_config
from deescal.errors import UserError
from deescal.score.config import ScoreConfig, parse_models
from deescal.score.job import score
from tests.conftest import free_port
from tests.serve.lora import write_adapter
from tests.train.tiny import write_dataset, write_model

from .conftest import user, write_rows


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["smollm2-135m"], ["smollm2-135m"]),
        (["org/name", "org/name:tuned=/folder"], ["org/name", "org/name:tuned"]),
        (["base:a=s3://bucket/key:b=/other/place"], ["base:a", "base:b"]),
    ],
)
def test_models_are_named_with_their_adapters(texts: list[str], names: list[str]) -> None:
    assert [c.name for c in parse_models(texts)] == names


def test_an_adapters_uri_keeps_its_colons() -> None:
    (contestant,) = parse_models(["base:a=s3://bucket/key"])
    assert contestant.adapter is not None
    assert contestant.adapter.uri == "s3://bucket/key"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "--model is required"),
        (["m", "m"], "given twice"),
        (["a=/x"], "expected NAME"),
        ([":a=/x"], "expected NAME"),
    ],
)
def test_models_that_cannot_be_read(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_models(texts)


def test_samples_without_temperature_are_refused() -> None:
    with pytest.raises(UserError, match="samples=3 would be equal: set temperature over 0"):
        load_config(None, ScoreConfig, ["sampling.samples=3"])


def refuse(data: str, tmp_path: Path, message: str, model: str = "m", task: str = "replies", **options: Any) -> None:
    with pytest.raises(UserError, match=message) as found:
        score(data, str(tmp_path / "out"), task, [model], options.pop("config", ScoreConfig()), **options)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_probabilities_are_not_drawn(tmp_path: Path) -> None:
    config = load_config(None, ScoreConfig, ["sampling.samples=3", "sampling.temperature=1"])
    refuse("nowhere", tmp_path, r"sampling\.samples=3 would be equal", task="plausibility", config=config)


def test_data_that_cannot_be_scored(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.parquet", [{"id": 1, "text": "words"}])
    refuse(rows, tmp_path, "column 'messages' missing in .*; task replies needs messages, there are id, text")
    refuse(rows, tmp_path, "column 'turns' missing", task="features")
    talk = write_rows(tmp_path / "talk.parquet", [{"messages": user("Stop.")}])
    refuse(talk, tmp_path, "column 'reply' missing .* task realism needs messages, reply", task="realism")
    refuse(talk, tmp_path, "--task 'sentiment': allowed are replies, features", task="sentiment")
    wrong = write_rows(tmp_path / "wrong.parquet", [{"id": 1}])
    refuse(wrong, tmp_path, "column 'messages' missing")
    refuse(str(tmp_path / "nowhere"), tmp_path, "there is no such file or folder")
    (tmp_path / "empty").mkdir()
    refuse(str(tmp_path / "empty"), tmp_path, "neither a dataset .* nor a Parquet file")
    none = write_rows(tmp_path / "none.parquet", [{"messages": user("Stop.")}])
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(none).slice(0, 0), none)
    refuse(none, tmp_path, "no rows to score")
    (tmp_path / "broken.parquet").write_text("no table")
    refuse(str(tmp_path / "broken.parquet"), tmp_path, "cannot be read")


def test_messages_of_another_type_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"messages": ["a text"]}), tmp_path / "text.parquet")
    refuse(
        str(tmp_path / "text.parquet"), tmp_path, r"'messages' of .* is string; expected a list of \{role, content\}"
    )


def test_a_dataset_without_the_split(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", n_validation=0)
    refuse(data, tmp_path, "its test split is empty")
    (tmp_path / "data" / "examples" / "test.parquet").unlink()
    refuse(data, tmp_path, "a dataset without a test split")


def test_models_that_cannot_answer(tmp_path: Path, tiny_model: str) -> None:
    talk = write_rows(tmp_path / "talk.parquet", [{"messages": user("Stop.")}])
    refuse(talk, tmp_path, "model 'nobody': neither a folder nor", model="nobody")
    refuse(talk, tmp_path, "adapter 'a': no adapter_config.json", model=f"{tiny_model}:a={tmp_path / 'none'}")
    with pytest.raises(UserError, match="one base a run, found"):
        score(talk, str(tmp_path / "out"), "replies", [tiny_model, "other/base"], ScoreConfig())
    small = load_config(None, ScoreConfig, ["llm.max_model_len=100"])
    refuse(talk, tmp_path, "sampling.max_tokens=128 leaves no room .* llm.max_model_len=100", tiny_model, config=small)


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path / "cache"))
    talk = write_rows(tmp_path / "talk.parquet", [{"messages": user("Stop.")}])
    large = write_adapter(tmp_path / "large", tiny_model, rank=65)
    refuse(talk, tmp_path, "rank 65, lora.max_rank=64", model=f"{tiny_model}:a={large}")
    strange = write_adapter(tmp_path / "strange", write_model(tmp_path / "other", head_dim=32))
    refuse(talk, tmp_path, "tuned on another base", model=f"{tiny_model}:a={strange}")


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    talk = write_rows(tmp_path / "talk.parquet", [{"messages": user("Stop.")}])
    url = f"http://127.0.0.1:{free_port()}"
    refuse(talk, tmp_path, f"endpoint {url}: cannot be reached", endpoint=url)
    refuse(talk, tmp_path, "serves adapters under their own names", model="m:a=/x", endpoint=url)


def test_features_take_one_judge(tmp_path: Path) -> None:
    turns = [{"turn_id": 0, "speaker": "A", "role": "officer", "text": "Stop."}]
    rows = write_rows(tmp_path / "rows.parquet", [{"turns": turns}])
    refuse(rows, tmp_path, "takes one --model without adapters", model="m:a=/x", task="features")
    refuse(rows, tmp_path, "not from an endpoint", task="features", endpoint="http://127.0.0.1:9")
