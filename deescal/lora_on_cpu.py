"""Adapters on a CPU: vLLM's layer of products, an adapter at a time.

vLLM 0.32 gathers, for every token, a copy of its adapter's weights on a CPU, which costs more than the model: SmolLM2
with one adapter gave 0.4 replies a second to long conversations, and gives 6 with this. It also takes the last slot's
adapter for requests that have none (index -1): the base speaks with another's words where all slots are taken. Here
the tokens of each adapter go through its weights together, and those of the base through nothing.

`deescal.engine.engine_arguments` names `Extension` to vLLM, whose import where the model is puts this in place.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

Groups = list[tuple[int, torch.Tensor | slice]]  # slot of an adapter, its tokens


def grouped(indices: torch.Tensor) -> Groups:
    """Slot of each token (n,), -1 where it has none -> each adapter's tokens; all of them as a slice, not a copy."""
    if not len(indices):
        return []
    if bool((indices == indices[0]).all()):
        return [(int(indices[0]), slice(None))] if indices[0] >= 0 else []
    return [(i, (indices == i).nonzero().squeeze(1)) for i in indices.unique().tolist() if i >= 0]


class GroupedLora(PunicaWrapperCPU):
    """What a layer adds of its tokens' adapters. Weights are stacked (slots, 1, rows, columns)."""

    _groups: Groups

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._groups = grouped(self.token_lora_indices)  # once a step, for all layers

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """y += x A' B' scale, for each slice of the output."""
        rows_of_y, rows_of_x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        for slot, tokens in self._groups:
            seen, start = rows_of_x[tokens], 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                rows_of_y[tokens, start : start + width] += _low_rank(seen, a[slot], b[slot], scale)
                start += width

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """The same of the head, whose tokens are those that are sampled."""
        rows_of_y, rows_of_x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        for slot, tokens in grouped(self.sampler_indices):
            added = _low_rank(rows_of_x[tokens], lora_a_stacked[slot], lora_b_stacked[slot], scale)
            rows_of_y[tokens, : added.shape[1]] += added

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        """y += x B', of tokens that are looked up in A already."""
        for slot, tokens in self._groups:
            added = _times(x[tokens], lora_b_stacked[slot])
            y[tokens] = y[tokens] + added if add_inputs else added


def _low_rank(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    return _times(_times(x, a), b) * scale


def _times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W', W with or without a leading dimension of 1."""
    matrix = weight.reshape(-1, weight.shape[-1])
    return x.to(matrix.dtype) @ matrix.T


class Extension:
    """Of vLLM's worker; it adds nothing."""


def _qualified_name(cls: type[CpuPlatform]) -> str:
    return f"{__name__}.{GroupedLora.__qualname__}"


# A platform names the class for its adapters; a CPU's has no setting for it.
CpuPlatform.get_punica_wrapper = classmethod(_qualified_name)  # type: ignore[assignment, method-assign]
