"""Requests through Ray Data's vLLM processor: three operators, so that the engine shares its machine with little else.

read + render + tokenize (tasks) -> engines (actors) -> write (tasks). Every batch of answers becomes a file of
`<out>/parts` as soon as it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deescal.cluster import check_place, on_this_node, start_ray, users_errors
from deescal.config import load_engine
from deescal.dataset.chat import load_tokenizer, render
from deescal.engine import engine_arguments, engine_environment, thread_environment
from deescal.errors import one_line
from deescal.judge.choices import first_tokens
from deescal.models import resolve
from deescal.schema import Row, to_table
from deescal.score.config import Contestant, SamplingConfig, ScoreConfig
from deescal.score.store import write_part
from deescal.score.suspects import Deaths
from deescal.score.tables import ANSWERS, REQUESTS
from deescal.storage import join, read_table, remove_folder, write_table

if TYPE_CHECKING:
    import ray.data

# What the engine reads.
PROMPTS = pa.schema(
    {
        **{name: REQUESTS.field(name).type for name in ("request_id", "adapter", "json_schema", "error", "attempts")},
        "choice_ids": pa.list_(pa.list_(pa.int32())),  # first tokens of each choice's spellings; null: words are asked
        "prompt_ids": pa.list_(pa.int32()),  # tokens, special ones included; empty where there is an error
    }
)
QUICK_CPUS = 1  # of a task that renders or writes; there is one beside those of the engines


def ask_offline(
    requests: Iterable[Row],
    out: str,
    contestants: Sequence[Contestant],
    sampling: SamplingConfig,
    config: ScoreConfig,
) -> Iterator[pa.Table]:
    """Ask them all on this machine or cluster; yields the ANSWERS of a file the moment it is stored.

    Args:
        requests: REQUESTS without errors, in the order to ask.
        sampling: with `max_tokens`.

    Raises:
        UserError: too little of what workers ask for, or `out` is not seen by every node.
    """
    work = join(out, "work")
    remove_folder(work)
    files = write_batches(requests, work, config.batch_size)
    demand = config.demand
    start_ray(config.ray, demand["CPU"] + 1, demand)
    check_place(files[0])
    room = config.llm.max_model_len - (sampling.max_tokens or 0)
    ds = read_batches(files, partial(to_prompts, model=config.llm.model, room=room))
    ds = engine_stage(contestants, sampling, config)(ds)
    ds = ds.map_batches(partial(store, out=out), batch_size=None, batch_format="pyarrow", num_cpus=QUICK_CPUS)
    with users_errors():
        yield from ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    remove_folder(work)


def write_batches(requests: Iterable[Row], work: str, size: int) -> list[str]:
    """REQUESTS in files of `size` rows, which are Ray's blocks and the engine's batches."""
    files: list[str] = []
    rows = iter(requests)
    while batch := list(islice(rows, size)):
        files.append(join(work, f"{len(files):06d}.parquet"))
        write_table(files[-1], to_table(batch, REQUESTS))
    return files


def read_batches(files: Sequence[str], prepare: Callable[[pa.Table], pa.Table] | None = None) -> ray.data.Dataset:
    """Files of REQUESTS -> a dataset with a block a file, in order; `read_parquet` would join small ones."""
    import ray

    names = ray.data.from_arrow([pa.table({"file": [file]}) for file in files])
    return names.map_batches(
        partial(_read, prepare=prepare), batch_size=None, batch_format="pyarrow", num_cpus=QUICK_CPUS
    )


def _read(names: pa.Table, prepare: Callable[[pa.Table], pa.Table] | None) -> pa.Table:
    requests = pa.concat_tables([read_table(file) for file in names["file"].to_pylist()]).cast(REQUESTS)
    return prepare(requests) if prepare else requests


def to_prompts(requests: pa.Table, model: str, room: int) -> pa.Table:
    """REQUESTS -> PROMPTS by the model's chat template, as in training (`deescal.dataset.chat.render`).

    Args:
        room: tokens of a prompt; one with more gets an error.
    """
    from jinja2 import TemplateError

    tokenizer = _tokenizer(model)
    rows = []
    for request in requests.select([*PROMPTS.names[:-2], "messages", "choices"]).to_pylist():
        ids: list[int] = []
        choices = request.pop("choices")
        request["choice_ids"] = [sorted(of) for of in first_tokens(tokenizer, tuple(choices))] if choices else None
        try:
            text = render(request.pop("messages"), tokenizer, add_generation_prompt=True)
            ids = tokenizer.encode(text, add_special_tokens=False)
        except TemplateError as error:  # roles in an order that this family does not know
            request["error"] = f"the model's chat template refuses the messages: {one_line(error)}"
        if len(ids) > room:
            request["error"] = too_long(len(ids), room)
        rows.append({**request, "prompt_ids": [] if request["error"] else ids})
    return to_table(rows, PROMPTS)


def too_long(n_tokens: int, room: int) -> str:
    return f"the prompt has {n_tokens:,} tokens, llm.max_model_len leaves {room:,} beside the answer"


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    return load_tokenizer(model)


def engine_stage(contestants: Sequence[Contestant], sampling: SamplingConfig, config: ScoreConfig) -> Any:
    """Ray's LLM processor around our worker: PROMPTS dataset -> ANSWERS dataset."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    deaths = ray.remote(Deaths).options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
    adapters = [c.adapter for c in contestants if c.adapter]
    quick = {"num_cpus": QUICK_CPUS}
    with _quiet():
        processor = build_processor(
            vLLMEngineProcessorConfig(**processor_settings(config, with_adapters=bool(adapters))),
            postprocess=to_answer,
            preprocess_map_kwargs=quick,
            postprocess_map_kwargs=quick,
        )
    for name, stage in processor.stages.items():
        arguments = {**stage.fn_constructor_kwargs, "sampling": sampling, "adapters": adapters, "deaths": deaths}
        # A copy, as an assignment would derive the resources once more, from arguments that are used up by now.
        asked = {**stage.map_batches_kwargs, "memory": int(config.workers.memory_gib * 2**30)}
        changes = {
            "fn": load_engine(config.worker),
            "fn_constructor_kwargs": arguments,
            "map_batches_kwargs": asked,
        }
        processor.stages[name] = stage.model_copy(update=changes)
    return processor


def processor_settings(config: ScoreConfig, with_adapters: bool) -> dict[str, Any]:
    """Arguments of Ray's `vLLMEngineProcessorConfig`."""
    llm, resources = config.llm, config.workers
    bundle = {"CPU": resources.num_cpus, **({"GPU": resources.num_gpus} if resources.num_gpus else {})}
    lora = config.lora if with_adapters else None
    return {
        "model_source": resolve(llm.model),
        "engine_kwargs": {
            **engine_arguments(llm, on_cpu=not resources.num_gpus, lora=lora),
            "disable_log_stats": True,
        },
        "runtime_env": {"env_vars": environment(config)},
        "concurrency": (resources.workers, resources.workers),
        "batch_size": config.batch_size,
        "max_concurrent_batches": config.batches_in_flight,
        "log_engine_metrics": False,
        "placement_group_config": {"bundle_per_worker": bundle},
        # We render and tokenize (`to_prompts`), and the engine answers in text.
        "chat_template_stage": False,
        "tokenize_stage": False,
        "detokenize_stage": False,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray tells at length what it finds while it builds a processor: that it is running, that there is no mirror."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def environment(config: ScoreConfig) -> dict[str, str]:
    """Of the engines' processes."""
    if config.workers.num_gpus:
        return engine_environment(config.llm)
    # Else vLLM on a CPU gives the model a process beside that of the engine's core, and every step two messages more.
    in_core = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return {**engine_environment(config.llm), **thread_environment(config.llm, config.workers.num_cpus), **in_core}


def to_answer(row: Row) -> Row:
    """What came out of the stage -> ANSWERS."""
    return {name: row[name] for name in ANSWERS.names}


def store(answers: pa.Table, out: str) -> pa.Table:
    """Write a file of ANSWERS, and hand them on to whoever waits for the run."""
    table = to_table(answers.to_pylist(), ANSWERS)
    write_part(out, table)
    return table
