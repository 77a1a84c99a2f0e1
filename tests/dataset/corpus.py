"""Invented transcripts in the published format, each with words of its own."""

from __future__ import annotations

import csv
import random
from pathlib import Path

OFFICER = (
    "Step out of the {a}.",
    "Do you have any {a} in the {b}?",
    "I stopped you for the {a}.",
    "Tell me about the {a} and the {b}.",
)
CIVILIAN = (
    "I never saw the {a}.",
    "My {a} is at the {b}.",
    "Why do you ask about the {a}?",
    "The {b} belongs to my {a}.",
)
SYLLABLES = ("ba", "ko", "ri", "ten", "mul", "sha", "dor", "vin", "pel", "gar", "lo", "nis")
Line = tuple[str, str, str]  # start_time, speaker_label, transcript


def dialogue(seed: int, n_turns: int = 24) -> list[Line]:
    """Officer and driver in turn; nouns are invented, so that no two dialogues share them."""
    rng = random.Random(seed)

    def noun() -> str:
        return "".join(rng.choices(SYLLABLES, k=3))

    return [
        (
            f"{i // 6:02d}:{i % 6 * 10:02d}",
            "[Driver]" if i % 2 else "[Officer]",
            rng.choice(CIVILIAN if i % 2 else OFFICER).format(a=noun(), b=noun()),
        )
        for i in range(n_turns)
    ]


def write(path: Path, lines: list[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start_time", "speaker_label", "transcript"])
        writer.writerows(lines)


def write_corpus(folder: Path, n: int = 40) -> None:
    """`n` dialogues, of which one is a near copy of another and two are parts of one incident."""
    for i in range(n - 2):
        write(folder / ("test" if i % 8 == 0 else "train") / f"youtube_{100 + i}.csv", dialogue(i))
    copied = [(time, label, text.replace("Why do you", "How come you")) for time, label, text in dialogue(8)]
    write(folder / "train" / "tiktok_9.csv", copied)
    write(folder / "train" / "youtube_101_again.csv", [*dialogue(1)[:-1], ("05:00", "[Driver]", "")])
