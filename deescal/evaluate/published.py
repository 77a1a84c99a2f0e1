"""The numbers that the paper published, to stand beside ours: DeEscalWild, arXiv 2604.13075, Table 3."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One model, before and after tuning; None where it was not tuned. x 100, but for BERTScore (roberta-large)."""

    model: str
    rouge_l: tuple[float, float | None]
    bleu_4: tuple[float, float | None]
    meteor: tuple[float, float | None]
    bertscore_f1: tuple[float, float | None]
    seconds_a_turn: float


PUBLISHED = (
    Published("Qwen2.5-3B-Instruct", (11.2, 15.8), (0.9, 3.8), (15.7, 19.5), (0.86, 0.88), 0.38),
    Published("Llama-3.2-3B-Instruct", (11.3, 14.8), (0.6, 2.3), (15.7, 17.8), (0.86, 0.87), 0.44),
    Published("Gemma-2-2B-it", (7.2, 14.8), (0.4, 1.9), (11.7, 16.2), (0.81, 0.87), 0.33),
    Published("Granite-3.0-2B-instruct", (10.2, 15.5), (1.2, 2.2), (13.5, 16.8), (0.83, 0.87), 0.30),
    Published("Falcon3-3B-Instruct", (9.2, 11.3), (0.5, 1.2), (12.4, 15.5), (0.83, 0.85), 0.41),
    Published("Gemini 2.5 Flash, prompted", (12.4, None), (1.1, None), (13.2, None), (0.85, None), 3.50),
)


def published_of(model: str) -> Published | None:
    """What the paper has of a model: its name, Hugging Face id or folder, in any case, or this project's short name."""
    name = model.rstrip("/").rsplit("/", 1)[-1].casefold().replace(" ", "-")
    return next((p for p in PUBLISHED if p.model.partition(",")[0].casefold().replace(" ", "-") == name), None)
