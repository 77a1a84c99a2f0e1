"""How fast civilian tokens are learned, packed, padded, and as the reference trains, on the same examples in one run.

    python bench/train.py --data DATASET [--examples 24] [--model smollm2-135m] [--rounds 2] [key=value ...]
    python bench/train.py --random Qwen2.5-3B-Instruct method=qlora data.sequences_at_once=2   # a GPU; MFU, memory

The reference's settings: transformers' Trainer, two examples a batch, padding to the longest, loss on every token. It
trains once on the same examples, and once on rows as it makes them itself: whole scenarios, cut at the limit, whoever
speaks. All train the same weights in the same precision, without gradient checkpointing, each in a process of its own,
once through all of its rows; useful tokens are those of civilian turns. Also checks that packed and padded losses of
the same examples are equal in float32.

--random makes a model of a family's shape with random weights, and full sequences of random tokens, a third of them
targets: the shape is what speed and memory depend on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from pyarrow.dataset import dataset
from transformers import Trainer, TrainingArguments

from deescal.config import load_config
from deescal.dataset.chat import load_tokenizer
from deescal.schema import TOKENS, Row, to_table
from deescal.storage import join
from deescal.train.config import TrainConfig
from deescal.train.data import Encode, Sequences, TokenData, read_examples
from deescal.train.losses import example_losses, mean_loss
from deescal.train.masks import ChatEncoder
from deescal.train.model import load_base, load_for_training
from deescal.train.pack import IGNORE, collate, collate_padded
from deescal.train.shape import FAMILIES
from deescal.train.trainer import peak_memory_gib, plan_training, training_arguments, utilisation

WAYS = ("packed", "padded", "reference", "reference, its rows")


class Timed(Trainer):
    """Notes how long each step took."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.began = time.perf_counter()
        return super().get_batch_samples(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def read(data: str, model: str, n: int, seed: int) -> TokenData:
    """`n` examples of the training split, drawn with a seed, as tokens."""
    table = read_examples(data, "train")
    chosen = np.random.default_rng(seed).choice(len(table), size=min(n, len(table)), replace=False)
    return TokenData(Encode(model)(table.take(np.sort(chosen))))


def read_whole(data: str, model: str, n: int, max_tokens: int, seed: int) -> TokenData:
    """`n` scenarios of the training split, drawn with a seed, whole but for what is beyond the limit."""
    import pyarrow.compute as pc

    scenarios = dataset(join(data, "scenarios")).to_table(["scenario_id", "split"])
    ours = sorted(scenarios.filter(pc.field("split") == "train")["scenario_id"].to_pylist())
    chosen = np.random.default_rng(seed).choice(ours, size=min(n, len(ours)), replace=False).tolist()
    turns = dataset(join(data, "turns")).to_table(["scenario_id", "turn_id", "role", "text"])
    turns = turns.filter(pc.field("scenario_id").isin(chosen)).sort_by(
        [("scenario_id", "ascending"), ("turn_id", "ascending")]
    )
    encoder = ChatEncoder(load_tokenizer(model))
    rows = []
    for scenario, spoken in groupby(turns.to_pylist(), key=itemgetter("scenario_id")):
        messages = [
            {"role": "assistant" if civilian else "user", "content": " ".join(turn["text"] or "" for turn in same)}
            for civilian, same in groupby(spoken, key=lambda turn: turn["role"] == "civilian")
        ]
        if messages[0]["role"] == "assistant":  # templates want a user first
            messages.insert(0, {"role": "user", "content": ""})
        encoded = encoder.encode(messages, 0)
        row = {"example_id": scenario, "scenario_id": scenario, "input_ids": encoded.input_ids[:max_tokens]}
        rows.append({**row, "is_target": encoded.is_target[:max_tokens]})
    return TokenData(to_table(rows, TOKENS))


def collate_reference(rows: Sequence[Sequence[Row]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows padded to the longest, a label on every token."""
    ids = [torch.from_numpy(row["input_ids"].astype(np.int64)) for (row,) in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad(ids, batch_first=True, padding_value=IGNORE),
    }


def seconds_per_step(
    config: TrainConfig, sequences: Any, collator: Callable[..., Any], n_steps: int, *, plain: bool = False
) -> list[float]:
    """Of each step; `plain`: with transformers' own attention and PEFT as it comes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments: TrainingArguments = training_arguments(config, n_steps, Path(folder), None)
        arguments.eval_strategy = arguments.save_strategy = "no"
        model = load_for_training(config, device)
        if plain:
            model.get_base_model().set_attn_implementation("sdpa")
            for layer in model.modules():
                if isinstance(layer, LoraLayer):
                    layer.cast_input_dtype_enabled = True
        trainer = Timed(model=model, args=arguments, train_dataset=sequences, data_collator=collator)
        trainer.train()
    return trainer.seconds[:n_steps]


def write_random_model(family: str, folder: str) -> None:
    """A model of this shape in bfloat16, as a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(FAMILIES[family])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def random_tokens(n_sequences: int, length: int) -> TokenData:
    """Sequences of random ids, a third of them targets."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "example_id": f"{i:06d}",
            "scenario_id": f"{i:06d}",
            "input_ids": rng.integers(0, 30_000, length).tolist(),
            "is_target": (rng.random(length) < 1 / 3).tolist(),
        }
        for i in range(n_sequences)
    ]
    return TokenData(to_table(rows, TOKENS))


def measure_random(family: str, n_steps: int, overrides: Sequence[str]) -> None:
    """Tokens a second, MFU and peak memory of steps of a random model."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(family, folder)
        config = load_config(None, TrainConfig, [f"model={folder}", f"optim.max_steps={n_steps}", *overrides])
        tokens = random_tokens(n_steps * config.data.sequences_per_step, config.data.max_tokens)
        packs, order, _ = plan_training(config, tokens.lengths.tolist())
        seconds = seconds_per_step(config, Sequences(tokens, packs, order), collate, n_steps)[1:]
        rate = config.data.sequences_per_step * config.data.max_tokens * len(seconds) / sum(seconds)
        share = utilisation(config, tokens)(rate)
    print(
        f"{family}, random weights, {config.method}, {config.data.max_tokens} tokens: {rate:,.0f} tokens/s, "
        f"MFU {'unknown' if share is None else f'{share:.1%}'}, peak {peak_memory_gib():.1f} GiB"
    )


def measure_way(way: str, data: str, model: str, n_examples: int, overrides: Sequence[str]) -> dict[str, float]:
    """One of WAYS through all of its rows: seconds, tokens read and civilian tokens learned."""
    common = [f"model={model}", "data.sequences_per_step=2", *overrides]
    if way != "packed":
        common += ["data.packing=false", "data.sequences_at_once=2"]
    config = load_config(None, TrainConfig, common)
    pad_id = load_tokenizer(model).pad_token_id or 0
    plain = way.startswith("reference")
    if way == "reference, its rows":
        tokens = read_whole(data, model, n_examples, config.data.max_tokens, seed=0)
    else:
        tokens = read(data, model, n_examples, seed=0)
    collator: Callable[..., Any] = collate
    if way != "packed":
        collator = partial(collate_reference if plain else collate_padded, pad_id=pad_id)
    packs, order, _ = plan_training(config, tokens.lengths.tolist())
    per_step = config.data.sequences_per_step
    n_steps = len(packs) // per_step
    if plain:
        order = np.random.default_rng(0).permutation(len(packs)).tolist()
    order = order[: n_steps * per_step]
    # The first step warms up and does not count: it is done twice.
    rows = Sequences(tokens, packs, order[:per_step] + order)
    seconds = seconds_per_step(config, rows, collator, n_steps + 1, plain=plain)
    counted = [example for sequence in order for example in packs[sequence]]
    return {
        "seconds": sum(seconds[1:]),
        "tokens": int(tokens.lengths[counted].sum()),
        "learned": int(tokens.n_targets[counted].sum()),
        "peak_gib": peak_memory_gib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="folder of a dataset")
    what.add_argument("--random", choices=FAMILIES, help="a family's shape with random weights")
    parser.add_argument("--examples", type=int, default=24, help="that each way trains on in a round")
    parser.add_argument("--steps", type=int, default=6, help="of --random; the first does not count")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--way", choices=WAYS, help="only this one, and print JSON: how the others are run")
    parser.add_argument("overrides", nargs="*", help="key=value of the config")
    args = parser.parse_args()
    if args.random:
        measure_random(args.random, args.steps, args.overrides)
        return
    if args.way:
        print(json.dumps(measure_way(args.way, args.data, args.model, args.examples, args.overrides)))
        return
    check_equal(args.data, args.model, args.overrides)
    for number in range(1, args.rounds + 1):
        useful: dict[str, float] = {}
        for way in WAYS:
            command = [sys.executable, *sys.argv, "--way", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            useful[way] = found["learned"] / found["seconds"]
            print(
                f"round {number} {way:19s} {found['seconds']:6.1f} s for {found['tokens']:,} tokens: "
                f"{found['tokens'] / found['seconds']:6.1f} tokens/s, {useful[way]:6.1f} civilian tokens/s, "
                f"peak {found['peak_gib']:.1f} GiB",
                flush=True,
            )
        ratios = ", ".join(f"packed / {way} {useful['packed'] / useful[way]:.2f}" for way in WAYS if way != "packed")
        print(f"round {number}: {ratios}", flush=True)


def check_equal(data: str, name: str, overrides: Sequence[str]) -> None:
    """Losses of eight short examples in float32: packed together, and padded."""
    config = load_config(None, TrainConfig, [f"model={name}", *overrides, "dtype=float32", "method=lora"])
    tokens = read(data, name, 24, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_base(config, device).to(device).eval()
    few = np.argsort(tokens.lengths)[:8].tolist()
    losses = example_losses(model, tokens, [few])
    batch = collate_padded([[tokens[i]] for i in few], load_tokenizer(name).pad_token_id or 0)
    with torch.no_grad():
        rows = model(**{name: value.to(device) for name, value in batch.items()}).loss.item()
    print(f"loss in float32 of the same examples: packed {mean_loss(losses, tokens.n_targets):.6f}, padded {rows:.6f}")


if __name__ == "__main__":
    main()
