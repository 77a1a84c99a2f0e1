"""The log of a fine-tune: what survives kills and restarts, and the numbers that it comes to."""

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deescal.errors import UserError
from deescal.train.outcome import compare_scenarios, outcome
from deescal.train.progress import TrainProgress, seconds_left
from deescal.train.tracking import Restart, loss_png, metrics_lines, read_metrics, smooth


def trained(step, attempt=1, **values):
    """A row of training; a step takes 2 s and 100 tokens, 40 of them targets."""
    return {
        "step": step,
        "epoch": step / 50,
        "loss": 3.0 - 0.01 * step,
        "learning_rate": 2e-4,
        "grad_norm": 1.0,
        "tokens": 100 * step,
        "target_tokens": 40 * step,
        "seconds": 2.0 * step,
        "tokens_per_s": 50.0,
        "target_tokens_per_s": 20.0,
        "memory_gib": 3.0 + 0.01 * step,
        "mfu": None,
        "attempt": attempt,
        **values,
    }


def validated(step, loss, attempt=1):
    return {"step": step, "validation_loss": loss, "attempt": attempt}


def lines(*rows):
    return [json.dumps(row) for row in rows]


def test_rows_come_back_as_they_were_written():
    rows = [validated(0, 3.1), trained(1), trained(2), validated(2, 2.9)]
    metrics = read_metrics(metrics_lines(rows).splitlines())
    assert metrics.training == rows[1:3]
    assert metrics.validation == [rows[0], rows[3]]
    assert (metrics.base, metrics.best, metrics.restarts) == (rows[0], rows[3], [])


def test_a_loss_that_is_not_finite_is_null_for_every_reader():
    text = metrics_lines([trained(1, loss=math.nan, grad_norm=math.inf)])
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
    assert read_metrics([text]).training[0]["grad_norm"] is None


def test_a_last_line_that_was_cut_is_skipped():
    text = metrics_lines([trained(1), trained(2)])
    assert [row["step"] for row in read_metrics(text[:-9].splitlines()).training] == [1]


def test_a_broken_line_that_is_not_the_last_is_named():
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not JSON"):
        read_metrics([*lines(trained(1)), '{"step', *lines(trained(3))])


def test_after_a_restart_the_later_attempt_stands():
    first = [validated(0, 3.0), *(trained(s) for s in range(1, 8)), validated(5, 2.6)]
    second = [*(trained(s, 2, loss=1.0) for s in (6, 7)), trained(8, 2)]
    metrics = read_metrics(lines(*first, *second))
    assert [(row["step"], row["attempt"]) for row in metrics.training] == [
        *((s, 1) for s in range(1, 6)),
        *((s, 2) for s in range(6, 9)),
    ]
    assert metrics.restarts == [Restart(attempt=2, step=6, reached=7)]
    assert metrics.restarts[0].repeated == 2
    assert [row["step"] for row in metrics.validation] == [0, 5]


def test_what_a_dead_attempt_did_beyond_the_checkpoint_is_no_history():
    first = [*(trained(s) for s in range(1, 30)), validated(10, 2.5), validated(20, 0.1)]
    metrics = read_metrics(lines(*first, trained(11, 2), trained(12, 2)))
    assert [row["step"] for row in metrics.training] == list(range(1, 13))
    assert metrics.best == validated(10, 2.5)
    assert metrics.restarts == [Restart(2, 11, 29)]


def test_the_best_of_a_run_that_got_worse_is_none_the_less_of_the_run():
    metrics = read_metrics(
        lines(validated(0, 3.0), trained(1), validated(1, 3.2), validated(2, 3.1), validated(3, None))
    )
    assert metrics.best == validated(2, 3.1)


def test_a_start_without_any_step_is_no_restart_and_the_base_is_kept_once():
    metrics = read_metrics(lines(validated(0, 3.0), validated(0, 3.5, 2), trained(1, 2)))
    assert metrics.restarts == []
    assert metrics.validation == [validated(0, 3.5, 2)]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=5))
def test_each_step_stands_once_whatever_restarts(plan):
    """Attempts that go back to any step that was reached, each for some steps."""
    rows, reached = [], 0
    for attempt, (back, n) in enumerate(plan, 1):
        start = max(reached - back, 0)
        rows += [trained(step, attempt) for step in range(start + 1, start + n + 1)]
        reached = start + n
    metrics = read_metrics(lines(*rows))
    assert [row["step"] for row in metrics.training] == list(range(1, reached + 1))
    attempts = [row["attempt"] for row in metrics.training]
    assert attempts == sorted(attempts)
    assert attempts[-1] == len(plan)
    assert outcome(metrics)["restarts"] == len(plan) - 1


def test_smooth_keeps_a_constant_and_gaps_and_lags_a_jump():
    assert smooth([2.0, 2.0, None, 2.0]) == pytest.approx([2.0, 2.0, None, 2.0])
    assert smooth([3.0, 1.0, 2.0], weight=0.0) == [3.0, 1.0, 2.0]
    jump = smooth([0.0] * 10 + [1.0] * 10)
    assert jump[9] == 0
    assert 0 < jump[10] < jump[19] < 1


def test_loss_png(tmp_path):
    from matplotlib.image import imread

    rows = [validated(0, 3.2), *(trained(s, loss=None if s == 3 else 3.0 / s) for s in range(1, 2000))]
    loss_png(read_metrics(lines(*rows, validated(1999, 1.0))), tmp_path / "loss.png")
    assert imread(tmp_path / "loss.png").shape == (800, 1600, 4)
    loss_png(read_metrics([]), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def scenario(i, n=10, base=30.0, tuned=25.0):
    return {"scenario_id": f"{i:032x}", "n_target_tokens": n, "base_nll": base, "tuned_nll": tuned}


def test_loss_is_a_mean_over_tokens_and_its_interval_over_scenarios():
    rows = [scenario(0, n=10, base=40.0, tuned=20.0), scenario(1, n=30, base=60.0, tuned=90.0), scenario(2, n=0)]
    found = compare_scenarios(rows)
    assert (found["n"], found["better"]) == (2, 1)
    assert found["base"]["estimate"] == pytest.approx(100 / 40)
    assert found["change"]["estimate"] == pytest.approx(10 / 40)
    # Of two scenarios, a resample has one of them twice or both.
    assert (found["base"]["low"], found["base"]["high"]) == pytest.approx((2.0, 4.0))
    assert compare_scenarios(rows) == found


def test_interval_covers_the_truth_about_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        n = rng.integers(20, 200, size=40)
        change = rng.normal(-0.2, 0.3, size=40)  # of a scenario's loss; independent of its length, so the mean is -0.2
        rows = [scenario(i, int(k), 3.0 * k, (3.0 + c) * k) for i, (k, c) in enumerate(zip(n, change, strict=True))]
        found = compare_scenarios(rows)["change"]
        covered += found["low"] <= -0.2 <= found["high"]
    assert 86 <= covered <= 99


def test_too_few_scenarios_have_no_interval_but_a_reason():
    found = compare_scenarios([scenario(0)])
    assert found["base"] == {"estimate": 3.0, "low": None, "high": None, "reason": "fewer than two scenarios"}
    assert compare_scenarios([]) is None
    assert compare_scenarios([scenario(0, n=0)]) is None


def test_nothing_learnt_is_no_change():
    found = compare_scenarios([scenario(i, tuned=30.0) for i in range(5)])
    assert found["better"] == 0
    assert found["change"] == {"estimate": 0.0, "low": 0.0, "high": 0.0, "reason": None}


def test_outcome_of_a_run():
    rows = [validated(0, 3.0), *(trained(s) for s in range(1, 8)), validated(5, 2.5)]
    rows += [trained(s, 2, mfu=0.4) for s in range(6, 11)] + [validated(10, 2.7, 2)]
    parity = {"good": False, "reason": "text differs", "rows": []}
    found = outcome(read_metrics(lines(*rows)), [scenario(0), scenario(1)], parity)
    assert (found["steps"], found["best_step"], found["restarts"], found["repeated_steps"]) == (10, 5, 1, 2)
    assert (found["tokens_per_s"], found["target_tokens_per_s"]) == (50.0, 20.0)
    assert (found["base_loss"], found["tuned_loss"]) == pytest.approx((3.0, 2.5))
    assert (found["mfu"], found["peak_memory_gib"]) == pytest.approx((0.4, 3.1))
    assert found["export"] == {"good": False, "reason": "text differs"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    measured = outcome(read_metrics(lines(*rows)))
    assert (measured["base_loss"], measured["tuned_loss"], measured["scenarios"]) == (3.0, 2.5, None)


def test_outcome_of_a_run_that_did_nothing():
    found = outcome(read_metrics([]))
    assert found["steps"] == 0
    assert {found[k] for k in ("base_loss", "tuned_loss", "tokens_per_s", "mfu", "best_step", "export")} == {None}


def test_time_left_is_at_the_pace_of_this_attempt():
    assert seconds_left(trained(1), trained(1), 100) is None
    assert seconds_left(trained(10), trained(20), 100) == pytest.approx(160.0)
    # Hours before the restart say nothing about it.
    late = [trained(50, 2, seconds=9000.0), trained(60, 2, seconds=9010.0)]
    assert seconds_left(*late, 100) == pytest.approx(40.0)
    assert seconds_left(*late, 60) == 0


def watch(rows, terminal, every_s=30.0, total=500):
    """What a console shows of rows that come 10 s after each other."""
    times = iter(range(0, 10_000, 10))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)
    with TrainProgress(total, console, every_s, now=lambda: next(times)) as progress:
        for row in rows:
            progress.update(row)
    return console.file.getvalue()


def test_a_log_gets_a_line_now_and_then():
    rows = [validated(0, 3.1234), *(trained(s) for s in range(1, 41)), validated(40, 2.5)]
    rows += [*rows[:36], *(trained(s, 2, mfu=0.41) for s in range(36, 38))]  # those of the checkpoint come again
    text = watch(rows, terminal=False)
    assert text.count("validation loss 3.1234 at the base model") == 1
    assert "validation loss 2.5000 at step 40" in text
    assert "restarted: attempt 2 goes on at step 36" in text
    assert "step 1 of 500: loss 2.990, 50 tok/s, 3.0 GiB\n" in text
    assert 5 < text.count(" of 500: ") < 25
    assert "left" in text
    assert text.endswith("step 37 of 500: loss 2.630, 50 tok/s, MFU 41%, 3.4 GiB, 15:26 left\n")
    assert "\x1b" not in text


def test_a_short_run_still_says_where_it_ended():
    text = watch([trained(1), trained(2, loss=None)], terminal=True, total=2)
    assert "step 2 of 2: loss not finite, 50 tok/s, 3.0 GiB, 0:00 left" in text


def test_the_moving_line_fits_a_terminal():
    text = watch([trained(1), trained(4000, loss=2.5, mfu=0.41, tokens_per_s=12345.0)], terminal=True, total=9000)
    assert "4000/9000 loss 2.500, 12,345 tok/s, MFU 41%, 43.0 GiB, 2:46:40 left" in text
