"""Scores of replies against the replies that were really given: table in, table out, and their means.

Each metric comes as the paper computes it (REPLY_SCORES but `rouge_l_stem`; means over replies), and as the field
recommends it: corpus sacreBLEU with its signature, ROUGE-L with stemming, BERTScore rescaled where bert_score ships a
baseline. A generation error (null reply) is counted and never scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from deescal.config import Config
from deescal.errors import UserError
from deescal.evaluate.bertscore import baseline_f1, bertscore_f1, load_scorer, signature
from deescal.evaluate.overlap import Pair, overlap_scores
from deescal.evaluate.phrases import looks_like_assistant
from deescal.schema import Row

Metric = Literal["rouge_l", "bleu_4", "meteor", "bertscore"]
METRICS: tuple[Metric, ...] = ("rouge_l", "bleu_4", "meteor", "bertscore")

# Columns that `score_pairs` adds, 0..1; null where there is no reply, or the metric was not asked for.
REPLY_SCORES = pa.schema(
    {
        "rouge_l": pa.float64(),  # F measure without stemming (rouge_score)
        "bleu_4": pa.float64(),  # of the sentence, smoothed, 13a tokens (`evaluate`, that is TensorFlow's nmt)
        "meteor": pa.float64(),  # NLTK, WordNet 3.0
        "bertscore_f1": pa.float64(),  # not rescaled, no IDF (bert_score)
        "rouge_l_stem": pa.float64(),  # F measure with Porter's stemming
    }
)

# What `summarize` makes of the replies of one contestant. Null where it has nothing to count, or was not asked for.
SUMMARY = pa.schema(
    {
        "n": pa.int64(),  # rows
        "n_errors": pa.int64(),  # of them without a reply; all below is of the others
        # means of REPLY_SCORES, as the paper prints them: x 100, but BERTScore
        "rouge_l": pa.float64(),
        "bleu_4": pa.float64(),
        "meteor": pa.float64(),
        "bertscore_f1": pa.float64(),
        # recommended
        "rouge_l_stem": pa.float64(),  # x 100
        "sacrebleu": pa.float64(),  # of the corpus, 0..100
        "sacrebleu_signature": pa.string(),
        "bertscore_f1_rescaled": pa.float64(),
        "bertscore_not_rescaled": pa.string(),  # why the former is null
        # of replies
        "distinct_1": pa.float64(),  # distinct words / words (Li et al. 2016); falls with n, compare at equal n
        "distinct_2": pa.float64(),  # the same of pairs of words
        "length_ratio": pa.float64(),  # words of all replies / words of all references, split at white space
        "stop_rate": pa.float64(),  # share that ended by themselves (finish_reason "stop"), where that is known
        "assistant_rate": pa.float64(),  # share that refuses, or sounds like an AI (`phrases.PATTERNS`)
        "latency_p50_s": pa.float64(),
        "latency_p95_s": pa.float64(),
    }
)


class MetricsConfig(Config):
    """What is computed, and with what."""

    metrics: tuple[Metric, ...] = METRICS
    bertscore_model: str = "minilm-l6"  # the paper's is roberta-large
    bertscore_layers: int | None = Field(default=None, ge=1)  # None: as tuned by bert_score's authors, else the last
    bertscore_batch_size: int = Field(default=64, ge=1)  # texts
    workers: int = Field(default=0, ge=0)  # greatest number of processes; 0: one a CPU


def score_pairs(table: pa.Table, config: MetricsConfig | None = None) -> pa.Table:
    """Add REPLY_SCORES to each row, in the order of the rows; equal pairs are scored once.

    Args:
        table: any table with string columns `reference` (what was really said) and `reply` (what was generated; null
            where that failed). An empty reply is a reply, and scores 0. Columns of REPLY_SCORES are replaced.

    Raises:
        UserError: a column is missing, a reference is null, WordNet is not there, or BERTScore's model cannot be
            loaded.
    """
    config = config or MetricsConfig()
    _check(table)
    if "bertscore" in config.metrics:
        load_scorer(config.bertscore_model, config.bertscore_layers)  # fails before any work
    rows = list(zip(table["reference"].to_pylist(), table["reply"].to_pylist(), strict=True))
    pairs = sorted({pair for pair in rows if pair[1] is not None})
    place = {pair: i for i, pair in enumerate(pairs)}
    found = _scores(pairs, config)
    table = table.drop_columns([name for name in REPLY_SCORES.names if name in table.column_names])
    for field in REPLY_SCORES:
        scores = found.get(field.name)
        values = [None if scores is None or pair not in place else scores[place[pair]] for pair in rows]
        table = table.append_column(field, pa.array(values, pa.float64()))
    return table


def _check(table: pa.Table) -> None:
    for name in ("reference", "reply"):
        if name not in table.column_names:
            raise UserError(f"scores: no column '{name}' among {', '.join(table.column_names)}")
    if n := table["reference"].null_count:
        raise UserError(f"scores: {n} rows have no reference")


def _scores(pairs: Sequence[Pair], config: MetricsConfig) -> dict[str, list[float]]:
    found = overlap_scores(pairs, config.metrics, config.workers)
    if "bertscore" in config.metrics:
        model, layers, batch_size = config.bertscore_model, config.bertscore_layers, config.bertscore_batch_size
        found["bertscore_f1"] = bertscore_f1(pairs, model, layers, batch_size)
    return found


def summarize(table: pa.Table, config: MetricsConfig | None = None) -> Row:
    """Scored replies of one contestant -> a row of SUMMARY.

    Args:
        table: as `score_pairs` returns it, or rows without a reference (null) and scores; of the columns
            `finish_reason` and `latency_s` use is made where they are.
        config: that of `score_pairs`.
    """
    config = config or MetricsConfig()
    replied = table.filter(pc.is_valid(table["reply"]))
    replies = replied["reply"].to_pylist()
    compared = replied.filter(pc.is_valid(replied["reference"]))
    references, answers = compared["reference"].to_pylist(), compared["reply"].to_pylist()
    means = {name: pc.mean(replied[name]).as_py() for name in REPLY_SCORES.names}
    return {
        "n": len(table),
        "n_errors": len(table) - len(replied),
        **{name: x if x is None or name == "bertscore_f1" else 100 * x for name, x in means.items()},
        **_corpus_bleu(references, answers),
        **rescaled(means["bertscore_f1"], config),
        "distinct_1": distinct_n(replies, 1),
        "distinct_2": distinct_n(replies, 2),
        "length_ratio": _ratio(_n_words(answers), _n_words(references)),
        "stop_rate": _share(known == "stop" for known in _known(replied, "finish_reason")),
        "assistant_rate": _share(map(looks_like_assistant, replies)),
        **_latency(replied),
    }


def signatures(config: MetricsConfig) -> dict[str, str]:
    """Metric -> how it was computed, versions included: what has to stand beside the numbers."""
    found = {
        "rouge_l": f"rouge_score {version('rouge-score')}, rougeL F measure; stemming: rouge_l_stem only",
        "bleu_4": "sentence BLEU of TensorFlow's nmt, order 4, smoothed, 13a tokens",
        "meteor": f"NLTK {version('nltk')}, alpha 0.9, beta 3, gamma 0.5, WordNet 3.0, word_tokenize",
    }
    found = {name: text for name, text in found.items() if name in config.metrics}
    if "bertscore" in config.metrics:
        found["bertscore"] = signature(config.bertscore_model, config.bertscore_layers)
    return found


def distinct_n(replies: Sequence[str], n: int) -> float | None:
    """Distinct n-grams over all n-grams of all replies, words in lower case as of ROUGE (Li et al., NAACL 2016)."""
    from rouge_score.tokenize import tokenize

    counts: Counter[tuple[str, ...]] = Counter()
    for reply in replies:
        words = tokenize(reply, None)
        counts.update(zip(*(words[start:] for start in range(n)), strict=False))
    return _ratio(len(counts), counts.total())


def _corpus_bleu(references: Sequence[str], replies: Sequence[str]) -> Row:
    from sacrebleu.metrics import BLEU

    if not replies:
        return {"sacrebleu": None, "sacrebleu_signature": None}
    bleu = BLEU()
    score = bleu.corpus_score(replies, [references]).score
    return {"sacrebleu": score, "sacrebleu_signature": str(bleu.get_signature())}


def rescaled(f1: float | None, config: MetricsConfig) -> Row:
    """A mean BERTScore by its model's baseline, or why there is none."""
    if f1 is None:
        return {"bertscore_f1_rescaled": None, "bertscore_not_rescaled": "no BERTScore"}
    baseline, why = baseline_f1(config.bertscore_model, config.bertscore_layers)
    if baseline is None:
        return {"bertscore_f1_rescaled": None, "bertscore_not_rescaled": why}
    return {"bertscore_f1_rescaled": (f1 - baseline) / (1 - baseline), "bertscore_not_rescaled": None}


def _latency(table: pa.Table) -> Row:
    known = _known(table, "latency_s")
    p50, p95 = pc.quantile(pa.array(known, pa.float64()), [0.5, 0.95]).to_pylist() if known else (None, None)
    return {"latency_p50_s": p50, "latency_p95_s": p95}


def _known(table: pa.Table, name: str) -> list:
    return table[name].drop_null().to_pylist() if name in table.column_names else []


def _n_words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _share(flags: Iterable[bool]) -> float | None:
    flags = list(flags)
    return _ratio(sum(flags), len(flags))


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None
