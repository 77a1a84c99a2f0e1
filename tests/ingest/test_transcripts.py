"""What is listed, and what the stage 'import' makes of it; Ray is played by a table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from deescal.curate.plan import reopen
from deescal.errors import UserError
from deescal.export import export_run
from deescal.ingest import transcripts
from deescal.ingest.sources import Input
from deescal.ingest.transcripts import import_transcripts, list_transcripts
from deescal.judge.features import JudgeConfig
from deescal.judge.stage import InterpretConfig, Interpreter
from deescal.schema import Row, empty_row, to_table
from deescal.stage import Ledger, Run

CSV = "start_time,speaker_label,transcript\n00:01,[Officer],Step out.\n00:04,[Driver],\n"
TURN = '{"turns": [{"speaker": "A", "text": "%s"}]}\n'


class Table:
    """The one method of a `ray.data.Dataset` that the stage needs."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def map_batches(self, batch, **options) -> Table:
        done: list[pa.Table] = [batch(to_table([row])) for row in self.rows]
        return Table([row for table in done for row in table.to_pylist(maps_as_pydicts="strict")])


def seeds(inputs: list[Input]) -> list[Row]:
    return [empty_row(uri=i.uri, source_version=i.version, source=dict(i.extra), aliases=[], stages=[]) for i in inputs]


def import_rows(rows: list[Row], ledger: Ledger | None = None, **options) -> list[Row]:
    run = Run("out", {"import": "i1"}, ledger or Ledger())
    return import_transcripts(Table(rows), run, **options).rows  # type: ignore[arg-type, attr-defined]


def names(folder: Path, *sources: str) -> list[str]:
    return [i.uri.removeprefix(f"{folder}/") for i in list_transcripts([f"{folder}/{s}".rstrip("/") for s in sources])]


def test_a_jsonl_file_is_a_clip_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.jsonl").write_text("{}\n\n{}\r\n")
    (tmp_path / "notes.txt").write_text("")
    assert names(tmp_path, "") == ["a.csv", "b.jsonl#1", "b.jsonl#3"]
    assert names(tmp_path, "*.csv", "a.csv") == ["a.csv"]
    with pytest.raises(UserError, match=r"no \.csv or \.jsonl"):
        list_transcripts([str(tmp_path / "none")])


def test_lines_end_at_line_feeds_only_and_names_may_have_any_character(tmp_path: Path) -> None:
    """Our own export writes U+2028 and U+0085 as they are."""
    (tmp_path / "case #12.csv").write_text(CSV)
    (tmp_path / "log.jsonl#3.csv").write_text(CSV.replace("Step", "Get"))
    (tmp_path / "talk [1].jsonl").write_text(TURN % "one\u2028two\x85three" + TURN % "four")
    assert names(tmp_path, "talk [1].jsonl") == ["talk [1].jsonl#1", "talk [1].jsonl#2"]
    rows = import_rows(seeds(list_transcripts([str(tmp_path)])))
    assert [row["turns"][0]["text"] for row in rows] == ["Step out.", "Get out.", "one\u2028two\x85three", "four"]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("train/youtube_12.csv", {"platform": "youtube", "official_split": "train"}),
        ("Val/TikTok-12.csv", {"platform": "tiktok", "official_split": "validation"}),
        ("train/more/x_1.csv", {"platform": "x"}),
        ("dev/youtube.csv", {"official_split": "validation"}),
        ("clips/case_12.csv", {}),
    ],
)
def test_platform_and_official_split_are_in_the_names(tmp_path: Path, name: str, extra: dict[str, str]) -> None:
    path = tmp_path / "corpus" / name
    path.parent.mkdir(parents=True)
    path.write_text(CSV)
    (item,) = list_transcripts([str(tmp_path / "corpus")])
    assert item.extra == extra


def test_an_imported_row_has_turns_oddities_and_an_id_of_its_content(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(CSV)
    ledger = Ledger()
    row, copy = import_rows(seeds(list_transcripts([str(tmp_path)])), ledger)
    assert [turn["text"] for turn in row["turns"]] == ["Step out.", ""]
    assert (row["oddities"], row["duration_s"], row["status"]) == ({"empty_text": 1}, 4.0, None)
    assert (copy["clip_id"], copy["status"]) == (row["clip_id"], "duplicate")
    assert import_rows([row], ledger) == [row], "what is done is not done again"


def test_without_judging_a_row_is_accepted_as_published(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "b.csv").write_text("nothing")
    good, bad = import_rows(seeds(list_transcripts([str(tmp_path)])), accept=True)
    assert (good["status"], good["reason"]) == ("accepted", "as published")
    assert (bad["status"], bad["failed_stage"]) == ("failed", "import")


def test_a_failed_import_is_tried_again_on_what_the_file_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("start_time,text\n1,x\n")
    item = list_transcripts([str(tmp_path)])
    (failed,) = import_rows(seeds(item))
    assert failed["status"] == "failed"
    (again,) = import_rows([reopen(failed, {"import": "i1"})], Ledger({failed["clip_id"]: failed["uri"]}))
    assert (again["status"], again["attempts"], again["clip_id"]) == ("failed", 2, failed["clip_id"])
    path.write_text(CSV)
    (mended,) = import_rows([reopen(again, {"import": "i1"})])
    assert mended["turns"][0]["text"] == "Step out."
    assert mended["clip_id"] != failed["clip_id"]
    path.unlink()
    (gone,) = import_rows(seeds(item))
    assert gone["error"] == "file not found"


@pytest.mark.filterwarnings("ignore:the judge is not calibrated")
def test_turns_without_words_or_times_can_be_judged_and_exported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV + "soon,[Driver],\n,Somebody,\n")
    (row,) = import_rows(seeds(list_transcripts([str(tmp_path)])))
    config = InterpretConfig(engine="tests.judge.fake_llm:FakeLlm", judge=JudgeConfig(calibration="none"))
    run = Run("out", {"roles": "r1", "judge": "j1"}, Ledger())
    judged = Interpreter(config, run.stage("roles"), run.stage("judge"))(to_table([row]))
    (row,) = judged.to_pylist(maps_as_pydicts="strict")
    assert len(row["features"]) == 30
    assert [turn["text"] for turn in row["turns"]] == ["Step out.", "", "", ""]
    assert all(turn["role"] for turn in row["turns"])
    for fmt in ("csv", "srt", "vtt", "rttm", "jsonl"):
        export_run([row], fmt, str(tmp_path / fmt), "all")
    again = import_rows(seeds(list_transcripts([str(tmp_path / "jsonl")])))
    assert [turn["text"] for turn in again[0]["turns"]] == ["Step out.", "", "", ""]


@pytest.mark.parametrize("start_s", ["soon", float("inf"), -1, [1]])
def test_a_line_that_does_not_fit_is_a_failed_row(tmp_path: Path, start_s: object) -> None:
    turn = {"speaker": "A", "text": "x", "start_s": start_s}
    (tmp_path / "a.jsonl").write_text(json.dumps({"turns": [turn]}) + "\n" + TURN % "fine")
    bad, good = import_rows(seeds(list_transcripts([str(tmp_path)])))
    assert "turn 0: start_s" in bad["error"]
    assert good["turns"][0]["text"] == "fine"


def test_a_jsonl_file_is_fetched_once_for_all_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(TURN % f"line {i}" for i in range(9)))
    found = list_transcripts([str(path)])
    fetched: list[str] = []
    read = transcripts.read_bytes
    monkeypatch.setattr(transcripts, "read_bytes", lambda uri: fetched.append(uri) or read(uri))
    assert [row["turns"][0]["text"] for row in import_rows(seeds(found))] == [f"line {i}" for i in range(9)]
    assert fetched == [str(path)]
    path.write_text(TURN % "changed")
    changed, gone = import_rows(seeds([*list_transcripts([str(path)]), Input(f"{path}#9", "v")]))
    assert changed["turns"][0]["text"] == "changed"
    assert "no such line" in gone["error"]
