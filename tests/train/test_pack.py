from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.errors import UserError
from deescal.train.data import Sequences, TokenData
from deescal.train.losses import example_losses
from deescal.train.pack import IGNORE, SHAPE_MULTIPLE, collate, collate_padded, count_steps, order_sequences, plan_packs
from tests.train.tiny import token_table

LENGTHS = st.lists(st.integers(1, 100), max_size=200)


@given(LENGTHS)
def test_every_example_is_in_one_pack_that_fits(lengths):
    packs = plan_packs(lengths, 100)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= 100 for pack in packs)
    # Best fit decreasing needs at most 11/9 of the best possible number, plus one.
    assert len(packs) <= 11 / 9 * np.ceil(sum(lengths) / 100) + sum(length > 50 for length in lengths) + 1


def test_packs_of_known_lengths():
    assert plan_packs([60, 50, 40, 30, 20], 100) == [[0, 2], [1, 3, 4]]
    assert plan_packs([], 100) == []


def test_an_example_that_is_too_long_is_refused_not_cut():
    with pytest.raises(UserError, match=r"1 example\(s\) have more than data.max_tokens=100 tokens, the longest 101"):
        plan_packs([5, 101], 100)


def test_steps_are_whole():
    assert count_steps(16, 8, 2.0, None) == 4
    assert count_steps(17, 8, 1.0, None) == 3  # the last is filled up
    assert count_steps(17, 8, 0.5, None) == 2
    assert count_steps(1000, 8, 2.0, 7) == 7
    assert count_steps(1, 8, 0.1, None) == 1


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(1, 8), st.booleans())
def test_an_epoch_has_every_sequence_once_and_its_order_is_the_seeds(lengths, per_step, alike):
    n = len(lengths)
    order = order_sequences(lengths, 2 * n, per_step, seed=3, alike=alike)
    assert sorted(order[:n]) == sorted(order[n:]) == list(range(n))
    assert order == order_sequences(lengths, 2 * n, per_step, seed=3, alike=alike)
    assert order[: n // 2] == order_sequences(lengths, n // 2, per_step, seed=3, alike=alike)


def test_epochs_and_seeds_differ():
    first, second = np.split(np.array(order_sequences([1] * 100, 200, 8, seed=0, alike=False)), 2)
    assert (first != second).any()
    assert (first != np.array(order_sequences([1] * 100, 100, 8, seed=1, alike=False))).any()


def test_alike_puts_like_lengths_together():
    lengths = list(range(1, 401))
    order = order_sequences(lengths, 400, 8, seed=0, alike=True)
    spread = np.mean([np.ptp([lengths[i] for i in order[k : k + 8]]) for k in range(0, 400, 8)])
    assert spread < 40  # of random eights it is about 310


def test_collated_targets_are_the_tokens_after_the_kept_positions():
    tokens = TokenData(token_table([7, 5, 9]))
    batch = collate([[tokens[0], tokens[2]], [tokens[1]]])
    ids, keep, labels = batch["input_ids"][0], batch["logits_to_keep"], batch["labels"][0]
    starts = [0, SHAPE_MULTIPLE, 2 * SHAPE_MULTIPLE]
    for i, start in zip((0, 2, 1), starts, strict=True):
        assert ids[start : start + len(tokens[i]["input_ids"])].tolist() == tokens[i]["input_ids"].tolist()
    assert batch["position_ids"][0].tolist() == [*range(SHAPE_MULTIPLE)] * 3
    assert batch["example_tokens"] == (SHAPE_MULTIPLE,) * 3
    targets = sum(int(np.sum(tokens[i]["is_target"][1:])) for i in range(3))
    assert labels[:targets].tolist() == ids[keep[:targets] + 1].tolist()
    assert set(labels[targets:].tolist()) == {IGNORE}
    # A first token is nobody's next one: no example foretells another's.
    assert not set((keep + 1).tolist()) & set(starts)


def two_examples(n):
    return TokenData(token_table([n, 2 * n]))


def test_shapes_are_few():
    batches = [collate([[tokens[0]], [tokens[1]]]) for tokens in map(two_examples, range(1, 100))]
    for name in ("input_ids", "logits_to_keep"):
        assert {batch[name].numel() % SHAPE_MULTIPLE for batch in batches} == {0}


def test_padded_and_packed_batches_learn_the_same_tokens():
    tokens = TokenData(token_table([7, 5, 9]))
    rows = [[tokens[i]] for i in range(3)]
    learned = [batch["labels"][batch["labels"] != IGNORE] for batch in (collate(rows), collate_padded(rows, pad_id=0))]
    assert Counter(learned[0].tolist()) == Counter(learned[1].tolist())
    assert collate_padded(rows, pad_id=0)["attention_mask"].sum(dim=1).tolist() == [7, 5, 9]


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, use_cache=False
    )
    return LlamaForCausalLM(config).eval()


def test_packed_padded_and_single_losses_are_equal(model):
    """No example sees another: each has the loss that it has alone, computed by transformers' own shift and mask."""
    import torch

    tokens = TokenData(token_table([20, 33, 7, 41]))
    packs = plan_packs(tokens.lengths.tolist(), 64)
    assert len(packs) < 4
    packed = example_losses(model, tokens, packs)
    for i in range(4):
        ids = torch.from_numpy(tokens[i]["input_ids"].astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(tokens[i]["is_target"])[None], ids, IGNORE)
        alone = model(input_ids=ids, labels=labels).loss.item()
        assert packed[i] / int(tokens[i]["is_target"][1:].sum()) == pytest.approx(alone, abs=1e-5)
    total = sum(int(tokens[i]["is_target"][1:].sum()) for i in range(4))
    for batch in (collate([[tokens[i] for i in range(4)]]), collate_padded([[tokens[i]] for i in range(4)], 0)):
        loss = model(**batch).loss.item()
        assert loss == pytest.approx(sum(packed.values()) / total, abs=1e-5)


def test_the_ranks_losses_together_are_one_ranks(model):
    tokens = TokenData(token_table([20, 33, 7, 41, 12]))
    packs = [[0], [1, 2], [3], [4]]
    alone = example_losses(model, tokens, packs)
    parts = [example_losses(model, tokens, packs, rank=r, world_size=3) for r in range(3)]
    assert parts[0] | parts[1] | parts[2] == pytest.approx(alone)
    assert sum(map(len, parts)) == len(alone)


def test_sequences_are_the_examples_of_the_packs_in_order():
    tokens = TokenData(token_table([3, 4, 5]))
    sequences = Sequences(tokens, [[0, 2], [1]], [1, 0, 1])
    assert [[len(row["input_ids"]) for row in sequences[i]] for i in range(len(sequences))] == [[4], [3, 5], [4]]


def test_token_data_gives_back_what_was_written():
    table = token_table([3, 4, 5])
    tokens = TokenData(table.take([2, 0, 1]))  # sorted by example_id again
    assert tokens.lengths.tolist() == [3, 4, 5]
    for i, row in enumerate(table.to_pylist()):
        assert tokens[i]["input_ids"].tolist() == row["input_ids"]
        assert tokens[i]["is_target"].tolist() == row["is_target"]
        assert tokens.n_targets[i] == sum(row["is_target"])
