"""ROUGE-L, BLEU-4 and METEOR of reference and reply: what the words of the two have in common.

The formulas are those of the libraries that the paper used (but BLEU's, which comes in no package and is written here);
they get tokens, stems and synonyms from caches, so that each text is prepared once and each word looked up once. Many
pairs are scored by several processes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import NamedTuple

from deescal.evaluate.nltk_data import load_wordnet

Pair = tuple[str, str]  # reference, reply
Score = Callable[[str, str], float]  # of reference and reply, 0..1

# A process of its own starts in some 3 s (imports, WordNet), in which one scores as many pairs as this.
PAIRS_A_PROCESS = 10_000
_TEXTS = 1 << 12  # texts kept prepared; pairs come sorted by reference


def overlap_scores(pairs: Sequence[Pair], metrics: Collection[str], workers: int = 0) -> dict[str, list[float]]:
    """Scores of each pair, 0..1, by column: rouge_l and rouge_l_stem, bleu_4, meteor, as far as asked for.

    Args:
        pairs: sorted by reference for speed.
        metrics: of rouge_l, bleu_4, meteor; others are passed over.
        workers: greatest number of processes; 0: one a CPU. Few pairs are scored in this process.

    Raises:
        UserError: METEOR is asked for and there is no WordNet.
    """
    if "meteor" in metrics:
        load_wordnet()  # its absence shows before any work
    from joblib import Parallel, cpu_count, delayed

    n = min(workers or cpu_count(), len(pairs) // PAIRS_A_PROCESS)
    if n < 2:
        return _score(pairs, metrics)
    size = math.ceil(len(pairs) / (4 * n))  # four pieces a process, as some pairs are longer
    pieces = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    # loky: starts processes anew (no fork beside torch's threads) and asks of the caller's script no `__main__` guard
    scored = Parallel(n_jobs=n, backend="loky")(delayed(_score)(piece, metrics) for piece in pieces)
    return {name: [score for part in scored for score in part[name]] for name in scored[0]}


def _score(pairs: Sequence[Pair], metrics: Collection[str]) -> dict[str, list[float]]:
    return {name: [score(*pair) for pair in pairs] for name, score in _scorers(metrics).items()}


def _scorers(metrics: Collection[str]) -> dict[str, Score]:
    from nltk.stem import PorterStemmer

    stem = cache(PorterStemmer().stem)
    scorers: dict[str, Score] = {}
    if "rouge_l" in metrics:
        scorers |= {"rouge_l": _rouge_l(None), "rouge_l_stem": _rouge_l(stem)}
    if "bleu_4" in metrics:
        scorers["bleu_4"] = _bleu_4()
    if "meteor" in metrics:
        scorers["meteor"] = _meteor(stem)
    return scorers


def _rouge_l(stem: Callable[[str], str] | None) -> Score:
    """rouge_score's F measure (Lin 2004), but the longest common subsequence, nearly all of its time, by rapidfuzz."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenize import tokenize

    stemmer = stem and SimpleNamespace(stem=stem)
    tokens = lru_cache(maxsize=_TEXTS)(partial(tokenize, stemmer=stemmer))

    def score(reference: str, reply: str) -> float:
        expected, found = tokens(reference), tokens(reply)
        if not expected or not found:
            return 0.0
        n_common = LCSseq.similarity(expected, found)
        return float(fmeasure(n_common / len(found), n_common / len(expected)))

    return score


class Ngrams(NamedTuple):
    """The n-grams of one text, n = 1..4."""

    counts: Counter[tuple[str, ...]]
    n_tokens: int


def ngrams(tokens: Sequence[str]) -> Ngrams:
    shifted = [tokens[start:] for start in range(4)]
    counts: Counter[tuple[str, ...]] = Counter()
    for order in range(1, 5):
        counts.update(zip(*shifted[:order], strict=False))
    return Ngrams(counts, len(tokens))


def sentence_bleu(reference: Ngrams, reply: Ngrams) -> float:
    """BLEU-4 of one sentence as Hugging Face's `evaluate` computes it with smooth=True, 0..1.

    Source: compute_bleu of TensorFlow's nmt (nmt/scripts/bleu.py), after Lin & Och, ORANGE, COLING 2004: one is
    added to matches and possible matches of every order, of single words too, unlike in sacrebleu's and NLTK's
    smoothings. Zero where either side has no tokens.
    """
    if not reference.n_tokens or not reply.n_tokens:
        return 0.0
    matches = [0] * 5
    for ngram in reference.counts.keys() & reply.counts.keys():
        matches[len(ngram)] += min(reference.counts[ngram], reply.counts[ngram])
    log_precisions = [math.log((matches[n] + 1) / (max(reply.n_tokens - n + 1, 0) + 1)) for n in range(1, 5)]
    log_brevity = min(0.0, 1 - reference.n_tokens / reply.n_tokens)
    return math.exp(sum(log_precisions) / 4 + log_brevity)


def _bleu_4() -> Score:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    prepare = lru_cache(maxsize=_TEXTS)(lambda text: ngrams(tokenize(text).split()))
    return lambda reference, reply: sentence_bleu(prepare(reference), prepare(reply))


class _Lemma(NamedTuple):
    word: str

    def name(self) -> str:
        return self.word


def _meteor(stem: Callable[[str], str]) -> Score:
    """NLTK's METEOR (Lavie & Agarwal 2007) with the parameters and the tokens of `evaluate`."""
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    wordnet = load_wordnet()

    @cache
    def synsets(word: str) -> list[SimpleNamespace]:
        """All that METEOR asks of WordNet are a word's synonyms: they come as those of one synset."""
        synonyms = {lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()}
        lemmas = [_Lemma(word) for word in synonyms if "_" not in word]
        return [SimpleNamespace(lemmas=lambda: lemmas)]

    tokens = lru_cache(maxsize=_TEXTS)(word_tokenize)
    parameters = {"alpha": 0.9, "beta": 3, "gamma": 0.5}
    looked_up = {"stemmer": SimpleNamespace(stem=stem), "wordnet": SimpleNamespace(synsets=synsets)}
    return lambda reference, reply: float(
        single_meteor_score(tokens(reference), tokens(reply), **looked_up, **parameters)
    )
