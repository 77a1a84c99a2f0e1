"""Validation loss by example: the same forward pass as training, without its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deescal.train.data import TokenData
from deescal.train.pack import collate


def example_losses(
    model: Any,
    tokens: TokenData,
    packs: Sequence[Sequence[int]],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> dict[int, float]:
    """Negative log-likelihood of the targets of each example, in nats, summed.

    Args:
        packs: examples that go through the model together; this rank takes every `world_size`-th.

    Returns:
        Example -> nats, for the examples of this rank. Ranks that have run out repeat the last pack, so that all make
        as many passes (ZeRO-3 gathers weights in every one).
    """
    import torch
    from torch.nn.functional import cross_entropy

    mine = list(packs[rank::world_size])
    passes = -(-len(packs) // world_size)
    found: dict[int, float] = {}
    training = model.training
    model.eval()
    with torch.no_grad():
        for i in range(passes):
            pack = mine[i] if i < len(mine) else packs[-1]
            batch = collate([[tokens[e] for e in pack]])
            batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
            targets = batch.pop("labels")[0]
            batch.pop("shift_labels")
            logits = model(**batch).logits[0]
            nats = cross_entropy(logits.float(), targets, reduction="none")
            starts = (batch["position_ids"][0] == 0).long().cumsum(0)[batch["logits_to_keep"]] - 1
            sums = torch.zeros(len(pack), dtype=torch.float64, device=nats.device).index_add_(0, starts, nats.double())
            if i < len(mine):
                found |= dict(zip(pack, sums.tolist(), strict=True))
    model.train(training)
    return found


def mean_loss(losses: dict[int, float], n_targets: Sequence[int] | np.ndarray) -> float:
    """Nats a token over these examples."""
    return sum(losses.values()) / max(1, int(sum(n_targets[e] for e in losses)))


def by_scenario(losses: dict[int, float], tokens: TokenData) -> dict[str, tuple[float, int]]:
    """Scenario -> (nats, target tokens), summed over its examples."""
    totals: dict[str, tuple[float, int]] = {}
    n_targets = tokens.n_targets
    for example, nats in losses.items():
        scenario = tokens.scenario_ids[example]
        before = totals.get(scenario, (0.0, 0))
        totals[scenario] = (before[0] + nats, before[1] + int(n_targets[example]))
    return totals
