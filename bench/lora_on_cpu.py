"""An adapter on a CPU: vLLM with our products (`deescal.lora_on_cpu`) against vLLM as it comes.

    python -m bench.lora_on_cpu --data DATASET --adapter FOLDER [--prompts 24] [--model smollm2-135m]

The first replies of the dataset's test scenarios, greedy, up to 16 tokens, of the adapter and of its base in one
engine; each way is a process of its own, loading not counted. Says, too, how many replies are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.score import token_prompts, write_prompts
from deescal.engine import LlmConfig, LoraSlots, engine_arguments, engine_environment
from deescal.models import resolve

WAYS = ("vLLM", "ours")


def generate(way: str, file: str, model: str, adapter: str) -> dict[str, Any]:
    config = LlmConfig(model=model, max_num_seqs=32)
    os.environ.update(engine_environment(config), VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    arguments = engine_arguments(config, on_cpu=True, lora=LoraSlots())
    if way == "vLLM":
        del arguments["worker_extension_cls"]
    llm = LLM(model=resolve(model), disable_log_stats=True, **arguments)
    prompts: Any = [{"prompt_token_ids": ids} for ids in token_prompts(file, model)]
    parameters = SamplingParams(temperature=0.0, max_tokens=16)
    found: dict[str, Any] = {}
    for name, request in (("adapter", LoRARequest("bench", 1, adapter)), ("base", None)):
        llm.generate(prompts[:1], parameters, use_tqdm=False, lora_request=request)
        began = time.perf_counter()
        outputs = llm.generate(prompts, parameters, use_tqdm=False, lora_request=request)
        seconds = time.perf_counter() - began
        found[name] = {"seconds": seconds, "replies": [output.outputs[0].text for output in outputs]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--adapter", required=True, help="folder of an adapter")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--way", choices=WAYS, help="only this one, with --data a table of prompts; prints JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(generate(args.way, args.data, args.model, args.adapter)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.parquet")
        write_prompts(args.data, args.prompts, file)
        command = [sys.executable, "-m", "bench.lora_on_cpu", "--data", str(file), "--adapter", args.adapter]
        found = {}
        for way in WAYS:
            out = subprocess.run([*command, "--model", args.model, "--way", way], capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(out.stderr[-3000:])
            found[way] = json.loads(out.stdout.splitlines()[-1])
    for name in ("adapter", "base"):
        theirs, ours = (found[way][name] for way in WAYS)
        same = sum(a == b for a, b in zip(theirs["replies"], ours["replies"], strict=True))
        print(
            f"{name}: vLLM {theirs['seconds']:.1f} s, ours {ours['seconds']:.1f} s for {args.prompts} prompts, "
            f"{theirs['seconds'] / ours['seconds']:.1f} times as fast; {same} replies the same"
        )


if __name__ == "__main__":
    main()
