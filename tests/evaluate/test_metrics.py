"""Scores equal the libraries called one pair at a time; errors are counted, never scored; every row comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.metrics import (
    PLAIN,
    plain_bertscore,
    plain_bleu_4,
    plain_meteor,
    plain_meteor_of_tokens,
    plain_rouge_l,
    real_pairs,
)
from deescal.errors import UserError
from deescal.evaluate import overlap
from deescal.evaluate.metrics import (
    REPLY_SCORES,
    SUMMARY,
    MetricsConfig,
    distinct_n,
    score_pairs,
    signatures,
    summarize,
)
from deescal.evaluate.nltk_data import load_wordnet
from deescal.evaluate.overlap import Pair, overlap_scores
from deescal.evaluate.phrases import PATTERNS, looks_like_assistant
from deescal.schema import to_table

PAIRS: list[Pair] = [  # reference, reply
    ("I didn't do anything, sir.", "I did not do anything."),
    ("Get out of the car.", "No."),
    ("What?", "What are you talking about, man? I live here."),
    ("My automobile is parked there!", "The car was parked over there!"),
    ("He's running. He ran 2.5 miles - look!", "Running, running... he runs 2,5 miles-look &amp; see"),
    ("Same words.", "Same words."),
    ("Yes.", ""),
    ("Yes.", "  \n"),
    ("", "Hello?"),
    ("?!", "..."),
    ("Señor, no sé", "señor no se"),
]
WORDS_ONLY = MetricsConfig(metrics=("rouge_l", "bleu_4"))

_words = st.sampled_from(
    ["I", "am", "running", "ran", "officer", "officer's", "2.5", "don't", "stop", "Stop,", ".", "…"]
)
texts = st.lists(_words, max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def wordnet() -> None:
    try:
        load_wordnet()
    except UserError as error:
        pytest.skip(str(error))


def table_of(pairs: list[tuple[str, str | None]], **columns: list[Any]) -> pa.Table:
    references, replies = zip(*pairs, strict=True) if pairs else ((), ())
    return pa.table(
        {"reference": pa.array(references, pa.string()), "reply": pa.array(replies, pa.string()), **columns}
    )


# --- equal to the libraries -----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(texts, texts)
def test_rouge_and_bleu_equal_the_libraries(reference: str, reply: str) -> None:
    scored = score_pairs(table_of([(reference, reply)]), WORDS_ONLY)
    assert scored["rouge_l"][0].as_py() == pytest.approx(plain_rouge_l((reference, reply)), abs=1e-9)
    assert scored["bleu_4"][0].as_py() == pytest.approx(plain_bleu_4((reference, reply)), abs=1e-9)


@settings(max_examples=50)
@given(texts, texts)
def test_stemmed_rouge_equals_the_library(reference: str, reply: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, reply)["rougeL"].fmeasure
    scored = score_pairs(table_of([(reference, reply)]), WORDS_ONLY)
    assert scored["rouge_l_stem"][0].as_py() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_meteor_equals_the_library(pair: Pair, wordnet: None) -> None:
    found = overlap_scores([pair], ["meteor"])["meteor"][0]
    assert found == pytest.approx(plain_meteor(pair, load_wordnet()), abs=1e-9)


def test_bleu_is_that_of_evaluate() -> None:
    """Values by the `evaluate` package's own code (metrics/bleu: compute_bleu(..., max_order=4, smooth=True))."""
    known = [0.27960682295094563, 0.10283257773094409, 0.11498759556447223]
    assert score_pairs(table_of(list(PAIRS[:3])), WORDS_ONLY)["bleu_4"].to_pylist() == pytest.approx(known, abs=1e-12)


def test_meteor_is_that_of_evaluate(wordnet: None) -> None:
    """The example in the documentation of `evaluate` and of NLTK."""
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    reply = "It is a guide to action which ensures that the military always obeys the commands of the party"
    assert overlap_scores([(reference, reply)], ["meteor"])["meteor"] == [pytest.approx(0.6944, abs=5e-5)]


def test_meteor_has_the_tokens_of_sentences(wordnet: None) -> None:
    """As `evaluate`, whose word_tokenize splits sentences: a full stop inside of a text is a token of its own."""
    (found,) = overlap_scores([("I did. He saw Mr. Smith do it.", "I did it. Mr. Smith saw it.")], ["meteor"])["meteor"]
    reference, reply = ("I", "did", ".", "He", "saw", "Mr.", "Smith", "do", "it", "."), "I did it . Mr. Smith saw it ."
    assert found == pytest.approx(plain_meteor_of_tokens(reference, reply.split(), load_wordnet()), abs=1e-12)


def test_meteor_knows_synonyms_and_stems(wordnet: None) -> None:
    pairs = [("auto", "car"), ("running", "runs"), ("banana", "car")]
    assert overlap_scores(pairs, ["meteor"])["meteor"] == [0.5, 0.5, 0.0]  # one word, one chunk: penalty 0.5


def test_several_processes_score_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = sorted((f"{a} {i}", b) for i in range(6) for a, b in PAIRS)
    alone = overlap_scores(pairs, ["rouge_l", "bleu_4"], workers=1)
    monkeypatch.setattr(overlap, "PAIRS_A_PROCESS", 10)
    assert overlap_scores(pairs, ["rouge_l", "bleu_4"], workers=2) == alone


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """A sentence at a time is too little for more: on a busy machine threads would mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.engine
@pytest.mark.usefixtures("_one_thread")
def test_bertscore_equals_bert_score_pair_by_pair() -> None:
    pairs = [*PAIRS, ("Zqx vbn.", "the"), ("stop " * 700, "stop"), ("No.", "I did not " * 40)]
    scored = score_pairs(table_of(list(pairs)), MetricsConfig(metrics=("bertscore",)))["bertscore_f1"].to_pylist()
    assert scored == pytest.approx([plain_bertscore(pair) for pair in pairs], abs=1e-6)
    assert scored[5] == pytest.approx(1, abs=1e-6)
    assert scored[6:9] == [0, 0, 0]


@pytest.mark.engine
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("metric", PLAIN)
def test_real_pairs_equal_the_libraries(metric: str, shared_data: Path, wordnet: None) -> None:
    pairs = real_pairs(shared_data / "deescalwild" / "deescalwild-csv.tar.xz", 500)
    scored = score_pairs(table_of(list(pairs)), MetricsConfig.model_validate({"metrics": [metric]}))
    column = "bertscore_f1" if metric == "bertscore" else metric
    worst = max(abs(x - PLAIN[metric](pair)) for x, pair in zip(scored[column].to_pylist(), pairs, strict=True))
    assert len(pairs) == 500
    assert worst <= 1e-6


# --- the table ------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(texts, st.none() | texts), max_size=12)


@given(rows)
def test_every_row_comes_back_in_place_and_errors_have_no_scores(pairs: list[tuple[str, str | None]]) -> None:
    table = table_of(pairs, turn=list(range(len(pairs))))
    scored = score_pairs(table, WORDS_ONLY)
    assert scored.select(table.column_names).equals(table)
    assert scored.column_names == [*table.column_names, *REPLY_SCORES.names]
    for row, (_, reply) in zip(scored.to_pylist(), pairs, strict=True):
        assert (row["meteor"], row["bertscore_f1"]) == (None, None)  # not asked for
        for name in ("rouge_l", "rouge_l_stem", "bleu_4"):
            assert row[name] is None if reply is None else 0 <= row[name] <= 1


def test_an_empty_reply_scores_zero_and_an_error_nothing() -> None:
    scored = score_pairs(table_of([("Yes.", ""), ("Yes.", None), ("Yes.", "Yes.")]), WORDS_ONLY)
    assert scored["rouge_l"].to_pylist() == [0, None, 1]
    assert scored["bleu_4"].to_pylist() == [0, None, 1]


def test_scoring_twice_changes_nothing() -> None:
    once = score_pairs(table_of(list(PAIRS)), WORDS_ONLY)
    assert score_pairs(once, WORDS_ONLY).equals(once)


def test_wrong_tables_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="no column 'reply' among reference"):
        score_pairs(pa.table({"reference": ["a"]}))
    with pytest.raises(UserError, match="1 rows have no reference"):
        score_pairs(pa.table({"reference": ["a", None], "reply": ["a", "b"]}), WORDS_ONLY)


@pytest.mark.engine
@pytest.mark.parametrize("model", ["no-such-model", "org/no-such-model"])
def test_a_model_that_is_not_there_is_one_line(model: str) -> None:
    with pytest.raises(UserError, match=model) as error:
        score_pairs(table_of([("a", "b")]), MetricsConfig(metrics=("bertscore",), bertscore_model=model))
    assert "\n" not in str(error.value)


# --- the summary ----------------------------------------------------------------------------------------------


def summary(pairs: list[tuple[str, str | None]], **columns: list[Any]) -> dict[str, Any]:
    found = summarize(score_pairs(table_of(pairs, **columns), WORDS_ONLY), WORDS_ONLY)
    assert to_table([found], SUMMARY).num_rows == 1
    return found


def test_summary_counts_errors_apart() -> None:
    pairs: list[tuple[str, str | None]] = [("a b c d", "a b c d"), ("a b c d", "x y"), ("a b c d", None), ("a b", "")]
    found = summary(
        pairs,
        finish_reason=["stop", "length", None, "stop"],
        latency_s=[0.1, 0.3, 60.0, 0.2],
    )
    assert (found["n"], found["n_errors"]) == (4, 1)
    assert found["rouge_l"] == pytest.approx(100 / 3)
    assert found["length_ratio"] == pytest.approx(6 / 10)
    assert found["stop_rate"] == pytest.approx(2 / 3)
    assert found["assistant_rate"] == 0
    assert (found["latency_p50_s"], found["latency_p95_s"]) == (pytest.approx(0.2), pytest.approx(0.29))
    assert (found["distinct_1"], found["distinct_2"]) == (1, 1)
    assert (found["meteor"], found["bertscore_f1_rescaled"]) == (None, None)
    assert found["bertscore_not_rescaled"] == "no BERTScore"


def test_summary_has_corpus_bleu_with_its_signature() -> None:
    from sacrebleu.metrics import BLEU

    pairs = [(a, b) for a, b in PAIRS if a]
    found = summary(list(pairs))
    expected = BLEU().corpus_score([b for _, b in pairs], [[a for a, _ in pairs]]).score
    assert found["sacrebleu"] == pytest.approx(expected)
    assert "tok:13a" in found["sacrebleu_signature"]
    assert "version:2." in found["sacrebleu_signature"]


@pytest.mark.parametrize("pairs", [[], [("a", None)]])
def test_nothing_to_count_is_null_not_zero(pairs: list[tuple[str, str | None]]) -> None:
    found = summary(pairs)
    assert found.pop("n") == found.pop("n_errors") == len(pairs)
    assert found.pop("bertscore_not_rescaled") == "no BERTScore"
    assert set(found.values()) == {None}


def test_distinct_n() -> None:
    assert distinct_n(["Stop stop!", "stop it"], 1) == 2 / 4
    assert distinct_n(["a b a b", "a b"], 2) == 2 / 4  # n-grams do not cross replies
    assert distinct_n(["..."], 1) is None


def test_signatures_name_versions() -> None:
    found = signatures(MetricsConfig(metrics=("rouge_l", "bleu_4", "meteor")))
    assert list(found) == ["rouge_l", "bleu_4", "meteor"]
    assert "rouge_score 0." in found["rouge_l"]


@pytest.mark.engine
def test_bertscore_names_its_model_and_says_why_it_is_not_rescaled() -> None:
    config = MetricsConfig(metrics=("bertscore",))
    assert signatures(config)["bertscore"].startswith("minilm-l6_L6_no-idf_version=")
    found = summarize(score_pairs(table_of([("Yes.", "Yes.")]), config), config)
    assert found["bertscore_f1_rescaled"] is None
    assert found["bertscore_not_rescaled"] == "bert_score has no baseline for minilm-l6"
    assert math.isclose(found["bertscore_f1"], 1, abs_tol=1e-6)


# --- phrases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        "As an AI language model, I don't have a driver's license.",
        "I'm sorry, but I can’t assist with that.",
        "How can I assist you today, officer?",
        "I understand your concern, officer.",
        "It's important to remain calm in these situations.",
        "Certainly! Here is my license.",
        "Officer: Step out.\nCivilian: No.",
        "**Stay calm** and breathe.",
        "1. Stay calm.\n2. Show your hands.",
    ],
)
def test_assistants_are_recognised(reply: str) -> None:
    assert looks_like_assistant(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I'm sorry, I can't do that, man.",
        "I can't help you. I don't know nothing.",
        "Yes, officer. It's in the glove box.",
        "He understands. You understand me?",
        "I didn't do nothing! Why am I being detained?",
        "Of course I know her.",
        "I'm here to pick up my kid.",
    ],
)
def test_people_are_not_taken_for_assistants(reply: str) -> None:
    assert not looks_like_assistant(reply)


def test_each_pattern_is_of_use_alone() -> None:
    import re

    assert all(re.compile(pattern).groups == 0 for pattern in PATTERNS.values())
