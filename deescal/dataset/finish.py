"""A part's prepared clips and their places -> its scenarios, turns and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from deescal.dataset.chat import count_tokens, load_tokenizer
from deescal.dataset.config import DatasetConfig
from deescal.dataset.context import ContextWriter, Generated
from deescal.dataset.examples import make_examples
from deescal.schema import DIALOGUE, EXAMPLES, SCENARIOS, Row, to_table

IN_DROPPED = "in a dropped scenario"


@dataclass(frozen=True)
class Finished:
    """The tables of one part, in order of its clips."""

    scenarios: pa.Table  # SCENARIOS
    turns: pa.Table  # DIALOGUE
    examples: dict[str, pa.Table]  # split -> EXAMPLES
    unused: dict[str, tuple[int, int]]  # reason -> kept turns in no example, their tokens


class Finisher:
    """Tokenizer and, where asked for, the model that writes contexts; loaded once a worker."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._tokenizer = load_tokenizer(config.examples.tokenizer)
        self._writer = ContextWriter(config.context) if config.context.enabled else None

    def __call__(self, prepared: pa.Table, places: Mapping[str, Row]) -> Finished:
        """PREPARED rows of a part, and PLACES rows by scenario_id -> its tables."""
        rows = [r for r in prepared.to_pylist(maps_as_pydicts="strict") if r["status"] == "accepted"]
        written = self._write_contexts([r for r in rows if places[r["scenario_id"]]["split"]])
        scenarios, turns, unused = [], [], Counter[str]()
        unused_tokens: Counter[str] = Counter()
        examples: dict[str, list[Row]] = {}
        for row in rows:
            place = places[row["scenario_id"]]
            generated = written.get(row["scenario_id"], Generated(None, None))
            kept = [t for t in row["turns"] if t["status"] == "kept"]
            scenarios.append(self._scenario(row, place, kept, generated))
            turns += [dialogue_row(row["scenario_id"], turn, place["split"]) for turn in row["turns"]]
            if not place["split"]:
                continue
            built = make_examples(
                row["scenario_id"],
                place["incident_id"],
                kept,
                self._config.examples,
                self._tokenizer,
                generated.context,
                generated.character,
            )
            examples.setdefault(place["split"], []).extend(built.examples)
            for reason, (n_turns, n_tokens) in built.unused.items():
                unused[reason] += n_turns
                unused_tokens[reason] += n_tokens
        return Finished(
            to_table(scenarios, SCENARIOS),
            to_table(turns, DIALOGUE),
            {split: to_table(found, EXAMPLES) for split, found in examples.items()},
            {reason: (n, unused_tokens[reason]) for reason, n in unused.items()},
        )

    def _write_contexts(self, rows: list[Row]) -> dict[str, Generated]:
        if self._writer is None:
            return {}
        written = self._writer([[t for t in row["turns"] if t["status"] == "kept"] for row in rows])
        return dict(zip((row["scenario_id"] for row in rows), written, strict=True))

    def _scenario(self, row: Row, place: Row, kept: list[Row], generated: Generated) -> Row:
        same = ("scenario_id", "source", "official_split", "duration_s", "speakers", "features", "scores", "selection")
        return {
            **{name: row[name] for name in (*same, "redactions")},
            **{name: place[name] for name in ("incident_id", "split", "reason", "duplicate_of")},
            "status": "kept" if place["split"] else "dropped",
            "n_turns": len(kept),
            "n_words": sum(t["n_words"] for t in kept),
            "n_tokens": sum(count_tokens([t["text"] for t in kept], self._tokenizer)),
            "context": generated.context,
            "character": generated.character,
        }


def dialogue_row(scenario_id: str, turn: Mapping[str, Any], split: str | None) -> Row:
    """DIALOGUE row; the turns of a dropped scenario are dropped with it."""
    if split or turn["status"] == "dropped":
        return {"scenario_id": scenario_id, **turn}
    return {"scenario_id": scenario_id, **turn, "status": "dropped", "reason": IN_DROPPED}
