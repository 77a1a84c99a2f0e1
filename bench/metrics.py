"""Scores of replies at speed, beside the libraries called one pair at a time, as the reference calls them.

  python -m bench.metrics --pairs 500 --corpus deescalwild-csv.tar.xz   real: a turn as reply, the next as reference
  python -m bench.metrics --pairs 500 --run OUT                         what an evaluation's contestants replied
  python -m bench.metrics --pairs 500                                   made up, of the same lengths

Theirs and ours take turns, --repeat times, and the quickest of each counts: other work on the machine disturbs less.

`evaluate` is not among the project's packages; for its column:
  pip install --no-deps --target DIR evaluate && PYTHONPATH=DIR python -m bench.metrics ...
It keeps its metrics on a hub. What it does around rouge_score for each call is done here by its own class on the same
settings: four kinds of ROUGE and a bootstrap of one score.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import math
import random
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deescal.evaluate.bertscore import load_scorer
from deescal.evaluate.metrics import MetricsConfig, score_pairs
from deescal.evaluate.nltk_data import load_wordnet
from deescal.evaluate.overlap import Pair

WORDS = ("I", "you", "the", "not", "did", "what", "is", "that", "car", "sir", "officer", "hands", "down", "out", "wait")
Scores = Sequence[float]
COLUMNS = {"rouge_l": "rouge_l", "bleu_4": "bleu_4", "meteor": "meteor", "bertscore": "bertscore_f1"}


# --- the libraries, one pair at a time ------------------------------------------------------------------------


def plain_rouge_l(pair: Pair) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(*pair)["rougeL"].fmeasure)


def plain_bleu_4(pair: Pair) -> float:
    """sacrebleu's counts, TensorFlow nmt's smoothing (one is added at every order)."""
    from sacrebleu.metrics import BLEU

    reference, reply = pair
    found = BLEU(smooth_method="none").corpus_score([reply], [[reference]])
    if not found.sys_len or not found.ref_len:
        return 0.0
    logs = [math.log((right + 1) / (possible + 1)) for right, possible in zip(found.counts, found.totals, strict=True)]
    return float(found.bp * math.exp(sum(logs) / 4))


def plain_meteor(pair: Pair, wordnet: Any = None) -> float:
    """Args: wordnet: a reader of its files; None: NLTK's own, which takes seconds to load."""
    from nltk.tokenize import word_tokenize

    reference, reply = (word_tokenize(text) for text in pair)
    return plain_meteor_of_tokens(reference, reply, wordnet)


def plain_meteor_of_tokens(reference: Sequence[str], reply: Sequence[str], wordnet: Any = None) -> float:
    from nltk.corpus import wordnet as nltk_wordnet
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, reply, wordnet=wordnet or nltk_wordnet, alpha=0.9, beta=3, gamma=0.5))


def plain_bertscore(pair: Pair, model: str = MetricsConfig().bertscore_model) -> float:
    """By a scorer that is loaded already, as `evaluate` keeps it."""
    reference, reply = pair
    if not reference.strip() or not reply.strip():  # bert_score does not get over it with transformers 5
        return 0.0
    return float(load_scorer(model, None).score([reply], [reference])[2])


PLAIN: dict[str, Callable[[Pair], float]] = {
    "rouge_l": plain_rouge_l,
    "bleu_4": plain_bleu_4,
    "meteor": plain_meteor,
    "bertscore": plain_bertscore,
}


def evaluate_rouge() -> Callable[[Pair], float] | None:
    """ROUGE-L by one `compute` of Hugging Face's `evaluate` a pair; None where it is not installed."""
    try:
        import datasets
        import evaluate
    except ImportError:
        return None
    from rouge_score import rouge_scorer, scoring

    text = datasets.Value("string")

    class Rouge(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features({"predictions": text, "references": text})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
            scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
            aggregator = scoring.BootstrapAggregator()
            for pair in zip(references, predictions, strict=True):
                aggregator.add_scores(scorer.score(*pair))
            return {kind: found.mid.fmeasure for kind, found in aggregator.aggregate().items()}

    logging.getLogger("absl").setLevel(logging.ERROR)
    metric = Rouge()
    return lambda pair: float(metric.compute(predictions=[pair[1]], references=[pair[0]])["rougeL"])


# --- pairs ----------------------------------------------------------------------------------------------------


def real_pairs(archive: Path, n: int) -> list[Pair]:
    """Evenly spread over all neighbouring turns of the test scenarios: (next turn, turn) as (reference, reply)."""
    pairs = []
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".csv") and "test" in Path(m.name).parts]
        for member in sorted(members, key=lambda m: m.name):
            file = tar.extractfile(member)
            assert file is not None
            turns = [row["transcript"] or "" for row in csv.DictReader(io.TextIOWrapper(file, "utf-8-sig"))]
            pairs += list(zip(turns[1:], turns[:-1], strict=True))
    return [pairs[i * len(pairs) // n] for i in range(min(n, len(pairs)))]


def pairs_of_run(folder: Path, n: int) -> list[Pair]:
    """(reference, reply) of all contestants, of lines evenly spread over the teacher-forced ones that all answered."""
    by_line: dict[str, list[Pair]] = {}
    columns = ["protocol", "item_id", "reference", "reply"]
    for row in pq.read_table(folder / "turns.parquet", columns=columns).to_pylist():
        if row["protocol"] == "teacher_forced" and row["reply"] is not None:
            by_line.setdefault(row["item_id"], []).append((row["reference"], row["reply"]))
    n_models = max(map(len, by_line.values()))
    lines = [of for of in by_line.values() if len(of) == n_models]
    n_lines = min(n // n_models, len(lines))
    return [pair for i in range(n_lines) for pair in lines[i * len(lines) // n_lines]]


def made_up_pairs(n: int, seed: int = 0) -> list[Pair]:
    """Texts of 16 words on average, as those of the corpus, of few words at random."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=1 + int(rng.expovariate(1 / 15)))) + rng.choice([".", "?", "!"])

    return [(text(), text()) for _ in range(n)]


# --- timing ---------------------------------------------------------------------------------------------------


def timed(works: Sequence[Callable[[], Scores]], repeat: int) -> list[tuple[Scores, float]]:
    """Scores by each work and its least seconds; the works take turns."""
    results: list[tuple[Scores, float]] = [([], math.inf)] * len(works)
    for _ in range(repeat):
        for i, work in enumerate(works):
            started = time.perf_counter()
            scores = work()
            results[i] = scores, min(results[i][1], time.perf_counter() - started)
    return results


def ours(pairs: Sequence[Pair], metrics: Sequence[str]) -> Scores:
    """Scores by the last of the metrics, all of them computed."""
    references, replies = zip(*pairs, strict=True)
    table = pa.table({"reference": references, "reply": replies})
    config = MetricsConfig.model_validate({"metrics": metrics})
    return score_pairs(table, config)[COLUMNS[metrics[-1]]].to_pylist()


def compare(pairs: Sequence[Pair], repeat: int) -> None:
    load_wordnet()
    ours(pairs[:2], list(PLAIN))  # models loaded, modules imported: not a part of either side's time
    by_evaluate = evaluate_rouge()
    theirs = {f"{metric}: library": (metric, score) for metric, score in PLAIN.items()}
    if by_evaluate:
        theirs["rouge_l: evaluate"] = "rouge_l", by_evaluate
    print(f"{len(pairs)} pairs, least of {repeat}; ours is ROUGE-L both with and without stemming\n")
    print(f"{'ms a pair':24s} {'pair by pair':>14s} {'ours':>10s} {'ratio':>10s} {'max. deviation':>16s}")
    plain_s = 0.0
    for name, (metric, score) in theirs.items():
        score(pairs[0])
        works = [lambda s=score: [s(pair) for pair in pairs], lambda m=metric: ours(pairs, [m])]
        (found, seconds), (again, ours_s) = timed(works, repeat)
        plain_s += seconds if score is not by_evaluate else 0
        far = max(abs(x - y) for x, y in zip(found, again, strict=True))
        print(row(name, seconds, ours_s, len(pairs)) + f" {far:16.1e}")
    ((_, ours_s),) = timed([lambda: ours(pairs, list(PLAIN))], repeat)
    print(row("all four: libraries", plain_s, ours_s, len(pairs)))
    if not by_evaluate:
        print("`evaluate` is not installed, see --help")


def row(name: str, theirs_s: float, ours_s: float, n: int) -> str:
    return f"{name:24s} {1000 * theirs_s / n:14.3f} {1000 * ours_s / n:10.3f} {theirs_s / ours_s:8.1f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", type=Path, help="archive of the published corpus, as CSV")
    source.add_argument("--run", type=Path, help="folder of an evaluation")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    if args.run:
        pairs = pairs_of_run(args.run, args.pairs)
    else:
        pairs = real_pairs(args.corpus, args.pairs) if args.corpus else made_up_pairs(args.pairs)
    compare(pairs, args.repeat)


if __name__ == "__main__":
    main()
