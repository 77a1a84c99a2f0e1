"""BERTScore F1 of many pairs by bert_score: equal to pair by pair, at the speed of batches.

bert_score's own batches change scores (by 0.004 seen): it pads pairs to a common length and lets a token match padding
at similarity 0, which counts wherever all real ones are below. Here only texts of equal lengths are embedded together,
and pairs of equal lengths matched together, so that there is no padding: neither its effect nor its cost, which is
half of the time and more where a few texts are long. Each distinct text is embedded once.

As in the paper: no rescaling, no IDF. Scores by different models cannot be compared, so the model is named with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deescal.errors import UserError, one_line
from deescal.models import resolve

if TYPE_CHECKING:
    from bert_score import BERTScorer
    from torch import Tensor

_SLAB = 4096  # pairs whose embeddings are held at once: 0.3 GB of a 384-d model, 0.7 GB of roberta-large


def bertscore_f1(pairs: Sequence[tuple[str, str]], model: str, layers: int | None, batch_size: int) -> list[float]:
    """F1 of each (reference, reply): 1 for equal texts.

    Args:
        pairs: sorted by reference for speed, so that those which share a text are near each other.
        model, layers: as in `load_scorer`.
        batch_size: texts embedded at once.

    Returns:
        Zero where either text is blank, as bert_score means to have it (with transformers 5 it stumbles there).

    Raises:
        UserError: see `load_scorer`.
    """
    scorer = load_scorer(model, layers)
    scores = [0.0] * len(pairs)
    full = [i for i, (reference, reply) in enumerate(pairs) if reference.strip() and reply.strip()]
    for start in range(0, len(full), _SLAB):
        slab = full[start : start + _SLAB]
        embedded = _embed(scorer, {text for i in slab for text in pairs[i]}, batch_size)
        by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for i in slab:
            reference, reply = pairs[i]
            by_shape[len(embedded[reference][1]), len(embedded[reply][1])].append(i)
        for same in by_shape.values():
            f1 = _match([embedded[pairs[i][0]] for i in same], [embedded[pairs[i][1]] for i in same])
            for i, score in zip(same, f1, strict=True):
                scores[i] = score
    return scores


_Embedded = tuple["Tensor", "Tensor"]  # [tokens, d] of the layer; [tokens] weights, 0 for [CLS] and [SEP], else 1


def _embed(scorer: BERTScorer, texts: Iterable[str], batch_size: int) -> dict[str, _Embedded]:
    """Token embeddings of each text."""
    import torch
    from bert_score.utils import bert_encode, sent_encode

    tokenizer = scorer._tokenizer
    by_length: defaultdict[int, list[tuple[str, list[int]]]] = defaultdict(list)
    for text in texts:
        ids = sent_encode(tokenizer, text)
        by_length[len(ids)].append((text, ids))
    embedded: dict[str, _Embedded] = {}
    for same in by_length.values():
        for start in range(0, len(same), batch_size):
            batch = same[start : start + batch_size]
            ids = torch.tensor([ids for _, ids in batch], device=scorer.device)
            states = bert_encode(scorer._model, ids, attention_mask=torch.ones_like(ids))
            weights = ((ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)).to(states.dtype)
            embedded |= {text: (states[i], weights[i]) for i, (text, _) in enumerate(batch)}
    return embedded


def _match(references: Sequence[_Embedded], replies: Sequence[_Embedded]) -> list[float]:
    """F1 of pairs whose references are all of one length, and whose replies are, too."""
    import torch
    from bert_score.utils import greedy_cos_idf

    sides = []
    for side in (references, replies):
        states, weights = (torch.stack(tensors) for tensors in zip(*side, strict=True))
        sides += [states, torch.ones_like(weights), weights]
    _, _, f1 = greedy_cos_idf(*sides)
    return [float(score) for score in f1.cpu()]


def baseline_f1(model: str, layers: int | None) -> tuple[float | None, str | None]:
    """What unrelated English sentences score on average, by bert_score's tables, to rescale with: (F1 - b) / (1 - b).

    Returns:
        The baseline and None, or None and why there is none.

    Raises:
        UserError: see `load_scorer`.
    """
    scorer = load_scorer(model, layers)
    if not Path(scorer.baseline_path).is_file():
        return None, f"bert_score has no baseline for {model}"
    return float(scorer.baseline_vals[2]), None


def signature(model: str, layers: int | None) -> str:
    """Model, layer, IDF, and versions of bert_score and transformers, in bert_score's own form."""
    scorer = load_scorer(model, layers)
    return str(scorer.hash).replace(scorer.model_type, model)


def find_model(model: str) -> str:
    """What transformers loads, known without loading it. Args and Raises: as of `load_scorer`."""
    try:
        return resolve(model)
    except UserError:
        from bert_score.utils import model2layers  # seconds

        if model in model2layers:  # some of its names are of no organisation
            return model
        raise


def load_scorer(model: str, layers: int | None) -> BERTScorer:
    """bert_score's scorer, loaded once a process, on the GPU where there is one.

    Args:
        model: registry name, local folder, Hugging Face id, or a name that bert_score knows, such as roberta-large
            (which is its model for English).
        layers: the layer whose output is compared, counted from 1; None: as bert_score tuned it for the model, else
            the last.

    Raises:
        UserError: the model cannot be loaded, or has no such layer.
    """
    return _load(model, layers)


@lru_cache(maxsize=1)
def _load(model: str, layers: int | None) -> BERTScorer:
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig
    from transformers.utils import logging

    place = find_model(model)
    logging.disable_progress_bar()
    try:
        deepest = AutoConfig.from_pretrained(place).num_hidden_layers
        if layers is not None and layers > deepest:
            raise UserError(f"bertscore_layers={layers}: {model} has {deepest}")
        return BERTScorer(model_type=place, num_layers=layers or model2layers.get(place) or deepest, lang="en")
    except (OSError, ValueError) as error:
        raise UserError(f"BERTScore: cannot load '{model}': {one_line(error)}") from error
    finally:
        logging.enable_progress_bar()
