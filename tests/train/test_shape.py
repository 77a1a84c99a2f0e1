from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, ViTConfig

from deescal.errors import UserError
from deescal.train.config import TrainConfig
from deescal.train.model import load_for_training
from deescal.train.shape import FAMILIES, load_shape
from tests.train.tiny import write_model


@pytest.mark.parametrize(
    ("name", "n_params", "n_lora"),
    # What PEFT and Unsloth print for these models with r=16 on all linear layers, as found in published logs:
    # "trainable params: 29,933,568 || all params: 3,115,872,256" and so on. None: no such log was found.
    [
        ("Qwen2.5-3B-Instruct", 3_115_872_256 - 29_933_568, 29_933_568),
        ("Llama-3.2-3B-Instruct", 3_237_063_680 - 24_313_856, 24_313_856),
        ("gemma-2-2b-it", 2_635_108_608 - 20_766_720, 20_766_720),
        ("Falcon3-3B-Instruct", 3_227_655_168, None),
        ("granite-3.0-2b-instruct", pytest.approx(2.5e9, rel=0.02), None),  # "2.5B", its model card
    ],
)
def test_the_built_in_families_have_their_published_numbers_of_parameters(
    name: str, n_params: int, n_lora: int | None
) -> None:
    shape = load_shape(TrainConfig(model=f"nobody/{name}"))
    assert shape.n_params == n_params
    assert n_lora in (None, shape.n_lora)
    assert shape.source == "the built-in table of families"


def test_embeddings_and_norms_are_what_is_not_linear() -> None:
    shape = load_shape(TrainConfig(model="nobody/Qwen2.5-3B-Instruct"))
    assert shape.n_params - shape.n_head == pytest.approx(2.77e9, rel=0.002)  # "non-embedding", its model card
    assert shape.n_largest == shape.n_head
    rest = shape.n_params - shape.n_head - shape.n_linear
    biases, norms = 36 * (2048 + 2 * 256), (2 * 36 + 1) * 2048
    assert rest == biases + norms
    assert shape.n_block_norms == 2
    assert load_shape(TrainConfig(model="nobody/gemma-2-2b-it")).n_block_norms == 4
    untied = load_shape(TrainConfig(model="nobody/Falcon3-3B-Instruct"))
    assert untied.n_params - untied.n_linear > 2 * untied.n_head


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_counted_as_training_has_them(tmp_path: Path, targets: str | list[str]) -> None:
    config = TrainConfig(model=write_model(tmp_path), data={"max_tokens": 64}, lora={"r": 4, "target_modules": targets})
    model = load_for_training(config, "cpu")
    shape = load_shape(config)
    trained, everything = model.get_nb_trainable_parameters()
    assert (shape.n_lora, shape.n_params) == (trained, everything - trained)
    assert shape.n_adapters == 2 * (7 if targets == "all-linear" else 2)
    assert shape.source == f"config.json of {tmp_path}"


def test_what_cannot_be_planned_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(**changes: object) -> str:
        with pytest.raises(UserError) as caught:
            load_shape(TrainConfig(**changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert all(family in refusal(model="nobody/unheard-of") for family in FAMILIES)
    LlamaConfig(max_position_embeddings=512).save_pretrained(tmp_path / "short")
    short = str(tmp_path / "short")
    assert refusal(model=short) == f"data.max_tokens=2048: model '{short}' takes 512 at most"
    named = refusal(model=short, data={"max_tokens": 512}, lora={"target_modules": ["query"]})
    assert named.startswith("lora.target_modules=['query']")
    ViTConfig().save_pretrained(tmp_path / "images")
    assert "'vit' does not generate text" in refusal(model=str(tmp_path / "images"))
