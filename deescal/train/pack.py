"""Which examples make a sequence, which sequences a step, and how a micro-batch looks to the model.

A micro-batch is one row of whole examples: positions restart at each, and attention is told their lengths, so that no
example sees another; and logits are asked for at those positions only whose next token is learned. The logits of a
large vocabulary are a good part of the work and most of the memory, and two thirds of the tokens are the officer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deescal.errors import UserError
from deescal.train.config import DataConfig

IGNORE = -100  # transformers' label of a token without loss
# Examples, and the positions whose logits are computed, are filled up to a multiple of so many. On processors matrix
# products are compiled and kept for every shape that comes along: 15 MB for each new length of an example in attention
# alone, and more lost in a heap with those between.
SHAPE_MULTIPLE = 128


def plan_packs(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Examples -> sequences of at most `max_tokens`, by best fit in order of decreasing length.

    Best fit decreasing is what TRL packs with too (Ding et al. 2024, arXiv 2404.10830): no example is cut.

    Args:
        lengths: tokens of each example.

    Returns:
        Indices of the examples in each sequence; every example is in exactly one.

    Raises:
        UserError: an example is longer than a sequence may be.
    """
    from sortedcontainers import SortedList

    if lengths and max(lengths) > max_tokens:
        too_long = sum(length > max_tokens for length in lengths)
        raise UserError(
            f"{too_long} example(s) have more than data.max_tokens={max_tokens} tokens, the longest {max(lengths)}: "
            "raise it, or build the dataset with examples.max_tokens at most so many"
        )
    packs: list[list[int]] = []
    space: SortedList[tuple[int, int]] = SortedList()  # (tokens left, pack)
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = space.bisect_left((lengths[i], -1))
        if at == len(space):
            packs.append([i])
            left, pack = max_tokens, len(packs) - 1
        else:
            left, pack = space.pop(at)
            packs[pack].append(i)
        space.add((left - lengths[i], pack))
    return packs


def count_steps(n_sequences: int, per_step: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps: whole ones only; the last one is filled from the next epoch's order, so that all are alike."""
    steps = int(np.ceil(round(n_sequences * epochs / per_step, 6)))
    return max(1, min(steps, max_steps or steps))


def most_targets(packs: Sequence[Sequence[int]], n_targets: Sequence[int], data: DataConfig) -> float:
    """Share of a forward pass' tokens that are learned, at most; `n_targets` of each example."""
    learned = sorted((sum(n_targets[i] for i in pack) for pack in packs), reverse=True)
    return sum(learned[: data.sequences_at_once]) / (data.sequences_at_once * data.max_tokens)


def order_sequences(lengths: Sequence[int], n: int, per_step: int, seed: int, *, alike: bool) -> list[int]:
    """The first `n` sequences to train on: epoch after epoch, each in its own seeded order.

    It depends on no number of workers: a run goes on at another world size with the sequences it has not seen.

    Args:
        lengths: tokens of each sequence.
        per_step: sequences of one step.
        alike: put sequences of like length next to each other, in random order of such groups: less padding.
    """
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order: list[int] = []
    epoch = 0
    while len(order) < n:
        if alike:
            import torch

            generator = torch.Generator().manual_seed(seed + epoch)
            order += get_length_grouped_indices(list(lengths), per_step, generator=generator)
        else:
            order += np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        epoch += 1
    return order[:n]


def collate(sequences: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Sequences, each a list of TOKENS rows -> one row for the model, [1, tokens], and where its loss is.

    Returns:
        input_ids, position_ids [1, tokens]; logits_to_keep [targets], the positions whose next token is a target;
        shift_labels [1, targets], those tokens; labels, the same, by which the Trainer knows that there is a loss;
        example_tokens, the tokens of each example, by which `packed_sdpa` keeps them apart. Filled up: examples at
        their end, which no token before it sees; targets by the last one again, with label -100.
    """
    import torch

    rows = [row for sequence in sequences for row in sequence]
    input_ids = np.concatenate([_fill_up(np.asarray(row["input_ids"], dtype=np.int64)) for row in rows])
    target = np.concatenate([_fill_up(np.asarray(row["is_target"], dtype=bool)) for row in rows])
    lengths = [len(row["input_ids"]) + _missing(len(row["input_ids"])) for row in rows]
    positions = np.concatenate([np.arange(length) for length in lengths])
    target[positions == 0] = False  # no token comes before it to foretell it
    keep = np.flatnonzero(target) - 1
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "position_ids": torch.from_numpy(positions)[None],
        **_targets(keep, input_ids[None, keep + 1]),
        "example_tokens": tuple(lengths),
    }


def collate_padded(sequences: Sequence[Sequence[Mapping[str, Any]]], pad_id: int) -> dict[str, Any]:
    """The same with an example a row, padded on the right: for models that know no packed rows.

    Returns:
        input_ids, attention_mask [examples, longest]; logits_to_keep [columns with a target after them in any row];
        shift_labels, labels [examples, columns kept], -100 where a row has no target there. Filled up as `collate`'s.
    """
    import torch

    rows = [row for sequence in sequences for row in sequence]
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), longest + _missing(longest))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    after = np.full(shape, IGNORE, dtype=np.int64)  # the token after each, where it is a target
    for i, row in enumerate(rows):
        ids, target = np.asarray(row["input_ids"], dtype=np.int64), np.asarray(row["is_target"], dtype=bool)
        input_ids[i, : len(ids)], attention[i, : len(ids)] = ids, 1
        after[i, : len(ids) - 1] = np.where(target[1:], ids[1:], IGNORE)
    keep = np.flatnonzero((after != IGNORE).any(axis=0))
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        **_targets(keep, after[:, keep]),
    }


def _missing(n: int) -> int:
    return -n % SHAPE_MULTIPLE


def _fill_up(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, _missing(len(values))))


def _targets(keep: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Positions [n] and labels [rows, n] as the model takes them, filled up."""
    import torch

    missing = _missing(len(keep))
    filled = np.pad(labels, ((0, 0), (0, missing)), constant_values=IGNORE)
    labels_kept = torch.from_numpy(np.ascontiguousarray(filled))
    return {
        "logits_to_keep": torch.from_numpy(np.concatenate([keep, keep[-1:].repeat(missing)])),
        "shift_labels": labels_kept,
        "labels": labels_kept,
    }
