"""One clip -> what a dataset needs of it: roles, cleaned and redacted turns, a signature, measures of its talk.

The text as it was spoken is seen here only: what leaves is redacted, or a hash, or a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from deescal.config import load_engine
from deescal.curate.store import read_uri
from deescal.dataset.bias import Perplexity, is_sampled, measure
from deescal.dataset.clean import clean_turns
from deescal.dataset.config import DatasetConfig
from deescal.dataset.dedup import SIGNATURE, signature
from deescal.dataset.redact import Redactor
from deescal.dataset.roles import SpeakerRole, name_roles
from deescal.schema import DIALOGUE, SCENARIOS, Row, to_table

CLIP_COLUMNS = ("clip_id", "uri", "source", "duration_s", "turns", "speakers", "features", "scores", "status", "reason")
_TURN = pa.struct([field for field in DIALOGUE if field.name != "scenario_id"])
_SCENARIO_COLUMNS = (
    "scenario_id",
    "source",
    "official_split",
    "duration_s",
    "speakers",
    "features",
    "scores",
    "selection",
    "redactions",
)

PREPARED = pa.schema(
    [
        *(SCENARIOS.field(name) for name in _SCENARIO_COLUMNS),
        pa.field("status", pa.string()),  # of the clip: accepted, rejected
        pa.field("turns", pa.list_(_TURN)),  # null where rejected
        *SIGNATURE,  # null where rejected
        pa.field("measures", pa.map_(pa.string(), pa.float64())),  # of `deescal.dataset.bias`
    ]
)


class Preparer:
    """The models of preparing, loaded once a worker."""

    def __init__(self, config: DatasetConfig) -> None:
        self._config = config
        self._redactor = Redactor(config.redact)
        self._perplexity = Perplexity(config.bias) if config.bias.perplexity_share else None
        self._llm = load_engine(config.roles.engine)(config.roles.llm) if config.roles.use_model else None

    def __call__(self, uris: Sequence[str]) -> pa.Table:
        """Files of clips -> PREPARED rows of the accepted and rejected ones, in order."""
        clips = [read_uri(uri, CLIP_COLUMNS) for uri in uris]
        judged = [clip for clip in clips if clip["status"] in ("accepted", "rejected")]
        cleaned = {clip["clip_id"]: clean_turns(clip["turns"]) for clip in judged}
        accepted = [clip for clip in judged if clip["status"] == "accepted"]
        scenarios = self._scenarios(accepted, [cleaned[clip["clip_id"]].dropped for clip in accepted])
        by_id = dict(zip((clip["clip_id"] for clip in accepted), scenarios, strict=True))
        empty = dict.fromkeys(PREPARED.names)
        rows = [
            {**empty, **self._common(clip, cleaned[clip["clip_id"]].kept), **by_id.get(clip["clip_id"], {})}
            for clip in judged
        ]
        return to_table(rows, PREPARED)

    def _common(self, clip: Row, kept: Sequence[Mapping[str, Any]]) -> Row:
        texts = [turn["text"] for turn in kept]
        measures = measure(texts, clip["scores"])
        if self._perplexity and is_sampled(clip["clip_id"], self._config.bias.perplexity_share):
            measures["perplexity"] = self._perplexity(texts)
        source = clip["source"] or {}
        return {
            "scenario_id": clip["clip_id"],
            "status": clip["status"],
            "source": source.get("platform") or source.get("source") or "unknown",
            "official_split": source.get("official_split"),
            "measures": {name: value for name, value in measures.items() if value is not None},
        }

    def _scenarios(self, clips: Sequence[Row], dropped: Sequence[dict[int, str]]) -> list[Row]:
        # A turn that nobody spoke is not read by the models, and its text is not kept: but its label is redacted.
        blanked = [
            [{**turn, "text": ""} if turn["turn_id"] in out else turn for turn in clip["turns"]]
            for clip, out in zip(clips, dropped, strict=True)
        ]
        redacted = self._redactor.redact_batch(blanked)
        return [
            self._scenario(clip, out, spoken, *found)
            for clip, out, spoken, found in zip(clips, dropped, blanked, redacted, strict=True)
        ]

    def _scenario(
        self, clip: Row, dropped: dict[int, str], spoken: Sequence[Row], turns: Sequence[Row], redactions: Sequence[Any]
    ) -> Row:
        curated = {s["speaker"]: s["confidence"] for s in clip["speakers"] or ()}
        roles = name_roles(spoken, self._llm, self._config.roles, curated)
        title = clip["uri"].rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return {
            "duration_s": clip["duration_s"],
            "speakers": cast(clip["turns"], turns, roles),
            "features": clip["features"],
            "scores": clip["scores"],
            "selection": clip["reason"],
            "redactions": Counter(r.entity for r in redactions),
            "turns": [
                dialogue_turn(before, after, roles[before["speaker"]].role, dropped.get(before["turn_id"]))
                for before, after in zip(clip["turns"], turns, strict=True)
            ],
            **asdict(signature([turn["text"] for turn in spoken], title, self._config.dedup)),
        }


def dialogue_turn(before: Row, after: Row, role: str, fault: str | None) -> Row:
    """A TURN as transcribed and as redacted -> a DIALOGUE row without its scenario_id."""
    return {
        **{name: after[name] for name in ("turn_id", "start_s", "end_s", "speaker")},
        "role": role,
        "text": None if fault else after["text"],
        "n_words": len((before["text"] or "").split()),
        "status": "dropped" if fault else "kept",
        "reason": fault,
    }


def cast(before: Sequence[Row], after: Sequence[Row], roles: dict[str, SpeakerRole]) -> list[Row]:
    """CAST rows by redacted label, in order of first appearance; labels that became one are one."""
    words: Counter[str] = Counter()
    speakers: dict[str, SpeakerRole] = {}
    for old, new in zip(before, after, strict=True):
        words[new["speaker"]] += len((old["text"] or "").split())
        known = speakers.setdefault(new["speaker"], roles[old["speaker"]])
        if roles[old["speaker"]].confidence > known.confidence:
            speakers[new["speaker"]] = roles[old["speaker"]]
    return [{"speaker": label, **asdict(role), "n_words": words[label]} for label, role in speakers.items()]
