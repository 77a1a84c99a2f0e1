"""Attention within the examples of a packed row, without a mask: `attention: sdpa` of a TrainConfig.

For a packed row transformers gives torch's scaled_dot_product_attention a mask of tokens x tokens. With a mask there is
no flash kernel on a GPU, and everywhere all pairs are computed, twice what a causal row needs and more the more
examples share it. Here each example goes through the same function by itself, causal and without a mask. It is what
flash_attention_2's kernel for rows of unlike length does, where that package is not installed or there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deescal.errors import UserError

PACKED_SDPA = "deescal_packed_sdpa"  # transformers' name for it, once `register` was called
LEAK = 1e-2  # of the logits' spread, that they may change with what an example should not see


def register() -> str:
    """Make the implementation known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import flash_attention_mask

    AttentionInterface.register(PACKED_SDPA, packed_sdpa)
    AttentionMaskInterface.register(PACKED_SDPA, flash_attention_mask)  # none, or which tokens are padding
    return PACKED_SDPA


def packed_sdpa(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    example_tokens: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Causal attention, [rows, heads, tokens, head size] -> [rows, tokens, heads, head size].

    Args:
        attention_mask: none, or [rows, tokens] where rows are padded, which must be on the right: no token sees those
            after it, so that padding changes nothing but its own output.
        sliding_window: tokens that a token sees at most, itself included.
        example_tokens: tokens of each example in the one row, as `deescal.train.pack.collate` gives them; without it
            a row is one example.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import repeat_kv

    if attention_mask is not None and not bool(attention_mask[:, 0].all()):
        raise ValueError("rows padded on the left need attn_implementation='sdpa'")
    if unknown := {name for name in ("softcap", "s_aux") if kwargs.get(name) is not None}:
        raise ValueError(f"this model's attention has {', '.join(unknown)}, which sdpa leaves out: set attention=eager")

    def attend(query: Any, key: Any, value: Any) -> Any:
        n_queries, n_keys = query.shape[2], key.shape[2]
        window = min(sliding_window or n_keys, n_keys)
        causal = window == n_keys and n_queries == n_keys
        # A key for each query head: torch's CPU kernel goes backward in a fifth less time with it, and with a mask none
        # of the GPU's fused kernels does without.
        if (n_repeat := query.shape[1] // key.shape[1]) > 1 and (not causal or query.device.type == "cpu"):
            key, value = repeat_kv(key, n_repeat), repeat_kv(value, n_repeat)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if causal else _window(n_queries, n_keys, window, query.device),
            dropout_p=dropout,
            scale=scaling,
            is_causal=causal,
            enable_gqa=key.shape[1] < query.shape[1],
        )

    if example_tokens is None or len(example_tokens) == 1:
        out = attend(query, key, value)
    else:
        parts = zip(*(x.split(list(example_tokens), dim=2) for x in (query, key, value)), strict=True)
        out = torch.cat([attend(*part) for part in parts], dim=2)
    return out.transpose(1, 2).contiguous(), None


def check_apart(model: Any, row: Sequence[int]) -> None:
    """Make sure that an example of a packed row does not see the one before it.

    A layer that keeps keyword arguments to itself never tells attention where examples end, and a recurrent one has no
    attention to tell; both would train, on other people's words.

    Args:
        row: token ids of an example; two of it go through the model, the first as it is and then reversed.

    Raises:
        UserError: that changes what the model says after the second.
    """
    import torch

    from deescal.train.pack import collate

    def after(first: Sequence[int]) -> Any:
        """Logits of the second example."""
        rows = [{"input_ids": ids, "is_target": [ids is row] * len(ids)} for ids in (first, row)]
        batch = {name: x.to(model.device) if torch.is_tensor(x) else x for name, x in collate([rows]).items()}
        for loss in ("labels", "shift_labels"):
            del batch[loss]
        return model(**batch).logits[0].float()

    def leaks() -> bool:
        before, changed = after(list(row)), after(row[::-1])
        # The same shapes give the same bits, but for experts (mixtures), whose inputs are grouped by what they are.
        return bool((before - changed).abs().mean() > LEAK * before.std())

    training = model.training
    model.eval()
    with torch.no_grad():
        # One that leaks does so every time; a fresh process was seen to differ once, and never again (bfloat16, AMX).
        found = leaks() and leaks()
    model.train(training)
    if found:
        raise UserError("this model lets an example see the one before it in a packed row: set data.packing=false")


def _window(n_queries: int, n_keys: int, window: int, device: Any) -> Any:
    """Which keys the last `n_queries` tokens see: [n_queries, n_keys], true for themselves and the window before."""
    import torch

    behind = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None] - torch.arange(n_keys, device=device)
    return (behind >= 0) & (behind < window)
