"""What adapters add to tokens on a CPU: each its own, and nothing to those of the base, even with all slots taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.engine

SLOTS, RANK, IN, WIDTHS = 2, 3, 5, (4, 2)


def layer(indices: list[int]) -> tuple[Any, ...]:
    """A step's wrapper, tokens, weights of two slices, and what a loop over the tokens gives."""
    import torch

    from deescal.lora_on_cpu import GroupedLora

    torch.manual_seed(0)
    wrapper = GroupedLora(64, 64, "cpu")
    mapping = SimpleNamespace(
        index_mapping=[i + 1 for i in indices], prompt_mapping=[i + 1 for i in indices], is_prefill=True
    )
    wrapper.update_metadata(mapping, [1, 2], SLOTS, 100)
    x = torch.randn(len(indices), IN)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK) for width in WIDTHS)
    expected = torch.ones(len(indices), sum(WIDTHS))
    for token, slot in enumerate(indices):
        if slot >= 0:
            parts = [bi[slot, 0] @ (ai[slot, 0] @ x[token]) * 0.5 for ai, bi in zip(a, b, strict=True)]
            expected[token] += torch.cat(parts)
    return wrapper, x, a, b, expected


@pytest.mark.parametrize("indices", [[0, 1, 0], [1, 1], [-1, 0, -1, 1], [-1, -1], [1]])
def test_each_token_has_its_own_adapter_or_none(indices: list[int]) -> None:
    import torch

    wrapper, x, a, b, expected = layer(indices)
    y = torch.ones(len(indices), sum(WIDTHS))
    wrapper.add_lora_linear(y, x, a, b, 0.5, WIDTHS)
    torch.testing.assert_close(y, expected)
    heads = torch.ones(len(indices), WIDTHS[0] + 1)  # a vocabulary that is padded
    wrapper.add_lora_logits(heads, x, a[0], b[0], 0.5)
    torch.testing.assert_close(heads[:, : WIDTHS[0]], expected[:, : WIDTHS[0]])
    assert bool((heads[:, WIDTHS[0] :] == 1).all())


@pytest.mark.parametrize("indices", [[0, 1, 0], [1, 1]])
def test_it_is_what_vllm_computes_where_every_token_has_an_adapter(indices: list[int]) -> None:
    import torch
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper, x, a, b, expected = layer(indices)
    y = torch.ones(len(indices), sum(WIDTHS))
    PunicaWrapperCPU.add_lora_linear(wrapper, y, x, a, b, 0.5, WIDTHS)
    torch.testing.assert_close(y, expected)


def test_vllm_itself_gives_the_base_anothers_words() -> None:
    """Why it is here: once this fails, vLLM leaves tokens without an adapter alone, and speed is the only reason."""
    import torch
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper, x, a, b, expected = layer([-1, 0])
    y = torch.ones(2, sum(WIDTHS))
    PunicaWrapperCPU.add_lora_linear(wrapper, y, x, a, b, 0.5, WIDTHS)
    assert not torch.allclose(y[0], expected[0])
    torch.testing.assert_close(y[1], expected[1])


def test_vllm_takes_it_for_its_own() -> None:
    from vllm.platforms.cpu import CpuPlatform

    import deescal.lora_on_cpu  # noqa: F401
    from deescal.engine import LlmConfig, LoraSlots, engine_arguments

    assert CpuPlatform.get_punica_wrapper() == "deescal.lora_on_cpu.GroupedLora"
    arguments = engine_arguments(LlmConfig(), on_cpu=True, lora=LoraSlots())
    assert arguments["worker_extension_cls"] == "deescal.lora_on_cpu.Extension"
    assert "worker_extension_cls" not in engine_arguments(LlmConfig(), on_cpu=False, lora=LoraSlots())
