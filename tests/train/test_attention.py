"""Example by example without a mask is what transformers computes with one: values, gradients, windows, generation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deescal.errors import UserError
from deescal.train.attention import check_apart, register
from deescal.train.data import TokenData
from deescal.train.pack import collate, collate_padded

from .tiny import token_table

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mistral() -> Any:
    """Every layer with a window."""
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))


def gemma3() -> Any:
    """Layers with and without a window, in turn."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=16, layer_types=kinds))


@pytest.fixture(params=[llama, mistral, gemma3], ids=lambda make: make.__name__)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same weights with transformers' own attention, and with ours."""
    import torch

    torch.manual_seed(0)
    make: Callable[[], Any] = request.param
    stock = make().train()
    ours = copy.deepcopy(stock)
    stock.set_attn_implementation("sdpa")
    ours.set_attn_implementation(register())
    return stock, ours


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_losses_and_gradients_are_those_with_a_mask(models: tuple[Any, Any], packed: bool, checkpointing: bool) -> None:
    import torch

    if checkpointing:
        models[1].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = TokenData(token_table([20, 33, 7, 41]))
    rows = [[tokens[i]] for i in range(4)]
    batch = collate(rows) if packed else collate_padded(rows, pad_id=0)
    (loss, gradients), (loss_ours, gradients_ours) = (loss_and_gradients(model, batch) for model in models)
    assert loss_ours == pytest.approx(loss, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_the_same(models: tuple[Any, Any], use_cache: bool) -> None:
    import torch

    prompt = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3, 23, 8, 46, 26, 43, 38, 32, 7]])
    options = {"max_new_tokens": 12, "do_sample": False, "use_cache": use_cache}
    stock, ours = (m.eval().generate(prompt, attention_mask=torch.ones_like(prompt), **options) for m in models)
    assert stock.tolist() == ours.tolist()


def test_examples_that_are_kept_apart_pass(models: tuple[Any, Any]) -> None:
    for model in models:
        model.config.use_cache = False  # as `load_base` leaves it
        check_apart(model, range(3, 20))
        assert model.training


def test_layers_that_do_not_tell_attention_where_examples_end_are_refused() -> None:
    import torch
    from transformers import StableLmConfig, StableLmForCausalLM

    torch.manual_seed(0)
    model = StableLmForCausalLM(StableLmConfig(**SIZES, initializer_range=0.2))
    model.set_attn_implementation(register())
    model.config.use_cache = False
    with pytest.raises(UserError, match="lets an example see the one before"):
        check_apart(model, range(3, 20))


def test_a_difference_that_does_not_come_again_is_no_leak(models: tuple[Any, Any]) -> None:
    import torch

    model = models[0]
    model.config.use_cache = False
    calls = []

    def once(module: Any, args: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            output.logits += torch.randn_like(output.logits)

    hook = model.register_forward_hook(once)
    check_apart(model, range(3, 20))
    hook.remove()
    assert len(calls) == 4


def test_padding_on_the_left_is_refused() -> None:
    import torch

    model = llama()
    model.set_attn_implementation(register())
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        model(input_ids=torch.tensor([[0, 3, 4], [5, 6, 7]]), attention_mask=mask)
