"""An evaluation that nobody ran: made-up replies and scores, and the tables that follow from them."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import pyarrow as pa

from deescal.evaluate.config import EvaluateConfig
from deescal.evaluate.contestants import layout_pairs, pairs_to_compare, parse_contestants
from deescal.evaluate.judging import JUDGED
from deescal.evaluate.rows import SCORED_TURNS
from deescal.evaluate.significance import means_table, significance_table
from deescal.evaluate.summary import error_causes, summary_table
from deescal.schema import Row, to_table

SCORES = ("rouge_l", "bleu_4", "meteor")
OFFICER = (
    "Step out of the car for me.",
    "I just want to talk to you.",
    "Can you tell me what happened?",
    "Stay there.",
)
REAL = ("I didn't do nothing, man.", "Why you stopping me?", "No. No, I'm not getting out.", "She hit me first, okay?")
BASE = (
    "I understand your concern, officer. I am willing to cooperate fully.",
    "As a language model, I cannot step out of a car.",
    "Thank you for asking. It is important to remain calm in these situations.",
)
TUNED = ("What for? I ain't done nothing.", "No.", "I'm just going home, man, that's all.", "Okay, okay.")
MODELS = (
    "Qwen/Qwen2.5-3B-Instruct,Qwen/Qwen2.5-3B-Instruct:tuned=s3://bucket/tuned,smollm2-135m,"
    "smollm2-135m:tuned=s3://bucket/small,https://api.example/v1#some-large-model"
)
SKILL = {"Qwen2.5-3B-Instruct": 0.11, "Qwen2.5-3B-Instruct:tuned": 0.155, "smollm2-135m": 0.09}
SECONDS = {"Qwen2.5-3B-Instruct": 0.4, "Qwen2.5-3B-Instruct:tuned": 0.35, "some-large-model": 3.0}


class MadeUp(NamedTuple):
    run: dict[str, Any]
    turns: pa.Table
    summary: list[Row]
    tests: list[Row]
    judged: list[Row]


def make(
    n_scenarios: int = 12,
    n_turns: int = 6,
    protocols: tuple[str, ...] = ("teacher_forced",),
    models: str = MODELS,
    seed: int = 0,
    judged: bool = True,
) -> MadeUp:
    rng = random.Random(seed)
    contestants = parse_contestants([models])
    hard = [rng.gauss(0, 0.02) for _ in range(n_scenarios)]
    rows = [
        _turn(rng, protocol, f"{s:032x}", t, c.label, hard[s])
        for protocol in protocols
        for s in range(n_scenarios)
        for t in range(n_turns)
        for c in contestants
    ]
    turns = to_table(rows, SCORED_TURNS)
    pairs = pairs_to_compare(contestants, ())
    found = _judged(rng, rows) if judged else []
    config = EvaluateConfig.model_validate({"judge": {"model": "qwen2.5-coder-1.5b" if judged else None}})
    means = means_table(turns, SCORES, n_resamples=200)
    run = {
        "deescal": "0.1.0",
        "fingerprint": "0123456789ab",
        "data": "s3://bucket/dataset",
        "contestants": [c.model_dump(mode="json") for c in contestants],
        "failed": {},
        "weights": {"smollm2-135m": "smollm2-135m@0123456789ab"},
        "pairs": pairs,
        "tuned": layout_pairs(contestants, ()),
        "config": config.model_dump(mode="json"),
        "metrics": list(SCORES),
        "signatures": {"rouge_l": "rouge_score 0.1.2, rougeL F measure"},
        "rows": turns.num_rows,
        "errors": error_causes(turns),
        "replies": ["replies/Qwen2.5-3B-Instruct-0a1b2c3d4e5f"],
        "fingerprints": {"score": "ba9876543210"},
        "seconds": {"generate": 812.5, "score": 9.1},
        "versions": {"ray": "2.60", "torch": "2.13.0"},
        "started_at": "2026-01-02T03:04:05+00:00",
        "wall_s": 831.2,
    }
    return MadeUp(
        run,
        turns,
        summary_table(turns, means, config.metrics).to_pylist(),
        significance_table(turns, pairs, SCORES, n_resamples=200).to_pylist(),
        found,
    )


def _turn(rng: random.Random, protocol: str, scenario: str, number: int, model: str, hard: float) -> Row:
    row: Row = dict.fromkeys(SCORED_TURNS.names)
    skill = SKILL.get(model, 0.12) + hard - (0.02 if protocol == "rollout" else 0)
    messages = [{"role": "system", "content": "You are the civilian in an encounter with the police."}]
    for i in range(number + 1):
        messages.append({"role": "user", "content": OFFICER[i % 4]})
        messages.append({"role": "assistant", "content": REAL[i % 4]})
    seconds = rng.lognormvariate(math.log(SECONDS.get(model, 0.2)), 0.5)
    row |= {
        "item_id": f"{scenario}-0-{2 * number + 2}",
        "scenario_id": scenario,
        "incident_id": scenario,
        "turn_id": number,
        "protocol": protocol,
        "model": model,
        "seed": 0,
        "messages": messages[:-1],
        "reference": REAL[number % 4],
        "finish_reason": "stop" if rng.random() < 0.8 else "length",
        "asked_at_s": 1e9 + 10 * number + int(scenario, 16) % 97,
        "latency_s": seconds,
        "n_prompt_tokens": 60 * number,
        "n_completion_tokens": 12,
    }
    if model == "some-large-model" and rng.random() < 0.03:
        return {**row, "error": f"HTTP 429: rate limit, try again in {rng.randint(1, 60)} s", "finish_reason": None}
    reply = rng.choice(TUNED if "tuned" in model else BASE)
    if protocol == "interactive":
        return {**row, "reference": None, "reply": reply}
    scores = {name: min(max(rng.gauss(skill, 0.09), 0.0), 1.0) for name in SCORES}
    return {**row, **scores, "bleu_4": scores["bleu_4"] / 6, "rouge_l_stem": scores["rouge_l"], "reply": reply}


def _judged(rng: random.Random, rows: list[Row]) -> list[Row]:
    chosen = [row for row in rows if row["turn_id"] == 1 and row["reply"] is not None]
    of = [(row, row["model"], rng.gauss(60 + 100 * SKILL.get(row["model"], 0.1), 15)) for row in chosen]
    of += [(row, "reference", rng.gauss(88, 8)) for row in chosen if row["model"] == chosen[0]["model"]]
    found = [
        {
            **{name: row[name] for name in ("protocol", "item_id", "scenario_id", "incident_id")},
            "rubric": "realism",
            "contestant": contestant,
            "seed": None if contestant == "reference" else 0,
            "score": min(max(score, 0.0), 100.0),
            "n_read": 1,
            "n_unread": 0,
            "unsupported": int(rng.random() < 0.1),
            "scores": [score],
            "error": None,
        }
        for row, contestant, score in of
    ]
    return to_table(found, JUDGED).to_pylist()
