"""What a fine-tune leaves behind: an adapter in PEFT's format, or a whole model, in a folder that others can load.

adapter_model.safetensors, adapter_config.json   PEFT's names, as transformers, PEFT and vLLM read them
model.safetensors, config.json, ...              instead of these where the whole model was tuned
tokenizer files, chat_template.jinja             the template with the date that training saw
train_config.json                                the run's config: `deescal train --config` takes it
base.json                                        model, revision, identity of the base
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deescal.dataset.chat import template_values
from deescal.errors import UserError, one_line
from deescal.models import MANIFEST, identity, model_folder, resolve
from deescal.registry import REGISTRY
from deescal.train.config import TrainConfig

TRAIN_CONFIG = "train_config.json"
BASE = "base.json"


def export_adapter(model: Any, tokenizer: Any, folder: str, config: TrainConfig) -> None:
    """Write the tuned model into a local folder, weights in the precision they were trained in.

    Args:
        model: a PEFT model, or where method is full, a transformers model, which is written whole; its weights must be
            in one place (gathered, under ZeRO-3).
    """
    reference, revision = base_reference(config.model)
    Path(folder).mkdir(parents=True, exist_ok=True)
    if config.method == "full":
        model.save_pretrained(folder)
    else:
        adapter = model.peft_config["default"]
        adapter.base_model_name_or_path, adapter.revision = reference, revision
        model.save_pretrained(folder, save_embedding_layers=False)  # never tuned; "auto" asks the hub whether they were
        Path(folder, "README.md").unlink(missing_ok=True)  # an empty model card with this machine's paths
    tokenizer.save_pretrained(folder)
    for template in Path(folder).rglob("*.jinja"):
        template.write_text(pin_date(template.read_text()))
    _write_json(Path(folder, TRAIN_CONFIG), config.model_dump(mode="json"))
    base = {"model": reference, "revision": revision, "identity": identity(config.model)}
    _write_json(Path(folder, BASE), base)


def base_reference(base: str) -> tuple[str, str | None]:
    """A base's name for others to resolve, and its commit: both of the hub where it came from there.

    The commit is that of the files in the hub's cache or in the registry's, which are the ones that were loaded.
    """
    from huggingface_hub import try_to_load_from_cache

    entry = REGISTRY.get(base)
    if entry is not None:
        if entry.hub_id is None:
            return base, None
        manifest = model_folder(base) / MANIFEST
        if manifest.is_file():
            return entry.hub_id, json.loads(manifest.read_text())["source"]["commit"]
    found = resolve(base)
    if Path(found).is_dir():
        return base, None
    cached = try_to_load_from_cache(found, "config.json")
    return found, Path(cached).parent.name if isinstance(cached, str) else None


def pin_date(template: str) -> str:
    """A chat template that writes today's date -> one that writes the date that training saw, whoever renders it."""
    values = template_values(template)
    if "date_string" in values:
        return f'{{%- set date_string = "{values["date_string"]}" %}}{template}'
    if "strftime_now" in values:
        return re.sub(
            r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda m: json.dumps(values["strftime_now"](m[2])), template
        )
    return template


def merge_adapter(base: str, adapter_folder: str, out_folder: str) -> None:
    """Write the base with the adapter added to its weights, in the base's own precision, into a local folder.

    Each layer's sum is made in float32 and rounded once; PEFT's own merge rounds the change first.

    Raises:
        UserError: of `check_mergeable`.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_mergeable(base)
    whole = AutoModelForCausalLM.from_pretrained(resolve(base), dtype="auto")
    tuned = PeftModel.from_pretrained(whole, adapter_folder)
    with torch.no_grad():
        layers: list[Any] = [layer for layer in tuned.modules() if isinstance(layer, LoraLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight("default").float())
    tuned.unload().save_pretrained(out_folder)
    AutoTokenizer.from_pretrained(adapter_folder).save_pretrained(out_folder)
    for name in (TRAIN_CONFIG, BASE):
        Path(out_folder, name).write_bytes(Path(adapter_folder, name).read_bytes())


def check_mergeable(base: str) -> None:
    """Raises UserError where the base is quantised: a change would be lost in rounding to 4 or 8 bits."""
    from transformers import AutoConfig

    try:
        quantised = getattr(AutoConfig.from_pretrained(resolve(base)), "quantization_config", None)
    except (OSError, ValueError) as error:
        raise UserError(f"model '{base}': cannot be loaded: {one_line(error)}") from error
    if quantised:
        raise UserError(f"model '{base}' is quantised: merge into the model that it was made from")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
