from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deescal.errors import UserError
from deescal.schema import EXAMPLES, to_table
from deescal.storage import write_json
from deescal.train import fit
from deescal.train.config import TrainConfig
from deescal.train.fit import change, check_memory
from deescal.train.plan import plan, show_plan
from deescal.train.shape import FAMILIES

from .tiny import write_dataset

GPU_MODEL = "nobody/Qwen2.5-3B-Instruct"


def dataset(folder: Path, lengths: Sequence[int], targets: Sequence[int]) -> str:
    (folder / "examples").mkdir(parents=True)
    rows = [
        {**dict.fromkeys(EXAMPLES.names), "example_id": f"{i:04d}-0", "n_tokens": n, "n_target_tokens": t}
        for i, (n, t) in enumerate(zip(lengths, targets, strict=True))
    ]
    pq.write_table(to_table(rows, EXAMPLES), folder / "examples" / "train.parquet")
    write_json(str(folder / "stats.json"), {"tokenizer": "smollm2-135m"})
    return str(folder)


def test_steps_and_hours_come_from_the_examples(tmp_path: Path) -> None:
    data = dataset(tmp_path, [1000] * 60 + [2000] * 10, [300] * 60 + [500] * 10)
    config = TrainConfig(model=GPU_MODEL, data={"sequences_per_step": 8}, optim={"epochs": 3})
    found = plan(config, "A100-80", data)
    # Two examples of 1,000 tokens share a sequence of 2,048: 40 sequences, three times, by eight.
    assert (found.data.sequences, found.data.tokens, found.data.target_tokens) == (40, 80_000, 23_000)
    assert found.data.most_targets == 600 / 2048
    assert found.steps == 15
    assert found.hours == pytest.approx(3 * 80_000 / found.tokens_per_s / 3600)
    apart = plan(change(config, {"data.packing": False}), "A100-80", data)
    assert (apart.data.sequences, apart.data.most_targets) == (70, 500 / 2048)
    assert apart.steps == 27  # 210 sequences by eight, the last step filled up
    assert plan(change(config, {"optim.max_steps": 5}), "A100-80", data).hours == pytest.approx(found.hours / 3)


def test_the_most_targets_of_a_forward_pass_decide_the_logits(tmp_path: Path) -> None:
    config = TrainConfig(model=GPU_MODEL)
    even = plan(config, "A100-80", dataset(tmp_path / "even", [2000] * 10, [200] * 10))
    uneven = plan(config, "A100-80", dataset(tmp_path / "uneven", [2000] * 10, [1900] + [100] * 9))
    assert uneven.data.target_share < even.data.target_share * 1.5
    assert uneven.memory.gib > even.memory.gib + 1900 * 151936 * 12 / 2**30 * 0.8


def test_more_gpus_are_faster_and_no_larger_in_memory() -> None:
    config = TrainConfig(model=GPU_MODEL, method="full", strategy={"name": "zero3"})
    one, four = plan(config, "A100-80"), plan(config, "A100-80 x4")
    assert four.tokens_per_s == pytest.approx(4 * one.tokens_per_s)
    assert four.needed_gib < one.needed_gib
    assert four.config.workers.workers == 4
    with pytest.raises(UserError, match=r"must be a multiple of .* = 3"):
        plan(config, "A100-80 x3")


def test_speed_on_two_cores_is_near_the_measured_one() -> None:
    """270 tokens/s of SmolLM2-135M: LoRA with r=16 in bfloat16, measured with sequences of some hundred tokens."""
    smollm = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    config = TrainConfig(model="nobody/SmolLM2-135M", data={"max_tokens": 256})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        patch.setitem(FAMILIES, "SmolLM2-135M", {"model_type": "llama", **smollm})
        two = plan(config)
        many = plan(change(config, {"workers.num_cpus": 64}))
    assert two.tokens_per_s == pytest.approx(270, rel=0.3)
    assert many.tokens_per_s == two.tokens_per_s  # no more cores than there are
    assert two.gpu is None


@pytest.mark.parametrize(
    ("gpus", "changes", "proposal"),
    [
        ("A100-80", {}, None),
        ("T4", {}, {"strategy.gradient_checkpointing": True}),
        (
            "A10G",
            {"method": "full", "strategy.name": "zero2", "strategy.gradient_checkpointing": True},
            {"method": "qlora"},
        ),
        (
            "T4",
            {"data.max_tokens": 32768, "strategy.gradient_checkpointing": True, "method": "qlora"},
            {"data.max_tokens": 4096},
        ),
        (
            "T4",
            {"data.sequences_at_once": 8, "strategy.gradient_checkpointing": True, "method": "qlora"},
            {"data.sequences_at_once": 1},
        ),
    ],
)
def test_what_does_not_fit_comes_with_the_first_change_that_does(
    gpus: str, changes: dict[str, object], proposal: dict[str, object] | None
) -> None:
    config = change(TrainConfig(model=GPU_MODEL), changes)
    found = plan(config, gpus)
    assert found.fits == (proposal is None)
    assert found.proposal == proposal
    if proposal:
        assert plan(change(config, proposal), gpus).fits


def test_zero3_is_proposed_where_four_bits_do_not_help() -> None:
    """Float32 embeddings and a float32 optimizer of many adapters outweigh what 4 bits save."""
    config = TrainConfig(model=GPU_MODEL, method="lora", lora={"r": 512}, strategy={"gradient_checkpointing": True})
    found = plan(config, "A10G x8")
    assert not found.fits
    assert found.proposal is not None
    assert found.proposal["strategy.name"].startswith("zero")
    assert plan(change(config, found.proposal), "A10G x8").fits


def test_check_memory_refuses_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(model=GPU_MODEL)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(fit, "machine_gib", lambda: 64.0)
    check_memory(config)
    monkeypatch.setattr(fit, "machine_gib", lambda: 16.0)
    with pytest.raises(UserError) as caught:
        check_memory(config)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"not enough memory: lora of '{GPU_MODEL}' in sequences of 2048 tokens needs about ")
    assert line.endswith("which has 16.0: try strategy.gradient_checkpointing=true")
    check_memory(change(config, {"strategy.gradient_checkpointing": True}))
    with pytest.raises(UserError, match=r"for 8 worker\(s\) on this machine"):
        check_memory(change(config, {"strategy.gradient_checkpointing": True, "workers.workers": 8}))
    monkeypatch.setattr(fit, "machine_gib", lambda: 1.0)
    with pytest.raises(UserError, match="no change of the config would do; take a smaller model"):
        check_memory(config)
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    check_memory(config)


def test_the_plan_is_printed_with_its_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path, [1000] * 40, [300] * 40)
    show_plan(plan(TrainConfig(model=GPU_MODEL, liger=True), "T4 x2", data))
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "nobody/Qwen2.5-3B-Instruct: 3.09B parameters (the built-in table of families); lora, 29,933,568 of them",
        "2 x T4, ddp",
        "40 examples, 40,000 tokens (30% learned) in 20 sequences of 2048; 5 steps",
        "assuming 35% of 8 dense TFLOP/s a GPU",
        "T4 has no bfloat16, torch emulates it",
        "counted by the tokenizer of 'smollm2-135m'",
        "does not fit",
        "would fit with: strategy.gradient_checkpointing=true",
    ):
        assert words in text
    show_plan(plan(TrainConfig(model=GPU_MODEL), "H100"))
    assert "fits: about" in " ".join(capsys.readouterr().out.split())


def test_bad_data_is_refused_in_one_line(tmp_path: Path) -> None:
    config = TrainConfig(model=GPU_MODEL)
    with pytest.raises(UserError, match="no examples at"):
        plan(config, "L4", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="no civilian turn to learn"):
        plan(config, "L4", dataset(tmp_path / "officers", [100], [0]))
    uncounted = write_dataset(tmp_path / "uncounted")
    with pytest.raises(UserError, match="its tokens were not counted"):
        plan(config, "L4", uncounted)
    with pytest.raises(UserError, match=r"data\.max_tokens=2048"):
        plan(config, "L4", dataset(tmp_path / "long", [3000], [10]))
