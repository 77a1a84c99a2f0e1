"""Keep or drop: the two published rules over the features, every threshold a field, the reason in numbers.

`code` (the rule of the released code): any context filter rejects; else the scores of police presence,
interaction and de-escalation must each reach their minimum. `paper` (the rule of the paper's text): police
presence, and either escalation or de-escalation; it has no context filters of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from deescal.config import TaskResources
from deescal.judge.taxonomy import BY_GROUP
from deescal.stage import Run, StageConfig

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Verdict = tuple[Literal["accepted", "rejected"], str]


class SelectConfig(StageConfig):
    """Which rule, and its numbers. Scores are numbers of features present in a group."""

    rule: Literal["code", "paper"] = "code"
    context_filters: tuple[str, ...] | None = None  # features that reject at once; null: as published, all for code,
    # none for paper
    code_min_police: int = Field(default=2, ge=0)
    code_min_interaction: int = Field(default=2, ge=0)
    code_min_deescalation: int = Field(default=1, ge=0)
    paper_min_police: int = Field(default=2, ge=0)
    paper_min_escalation: int = Field(default=3, ge=0)
    paper_min_deescalation: int = Field(default=3, ge=0)
    resources: TaskResources = TaskResources(num_cpus=0.5, memory_gib=0.2)

    @field_validator("context_filters")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if unknown := sorted(set(names or ()) - set(BY_GROUP["context"])):
            raise ValueError(f"'{unknown[0]}' is no context feature (allowed: {', '.join(BY_GROUP['context'])})")
        return names

    def filters(self) -> tuple[str, ...]:
        if self.context_filters is not None:
            return self.context_filters
        return BY_GROUP["context"] if self.rule == "code" else ()


def select(features: Sequence[Mapping[str, Any]], scores: Mapping[str, int], config: SelectConfig) -> Verdict:
    """Features (name, probability, present) and scores by group -> status and the reason for it."""
    found = {f["name"]: f for f in features}
    against = [found[n] for n in BY_GROUP["context"] if n in config.filters() and found[n]["present"]]
    if against:  # in the taxonomy's order, so that the same filters are one cause in the report
        named = ", ".join(f"{f['name']} (p {f['probability']:.2f})" for f in against)
        return "rejected", f"{config.rule}: context filter {named}"
    if config.rule == "code":
        limits = [
            ("police", scores["police_presence"], config.code_min_police),
            ("interaction", scores["interaction"], config.code_min_interaction),
            ("de-escalation", scores["deescalation"], config.code_min_deescalation),
        ]
        short = [f"{name} {score} < {limit}" for name, score, limit in limits if score < limit]
        met = [f"{name} {score} >= {limit}" for name, score, limit in limits if score >= limit]
        return ("rejected", f"code: {', '.join(short)}") if short else ("accepted", f"code: {', '.join(met)}")
    police = scores["police_presence"]
    if police < config.paper_min_police:
        return "rejected", f"paper: police {police} < {config.paper_min_police}"
    either = [
        ("escalation", scores["escalation"], config.paper_min_escalation),
        ("de-escalation", scores["deescalation"], config.paper_min_deescalation),
    ]
    met = [f"{name} {score} >= {limit}" for name, score, limit in either if score >= limit]
    if met:
        return "accepted", f"paper: police {police} >= {config.paper_min_police}, {', '.join(met)}"
    return "rejected", "paper: " + ", ".join(f"{name} {score} < {limit}" for name, score, limit in either)


def select_clips(ds: ray.data.Dataset, config: SelectConfig, run: Run) -> ray.data.Dataset:
    """Sets status and reason of every clip that was judged."""
    stage = run.stage("select")

    def process(table: pa.Table) -> pa.Table:
        def verdict(row: Mapping[str, Any]) -> dict[str, Any]:
            status, reason = select(row["features"], row["scores"], config)
            return {"status": status, "reason": reason}

        return stage.apply(table, verdict)

    return ds.map_batches(
        process, batch_size=config.batch_size, batch_format="pyarrow", **config.resources.ray_options()
    )
