"""Labelled excerpts for `bench/judge.py`, and the judge's engine with a memory of its answers."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deescal.config import fingerprint
from deescal.engine import LlmConfig
from deescal.judge import roles
from deescal.judge.llm import VllmEngine
from deescal.judge.stage import RolesConfig
from deescal.judge.taxonomy import NAMES
from deescal.models import identity, resolve
from deescal.speech.diarize import letters


class CachedEngine(VllmEngine):
    """The real engine, started at the first answer that is not in the cache."""

    def __init__(self, config: LlmConfig, path: Path) -> None:
        from transformers import AutoTokenizer

        self._config, self._path, self.model = config, path, config.model
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(config.model))
        self._known = {}
        self.seconds = 0.0
        if path.exists():
            with path.open() as file:
                self._known = {entry["key"]: entry["value"] for entry in map(json.loads, file)}

    def _start(self) -> None:
        if not hasattr(self, "_llm"):
            super().__init__(self._config)

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        keys = [self._key(p, *choices) for p in prompts]
        self._remember(keys, prompts, lambda new: super(CachedEngine, self).choose(new, choices).tolist())
        return np.array([self._known[k] for k in keys]).reshape(len(prompts), len(choices))

    def generate(self, prompts: Sequence[str], *, max_tokens: int, **form: Any) -> list[str]:
        keys = [self._key(p, str(max_tokens), json.dumps(form)) for p in prompts]
        call = super().generate
        self._remember(keys, prompts, lambda new: call(new, max_tokens=max_tokens, **form))
        return [self._known[k] for k in keys]

    def _key(self, *parts: str) -> str:
        return hashlib.sha256("\0".join([identity(self._config.model), *parts]).encode()).hexdigest()

    def _remember(self, keys: Sequence[str], prompts: Sequence[str], call: Callable[[list[str]], list[Any]]) -> None:
        missing = [i for i, k in enumerate(keys) if k not in self._known]
        if not missing:
            return
        self._start()
        began = time.perf_counter()
        values = call([prompts[i] for i in missing])
        self.seconds += time.perf_counter() - began
        with self._path.open("a") as file:
            for i, value in zip(missing, values, strict=True):
                self._known[keys[i]] = value
                file.write(json.dumps({"key": keys[i], "value": value}) + "\n")


def labelled(path: Path) -> list[dict[str, Any]]:
    """Excerpts with two readers' labels: {turns, y (30,), second (30,)}."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {
            "turns": row["turns"],
            "hash": hash_of(row["turns"]),
            "y": np.array([row["labels_a"][n] for n in NAMES]),
            "second": np.array([row["labels_b"][n] for n in NAMES]),
        }
        for row in rows
    ]


def corpus(folder: Path, labels: Path) -> list[dict[str, Any]]:
    """Excerpts of the published corpus named in `labels`; files are found by their SHA-256."""
    wanted = [json.loads(line) for line in labels.read_text().splitlines()]
    files = {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in sorted(folder.rglob("*.csv"))}
    found = []
    for row in wanted:
        with files[row["source_sha256"]].open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))[row["first_turn"] : row["end_turn"]]
        turns = [{"speaker": x["speaker_label"], "text": x["transcript"]} for x in lines]
        y = np.array([row["labels"][n] for n in NAMES])
        found.append({"turns": turns, "hash": hash_of(turns), "y": y, "evidence": row["evidence"]})
    return found


def invented(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {"turns": r["turns"], "hash": hash_of(r["turns"]), "y": np.array([int(n in r["positives"]) for n in NAMES])}
        for r in rows
    ]


def hash_of(turns: Sequence[dict[str, Any]]) -> str:
    """12 hex digits that tell an excerpt, whoever labelled it."""
    return fingerprint([[t["speaker"], t["text"]] for t in turns])


def with_letters(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = letters(t["speaker"] for t in turns)
    return [{**t, "speaker": names[t["speaker"]]} for t in turns]


def interpret(turns: Sequence[dict[str, Any]], engine: CachedEngine) -> list[dict[str, Any]]:
    """Turns with ids and roles, as the stage 'roles' makes them."""
    found = roles.assign(turns, engine, RolesConfig().max_tokens, engine.model)
    return [{**t, "turn_id": i, "role": found[t["speaker"]][0]} for i, t in enumerate(turns)]
