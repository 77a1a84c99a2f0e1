"""What judges of replies are worth: do they tell real replies from wrong and formal ones, and agree with themselves?

    python -m bench.judge_replies --data DATASET --out FOLDER [--lines 40] [--quick] [--judge NAME] [key=value ...]

Lines of the dataset's test split, spread over scenarios, each with three replies: the real one, the real one of another
scenario (shuffled), and the real one rewritten as an assistant would put it (formal; by the judge's own model, which
should favour its own words: a hard case). Realism is asked twice of each, with different seeds, plausibility once, and
pairs (real against either) in both orders. `key=value` are settings of `deescal score`. A run that was stopped goes on
at --out.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deescal.config import load_config
from deescal.errors import UserError
from deescal.evaluate.agreement import krippendorff_alpha
from deescal.evaluate.preferences import TO_COMPARE, choices_table, is_same, read_preferences
from deescal.evaluate.rows import make_items, read_test_rows
from deescal.evaluate.stats import bootstrap_mean, compare
from deescal.schema import Row
from deescal.score.config import ScoreConfig
from deescal.score.job import score

KINDS = ("real", "shuffled", "formal")
MIN_WORDS = 4  # of a real reply: 'Yeah.' fits anywhere
TWICE = ["sampling.temperature=0.7", "sampling.samples=2"]
REWRITE = (
    "Rewrite what a person said so that it sounds like a polite AI assistant: complete formal sentences, calm, "
    "cooperative. Keep the meaning. Answer with the rewritten words only."
)


def draw(data: str, n: int, seed: int) -> list[Row]:
    """Lines with `reply`s: {real, shuffled}; one of each scenario before the second of any."""
    rng = random.Random(seed)
    items = [
        i for i in make_items(read_test_rows(data, "test")).to_pylist() if len(i["reference"].split()) >= MIN_WORDS
    ]
    by_scenario: dict[str, list[Row]] = defaultdict(list)
    for item in rng.sample(items, len(items)):
        by_scenario[item["scenario_id"]].append(item)
    rounds = [of[k] for k in range(n) for _, of in sorted(by_scenario.items()) if k < len(of)]
    lines = rounds[:n]
    for line in lines:
        others = [o for o in items if o["scenario_id"] != line["scenario_id"]]
        if not others:
            raise UserError(f"--data '{data}': one test scenario only, so no reply of another")
        line["replies"] = {"real": line["reference"], "shuffled": rng.choice(others)["reference"]}
    return lines


def asked(name: str, rows: Sequence[Row], task: str, judge: str, out: Path, settings: Sequence[str]) -> list[Row]:
    """Scores of a table, which stays at `out`."""
    file = out / f"{name}.parquet"
    if not file.exists():
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    began = time.monotonic()
    config = load_config(None, ScoreConfig, ["llm.max_model_len=4096", "llm.max_num_seqs=16", *settings])
    ended = score(str(file), str(out / name), task, [judge], config)
    print(f"{name}: {ended.run['rows']} rows, {time.monotonic() - began:.0f} s, {ended.run['summary']}")
    return pq.read_table(out / name / "scores.parquet").to_pylist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--judge", default="qwen2.5-coder-1.5b")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="plausibility alone, which takes a tenth of the time")
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    out = args.out / f"{args.lines}-lines-seed-{args.seed}"
    out.mkdir(parents=True, exist_ok=True)
    lines = draw(args.data, args.lines, args.seed)

    wanted = [
        {"messages": [{"role": "system", "content": REWRITE}, {"role": "user", "content": line["reference"]}]}
        for line in lines
    ]
    formal = asked("formal", wanted, "replies", args.judge, out, ["sampling.max_tokens=96", *args.settings])
    for line, row in zip(lines, formal, strict=True):
        if row["reply"] is None:
            raise SystemExit(f"no formal reply: {row['error']}")
        line["replies"]["formal"] = row["reply"]

    rows = [
        {**{k: line[k] for k in ("item_id", "scenario_id", "turn_id", "messages")}, "kind": kind, "reply": reply}
        for line in lines
        for kind, reply in line["replies"].items()
    ]
    report_scores("plausibility", lines, asked("plausibility", rows, "plausibility", args.judge, out, args.settings))
    if args.quick:
        return
    judged = asked("realism", rows, "realism", args.judge, out, [*TWICE, *args.settings])
    report_scores("realism", lines, judged)

    rows = [row for line in lines for kind in KINDS[1:] for row in both_orders(line, kind)]
    report_pairs(asked("pairwise", [r for r in rows if not is_same(r)], "pairwise", args.judge, out, args.settings))


def both_orders(line: Row, kind: str) -> list[Row]:
    """TO_COMPARE of the real reply and another."""
    kept = {name: line[name] for name in TO_COMPARE.names if name in line}
    real, other = line["replies"]["real"], line["replies"][kind]
    return [
        {**kept, "a": "real", "b": kind, "seed": 0, "a_first": True, "first": real, "second": other},
        {**kept, "a": "real", "b": kind, "seed": 0, "a_first": False, "first": other, "second": real},
    ]


def report_scores(task: str, lines: Sequence[Row], judged: Sequence[Row]) -> None:
    n_samples = 1 + max(row["sample"] for row in judged)
    scores = np.full((n_samples, len(lines), len(KINDS)), np.nan)
    place = {line["item_id"]: i for i, line in enumerate(lines)}
    for row in judged:
        if row["score"] is not None:
            scores[row["sample"], place[row["item_id"]], KINDS.index(row["kind"])] = row["score"]
    clusters = [line["incident_id"] or line["scenario_id"] for line in lines]
    mean = np.nanmean(scores, axis=0)
    for k, kind in enumerate(KINDS):
        of = bootstrap_mean(mean[:, k], clusters)
        print(f"{task} of {kind}: {of.mean:.1f} [{of.low:.1f}, {of.high:.1f}]")
    for k, kind in enumerate(KINDS[1:], 1):
        difference = mean[:, 0] - mean[:, k]
        read = ~np.isnan(difference)
        higher, same = (difference[read] > 0).mean(), (difference[read] == 0).mean()
        won = np.where(read, (1 + np.sign(difference)) / 2, np.nan)  # a tie is half a win
        tested = compare(won, 1 - won, clusters)  # of the share against a half
        print(
            f"{task}: real above {kind} on {100 * higher:.0f} % of {read.sum()} lines, equal on {100 * same:.0f} %, "
            f"share [{50 * (1 + tested.low):.0f}, {50 * (1 + tested.high):.0f}], p {tested.p_randomization:.4f}"
        )
    if task == "plausibility":  # no sampling: the same answer every time
        return
    alpha = krippendorff_alpha(scores.reshape(2, -1), "interval")
    first, second = scores.reshape(2, -1)
    print(
        f"test and retest: alpha {alpha.value:.2f} {alpha.reason}, equal {100 * np.mean(first == second):.0f} %, "
        f"mean absolute difference {np.nanmean(np.abs(first - second)):.1f} of 100; "
        f"not read {np.isnan(scores).sum()} of {scores.size}"
    )


def report_pairs(answers: Sequence[Row]) -> None:
    choices = choices_table(read_preferences(pa.Table.from_pylist(list(answers))).to_pylist())
    for of in choices.to_pylist():
        print(
            f"real against {of['b']}: {of['wins']} wins, {of['ties']} ties, {of['losses']} losses, {of['unread']} not "
            f"read, win rate {100 * of['win_rate']:.0f} % [{100 * of['low']:.0f}, {100 * of['high']:.0f}], orders "
            f"agree on {of['agreed']} of {of['n'] - of['unread']}, first place won {of['first']}, second {of['second']}"
        )


if __name__ == "__main__":
    main()
