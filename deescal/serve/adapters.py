"""Adapters that a served base can take: brought to this machine, and refused where they would not fit.

vLLM reads an adapter again whenever it was pushed out of memory, so it must not change under its name. Each is copied
once into the cache, under the SHA-256 of its content, and served from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deescal.config import Config
from deescal.engine import LoraSlots
from deescal.errors import UserError, one_line
from deescal.models import cache_folder, identity, resolve
from deescal.storage import STORAGE_ERRORS, absolute, exists, get_folder, join

log = logging.getLogger(__name__)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base.json"  # of `deescal.train.export`: what it was tuned on
# Of adapter_config.json, what vLLM 0.32 refuses (vllm/lora/peft_helper.py): in a replica, or in the middle of a run.
_NOT_SERVED = (
    *("use_dora", "bias", "modules_to_save", "lora_bias"),
    *("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
)
_INITS = ("none", "true", "false", "gaussian", "eva", "orthogonal", "mica", "lora_ga")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Adapter(Config):
    """One adapter as asked for."""

    name: str  # what requests call it
    uri: str  # folder of `deescal train` or of its adapter/, a path or s3://
    digest: str = ""  # of its content when it was checked; a replica refuses another


@dataclass(frozen=True)
class Brought:
    """An adapter in this machine's cache."""

    folder: str
    digest: str  # 16 hex digits of the SHA-256 of its config, its weights and the note on its base


def parse_adapter(text: str) -> Adapter:
    """`name=URI` -> Adapter without a digest.

    Raises:
        UserError: no `=`, or a name with other than letters, digits, dot, dash, underscore.
    """
    name, equals, uri = text.partition("=")
    if not equals or not uri:
        raise UserError(f"adapter '{text}': expected name=URI, the folder of `deescal train` or of its adapter")
    if not _NAME.fullmatch(name):
        raise UserError(f"adapter '{text}': a name has letters, digits, '.', '-' and '_' only, 64 at most")
    return Adapter(name=name, uri=uri)


def bring_adapter(adapter: Adapter) -> Brought:
    """Copy an adapter into the cache; nothing is read again where its digest is known and there.

    Raises:
        UserError: no adapter there, storage that cannot be read, or other content than when it was checked.
    """
    if adapter.digest and (_place(adapter.digest) / WEIGHTS).is_file():
        return Brought(str(_place(adapter.digest)), adapter.digest)
    adapters = _place("")
    adapters.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=adapters, prefix=".") as temporary:
        copy = Path(temporary, "copy")
        try:
            source = next((u for u in (join(adapter.uri, "adapter"), adapter.uri) if exists(join(u, CONFIG))), None)
            if source is None:
                raise UserError(
                    f"adapter '{adapter.name}': no {CONFIG} in {adapter.uri} nor in {join(adapter.uri, 'adapter')}"
                )
            get_folder(source, str(copy))
        except STORAGE_ERRORS as error:
            raise UserError(f"adapter '{adapter.name}': cannot read {adapter.uri}: {one_line(error)}") from error
        if not (copy / WEIGHTS).is_file():
            raise UserError(f"adapter '{adapter.name}': no {WEIGHTS} in {source}")
        digest = _digest(copy)
        if adapter.digest and digest != adapter.digest:
            raise UserError(
                f"adapter '{adapter.name}': {adapter.uri} holds {digest} now, not {adapter.digest}: load it anew"
            )
        if not _place(digest).is_dir():
            try:
                os.replace(copy, _place(digest))
            except OSError:  # another process was faster
                if not _place(digest).is_dir():
                    raise
    return Brought(str(_place(digest)), digest)


def check_adapter(adapter: Adapter, base: str, slots: LoraSlots) -> Adapter:
    """The adapter with its digest, once it is known to fit.

    Raises:
        UserError: of `bring_adapter`; it is no LoRA that vLLM serves, was tuned on another base, or has a greater rank
            than `slots`.
    """
    brought = bring_adapter(adapter)
    try:
        check_fit(brought.folder, base, slots)
    except UserError as error:
        raise UserError(f"adapter '{adapter.name}' ({adapter.uri}): {error}") from error
    return adapter.model_copy(update={"digest": brought.digest, "uri": absolute(adapter.uri)})


def check_fit(folder: str, base: str, slots: LoraSlots) -> None:
    """Raises UserError where the adapter in a local folder cannot be served over this base."""
    config = _read_json(Path(folder, CONFIG))
    if config.get("peft_type") != "LORA":
        raise UserError(f"peft_type is {config.get('peft_type')}, only LORA can be served")
    wrong_field = next((f for f in _NOT_SERVED if config.get(f) and config[f] != "none"), None)
    if str(config.get("init_lora_weights", True)).lower() not in _INITS:  # others change the base's own weights
        wrong_field = "init_lora_weights"
    if wrong_field:
        raise UserError(f"{wrong_field}={config[wrong_field]!r} cannot be served; tune without it, or merge it")
    ranks = [int(config.get("r") or 0), *(int(r) for r in (config.get("rank_pattern") or {}).values())]
    shapes = read_shapes(Path(folder, WEIGHTS))
    pairs = _pairs(shapes)
    wrong = next((name for name, (a, b) in pairs.items() if a[0] != b[1] or a[0] not in ranks), None)
    if wrong:
        raise UserError(f"{wrong}: matrices of rank {pairs[wrong][0][0]}, its config says {sorted(set(ranks))}")
    if max(ranks) > slots.max_rank:
        raise UserError(f"rank {max(ranks)}, lora.max_rank={slots.max_rank}: raise it, or tune with a smaller lora.r")
    _check_base(Path(folder), config, pairs, base)


def read_shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes of a safetensors file's tensors, from its header alone.

    Raises:
        UserError: it is none, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file.name}: not a whole safetensors file: {one_line(error)}") from error


def _pairs(shapes: Mapping[str, list[int]]) -> dict[str, tuple[list[int], list[int]]]:
    """Module -> shapes of its A (rank, inputs) and B (outputs, rank)."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        module, matrix = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")[::2]
        if not module or matrix not in ("lora_A", "lora_B"):
            raise UserError(f"tensor '{name}' is no LoRA matrix")
        found.setdefault(module, {})[matrix] = shape
    alone = sorted(module for module, pair in found.items() if len(pair) < 2)
    if alone or not found:
        raise UserError(f"{alone[0]}: one of its two matrices is missing" if alone else "no LoRA matrices")
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in found.items()}


def _check_base(
    folder: Path, config: Mapping[str, Any], pairs: Mapping[str, tuple[list[int], list[int]]], base: str
) -> None:
    """By the note that `deescal train` wrote, and by the shapes of the base's own matrices where they are here."""
    trained_on = config.get("base_model_name_or_path")
    note = folder / BASE
    if note.is_file():
        said = _read_json(note)
        if said.get("identity") and not _is_of_hub_model(said, base) and said["identity"] != identity(base):
            raise UserError(f"tuned on {said['identity']}, the base served is {identity(base)}")
    elif trained_on not in (None, base, resolve(base)) and not Path(resolve(base)).is_dir():
        raise UserError(f"tuned on {trained_on}, the base served is {base}")
    files = sorted(Path(resolve(base)).glob("*.safetensors"))
    if not files:
        return
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    for module, (a, b) in pairs.items():
        ours = shapes.get(f"{module}.weight")
        if ours is None:
            raise UserError(f"tuned on another base ({trained_on}): {base} has no layer {module}")
        if ours != [b[0], a[1]]:
            raise UserError(
                f"tuned on another base ({trained_on}): {module} is {b[0]} x {a[1]}, in {base} it is "
                f"{' x '.join(map(str, ours))}"
            )


def _is_of_hub_model(note: Mapping[str, Any], base: str) -> bool:
    """Whether a note names a model of the hub, and the base is that one: any commit, as most change no weights."""
    from deescal.train.export import base_reference

    reference, commit = base_reference(base)
    if not note.get("revision") or str(note.get("model")).casefold() != reference.casefold():
        return False
    if commit and note["revision"] != commit:
        log.warning("adapter tuned on commit %s of %s, served over %s", note["revision"], reference, commit)
    return True


def _place(digest: str) -> Path:
    return cache_folder() / "adapters" / digest


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for place in (folder / CONFIG, folder / WEIGHTS, folder / BASE):
        if place.is_file():
            with open(place, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file.name}: no JSON object") from error
