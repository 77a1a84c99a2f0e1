"""Adapters: what is brought, and what is refused before an engine sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deescal.engine import LoraSlots
from deescal.errors import UserError
from deescal.models import identity
from deescal.serve.adapters import Adapter, bring_adapter, check_adapter, parse_adapter

from ..train.tiny import write_model
from .lora import write_adapter

SLOTS = LoraSlots(max_rank=16)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEESCAL_CACHE", str(tmp_path / "cache"))


def adapter(tmp_path: Path, base: str, **options: Any) -> Adapter:
    return Adapter(name="tuned", uri=write_adapter(tmp_path / "tuned", base, **options))


def test_names_and_places() -> None:
    assert parse_adapter("a.b-2=s3://bucket/runs/x=1") == Adapter(name="a.b-2", uri="s3://bucket/runs/x=1")
    for wrong in ("tuned", "tuned=", "=x", "a b=x", "a/b=x", "-a=x"):
        with pytest.raises(UserError, match="adapter '"):
            parse_adapter(wrong)


def test_one_that_fits_gets_the_digest_of_its_content(tmp_path: Path, base: str) -> None:
    asked = adapter(tmp_path, base)
    checked = check_adapter(asked, base, SLOTS)
    assert checked.name == asked.name
    assert len(checked.digest) == 16
    run = tmp_path / "run"
    shutil.copytree(asked.uri, run / "adapter")
    assert check_adapter(Adapter(name="x", uri=str(run)), base, SLOTS).digest == checked.digest, "a run's adapter/"
    other = adapter(tmp_path, base, seed=1)
    assert check_adapter(other, base, SLOTS).digest != checked.digest


def test_what_was_checked_is_what_is_served(tmp_path: Path, base: str) -> None:
    checked = check_adapter(adapter(tmp_path, base), base, SLOTS)
    before = Path(bring_adapter(checked).folder, "adapter_model.safetensors").read_bytes()
    adapter(tmp_path, base, seed=1)  # tuned anew into the same folder
    assert Path(bring_adapter(checked).folder, "adapter_model.safetensors").read_bytes() == before, "from the cache"
    shutil.rmtree(tmp_path / "cache")  # another node
    with pytest.raises(UserError, match=r"tuned holds [0-9a-f]{16} now, not [0-9a-f]{16}: load it anew"):
        bring_adapter(checked)


def test_from_an_object_store(tmp_path: Path, base: str, s3: Any) -> None:
    folder = Path(adapter(tmp_path, base).uri)
    for file in folder.iterdir():
        s3.upload_file(str(file), "videos", f"runs/a/adapter/{file.name}")
    there = check_adapter(Adapter(name="far", uri="s3://videos/runs/a"), base, SLOTS)
    assert there.digest == check_adapter(Adapter(name="near", uri=str(folder)), base, SLOTS).digest
    with pytest.raises(UserError, match=r"adapter 'no': no adapter_config.json in s3://videos/runs/b"):
        check_adapter(Adapter(name="no", uri="s3://videos/runs/b"), base, SLOTS)
    with pytest.raises(UserError, match=r"adapter 'no': no adapter_config.json in s3://elsewhere"):
        check_adapter(Adapter(name="no", uri="s3://elsewhere/runs/b"), base, SLOTS)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rank": 32}, "rank 32, lora.max_rank=16"),
        ({"r": 4}, "matrices of rank 8, its config says"),
        ({"rank_pattern": {"q_proj": 32}}, "rank 32, lora.max_rank=16"),
        ({"peft_type": "IA3"}, "peft_type is IA3, only LORA"),
        ({"use_dora": True}, "use_dora=True cannot be served"),
        ({"bias": "all"}, "bias='all' cannot be served"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] cannot be served"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' cannot be served"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\] cannot be served"),
        ({"lora_bias": True}, "lora_bias=True cannot be served"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(tmp_path: Path, base: str, options: dict[str, Any], why: str) -> None:
    asked = adapter(tmp_path, base, **options)
    with pytest.raises(UserError, match=f"^adapter 'tuned' .*{why}"):
        check_adapter(asked, base, SLOTS)


def test_another_base_is_refused(tmp_path: Path, base: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = tmp_path / "wide"
    shutil.copytree(base, wide)
    config = json.loads((wide / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**{**config, "hidden_size": 96})).save_pretrained(wide)
    with pytest.raises(UserError, match=r"tuned on another base .*down_proj is 64 x 128, in .*wide it is 96 x 128"):
        check_adapter(adapter(tmp_path, base), str(wide), SLOTS)


def test_the_note_of_training_tells_bases_of_one_shape_apart(tmp_path: Path, base: str) -> None:
    asked = adapter(tmp_path, base)
    note = Path(asked.uri, "base.json")
    note.write_text(json.dumps({"model": "m", "revision": None, "identity": identity(base)}))
    check_adapter(asked, base, SLOTS)
    note.write_text(json.dumps({"model": "m", "revision": None, "identity": "m@0123456789ab"}))
    with pytest.raises(UserError, match="tuned on m@0123456789ab, the base served is"):
        check_adapter(asked, base, SLOTS)


def test_a_hub_model_is_told_by_its_name_whatever_commit_it_has_today(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = adapter(tmp_path, base)
    note = {"model": "Org/Model", "revision": "a" * 40, "identity": "Org/Model@aaaaaaaaaaaa"}
    Path(asked.uri, "base.json").write_text(json.dumps(note))
    for reference, fits in (("org/model", True), ("org/other", False)):
        monkeypatch.setattr("deescal.train.export.base_reference", lambda _, reference=reference: (reference, "b" * 40))
        if fits:
            check_adapter(asked, base, SLOTS)
        else:
            with pytest.raises(UserError, match="tuned on Org/Model@aaaaaaaaaaaa, the base served is"):
                check_adapter(asked, base, SLOTS)


def test_broken_files(tmp_path: Path, base: str) -> None:
    asked = adapter(tmp_path, base)
    weights = Path(asked.uri, "adapter_model.safetensors")
    ours = weights.read_bytes()
    for name in ("x", "a.b", "model.layers.0.weight"):
        save_file({name: np.zeros((2, 2), np.float32)}, weights)
        with pytest.raises(UserError, match=f"tensor '{name}' is no LoRA matrix"):
            check_adapter(asked, base, SLOTS)
    weights.write_bytes(ours)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        check_adapter(asked, base, SLOTS)
    weights.unlink()
    with pytest.raises(UserError, match=r"no adapter_model.safetensors in"):
        check_adapter(asked, base, SLOTS)
    Path(asked.uri, "adapter_config.json").write_text("{")
    weights.write_bytes(whole)
    with pytest.raises(UserError, match=r"adapter_config.json: no JSON object"):
        check_adapter(asked, base, SLOTS)
