"""The gate: rules on made-up traces of known differences, and real exports of SmolLM2-135M, whole and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deescal.train import parity
from deescal.train.config import ExportConfig, TrainConfig
from deescal.train.parity import check_export, compare, show_parity
from deescal.train.trace import EngineError, Trace, trace_model

PROMPTS = [[1, 2, 3, 4, 5], [6, 7, 8]]


def made_up(*shifts: float, replies: Sequence[Sequence[int]] = ((10, 11, 12), (13, 14)), margin: float = 3.0) -> Trace:
    """A trace whose six log-probabilities are -2 plus the shifts, over and over; all margins alike."""
    values = [-2.0 + shifts[i % len(shifts)] for i in range(6)]
    return Trace(
        prompts=PROMPTS,
        stop_ids=[0],
        logprobs=[values[:4], values[4:]],
        replies=[list(reply) for reply in replies],
        margins=[[margin] * len(reply) for reply in replies],
    )


GATE = ExportConfig(max_mean_difference=0.05)
CONFIG = TrainConfig(export=GATE)
BASE = made_up(0.0, replies=[[20], [21]])
TUNED = made_up(0.6, -0.4)


def near(trace: Trace, by: float) -> Trace:
    """The same with alternating errors of rounding."""
    logprobs = [[x + by * (-1) ** i for i, x in enumerate(row)] for row in trace.logprobs]
    return replace(trace, logprobs=logprobs)


def test_differences_are_over_tokens_not_prompts() -> None:
    row = compare(made_up(0.0), made_up(0.06, 0.0, 0.0), GATE, "a | b")
    assert (row.mean_difference, row.max_difference) == pytest.approx((0.02, 0.06))
    assert row.same_text == 1
    assert row.ok


def test_the_mean_decides_and_the_engines_own_difference_widens_what_is_allowed() -> None:
    off = made_up(0.08)
    assert not compare(made_up(0.0), off, GATE, "").ok
    assert compare(made_up(0.0), off, ExportConfig(max_mean_difference=0.1), "").ok
    assert compare(made_up(0.0), off, GATE, "", between=0.06).ok
    assert not compare(made_up(0.0), off, GATE, "", between=0.05).ok


def test_text_may_part_at_a_near_tie_and_nowhere_else() -> None:
    parted = made_up(0.01, replies=[(10, 11, 99), (13, 14)])  # root mean square 0.01: ties under 0.057 nats
    for margin, same in ((0.05, 1.0), (0.06, 0.5)):
        row = compare(made_up(0.0, margin=margin), parted, GATE, "")
        assert (row.same_text, row.ok) == (same, same == 1)
    assert compare(made_up(0.0, margin=3.0), parted, ExportConfig(min_same_text=0.5), "").ok


def test_large_differences_do_not_make_ties_of_everything() -> None:
    reference = made_up(0.0, margin=0.7)  # more than 4 sqrt(2) times twice the allowed mean, 0.05
    assert compare(reference, made_up(1.0, replies=[(99,), (99,)]), GATE, "").same_text == 0


def test_a_tie_before_the_words_part_excuses_nothing() -> None:
    reference = replace(made_up(0.0), margins=[[0.0, 3.0, 3.0], [3.0, 3.0]])
    assert compare(reference, made_up(0.01, replies=[(10, 99, 12), (13, 14)]), GATE, "").same_text == 0.5


def test_traces_of_other_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other prompts"):
        compare(made_up(0.0), replace(made_up(0.0), prompts=[[1]]), GATE, "")


class Engines:
    """In place of the real ones: what each makes of the base and of the export."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **traces: tuple[Trace, Trace] | Exception) -> None:
        self.traces = {"transformers": (BASE, TUNED), "vllm": (near(BASE, 0.02), near(TUNED, 0.02)), **traces}
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(parity, "trace_engine", self)

    def __call__(
        self, engine: str, model: str, adapters: Sequence[str | None], like: Trace, config: TrainConfig
    ) -> list[Trace]:
        self.asked.append((engine, model))
        found = self.traces[engine]
        if isinstance(found, Exception):
            raise found
        base, tuned = found
        return [tuned if adapter or model in ("out", "merged") else base for adapter in adapters]


def test_a_faithful_export_is_good(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engines = Engines(monkeypatch)
    result = check_export(TUNED, "out", CONFIG, merged_folder="merged")
    assert result["good"]
    assert all(row["ok"] for row in result["rows"])
    assert [row["what"].rpartition(" ")[2] for row in result["rows"]].count("vLLM") == 4
    assert engines.asked == [("transformers", "smollm2-135m"), ("vllm", "smollm2-135m"), ("vllm", "merged")]
    show_parity(result)
    assert "export good" in capsys.readouterr().out


def test_without_the_engine_vllm_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(monkeypatch)
    assert check_export(TUNED, "out", TrainConfig(export=ExportConfig(engine=False)))["good"]
    assert engines.asked == [("transformers", "smollm2-135m")]


def test_a_whole_model_is_loaded_in_place_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(monkeypatch)
    assert check_export(TUNED, "out", TrainConfig(method="full", dtype="float32", export=GATE))["good"]
    assert [model for _, model in engines.asked] == ["smollm2-135m", "out"] * 2


def test_an_adapter_that_the_engine_ignores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch, vllm=(near(BASE, 0.02), near(BASE, 0.02)))
    result = check_export(TUNED, "out", CONFIG)
    assert not result["good"]
    assert "base | export, vLLM: 0.000 nats" in result["reason"]
    assert "trained | export, vLLM: 0.480 nats" in result["reason"]


def test_an_adapter_that_changes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch, transformers=(BASE, BASE), vllm=(near(BASE, 0.02), near(BASE, 0.02)))
    result = check_export(BASE, "out", CONFIG)
    assert not result["good"]
    assert "base | export, transformers: 0.000" in result["reason"]
    assert "trained | export" not in result["reason"]  # it is served as it was trained, only to no effect


@pytest.mark.parametrize(("change", "good"), [(0.03, False), (0.05, True)])
def test_a_change_must_be_twice_what_two_engines_differ_by(
    monkeypatch: pytest.MonkeyPatch, change: float, good: bool
) -> None:
    tuned = made_up(change)
    Engines(monkeypatch, transformers=(BASE, tuned), vllm=(near(BASE, 0.02), near(tuned, 0.02)))
    assert check_export(tuned, "out", CONFIG)["good"] == good


def test_an_engine_that_runs_even_the_base_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch, vllm=(near(BASE, 0.3), near(TUNED, 0.3)))
    result = check_export(TUNED, "out", CONFIG)
    assert not result["good"]
    assert "base: transformers | vLLM: 0.300" in result["reason"]


def test_a_4_bit_base_may_differ_by_its_quantisation_and_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch, vllm=(near(BASE, 0.2), near(TUNED, 0.25)))
    config = TrainConfig(method="qlora", export=GATE)
    result = check_export(TUNED, "out", config)
    assert result["good"]
    assert {row["what"]: row["allowed"] for row in result["rows"]}.items() >= {
        ("base: 4 bits, transformers | whole, vLLM", ""),
        ("trained on 4 bits | export, vLLM", "mean <= 0.300, text >= 100%"),
    }
    Engines(monkeypatch, vllm=(near(BASE, 0.2), near(TUNED, 0.35)))
    assert not check_export(TUNED, "out", config)["good"]


def test_what_is_no_number_is_refused_before_an_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = made_up(0.0, float("nan"))
    engines = Engines(monkeypatch, transformers=(BASE, broken))
    result = check_export(broken, "out", CONFIG)
    assert not result["good"]
    assert "no numbers" in result["reason"]
    assert result["rows"][0]["mean_difference"] is None
    assert engines.asked == [("transformers", "smollm2-135m")]
    show_parity(result)


def test_an_engine_that_cannot_run_the_export_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Engines(monkeypatch, vllm=EngineError("vllm cannot run the model: ValueError: no DoRA"))
    result = check_export(TUNED, "out", CONFIG)
    assert (result["good"], result["reason"]) == (False, "vllm cannot run the model: ValueError: no DoRA")
    assert len(result["rows"]) == 1


# Real models from here on.

DIALOGUES = (
    ["Good evening. Do you know why I stopped you?", "No, I have no idea.", "Your tail light is out. License, please."],
    ["Sir, step away from the car and keep your hands where I can see them.", "Why? I live here!", "Calm down first."],
    ["Dispatch said there was a fight. Are you hurt?"],
)


def damaged(folder: str, to: Path, change: Any) -> str:
    """A copy of an export whose weights, by name, went through `change`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "adapter_model.safetensors")
    save_file(change(weights), to / "adapter_model.safetensors", metadata={"format": "pt"})
    return str(to)


def random_adapter(config: TrainConfig, folder: Path) -> tuple[Trace, str]:
    """SmolLM2-135M with adapters of seeded noise: its trace as the trainer takes it, and its export."""
    import torch

    from deescal.dataset.chat import load_tokenizer, render
    from deescal.train.export import export_adapter
    from deescal.train.model import load_for_training

    torch.manual_seed(0)
    model = load_for_training(config, "cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.03)
    tokenizer = load_tokenizer(config.model)
    prompts = []
    for lines in DIALOGUES:
        messages = [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]
        text = render(messages, tokenizer, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
        trained = trace_model(model, prompts, [tokenizer.eos_token_id], config.export.parity_new_tokens)
    export_adapter(model, tokenizer, str(folder), config)
    return trained, str(folder)


SERVED = TrainConfig(export=ExportConfig(parity_new_tokens=12))
# One machine loads it twice: what differs is the damage, not rounding.
LOADED = TrainConfig(export=ExportConfig(parity_new_tokens=12, engine=False, max_mean_difference=0.03))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, str]:
    return random_adapter(SERVED, tmp_path_factory.mktemp("tuned"))


@pytest.mark.engine
def test_a_real_adapter_serves_in_vllm_as_it_was_trained_alone_and_merged(
    tuned: tuple[Trace, str], tmp_path: Path
) -> None:
    from deescal.train.export import merge_adapter

    trained, folder = tuned
    merge_adapter(SERVED.model, folder, str(tmp_path / "merged"))
    result = check_export(trained, folder, SERVED, str(tmp_path / "merged"))
    show_parity(result)
    assert result["good"], result["reason"]
    found = {row["what"]: row["mean_difference"] for row in result["rows"]}
    assert len(found) == 6
    assert found["trained | export, transformers"] < 0.02
    assert found["trained | export, vLLM"] > 0  # another engine's arithmetic, not the same trace


@pytest.mark.engine
@pytest.mark.parametrize("damage", ["zeros", "one layer's weights shuffled"])
def test_a_damaged_adapter_is_refused(tuned: tuple[Trace, str], tmp_path: Path, damage: str) -> None:
    import torch

    def change(weights: dict[str, Any]) -> dict[str, Any]:
        torch.manual_seed(1)
        for name, weight in weights.items():
            if damage == "zeros" and "lora_B" in name:
                weight.zero_()
            elif damage.startswith("one layer") and ".layers.15." in name and "lora_B" in name:
                weight.copy_(weight[torch.randperm(len(weight))])
        return weights

    trained, folder = tuned
    result = check_export(trained, damaged(folder, tmp_path / "damaged", change), LOADED)
    show_parity(result)
    assert not result["good"]


@pytest.mark.engine
def test_a_file_that_cannot_be_read_is_one_line(tuned: tuple[Trace, str], tmp_path: Path) -> None:
    trained, folder = tuned
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = check_export(trained, str(tmp_path / "cut"), LOADED)
    assert not result["good"]
    assert result["reason"].startswith("transformers cannot run the model: ")
    assert "\n" not in result["reason"]


@pytest.mark.engine
def test_a_4_bit_base_is_loaded_in_4_bits_again(tmp_path: Path) -> None:
    config = TrainConfig(method="qlora", export=ExportConfig(parity_new_tokens=4, engine=False))
    trained, folder = random_adapter(config, tmp_path / "tuned")
    result = check_export(trained, folder, config)
    assert result["good"], result["reason"]  # on the base in bfloat16 it would be half a nat off
