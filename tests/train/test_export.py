"""Exports of a tiny model, read back by the loaders that users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deescal.config import load_config
from deescal.dataset.chat import render
from deescal.errors import UserError
from deescal.models import identity
from deescal.train.config import TrainConfig
from deescal.train.export import base_reference, export_adapter, merge_adapter, pin_date
from deescal.train.model import load_for_training
from tests.train.families import CONVERSATION, FAMILIES, build
from tests.train.tiny import write_model

IDS = torch.arange(5, 25)[None]


def tuned(base: str, **changes: Any) -> tuple[Any, TrainConfig]:
    """The base, with adapters of seeded noise or with its own weights changed."""
    config = TrainConfig.model_validate({"model": base, "dtype": "float32", **changes})
    torch.manual_seed(1)
    model = load_for_training(config, "cpu").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_A" not in name:
                weight.add_(torch.randn(weight.shape) * 0.05)
    return model, config


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_model(tmp_path / "base")


def test_an_adapter_is_read_by_peft_on_the_base_that_it_names(base: str, tmp_path: Path) -> None:
    model, config = tuned(base)
    out = tmp_path / "adapter"
    export_adapter(model, AutoTokenizer.from_pretrained(base), str(out), config)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert (logits(plain) - logits(model)).abs().mean() > 1e-3
    assert not (out / "README.md").exists()


def test_weights_have_the_names_and_the_precision_that_loaders_expect(base: str, tmp_path: Path) -> None:
    model, config = tuned(base)
    export_adapter(model, AutoTokenizer.from_pretrained(base), str(tmp_path / "adapter"), config)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    modules = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    modules += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert set(weights) == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
        for layer in (0, 1)
        for module in modules
        for side in "AB"
    }
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_folder_says_what_it_was_made_from_and_how(base: str, tmp_path: Path) -> None:
    model, config = tuned(base, lora={"r": 4})
    out = tmp_path / "adapter"
    export_adapter(model, AutoTokenizer.from_pretrained(base), str(out), config)
    assert json.loads((out / "base.json").read_text()) == {"model": base, "revision": None, "identity": identity(base)}
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert load_config(str(out / "train_config.json"), TrainConfig) == config


def test_a_base_of_the_hub_is_named_with_the_commit_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert base_reference("org/name") == ("org/name", commit)
    assert base_reference("org/other") == ("org/other", None)


def test_a_registry_name_stays_where_no_hub_has_the_model() -> None:
    assert base_reference("smollm2-135m") == ("smollm2-135m", None)


def test_the_tokenizer_of_the_export_writes_the_training_text_on_any_day(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "llama-3.2")
    model, config = tuned(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    export_adapter(model, tokenizer, str(tmp_path / "adapter"), config)
    exported = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    text = exported.apply_chat_template(CONVERSATION, tokenize=False)  # as a server does, which knows no date_string
    assert text == render(CONVERSATION, tokenizer)
    assert "26 Jul 2024" in text
    assert exported(text, add_special_tokens=False) == tokenizer(text, add_special_tokens=False)


def test_a_template_that_asks_the_clock_alone_is_pinned_too() -> None:
    template = "{{ 'Today is ' + strftime_now('%d %B %Y') + strftime_now(\"%Y\") }}"
    tokenizer = build("qwen2.5", template)
    expected = render(CONVERSATION, tokenizer)
    tokenizer.chat_template = pin_date(template)
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == expected == "Today is 26 July 20242024"


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama-3.2"}))
def test_templates_without_a_date_are_left_alone(family: str) -> None:
    assert pin_date(FAMILIES[family].template) == FAMILIES[family].template


def test_a_wholly_tuned_model_is_exported_whole(base: str, tmp_path: Path) -> None:
    model, config = tuned(base, method="full")
    out = tmp_path / "model"
    export_adapter(model, AutoTokenizer.from_pretrained(base), str(out), config)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert torch.equal(logits(loaded), logits(model))
    assert not list(out.glob("adapter*"))
    assert json.loads((out / "base.json").read_text())["model"] == base


def test_merged_weights_are_the_sum_rounded_once_to_the_bases_precision(base: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(base)
    model, config = tuned(base)
    out = tmp_path / "adapter"
    export_adapter(model, AutoTokenizer.from_pretrained(base), str(out), config)
    merge_adapter(base, str(out), str(tmp_path / "merged"))
    before, after = load_file(Path(base, "model.safetensors")), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    adapter = load_file(out / "adapter_model.safetensors")
    for name, weight in after.items():
        assert weight.dtype == torch.bfloat16
        expected = before[name]
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" in adapter:
            change = config.lora.alpha / config.lora.r * adapter[f"{prefix}B.weight"] @ adapter[f"{prefix}A.weight"]
            expected = (expected.float() + change).bfloat16()
            assert not torch.equal(weight, before[name])
        assert torch.equal(weight, expected)
    served = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert served.chat_template == AutoTokenizer.from_pretrained(out).chat_template


def test_a_merged_model_is_what_peft_runs(base: str, tmp_path: Path) -> None:
    model, config = tuned(base)
    out = str(tmp_path / "adapter")
    export_adapter(model, AutoTokenizer.from_pretrained(base), out, config)
    merge_adapter(base, out, str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    tuned_again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out)
    torch.testing.assert_close(logits(merged), logits(tuned_again), rtol=1e-4, atol=1e-4)


def test_a_quantised_base_is_refused(base: str, tmp_path: Path) -> None:
    model, config = tuned(base)
    out = str(tmp_path / "adapter")
    export_adapter(model, AutoTokenizer.from_pretrained(base), out, config)
    file = Path(base, "config.json")
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantised}))
    with pytest.raises(UserError, match="is quantised"):
        merge_adapter(base, out, str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model 'gone'"):
        merge_adapter("gone", str(tmp_path), str(tmp_path / "merged"))
