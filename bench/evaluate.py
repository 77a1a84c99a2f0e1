"""A finished evaluation against the reference's way: one `transformers.generate` a turn, each pair scored by itself.

    python -m bench.evaluate --run OUT [--turns 24]

By contestant, as either way takes the longer the more it says. The reference's way answers and scores turns spread
evenly over all, one by one, on the same cores, its model and scorers loaded before. Ours is the time in which any of
the contestant's teacher-forced replies was awaited, over all of them, with each reply's part of what all share: the
engine's start, scoring and testing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.metrics import PLAIN, evaluate_rouge
from deescal.config import load_config
from deescal.dataset.chat import load_tokenizer, render
from deescal.engine import resolve_dtype
from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.nltk_data import load_wordnet
from deescal.models import resolve
from deescal.schema import Row
from deescal.score.config import contestant_name
from deescal.serve.adapters import Adapter, bring_adapter


def references_way(rows: list[Row], contestant: dict[str, Any], config: EvaluateConfig) -> dict[str, float]:
    """Seconds a turn: of generating, and of scoring."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, resolve_dtype(config.generate.llm.dtype))
    model = AutoModelForCausalLM.from_pretrained(resolve(contestant["model"]), dtype=dtype).eval()
    if contestant["adapter"]:
        model = PeftModel.from_pretrained(model, bring_adapter(Adapter(**contestant["adapter"])).folder)
    tokenizer = load_tokenizer(contestant["model"])
    load_wordnet()
    rouge = evaluate_rouge() or PLAIN["rouge_l"]
    for way in (*PLAIN.values(), rouge):
        way(("warm up", "warm up"))
    generating = scoring = 0.0
    for row in rows:
        began = time.perf_counter()
        text = render(row["messages"], tokenizer, add_generation_prompt=True)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            out = model.generate(ids, do_sample=False, max_new_tokens=config.generate.sampling.max_tokens or 128)
        reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        generating += time.perf_counter() - began
        began = time.perf_counter()
        pair = (row["reference"], reply)
        rouge(pair)
        for name in ("bleu_4", "meteor", "bertscore"):
            PLAIN[name](pair)
        scoring += time.perf_counter() - began
    return {"generate": generating / len(rows), "score": scoring / len(rows)}


def our_way(run_folder: Path, run: Row, contestant: Row) -> dict[str, float]:
    """Seconds a turn: of generating, of scoring and of testing."""
    shared = {name: run["seconds"][name] / run["rows"] for name in ("score", "test")}
    for folder in (f for f in run["replies"] if f.startswith("replies/")):
        made = json.loads((run_folder / folder / "run.json").read_text())
        name = contestant_name(contestant["model"], (contestant["adapter"] or {}).get("name"))
        if (of := made["by_model"].get(name)) is None:
            continue
        start_s = made["wall_s"] - made["summary"]["busy_s"]
        if start_s < 0:
            raise SystemExit(f"{folder}: its replies are of several invocations, whose starts are not known")
        each = of["busy_s"] / of["requests"] + start_s / made["summary"]["requests"]
        return {"generate": each, **shared}
    raise SystemExit(f"{contestant['label']}: no teacher-forced replies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--turns", type=int, default=24)
    args = parser.parse_args()
    run = json.loads((args.run / "run.json").read_text())
    config = load_config(str(args.run / "config.json"), EvaluateConfig)
    turns = pq.read_table(args.run / "turns.parquet").filter(pc.field("protocol") == "teacher_forced")
    for contestant in (c for c in run["contestants"] if not c["endpoint"]):
        rows = turns.filter(pc.field("model") == contestant["label"]).select(["messages", "reference"]).to_pylist()
        sample = [rows[i * len(rows) // args.turns] for i in range(min(args.turns, len(rows)))]
        ours, theirs = our_way(args.run, run, contestant), references_way(sample, contestant, config)
        for name, seconds in (("ours", ours), ("the reference's way", theirs)):
            parts = ", ".join(f"{step} {s:.3f}" for step, s in seconds.items())
            print(f"{contestant['label']}, {name}: {sum(seconds.values()):.3f} s a turn ({parts})")
        ratio = sum(theirs.values()) / sum(ours.values())
        print(f"{contestant['label']}: {ratio:.1f} times as fast; {len(rows):,} turns, {len(sample)} of them its way")


if __name__ == "__main__":
    main()
