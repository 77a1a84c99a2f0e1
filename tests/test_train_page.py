"""The page of a fine-tune and that of a sweep: their numbers, other people's words as text only, and a look."""

import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from deescal.report.charts import svg, thin
from deescal.report.sweep import best_runs, render_sweep_page, sweep_table, write_sweep_page
from deescal.report.train_page import render_train_page, write_train_page
from deescal.storage import write_json, write_table
from deescal.train.config import TrainConfig
from deescal.train.outcome import outcome
from deescal.train.tracking import metrics_lines, read_metrics
from tests.browser import opened
from tests.dataset.test_card import make_stats

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>$\\frac{$"
PARITY = {
    "good": True,
    "reason": "The adapter answers as it was trained, and not as the base does.",
    "rows": [
        {
            **{"what": "trainer against transformers and PEFT, loaded anew", "mean_difference": 0.0011},
            **{"max_difference": 0.024, "same_text": 1.0, "allowed": "mean at most 0.050", "ok": True},
        },
        {
            **{"what": "adapter against base", "mean_difference": 0.71, "max_difference": 9.3, "same_text": 0.0},
            **{"allowed": "mean at least 0.001", "ok": True},
        },
        {
            **{"what": "4-bit base against whole base", "mean_difference": None, "max_difference": None},
            **{"same_text": 0.25, "allowed": "", "ok": True},
        },
    ],
}


def make_rows(steps=300, seed=0, base=3.2, gain=1.1, gpu=False):
    """Rows of a metrics file: two attempts, the second from the checkpoint in the middle."""
    rng = random.Random(seed)
    every = max(steps // 6, 1)

    def rows(first, last, attempt):
        for step in range(first, last + 1):
            learnt = gain * (1 - 2.7 ** (-4 * step / steps))
            yield {
                **{"step": step, "epoch": 2 * step / steps, "loss": base + 0.1 - learnt + rng.gauss(0, 0.12)},
                **{"learning_rate": 2e-4 * min(step / (0.03 * steps), (steps - step) / steps)},
                **{"grad_norm": rng.lognormvariate(0, 0.3), "tokens": 8000 * step, "target_tokens": 2500 * step},
                **{"seconds": 19.0 * step, "tokens_per_s": rng.gauss(420, 20), "target_tokens_per_s": 131.0},
                **{"memory_gib": 3.1 + 0.4 * (step > 20), "mfu": 0.41 if gpu else None, "attempt": attempt},
            }
            if step % every == 0:
                yield {"step": step, "validation_loss": base - 0.9 * learnt, "attempt": attempt}

    yield {"step": 0, "validation_loss": base, "attempt": 1}
    yield from rows(1, steps // 2 + every // 2, 1)
    yield from rows(steps // 2 + 1, steps, 2)


def make_metrics(**how):
    return read_metrics(json.dumps(row) for row in make_rows(**how))


def make_validation(n=50, seed=0):
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        tokens, base = rng.randint(30, 900), rng.gauss(3.2, 0.35)
        tuned = base - rng.gauss(0.7, 0.35)
        rows.append(
            {
                **{"scenario_id": f"{i:032x}", "n_target_tokens": tokens},
                **{"base_nll": base * tokens, "tuned_nll": tuned * tokens},
            }
        )
    return rows


def make_reply(i, turns=9, text="Why did you stop me? I was just driving home."):
    said = ("Good evening. License and registration, please.", text)
    messages = [{"role": ("user", "assistant")[t % 2], "content": said[t % 2]} for t in range(turns)]
    return {
        **{"example_id": f"{i:032x}-0", "scenario_id": f"{i:032x}"},
        "messages": [{"role": "system", "content": "You are the civilian in an encounter with the police."}, *messages],
        **{"reference": text, "base": f"As a language model, I cannot drive. {text}", "tuned": "What did I do, man?"},
    }


def make_run(name="local", **changes):
    """run.json of a fine-tune."""
    return {
        "name": name,
        "deescal": "0.1.0",
        "started_at": "2026-01-02T03:04:05+00:00",
        "stopped": "after 2 epochs",
        "config": {**TrainConfig().model_dump(mode="json"), **changes},
        "base": {"name": "smollm2-135m", "sha256": {"model.safetensors": "5af5a1"}},
        "data": {"uri": "s3://bucket/dataset", "examples": {"train": {"sha256": "0c1d2e"}}},
        "versions": {"torch": "2.13.0", "peft": "0.20"},
    }


def test_page_from_the_files_of_a_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(metrics_lines(make_rows()))
    validation = make_validation()
    write_table(str(tmp_path / "validation.parquet"), pa.Table.from_pylist(validation))
    write_json(str(tmp_path / "replies.json"), [make_reply(i) for i in range(8)])
    write_json(str(tmp_path / "parity.json"), PARITY)
    page = Path(write_train_page(make_run(), str(tmp_path), make_stats())).read_text()
    result = outcome(make_metrics(), validation, PARITY)
    scenarios = result["scenarios"]
    assert f"validation loss {result['base_loss']:.3f} → {result['tuned_loss']:.3f}" in page
    assert f"{scenarios['better']} of 50" in page
    change = [f"{abs(scenarios['change'][k]):.3f}" for k in ("estimate", "low", "high")]
    assert "Change −{} (95\u00a0% interval −{} to −{}) over 50 held-out scenarios".format(*change) in page
    assert "300 steps, ended after 2 epochs; 1 restart, 25 logged steps done again. 2 January 2026" in page
    assert "The export is good." in page
    assert (page.count(">passed<"), page.count(">not judged<")) == (2, 1)
    assert page.count("As a language model, I cannot drive.") == 8
    assert "2 more prompts" in page
    assert "optim.learning_rate" in page
    assert "5af5a1" in page
    assert "0c1d2e" in page
    assert page.count("<svg") == 8


def test_page_of_a_refused_export_says_why():
    parity = {
        "good": False,
        "reason": "The text differs in 3 of 8 prompts.",
        "rows": [{**PARITY["rows"][0], "ok": False}],
    }
    page = render_train_page(make_run(), make_metrics(steps=12), parity=parity)
    assert "The export is refused." in page
    assert "The text differs in 3 of 8 prompts." in page
    assert "✗ refused" in page
    assert "The export is good." not in page


def test_page_of_little():
    """A run that ended at once, and one that diverged."""
    page = render_train_page(make_run(), read_metrics([]))
    assert "0 steps" in page
    assert "The export was not checked." in page
    row = next(r for r in make_rows(steps=3) if "loss" in r)
    diverged = read_metrics([json.dumps({**row, "loss": None, "grad_norm": None})])
    page = render_train_page(make_run(), diverged, validation=make_validation(1))
    assert "The training loss was not a finite number in 1 row of the log." in page
    assert "no interval: fewer than two scenarios" in page
    assert "Gradient norm" not in page


def test_number_of_a_gpu_is_shown_where_there_is_one():
    assert "Model FLOPs utilisation" in render_train_page(make_run(), make_metrics(gpu=True))
    assert "Model FLOPs utilisation" not in render_train_page(make_run(), make_metrics())


def hostile_page():
    run = make_run(model=EVIL)
    run |= {"stopped": EVIL, "started_at": EVIL, "base": {EVIL: EVIL}, "data": {EVIL: EVIL}, "deescal": EVIL}
    parity = {**PARITY, "reason": EVIL, "rows": [{**PARITY["rows"][0], "what": EVIL}]}
    reply = {**make_reply(1, text=EVIL), "example_id": EVIL, "tuned": EVIL}
    reply["messages"][0]["role"] = EVIL
    return render_train_page(
        run, make_metrics(steps=12), validation=make_validation(3), replies=[reply], parity=parity, stats=make_stats()
    )


def test_words_of_others_stay_text():
    page = hostile_page()
    assert "alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"?https?:", page)


def test_charts_keep_to_themselves():
    """Two charts on one page neither style each other nor share an id, and take the page's colours."""

    def draw(figure):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#0072b2", marker="o")
        axes.set_xlabel("<b>")

    first, second = svg(draw, "first", 200, 100), svg(draw, "second", 200, 100)
    assert "<style" not in first
    assert "var(--chart-blue)" in first
    assert "#0072b2" not in first
    assert "&lt;b&gt;" in first
    ids = [set(re.findall(r'id="([^"]+)"', chart)) for chart in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert svg(draw, "first", 200, 100) == first


def test_thin_keeps_the_extremes_of_a_long_line():
    ys = [float(i % 7) for i in range(10_000)]
    ys[5_000], ys[5_001], ys[9_999] = 100.0, -100.0, None
    xs, thinned = thin(range(10_000), ys)
    assert len(xs) <= 800
    assert xs == sorted(xs)
    assert (thinned[xs.index(5_000)], thinned[xs.index(5_001)]) == (100.0, -100.0)
    assert thin([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])
    assert all(y != y for y in thin(range(10_000), [None] * 10_000)[1])


def make_sweep():
    """Four runs: two good, one refused though it has the lowest loss, one that failed."""
    runs, metrics = [], {}
    for i, (name, gain) in enumerate((("r8", 0.9), ("r16", 1.1), ("r16 merged", 1.3))):
        metrics[i] = make_metrics(seed=i, gain=gain)
        parity = {**PARITY, "good": i != 2, "reason": "text differs"}
        lora = {**TrainConfig().lora.model_dump(), "r": 8 * (i + 1)}
        runs.append({**make_run(name, lora=lora), "result": outcome(metrics[i], parity=parity)})
    return [*runs, {**make_run("r64", method="full"), "error": "out of memory"}], metrics


def test_sweep_marks_the_best_good_run():
    runs, _ = make_sweep()
    assert best_runs(runs) == {1}
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(sweep_table(runs))
    text = console.export_text()
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["r8", "r16", "r16", "r64"]
    for found in ("16 / 32", "refused: text differs", "out of memory", "0.0002", "95 min"):
        assert found in text


def test_best_is_of_each_model():
    runs, _ = make_sweep()
    other = {**runs[0], "config": {**runs[0]["config"], "model": "another"}}
    assert best_runs([*runs, other]) == {1, 4}
    assert "of each model" in render_sweep_page([*runs, other], {})


def test_sweep_page_from_the_folders_of_its_runs(tmp_path):
    runs, _ = make_sweep()
    for i, run in enumerate(runs):
        run["out"] = str(tmp_path / str(i))
        if "error" not in run:
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "metrics.jsonl").write_text(metrics_lines(make_rows(seed=i)))
    runs[0]["name"] = EVIL
    page = Path(write_sweep_page(runs, str(tmp_path))).read_text()
    assert "4 fine-tunes" in page
    assert page.count('class="best"') == 1
    assert page.count("<svg") == 2
    assert "<script" not in page
    assert "<img" not in page


@pytest.mark.browser
def test_pages_in_a_browser(tmp_path):
    (tmp_path / "report.html").write_text(hostile_page())
    with opened(tmp_path / "report.html") as (page, trouble, requests):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".chart.narrow svg").is_visible()
        assert not page.locator(".chart.wide svg").is_visible()
        assert page.locator(".answers .after .said").inner_text() == EVIL
        page.set_viewport_size({"width": 1280, "height": 900})
        assert page.locator(".chart.wide svg").is_visible()
        line = page.locator(".chart.wide path[style*='--chart-blue']").first
        assert line.evaluate("e => getComputedStyle(e).stroke") == "rgb(0, 114, 178)"
        page.emulate_media(color_scheme="dark")
        assert line.evaluate("e => getComputedStyle(e).stroke") == "rgb(61, 155, 224)"
        page.locator("#made summary").click()
        assert page.get_by_text("optim.learning_rate").is_visible()
        (tmp_path / "sweep.html").write_text(render_sweep_page(*make_sweep()))
        page.goto((tmp_path / "sweep.html").as_uri())
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert trouble == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
