"""The numbers of a dataset and its card: sums that hold, front matter that the Hub and `datasets` understand."""

import json
import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deescal.dataset.bias import bias_report
from deescal.dataset.card import render_card, size_category
from deescal.dataset.stats import SPLITS, Distribution, StatsBuilder, imbalances
from deescal.judge.taxonomy import BY_GROUP, NAMES
from deescal.schema import DIALOGUE, EXAMPLES, SCENARIOS, to_table

EVIL = "</script><script>alert(1)</script>|x`y\n# Heading"
TEXTS = ("Step out of the car.", "Why did you stop me?", "Dispatch, one in custody.", "And so it went on\u00a0and on.")
ROLES = ("officer", "civilian", "dispatcher", "narrator")


def tables(n=60, seed=0, source="video", reason="near-duplicate"):
    """SCENARIOS, DIALOGUE and split -> EXAMPLES rows that fit each other; each tenth scenario was dropped."""
    rng = random.Random(seed)
    scenarios, turns, examples = [], [], {split: [] for split in SPLITS}
    for i in range(n):
        kept, split, scenario_id = i % 10 != 9, SPLITS[0 if i % 8 < 6 else i % 8 - 5], f"{i:032x}"
        said = []
        for t in range(rng.randint(6, 90)):
            role = ROLES[t % 2] if rng.random() < 0.93 else ROLES[2 + t % 2]
            fine = kept and rng.random() < 0.98
            text = " ".join([TEXTS[ROLES.index(role)]] * min(int(rng.paretovariate(1.2)), 60))
            said.append(
                {
                    **{"scenario_id": scenario_id, "turn_id": t, "start_s": 2.0 * t, "end_s": None, "speaker": "[A]"},
                    **{
                        "role": role,
                        "text": text,
                        "n_words": len(text.split()),
                        "status": "kept" if fine else "dropped",
                    },
                    "reason": None if fine else ("loop" if kept else "scenario dropped"),
                }
            )
        words = sum(len(t["text"].split()) for t in said if t["status"] == "kept")
        features = [
            {"name": f, "probability": (p := round(rng.random(), 3)), "present": p > 0.5, "evidence": []} for f in NAMES
        ]
        cast = [
            {"speaker": f"[{r}]", "role": r, "confidence": 0.9, "method": ("label", "model")[i % 2], "n_words": 1}
            for r in ROLES[: 2 + i % 3]
        ]
        scenarios.append(
            {
                **dict.fromkeys(SCENARIOS.names),
                **{"scenario_id": scenario_id, "incident_id": scenario_id, "split": split if kept else None},
                **{"status": "kept" if kept else "dropped", "reason": None if kept else reason},
                **{"source": source if i % 3 else "published", "duration_s": 30.5 * (i % 7) or None},
                **{"n_turns": sum(t["status"] == "kept" for t in said), "n_words": words, "n_tokens": words * 4 // 3},
                **{"speakers": cast, "features": features, "redactions": {"person": i % 4, "phone": 1}},
                "scores": {group: rng.randint(0, 5) for group in BY_GROUP},
                "context": "Place: roadside." if i % 2 else None,
            }
        )
        turns += said
        for window in range(rng.randint(0, 3) if kept else 0):
            n_tokens = rng.randint(100, 2048)
            examples[split].append(
                {
                    **{"example_id": f"{scenario_id}-{window}", "scenario_id": scenario_id, "incident_id": scenario_id},
                    **{"window": window, "first_turn_id": 0, "last_turn_id": 3, "n_tokens": n_tokens},
                    "n_target_tokens": n_tokens // 3,
                    "n_context_messages": 0,
                    "messages": [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}],
                }
            )
    return scenarios, turns, examples


def make_stats(n=60, pieces=1, bias=True, **values):
    """The stats of the tables above, added in so many pieces."""
    scenarios, turns, examples = tables(n, **values)
    builder = StatsBuilder("smollm2-135m", 2048)
    for piece in range(pieces):
        builder.add_scenarios(to_table(scenarios[piece::pieces], SCENARIOS))
        builder.add_turns(to_table(turns[piece::pieces], DIALOGUE))
        for split, rows in examples.items():
            builder.add_examples(to_table(rows[piece::pieces], EXAMPLES), split)
    builder.add_unused({"role narrator": (31, 900), "no civilian reply follows": (44, 510)})
    rng = random.Random(1)
    clips = [
        {
            "status": status,
            "source": ("video", "published")[i % 2],
            "measures": {
                "words": rng.lognormvariate(6 + (status == "accepted") * 0.4, 0.8),
                "moving_average_ttr": rng.uniform(0.6, 0.9),
                "perplexity": rng.lognormvariate(3.4, 0.4) if i % 5 == 0 else None,
                "score_escalation": float(rng.randint(0, 7)),
            },
        }
        for i in range(n * 2)
        for status in [("accepted", "rejected")[i % 3 == 0]]
    ]
    kept = sum(s["status"] == "kept" for s in scenarios)
    return builder.result(
        clips={"accepted": n, "rejected": n // 2, "failed": 2},
        incidents={1: kept - 5, 2: 1, 3: 1} if kept > 5 else {1: kept},
        duplicates={"exact": 2, "near": max(len(scenarios) - kept - 2, 0)},
        leakage={
            "ours": {"pairs": 0, "kinds": {}, "incidents": 0, "by_size": {}},
            "official": {"pairs": 16, "kinds": {"near": 16}, "incidents": 7, "by_size": {"2": 6, "5": 1}},
        },
        bias=bias_report(clips) if bias else None,
    )


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_numbers_are_those_of_the_rows():
    scenarios, turns, examples = tables(60)
    stats = make_stats(60)
    kept = [t for t in turns if t["status"] == "kept"]
    assert stats["scenarios"] == {
        **{
            "total": 60,
            "kept": 54,
            "with_context": sum(s["context"] is not None for s in scenarios if not s["reason"]),
        },
        **{"with_character": 0, "dropped": {"near-duplicate": 6}},
        "with_examples": len({e["scenario_id"] for rows in examples.values() for e in rows}),
        "hours": round(sum(s["duration_s"] or 0 for s in scenarios if s["status"] == "kept") / 3600, 3),
    }
    assert stats["turns"]["kept"] == len(kept)
    assert stats["words"]["total"] == sum(len(t["text"].split()) for t in turns)
    assert stats["by_role"]["officer"]["words"] == sum(len(t["text"].split()) for t in kept if t["role"] == "officer")
    assert stats["by_split"]["test"]["examples"] == len(examples["test"])
    assert stats["histograms"]["turn_words"]["max"] == max(len(t["text"].split()) for t in kept)
    assert stats["features"][NAMES[0]]["judged"] == 54
    assert stats["redactions"]["phone"] == 54
    assert imbalances(stats) == []


def test_neither_order_nor_pieces_matter():
    assert json.dumps(make_stats(60)) == json.dumps(make_stats(60, pieces=7))


def test_what_does_not_add_up_is_said():
    stats = make_stats(20)
    stats["turns"]["dropped"] = {}
    stats["by_source"].popitem()
    stats["incidents"] = {"1": 1}
    assert [text.split(":")[0] for text in imbalances(stats)] == ["turns", "scenarios", "turns", "words", "scenarios"]


def test_an_empty_dataset_has_stats_and_a_card():
    stats = StatsBuilder("t", 2048).result()
    assert imbalances(stats) == []
    card = render_card(stats, {})
    assert "leakage check was not run" in card
    assert [c["config_name"] for c in front_matter(card)["configs"]] == ["scenarios", "turns"]


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_a_distribution_is_exact(values):
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    found = distribution.summary()
    assert (found["n"], found["max"], sum(found["counts"])) == (len(values), max(values), len(values))
    assert found["edges"] == sorted(set(found["edges"]))
    assert len(found["edges"]) == len(found["counts"]) + 1
    for q, name in ((0.1, "p10"), (0.5, "median"), (0.9, "p90")):
        assert sum(v < found[name] for v in values) < q * len(values) <= sum(v <= found[name] for v in values) + 1e-9


def test_card_is_valid_for_the_hub():
    from huggingface_hub import DatasetCard

    card = DatasetCard(render_card(make_stats(), {"title": "Encounters", "licence": "mit", "seed": 1}))
    data = card.data.to_dict()
    assert (data["license"], data["language"], data["pretty_name"]) == ("mit", ["en"], "Encounters")
    assert data["task_categories"] == ["text-generation"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"][0]["data_files"] == [{"split": s, "path": f"examples/{s}.parquet"} for s in SPLITS]
    for heading in ("Numbers", "Sources", "Redaction", "Splits and leakage", "Intended and prohibited", "Known biases"):
        assert f"\n## {heading}" in card.text


def test_card_says_what_was_done():
    stats = make_stats()
    card = render_card(
        stats,
        {
            "config": {"examples": {"overlap_turns": 8}, "redact": {"enabled": True}},
            "redaction": {"recall": 0.912, "precision": 0.85, "sample": "200 turns", "misses": ["nicknames"]},
            "selection": "police >= 2",
            "generator": {"model": "m", "prompt_version": "abc"},
            "sources": [{"name": "Corpus", "uri": "s3://bucket/a", "licence": "MIT"}],
        },
    )
    assert f"{stats['turns']['kept']:,}" in card
    assert "`smollm2-135m`" in card
    assert "not anonymisation" in card
    assert "it found 91.2 % of what it should" in card
    assert "written by a language model** (m, prompt abc)" in card
    assert "repeats up to 8 turns" in card
    assert "- Corpus: s3://bucket/a (licence: MIT)" in card
    assert "| perplexity |" in card
    assert "| type-token ratio, moving average |" in card
    assert "\n\n\n" not in card
    assert "always in the same split" in card
    assert "the publishers' split 16 pairs and 7 incidents do" in card
    assert "which was kept" in render_card(stats, {"config": {"split": {"official": True}}})
    off = render_card({**stats, "bias": None}, {"config": {"redact": {"enabled": False}}})
    assert "Do not publish it" in off
    assert "not measured in this build" in off


def test_every_table_of_the_card_is_one():
    lines = render_card(make_stats(), {}).splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|---"):
            columns = line.count("|")
            assert lines[i - 2] == ""
            while lines[i + 1].startswith("|"):
                i += 1
                assert lines[i].count("|") - lines[i].count("\\|") == columns, lines[i]
            assert lines[i + 1] == ""


def test_words_of_others_are_no_markup():
    card = render_card(make_stats(source=EVIL, reason=EVIL), {"title": EVIL, "sources": [{"name": EVIL, "uri": EVIL}]})
    assert "<script" not in card.split("---\n", 2)[2]
    assert "\n# Heading" not in card
    assert front_matter(card)["pretty_name"] == EVIL


@pytest.mark.parametrize(
    ("n", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**9, "100M<n<1B")]
)
def test_size_categories(n, name):
    assert size_category(n) == name


def test_the_folder_loads_as_the_card_says(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    scenarios, turns, examples = tables(20)
    for name, rows, schema in (("scenarios", scenarios, SCENARIOS), ("turns", turns, DIALOGUE)):
        (tmp_path / name).mkdir()
        pq.write_table(to_table(rows, schema), tmp_path / name / "part-00000.parquet")
    (tmp_path / "examples").mkdir()
    for split, rows in examples.items():
        pq.write_table(to_table(rows, EXAMPLES), tmp_path / "examples" / f"{split}.parquet")
    (tmp_path / "README.md").write_text(render_card(make_stats(20), {}))
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {s: len(rows) for s, rows in examples.items()}
    assert loaded["train"][0]["messages"] == examples["train"][0]["messages"]
    assert len(datasets.load_dataset(str(tmp_path), "turns", cache_dir=str(tmp_path / "c"))["train"]) == len(turns)
