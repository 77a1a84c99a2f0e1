"""After the last step, in the workers: the best checkpoint back into the model, measured and handed over.

<out>/adapter/             what serves: PEFT's files (or the whole model, for method full), tokenizer, template
<out>/validation.parquet   VALIDATION: loss of the base and of the best checkpoint per held-out scenario
<out>/replies.json         held-out prompts with the real reply, the base's and the tuned model's
<out>/trainer_trace.json   what the model says of held-out prompts while it is still the trainer's: for the parity gate
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from deescal.errors import UserError
from deescal.schema import VALIDATION, to_table
from deescal.storage import join, put_folder, write_json, write_table
from deescal.train.config import TrainConfig
from deescal.train.losses import by_scenario
from deescal.train.zero import is_zero3


def finish(trainer: Any, config: TrainConfig, prompts: Sequence[Mapping[str, Any]], out: str) -> dict[str, Any]:
    """Write the files above; every rank calls it, rank 0 writes.

    Returns:
        `best_step`, `steps`, `validation_loss` of the best checkpoint.
    """
    import ray.train

    from deescal.dataset.chat import load_tokenizer
    from deescal.train.export import export_adapter
    from deescal.train.masks import ChatEncoder
    from deescal.train.trace import trace_model

    reported = [r for r in ray.train.get_all_reported_checkpoints() if isfinite(r.metrics["validation_loss"])]
    if not reported:
        raise UserError("the loss is not a number: training diverged; lower optim.learning_rate")
    best = min(reported, key=lambda r: (r.metrics["validation_loss"], r.metrics["step"]))
    with best.checkpoint.as_directory() as folder:
        load_weights(trainer, Path(folder))
    tuned = by_scenario(trainer.measure(), trainer.validation)
    base = next(row["base_nll"] for row in trainer.state.log_history if "base_nll" in row)
    is_first = trainer.args.process_index == 0
    tokenizer = load_tokenizer(config.model)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_first or is_zero3(trainer):  # whose weights come together in a forward pass of all ranks only
        stop_ids = ChatEncoder(tokenizer).end_of_turn
        ids = [p["input_ids"] for p in prompts[: config.export.parity_prompts]]
        with trainer.accelerator.autocast():  # which is else around the model's own forward pass alone
            replies = sample_replies(model, tokenizer, config, prompts, stop_ids)
            trace = trace_model(model, ids, stop_ids, config.export.parity_new_tokens, together=is_zero3(trainer))
    with gathered(trainer):
        if is_first:
            write_json(join(out, "replies.json"), replies)
            write_json(join(out, "trainer_trace.json"), asdict(trace))
            with tempfile.TemporaryDirectory() as folder:
                export_adapter(model, tokenizer, folder, config)
                put_folder(folder, join(out, "adapter"))
            rows = [
                {"scenario_id": s, "n_target_tokens": n, "base_nll": base[s][0], "tuned_nll": nats}
                for s, (nats, n) in sorted(tuned.items())
            ]
            write_table(join(out, "validation.parquet"), to_table(rows, VALIDATION))
    return {"best_step": best.metrics["step"], "steps": trainer.state.global_step, **best.metrics}


def load_weights(trainer: Any, checkpoint: Path) -> None:
    """Adapter or model of a checkpoint into the trainer's model, however it is spread."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    model = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(trainer, modify=True):
        if isinstance(model, PeftModel):
            set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
            return
        weights: dict[str, Any] = {}
        for file in sorted(checkpoint.glob("model*.safetensors")):
            weights |= load_file(file)
        if not weights:
            raise FileNotFoundError(f"no weights in {checkpoint}")
        model.load_state_dict(weights, strict=False)  # tied weights are in the file once


@contextmanager
def gathered(trainer: Any, *, modify: bool = False) -> Iterator[None]:
    """ZeRO-3's weights whole on every rank; nothing for the others."""
    context: Any = nullcontext()
    if is_zero3(trainer):
        import deepspeed

        parameters = list(trainer.model.parameters())
        context = deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None)
    with context:
        yield


def sample_replies(
    model: Any, tokenizer: Any, config: TrainConfig, prompts: Sequence[Mapping[str, Any]], stop_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Greedy replies of the base and of the tuned model to the first prompts, beside what the civilian really said."""
    from peft import PeftModel
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from deescal.train.model import load_base
    from deescal.train.trace import trace_model

    chosen = prompts[: config.tracking.sample_prompts]
    if not chosen:
        return []

    def replies(model: Any) -> list[str]:
        ids, new_tokens = [p["input_ids"] for p in chosen], config.tracking.sample_new_tokens
        trace = trace_model(model, ids, stop_ids, new_tokens, together=config.strategy.name == "zero3")
        return [text.strip() for text in tokenizer.batch_decode(trace.replies, skip_special_tokens=True)]

    tuned = replies(model)
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base = replies(model)
    else:
        unset_hf_deepspeed_config()  # else it is spread as the trained one is, with no engine to bring it together
        base = replies(load_base(config, model.device).to(model.device))
    fields = ("example_id", "scenario_id", "messages", "reference")
    return [{**{f: p[f] for f in fields}, "base": b, "tuned": t} for p, b, t in zip(chosen, base, tuned, strict=True)]
