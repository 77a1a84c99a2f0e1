"""The shape of a model: what its memory and its work follow from, known before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deescal.errors import UserError, one_line
from deescal.models import resolve
from deescal.train.config import TrainConfig
from deescal.train.model import add_adapters

# config.json of the paper's five families, for where the hub cannot be asked (two of them are gated). Sources: their
# model cards, and the model builders of torchtune (Qwen2.5, Llama-3.2) and MaxText (Gemma-2).
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen2.5-3B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B-Instruct": {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "gemma-2-2b-it": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "granite-3.0-2b-instruct": {
        "model_type": "granite",
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 49155,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "Falcon3-3B-Instruct": {
        "model_type": "llama",
        "hidden_size": 3072,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 131072,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class ModelShape:
    """A decoder of equal blocks, and the adapters that the config puts on it. Counts are numbers of values."""

    name: str
    source: str  # where the sizes come from
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_tokens: int | None  # of a sequence; None where the model does not say
    softcap: bool  # squashes its logits by a tanh, whose output is kept for the backward pass
    n_params: int  # tied weights once
    n_linear: int  # of them in the linear layers of the blocks: what 4 bits hold
    n_largest: int  # of them in the largest layer: what ZeRO-3 has to bring together
    n_block_norms: int  # normalisations over the hidden size in a block
    n_lora: int  # adapter weights
    n_adapters: int  # linear layers with an adapter, over all blocks
    adapter_inputs: int  # values that one token brings to all of them together

    @property
    def n_head(self) -> int:
        """Weights of the output head, whether tied to the embedding or not."""
        return self.vocab_size * self.hidden_size


def load_shape(config: TrainConfig) -> ModelShape:
    """The shape of the config's model, built on torch's meta device, where tensors have sizes but no values.

    Raises:
        UserError: the model cannot be found, is no language model, takes fewer tokens than a sequence has, or has no
            layer of the adapters' names.
    """
    found, source = _read_config(config.model)
    limit = getattr(found, "max_position_embeddings", None)
    if limit and config.data.max_tokens > limit:
        raise UserError(f"data.max_tokens={config.data.max_tokens}: model '{config.model}' takes {limit} at most")
    try:
        model = _build(found)
    except ValueError as error:  # transformers' "Unrecognized configuration class", for what is no language model
        raise UserError(f"model '{config.model}': type '{found.model_type}' does not generate text") from error
    linear = _block_linears(model)
    adapted = _adapt(model, config)
    own = [p for name, p in model.named_parameters() if "lora_" not in name]
    return ModelShape(
        name=config.model,
        source=source,
        n_layers=found.num_hidden_layers,
        hidden_size=found.hidden_size,
        n_heads=found.num_attention_heads,
        n_kv_heads=getattr(found, "num_key_value_heads", None) or found.num_attention_heads,
        head_dim=getattr(found, "head_dim", None) or found.hidden_size // found.num_attention_heads,
        intermediate_size=found.intermediate_size,
        vocab_size=found.vocab_size,
        max_tokens=limit,
        softcap=bool(getattr(found, "final_logit_softcapping", None)),
        n_params=sum(p.numel() for p in own),
        n_linear=sum(linear),
        n_largest=max(p.numel() for p in own),
        n_block_norms=sum(size == found.hidden_size for size in _norms(model)) // found.num_hidden_layers,
        n_lora=sum(p.numel() for name, p in model.named_parameters() if "lora_" in name),
        n_adapters=len(adapted),
        adapter_inputs=sum(adapted),
    )


def _read_config(name: str) -> tuple[Any, str]:
    """transformers' config of a model, and where it was found."""
    from transformers import AutoConfig

    place = resolve(name)
    try:
        return AutoConfig.from_pretrained(place), f"config.json of {place}"
    except (OSError, ValueError, KeyError) as error:
        family = FAMILIES.get(place.rpartition("/")[2])
        if family is None:
            raise UserError(
                f"model '{name}': cannot be loaded: {one_line(error)}; "
                f"sizes are built in for {', '.join(FAMILIES)} only"
            ) from error
        sizes = dict(family)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes), "the built-in table of families"


def _build(found: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(found)


def _block_linears(model: Any) -> list[int]:
    """Weights of each linear layer but the output head."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return [m.weight.numel() for m in model.modules() if isinstance(m, Linear) and m is not head]


def _norms(model: Any) -> list[int]:
    """The size that each normalisation goes over."""
    return [m.weight.numel() for m in model.modules() if type(m).__name__.endswith("Norm")]


def _adapt(model: Any, config: TrainConfig) -> list[int]:
    """Put the config's adapters on the model, in place; returns the input size of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    add_adapters(model, config, low_cpu_mem_usage=True)
    return [m.in_features or 0 for m in model.modules() if isinstance(m, LoraLayer)]
