"""The report: numbers that add up, a bounded page, and other people's words as text only."""

import hashlib
import io
import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from deescal.curate.plan import STAGES
from deescal.judge.taxonomy import BY_GROUP, NAMES
from deescal.report import funnel_table, stage_table, summarize, write_report
from deescal.report.page import STEP_NAMES, script_json
from deescal.report.summary import MAX_LISTED, MAX_SAMPLES, MAX_TURNS, STATUSES, Histogram, cause_of
from deescal.schema import empty_row, to_table
from tests.browser import opened

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted" \u2028'
PRESENT = {"police_commands_present": [0], "civilian_questioning_police": [1, 3], "conversation_present": []}


def turns(n, text="Why did you stop me?"):
    return [
        {
            **{"turn_id": i, "start_s": 3.0 * i, "end_s": 3.0 * i + 2.5, "speaker": "AB"[i % 2]},
            **{"role": ("officer", "civilian")[i % 2], "text": text, "words": []},
            **{"overlap_share": 0.3 * (i % 2), "assignment_margin": 0.9, "asr_confidence": 0.8},
        }
        for i in range(n)
    ]


def make_row(
    i, status="accepted", *, reason="code: police 3 >= 2", stage="judge", text="Hello.", n_turns=6, aliases=()
):
    """A plausible finished row; a failed one ends with `stage`, whose error is `reason`."""
    clip_id = hashlib.sha256(str(i).encode()).hexdigest()[:32]
    row = empty_row(clip_id=clip_id, uri=f"videos/{i}.mp4", status=status, reason=reason, duration_s=60.0)
    run = STAGES if status != "failed" else STAGES[: STAGES.index(stage) + 1]
    row["stages"] = [{"stage": s, "fingerprint": "f", "seconds": 0.5} for s in run]
    row["aliases"] = [{"uri": uri, "source_version": "1", "source": {}} for uri in aliases]
    if status == "failed":
        return {**row, "failed_stage": stage, "error": reason, "attempts": 1}
    row["turns"] = turns(n_turns, text)
    row["covered_share"] = 0.95
    row["speakers"] = [
        {"speaker": s, "role": r, "confidence": 0.9, "speech_s": 7.5} for s, r in (("A", "officer"), ("B", "civilian"))
    ]
    row["features"] = [
        {
            "name": n,
            "probability": 0.9 if n in PRESENT else 0.1,
            "present": n in PRESENT,
            "evidence": PRESENT.get(n, []),
        }
        for n in NAMES
    ]
    row["scores"] = {group: sum(n in PRESENT for n in names) for group, names in BY_GROUP.items()}
    return row


def run_of(summary, **values):
    """A run.json that fits the rows."""
    stages = {
        s: {"clips": c.clips, "audio_h": c.audio_s / 3600, "seconds": c.seconds} for s, c in summary.stages.items()
    }
    known = {"deescal": "0.1.0", "inputs": summary.inputs, "wall_s": 12.0, "started_at": "2026-01-02T03:04:05+00:00"}
    made = {"config": {"judge": {"threshold": 0.5}}, "models": {"judge": "m@1"}, "versions": {"ray": "2"}}
    return {**known, **made, "stages": stages, **values}


def mixed(n):
    return [make_row(i, STATUSES[i % 3], reason=f"no speech in {i}.5 s") for i in range(n)]


rows_strategy = st.lists(
    st.builds(
        make_row,
        st.integers(0, 10**9),
        st.sampled_from(STATUSES),
        reason=st.text(max_size=30) | st.none(),
        stage=st.sampled_from(STAGES),
        n_turns=st.integers(0, 3),
        aliases=st.lists(st.text(min_size=1, max_size=5), max_size=2),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(rows_strategy)
def test_counts_conserve(rows):
    summary = summarize(iter(rows))
    assert sum(summary.status.values()) == summary.rows == len(rows)
    assert summary.inputs == len(rows) + sum(len(row["aliases"]) for row in rows)
    assert sum(summary.rejected.values()) == summary.status["rejected"]
    assert sum(sum(causes.values()) for causes in summary.failed.values()) == summary.status["failed"]
    steps = summary.funnel()
    assert all(a.left == b.entered for a, b in pairwise(steps))
    assert (steps[-1].left if steps else 0) == summary.status["accepted"] + summary.status["rejected"]


@settings(deadline=None)
@given(rows_strategy, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, random):
    rows = list({row["clip_id"]: row for row in rows}.values())
    shuffled = random.sample(rows, len(rows))
    one, other = summarize(rows), summarize(shuffled)
    assert one.samples == other.samples
    assert one.failures == other.failures
    assert one.alias_names == other.alias_names
    assert one.rejected == other.rejected


def test_a_row_under_way_cannot_be_reported():
    with pytest.raises(ValueError, match="status is None"):
        summarize([{**make_row(1), "status": None}])


def test_samples_are_spread_over_outcomes_and_causes():
    rejected = [make_row(i, "rejected", reason="code: police 1 < 2") for i in range(50)]
    rare = make_row(99, "rejected", reason="code: context filter training_range_context (p 0.91)")
    failed = [make_row(i, "failed", stage="transcribe", reason="no speech") for i in range(100, 110)]
    samples = summarize([*rejected, rare, *failed, *(make_row(i) for i in range(200, 300))]).samples
    assert len(samples) == MAX_SAMPLES
    assert Counter(row["status"] for row in samples) == {"accepted": 6, "rejected": 3, "failed": 3}
    assert rare["clip_id"] in {row["clip_id"] for row in samples}


def test_few_clips_are_all_shown():
    assert len(summarize([make_row(1), make_row(2, "failed", reason="no audio stream")]).samples) == 2


@pytest.mark.parametrize(
    ("status", "text", "cause"),
    [
        ("accepted", "code: police 3 >= 2", ""),
        ("rejected", "code: police 1 < 2, interaction 0 < 2", "code: police < 2, interaction < 2"),
        ("rejected", "code: context filter no_police_presence (p 0.91)", "code: context filter no_police_presence"),
        ("failed", "no speech in 20.1 s of audio", "no speech in … s of audio"),
        ("failed", "cannot read 's3://bucket/a b.mp4': it isn't media", "cannot read …: it isn't media"),
        ("failed", "", "no reason given"),
    ],
)
def test_causes_of_a_kind_are_one(status, text, cause):
    assert cause_of(make_row(1, status, reason=text)) == cause


def test_feature_shares_and_trust():
    summary = summarize([make_row(1), make_row(2, "rejected"), make_row(3, "failed")])
    assert summary.judged == {"accepted": 1, "rejected": 1}
    assert summary.present["police_commands_present"] == {"accepted": 1, "rejected": 1}
    assert summary.present["training_range_context"] == {}
    assert summary.trust["covered_share"].n == 2
    assert summary.trust["overlap_share"].n == 12
    assert summary.trust["asr_confidence"].median() == pytest.approx(0.8)


def test_histogram_takes_edges_and_ignores_what_is_no_number():
    histogram = Histogram()
    for value in (0.0, 1.0, None, float("nan")):
        histogram.add(value)
    assert (histogram.n, histogram.bins[0], histogram.bins[-1], histogram.median()) == (2, 1, 1, 0.0)


def text_of(table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_tables():
    summary = summarize(
        [make_row(1, aliases=["b"]), make_row(2, "failed", stage="transcribe", reason="[red]no speech")]
    )
    funnel = text_of(funnel_table(summary))
    assert re.search(r"inputs\s+3\n", funnel)
    assert re.search(r"transcribe: \S*no speech\s+1\n", funnel)
    assert re.search(r"accepted\s+1\n", funnel)
    stages = text_of(stage_table(summary, {"judge": {"clips": 1, "audio_h": 0.5, "seconds": 90.0}}))
    assert re.search(r"judge\s+1\s+0.50\s+90.0\s+20\n", stages)
    assert re.search(r"transcribe\s+2\s+0.03\s+1.0\s+120\n", text_of(stage_table(summary)))
    assert text_of(stage_table(summarize([])))


def test_step_names_are_the_stages():
    assert tuple(STEP_NAMES) == STAGES


def write(tmp_path, rows, **values):
    to_table(rows)  # the fakes are rows that could exist
    summary = summarize(iter(rows))
    uri = write_report(summary, run_of(summary, **values), str(tmp_path))
    return (tmp_path / "report.html").read_text() if uri.endswith("report.html") else ""


def test_page_shows_the_numbers(tmp_path):
    page = write(tmp_path, [*mixed(30), make_row(99, aliases=["copy.mp4"])])
    assert "<h1" in page
    assert "32 inputs became 11 accepted clips" in page
    assert "copy.mp4" in page
    assert "judge.threshold" in page
    assert "do not add up" not in page
    assert "do not add up" in write(tmp_path, mixed(3), inputs=4)


def test_the_page_says_that_the_judge_is_not_calibrated(tmp_path):
    judge = {"llm": {"model": "some-7b"}, "judge": {"calibration": "none"}}
    assert "Judge not calibrated for some-7b" in write(tmp_path, [make_row(1)], config={"interpret": judge})
    judge["judge"]["calibration"] = None
    assert "not calibrated" not in write(tmp_path, [make_row(1)], config={"interpret": judge})


def test_page_of_an_empty_run_or_with_little_known(tmp_path):
    assert "0 inputs" in write(tmp_path, [])
    write_report(summarize([make_row(1)]), {}, str(tmp_path))
    assert "1 input became 1 accepted clip<" in (tmp_path / "report.html").read_text()


def test_page_is_bounded(tmp_path):
    small = write(tmp_path, mixed(60))
    rows = [make_row(i, STATUSES[i % 3], reason=f"cause {'x' * (i % 150)}", n_turns=8) for i in range(3000)]
    rows[0]["aliases"] = [{"uri": f"alias{i}.mp4", "source_version": "", "source": {}} for i in range(3000)]
    large = write(tmp_path, rows)
    assert large.count("alias") < 3 * MAX_LISTED
    assert f"{MAX_LISTED} of 1,000 are listed" in large
    assert len(large) < len(small) + 150_000


def test_a_long_clip_is_cut(tmp_path):
    summary = summarize([make_row(1, n_turns=MAX_TURNS + 5)])
    assert len(summary.samples[0]["turns"]) == MAX_TURNS
    assert summary.samples[0]["all_turns"] == MAX_TURNS + 5


def test_words_of_others_stay_text(tmp_path):
    rows = [
        {**make_row(1, text=EVIL, reason=EVIL, aliases=[EVIL]), "uri": EVIL},
        make_row(2, "rejected", reason=EVIL),
        {**make_row(3, "failed", reason=EVIL), "uri": EVIL},
    ]
    page = write(tmp_path, rows, config={EVIL: EVIL}, models={"judge": EVIL}, deescal=EVIL, started_at=EVIL)
    assert "<img" not in page
    assert page.count("<script") == page.count("</script") == 2  # the data and the page's own
    assert '"owned"</script>' not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["clips"][0]["turns"][0]["text"] == EVIL


@given(st.text() | st.just("</script><!--"))
def test_script_json_is_json_without_markup(text):
    written = script_json([text])
    assert json.loads(written) == [text]
    assert not set("<>&\u2028\u2029") & set(written)


def test_page_names_audio_only_where_it_is(tmp_path):
    there, gone, outside = make_row(1), make_row(2), make_row(3)
    for row in (there, gone):
        row["audio"] = f"audio/{row['clip_id']}.flac"
    outside["audio"] = "../secret.flac"
    (tmp_path / "audio").mkdir()
    (tmp_path / there["audio"]).write_bytes(b"fLaC")
    page = write(tmp_path, [there, gone, outside])
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert sorted(str(clip["audio"]) for clip in data["clips"]) == ["None", "None", there["audio"]]


@pytest.mark.browser
def test_page_in_a_browser(tmp_path):
    write(tmp_path, [make_row(1, text=EVIL), make_row(2), make_row(3, "failed", reason=EVIL)])
    with opened(tmp_path / "report.html") as (page, trouble, requests):
        assert page.locator("#clip option").count() == 3
        first = page.locator("#clip-title").inner_text()
        page.locator("#clip").select_option(index=1)
        assert page.locator("#clip-title").inner_text() != first
        assert page.locator("g[data-turn]").count() == page.locator("li[data-turn]").count() == 6

        page.get_by_role("button", name="civilian questioning police").click()
        assert page.locator("li.shown").count() == page.locator("g.shown").count() == 2
        assert "2 turns show" in page.locator("#found").inner_text()
        page.locator("#zoom-in").click()
        assert page.locator("g.shown").count() == 2
        page.locator("li[data-turn='4']").click()
        assert page.locator("g.chosen").get_attribute("data-turn") == "4"

        page.locator("#clip").select_option(index=2)
        assert not page.locator("#timeline-box").is_visible()
        assert page.title() == "2 of 3 clips accepted · deescal"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert trouble == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
