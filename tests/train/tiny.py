"""A tiny model and dataset, random weights and made-up words, that a whole fine-tune takes seconds with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deescal.schema import EXAMPLES, to_table
from tests.train.families import build

WORDS = ["step", "out", "why", "did", "nothing", "hands", "up", "he", "is", "right", "they", "are", "calm", "please"]


def write_model(folder: Path, family: str = "qwen2.5", **changes: Any) -> str:
    """A Llama of two layers with seeded random weights and the family's tokenizer, as a folder that engines load."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build(family)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def dialogue(rng: random.Random, n_pairs: int) -> list[dict[str, str]]:
    """Officer and civilian in turn; the civilian repeats the officer's last word, which can be learned."""
    messages = []
    for _ in range(n_pairs):
        said = [rng.choice(WORDS) for _ in range(rng.randint(2, 8))]
        messages.append({"role": "user", "content": " ".join(said)})
        messages.append({"role": "assistant", "content": " ".join([said[-1]] * 3)})
    return messages


def write_dataset(folder: Path, n_train: int = 24, n_validation: int = 6, seed: int = 0) -> str:
    """Examples as `deescal dataset build` writes them."""
    rng = random.Random(seed)
    (folder / "examples").mkdir(parents=True)
    for split, n in (("train", n_train), ("validation", n_validation), ("test", n_validation)):
        rows = [
            {
                **dict.fromkeys(EXAMPLES.names),
                "example_id": f"{split}{i:03d}-0",
                "scenario_id": f"{split}{i // 2:03d}",
                "incident_id": f"{split}{i // 2:03d}",
                "n_context_messages": 2 if i % 2 else 0,
                "messages": dialogue(rng, rng.randint(2, 6)),
            }
            for i in range(n)
        ]
        pq.write_table(to_table(rows, EXAMPLES), folder / "examples" / f"{split}.parquet")
    return str(folder)


def token_table(lengths: list[int], vocab: int = 50, seed: int = 0) -> pa.Table:
    """TOKENS of random ids, a third of them targets."""
    from deescal.schema import TOKENS

    rng = random.Random(seed)
    rows = [
        {
            "example_id": f"{i:04d}",
            "scenario_id": f"s{i // 2}",
            "input_ids": [rng.randrange(vocab) for _ in range(n)],
            "is_target": [rng.random() < 1 / 3 for _ in range(n)],
        }
        for i, n in enumerate(lengths)
    ]
    return to_table(rows, TOKENS)
