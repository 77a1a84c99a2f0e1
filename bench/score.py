"""Bulk scoring against what it stands on: `LLM.generate` of vLLM, and one `transformers.generate` at a time.

    python -m bench.score --data DATASET [--prompts 500] [--naive 24] [--max-tokens 48] [--rounds 1] [key=value ...]

The prompts are the civilian's replies of the dataset's test scenarios as evaluation asks for them, the first so many
in order. Each way is a process of its own, in turn; loading is not counted. Ours counts from the first request that
reaches the engine to the last answer (`busy_s` of the run's summary), with Ray's part of it, but without the rendering
of the very first prompts; `LLM.generate`, too, is given tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from deescal.config import load_config
from deescal.dataset.chat import load_tokenizer, render
from deescal.engine import engine_arguments, engine_environment, resolve_dtype, thread_environment
from deescal.models import resolve
from deescal.score.config import ScoreConfig

WAYS = ("LLM.generate", "LLM.generate in process", "ours", "one at a time")


def write_prompts(data: str, n: int, file: Path) -> None:
    """The first `n` replies of the test split, as a table that `deescal score` takes."""
    from deescal.score.source import read_inputs
    from deescal.score.tasks import find_task

    inputs = read_inputs(data, find_task("replies"), "test")
    pq.write_table(inputs.take(list(inputs.order)[:n]), file)


def token_prompts(file: str, model: str) -> list[list[int]]:
    tokenizer = load_tokenizer(model)
    prompts = []
    for messages in pq.read_table(file)["messages"].to_pylist():
        until = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        prompts.append(tokenizer.encode(render(until, tokenizer, add_generation_prompt=True), add_special_tokens=False))
    return prompts


def bare(file: str, config: ScoreConfig, *, in_process: bool = False) -> dict[str, Any]:
    """As it comes, or without processes and thread binding of its own, which is faster on few cores."""
    os.environ.update(engine_environment(config.llm))
    if in_process:
        os.environ.update(thread_environment(config.llm, config.workers.num_cpus))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    arguments = engine_arguments(config.llm, on_cpu=not config.workers.num_gpus)
    llm = LLM(model=resolve(config.llm.model), disable_log_stats=True, **arguments)
    prompts = [{"prompt_token_ids": ids} for ids in token_prompts(file, config.llm.model)]
    parameters = SamplingParams(temperature=0.0, max_tokens=config.sampling.max_tokens)
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "requests": len(outputs),
        "tokens": sum(len(o.outputs[0].token_ids) for o in outputs),
        "cached": sum(o.num_cached_tokens or 0 for o in outputs) / sum(len(p["prompt_token_ids"]) for p in prompts),
    }


def ours(file: str, config: ScoreConfig) -> dict[str, Any]:
    from deescal.score.job import score

    with tempfile.TemporaryDirectory() as out:
        found = score(file, out, "replies", [config.llm.model], config).run["summary"]
    assert found["answered"] == found["requests"], found["errors"]
    return {
        "seconds": found["busy_s"],
        "requests": found["requests"],
        "tokens": found["completion_tokens"],
        "cached": found["cache_hit_share"],
    }


def one_at_a_time(file: str, config: ScoreConfig, n: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    name = config.llm.model
    dtype = getattr(torch, resolve_dtype(config.llm.dtype))
    model = AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype).eval()
    prompts = token_prompts(file, name)
    prompts = prompts[:: max(1, len(prompts) // n)][:n]  # of all lengths alike
    n_tokens, began = 0, time.perf_counter()
    with torch.no_grad():
        for ids in prompts:
            output = model.generate(
                torch.tensor([ids]), do_sample=False, max_new_tokens=config.sampling.max_tokens, use_cache=True
            )
            n_tokens += output.shape[1] - len(ids)
    return {"seconds": time.perf_counter() - began, "requests": len(prompts), "tokens": n_tokens, "cached": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of a dataset")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--naive", type=int, default=24, help="of them for the loop of transformers.generate; 0: none")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help="only this one, with --data a table of prompts; prints JSON")
    parser.add_argument("overrides", nargs="*", help="key=value of the scoring config")
    args = parser.parse_args()
    given = [f"llm.model={args.model}", f"sampling.max_tokens={args.max_tokens}", *args.overrides]
    config = load_config(None, ScoreConfig, given)
    if args.way:
        runs = (bare, partial(bare, in_process=True), ours, partial(one_at_a_time, n=args.naive))
        print(json.dumps(runs[WAYS.index(args.way)](args.data, config)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.parquet")
        write_prompts(args.data, args.prompts, file)
        for number in range(1, args.rounds + 1):
            ways = WAYS[: 4 if args.naive else 3]
            rates = {way: measure(way, str(file), args, number) for way in (ways if number % 2 else ways[::-1])}
            ratios = [f"ours / {way} {rates['ours'] / rates[way]:.2f}" for way in ways if way != "ours"]
            print(f"round {number}: {', '.join(ratios)}", flush=True)


def measure(way: str, file: str, args: argparse.Namespace, number: int) -> float:
    """Requests a second of one way, in a process of its own."""
    flags = ["--naive", str(args.naive), "--max-tokens", str(args.max_tokens), "--model", args.model]
    command = [sys.executable, "-m", "bench.score", "--data", file, "--way", way, *flags, *args.overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["requests"] / found["seconds"]
    print(
        f"round {number} {way:23s} {found['seconds']:6.1f} s for {found['requests']} prompts: {rate:6.2f} a second, "
        f"{found['tokens'] / found['seconds']:6.1f} tokens/s, {found['cached']:.0%} of prompt tokens from the cache",
        flush=True,
    )
    return float(rate)


if __name__ == "__main__":
    main()
