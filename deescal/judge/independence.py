"""A judge must not be one of those it judges: models prefer their own words (Panickssery et al. 2024)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deescal.errors import UserError
from deescal.models import model_folder
from deescal.registry import REGISTRY

# Notes of what a folder was tuned from: of `deescal train`, of PEFT.
NOTES = (("base.json", "model"), ("adapter_config.json", "base_model_name_or_path"))


def check_judge(judge_model: str, contestants: Sequence[str], *, allow: bool = False) -> None:
    """Refuse a judge that is a contestant, or the base of one; `allow` is the user's word that this is meant.

    Args:
        judge_model: registry name, folder, Hugging Face id, or URL#NAME of a model at an endpoint.
        contestants: the same, or NAME:adapter.

    Raises:
        UserError: naming the first such contestant.
    """
    if allow:
        return
    judge = _names(judge_model)
    for contestant in contestants:
        if judge & _names(contestant):
            raise UserError(
                f"judge '{judge_model}' is also the model of contestant '{contestant}', and models prefer their own "
                "words: choose a judge of another family, or allow it explicitly"
            )


def _names(model: str) -> set[str]:
    """What it stands for, and at an endpoint what its name there would."""
    url, _, served = model.partition("#")
    return {base_of(model), base_of(served)} if served and "://" in url else {base_of(model)}


def base_of(name: str) -> str:
    """The base model that a name stands for: its Hugging Face id where it has one, in lower case.

    NAME:adapter and a folder that was tuned stand for their base, a folder of the model cache for its registry name,
    a URL only for itself: what is served there cannot be seen.

    Raises:
        UserError: a folder's note of its base cannot be read.
    """
    if "://" in name:
        return name.rstrip("/")
    base = name.partition(":")[0]
    if base not in REGISTRY and Path(base).is_dir():
        folder = Path(base).resolve()
        if tuned_from := _noted_base(folder):
            return base_of(tuned_from)
        base = next((known for known in REGISTRY if model_folder(known).resolve() == folder), str(folder))
    model = REGISTRY.get(base)
    return (model.hub_id if model and model.hub_id else base).casefold()


def _noted_base(folder: Path) -> str | None:
    for file, key in NOTES:
        if (folder / file).is_file():
            try:
                return str(json.loads((folder / file).read_text())[key])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{folder / file}: no note of a base model ('{key}')") from error
    return None
