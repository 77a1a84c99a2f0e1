"""Replies of a base and of its fine-tune to held-out officers, against what was really said.

    python bench/train_quality.py --run TUNED --data DATASET [--split test] [--replies 3]

Of every scenario the first civilian replies, teacher-forced (real history), greedy, in vLLM with and without the
adapter; ROUGE-L F1 without stemming, averaged within a scenario, then over scenarios. A first look: `deescal evaluate`
will do this with all turns, metrics and corrected tests.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ttest_rel, wilcoxon

from deescal.dataset.chat import load_tokenizer
from deescal.storage import join, read_json
from deescal.train.config import TrainConfig
from deescal.train.data import read_examples
from deescal.train.masks import ChatEncoder
from deescal.train.trace import Trace, trace_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of `deescal train`")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--replies", type=int, default=3, help="of each scenario")
    parser.add_argument("--new-tokens", type=int, default=48)
    args = parser.parse_args()
    config = TrainConfig.model_validate(read_json(join(args.run, "run.json"))["config"])
    config = config.model_copy(
        update={"export": config.export.model_copy(update={"parity_new_tokens": args.new_tokens})}
    )
    tokenizer = load_tokenizer(config.model)
    encoder = ChatEncoder(tokenizer)
    scenarios, prompts, references = [], [], []
    for example in read_examples(
        args.data, args.split, ["example_id", "scenario_id", "window", "messages"]
    ).to_pylist():
        if example["window"] > 0:
            continue
        spoken = [i for i, m in enumerate(example["messages"]) if m["role"] == "assistant"]
        for i in spoken[: args.replies]:
            scenarios.append(example["scenario_id"])
            prompts.append(encoder.prompt(example["messages"][:i]))
            references.append(example["messages"][i]["content"])
    like = Trace(prompts, sorted(encoder.end_of_turn), [], [], [])
    base, tuned = trace_engine("vllm", config.model, [None, join(args.run, "adapter")], like, config)
    scorer = RougeScorer(["rougeL"])
    means = {}
    for name, trace in (("base", base), ("tuned", tuned)):
        by_scenario = defaultdict(list)
        words = []
        for scenario, reference, reply in zip(scenarios, references, trace.replies, strict=True):
            text = tokenizer.decode(reply, skip_special_tokens=True)
            words.append(len(text.split()))
            by_scenario[scenario].append(scorer.score(reference, text)["rougeL"].fmeasure)
        means[name] = np.array([np.mean(by_scenario[s]) for s in sorted(by_scenario)])
        stopped = np.mean([reply[-1] in encoder.end_of_turn for reply in trace.replies])
        print(
            f"{name:5s} ROUGE-L {100 * means[name].mean():.2f}, {len(means[name])} scenarios, {len(words)} replies; "
            f"{np.mean(words):.1f} words a reply, {stopped:.0%} end by themselves"
        )
    difference = means["tuned"] - means["base"]
    print(
        f"real  {np.mean([len(r.split()) for r in references]):.1f} words a reply\n"
        f"tuned better in {np.sum(difference > 0)} scenarios, worse in {np.sum(difference < 0)}; "
        f"paired t p = {ttest_rel(means['tuned'], means['base']).pvalue:.2g}, "
        f"Wilcoxon p = {wilcoxon(difference).pvalue:.2g}"
    )


if __name__ == "__main__":
    main()
