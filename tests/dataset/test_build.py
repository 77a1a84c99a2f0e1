"""The whole way from published files to a dataset, with the real redaction and tokenizer, on a real Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deescal.curate.job import import_csv
from deescal.dataset.build import build
from deescal.dataset.config import DatasetConfig
from deescal.errors import UserError
from deescal.models import MANIFEST, model_folder
from deescal.storage import locate, read_bytes

from .corpus import dialogue, write, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.engine]
CONFIG = DatasetConfig.model_validate(
    {
        "part_clips": 16,
        "bias": {"perplexity_share": 0.0},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "workers": {"workers": 1, "memory_gib": 1.5},
        "ray": {"num_cpus": 4, "object_store_gib": 0.2},
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An imported run of 40 invented files."""
    for name in ("spacy-en-md", "smollm2-135m"):
        if not (model_folder(name) / MANIFEST).is_file():
            pytest.skip(f"{name} is not fetched")
    folder = tmp_path_factory.mktemp("published")
    write_corpus(folder / "csv")
    import_csv([str(folder / "csv")], str(folder / "run"))
    yield folder / "run"
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def dataset(run: Path) -> Path:
    out = run.parent / "dataset"
    build([str(run)], str(out), CONFIG)
    return out


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder).to_pylist()


def test_every_turn_of_every_file_is_in_the_dataset_or_in_a_reason(run: Path, dataset: Path) -> None:
    stats = json.loads((dataset / "stats.json").read_text())
    turns = rows(dataset / "turns")
    assert len(turns) == stats["turns"]["total"] == 40 * 24
    assert stats["turns"]["kept"] + sum(stats["turns"]["dropped"].values()) == 960
    assert stats["turns"]["dropped"]["no words"] == 1
    scenarios = rows(dataset / "scenarios")
    assert len(scenarios) == stats["scenarios"]["total"] == stats["clips"]["accepted"] == 40
    (dropped,) = [s for s in scenarios if s["status"] == "dropped" and s["source"] == "tiktok"] or [None]
    assert stats["scenarios"]["dropped"] == {"duplicate": 2}
    assert dropped is None or dropped["duplicate_of"] in {s["scenario_id"] for s in scenarios}
    assert stats["leakage"]["ours"]["pairs"] == 0
    assert stats["leakage"]["official"]["pairs"] >= 1
    used = stats["turns"]["kept"] - sum(u["turns"] for u in stats["examples"]["unused"].values())
    assert used > 0.8 * stats["turns"]["kept"]


def test_libraries_read_the_examples_as_they_are(dataset: Path) -> None:
    from datasets import load_dataset

    splits = ("train", "validation", "test")
    loaded = load_dataset("parquet", data_files={s: str(dataset / "examples" / f"{s}.parquet") for s in splits})
    assert (
        sum(loaded[s].num_rows for s in splits) == json.loads((dataset / "stats.json").read_text())["examples"]["total"]
    )
    for split in splits:
        assert loaded[split].num_rows
        for example in loaded[split]:
            roles = [m["role"] for m in example["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
    incidents = [set(loaded[s]["incident_id"]) for s in splits]
    assert len(set.union(*incidents)) == sum(map(len, incidents))


def test_the_same_sources_give_the_same_bytes(run: Path, dataset: Path, tmp_path: Path) -> None:
    build([str(run)], str(tmp_path / "again"), CONFIG)
    names = {p.relative_to(dataset) for p in dataset.rglob("*") if p.is_file()}
    assert names == {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()}
    for name in names:
        assert (dataset / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_an_object_store_gives_the_same_bytes(s3, run: Path, dataset: Path) -> None:
    import ray

    ray.shutdown()  # its workers do not know the store
    filesystem, bucket = locate("s3://videos")
    filesystem.put(str(run), f"{bucket}/run", recursive=True)
    build(["s3://videos/run"], "s3://videos/dataset", CONFIG)
    names = {str(p.relative_to(dataset)) for p in dataset.rglob("*") if p.is_file()}
    assert names == {name.removeprefix(f"{bucket}/dataset/") for name in filesystem.find(f"{bucket}/dataset")}
    for name in names:
        assert read_bytes(f"s3://videos/dataset/{name}") == (dataset / name).read_bytes(), name
    ray.shutdown()


def test_a_dataset_grows_without_moving_what_it_holds(run: Path, dataset: Path, tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "more" / f"youtube_{900 + i}.csv", dialogue(500 + i))
    write(tmp_path / "more" / "youtube_999.csv", dialogue(4)[:-2])  # an old one, but for its end
    write(tmp_path / "more" / "copied.csv", dialogue(6))
    import_csv([str(tmp_path / "more")], str(tmp_path / "run"))
    before = {r["scenario_id"]: (r["incident_id"], r["split"]) for r in rows(dataset / "splits.parquet")}
    out = tmp_path / "grown"
    out.mkdir()
    (out / "splits.parquet").write_bytes((dataset / "splits.parquet").read_bytes())
    build([str(run), str(tmp_path / "run")], str(out), CONFIG)
    after = {r["scenario_id"]: (r["incident_id"], r["split"]) for r in rows(out / "splits.parquet")}
    assert {i: after[i] for i in before} == before
    assert len(after) == len(before) + 10
    assert json.loads((out / "stats.json").read_text())["clips"] == {"accepted": 51, "in_two_sources": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {"train": 0.98, "validation": 0.01, "test": 0.01, "seed": 3}}, "would be empty"),
        ({"examples": {"tokenizer": "no-such-model"}}, "no-such-model"),
    ],
)
def test_a_build_that_cannot_be_says_why(run: Path, tmp_path: Path, changes: dict, message: str) -> None:
    config = DatasetConfig.model_validate({**CONFIG.model_dump(), **changes})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stats.json").write_text("of an earlier build")
    with pytest.raises(UserError, match=message):
        build([str(run)], str(tmp_path / "out"), config)
    assert (tmp_path / "out" / "stats.json").read_text() == "of an earlier build"


def test_sources_that_are_no_transcripts_or_no_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.csv transcript"):
        import_csv([str(tmp_path / "empty")], str(tmp_path / "run"))
    with pytest.raises(UserError, match="not a run"):
        build([str(tmp_path / "empty")], str(tmp_path / "out"), CONFIG)
