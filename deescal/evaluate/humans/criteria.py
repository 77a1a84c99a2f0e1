"""What raters are asked, word for word: the page, the instructions file and the import all take it from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["likert", "pairwise"]
Level = Literal["nominal", "ordinal"]


@dataclass(frozen=True)
class Question:
    """One judgement of an item."""

    name: str  # column of the rating sheets
    title: str
    ask: str
    choices: dict[str, str]  # what is written into a sheet -> what it means
    level: Level  # of measurement

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)


REALISM = Question(
    name="realism",
    title="Realism",
    ask="Would a real person say this, here and now?",
    choices={
        "1": "Nobody would say this",
        "2": "Probably made up",
        "3": "Could be either",
        "4": "Probably real",
        "5": "Just as a real person would say it",
    },
    level="ordinal",
)
HELPFULNESS = Question(
    name="helpfulness",
    title="Helpfulness for training",
    ask="What would an officer learn by having to answer this?",
    choices={
        "1": "Nothing: there is nothing to answer",
        "2": "Little",
        "3": "Something: an ordinary turn",
        "4": "Much",
        "5": "A great deal: it takes skill to answer well",
    },
    level="ordinal",
)
MORE_REAL = Question(
    name="more_real",
    title="More real",
    ask="Which of the two would a real person rather say, here and now?",
    choices={"A": "Reply A", "B": "Reply B", "tie": "No difference"},
    level="nominal",
)
QUESTIONS: dict[Form, tuple[Question, ...]] = {"likert": (REALISM, HELPFULNESS), "pairwise": (MORE_REAL,)}

INTRODUCTION: dict[Form, str] = {
    "likert": (
        "Each item is a conversation between a police officer and a civilian, up to a line of the officer's, and one "
        "reply of the civilian. You rate the reply, not the officer. You are not told where a reply comes from."
    ),
    "pairwise": (
        "Each item is a conversation between a police officer and a civilian, up to a line of the officer's, and two "
        "replies of the civilian to that line. You say which is more real. You are not told where a reply comes from."
    ),
}
# heading -> its points
CRITERIA: dict[str, tuple[str, ...]] = {
    "What makes a reply less real": (
        "Giving in, calming down or flaring up though nothing was said that would bring it about.",
        "Sounding written: whole, formal sentences, lists, explanations, the tone of an assistant.",
        "Not fitting the person, as the situation and the conversation so far show them.",
        "Passing over what the officer just said, or what is happening around them.",
        "Speaking for the officer, or telling what happens as a narrator would.",
    ),
    "What does not count": (
        "Swearing, bad grammar, broken-off sentences, or a reply of one word.",
        "Spelling and punctuation: speech was written down by a machine.",
        "Placeholders such as [NAME], which stand for what was taken out.",
        "Whether you approve of what is said.",
    ),
}
HELPFULNESS_CRITERIA: dict[str, tuple[str, ...]] = {
    "What makes a reply helpful for training": (
        "It leaves the officer something to do: a fear to calm, a question to answer, a refusal to work with.",
        "It reacts to how the officer spoke, so that good and bad ways of speaking lead somewhere else.",
        "A reply may be real and teach nothing, or teach much and be less real: rate the two apart.",
    ),
}
RULES = (
    "Rate alone, and talk about single items with nobody before all are done.",
    "Some items are attention checks: the reply says what to choose. Choose just that.",
    "There is no right number of high or low ratings. Your first impression is fine.",
    "These are encounters with the police; some are distressing. Stop whenever you want: what you rated counts.",
)


def criteria(form: Form) -> dict[str, tuple[str, ...]]:
    """Heading -> points, in the order in which they are shown."""
    return {**CRITERIA, **HELPFULNESS_CRITERIA} if form == "likert" else CRITERIA


def instructions(form: Form) -> str:
    """All of the above as Markdown, for who rates in a spreadsheet and for a paper's appendix."""
    lines = ["# How to rate", "", INTRODUCTION[form], ""]
    for question in QUESTIONS[form]:
        lines += [f"## {question.title} (column `{question.name}`)", "", question.ask, ""]
        lines += [f"- `{choice}`: {meaning}" for choice, meaning in question.choices.items()] + [""]
    for heading, points in {**criteria(form), "Please": RULES}.items():
        lines += [f"## {heading}", "", *(f"- {point}" for point in points), ""]
    lines += [
        "## How to hand it in",
        "",
        "Open `rate-<your name>.html` in a browser, or fill in the last columns of `rate-<your name>.csv` in a "
        "spreadsheet and save it as CSV. An empty cell is an item that you did not rate. Change no other column.",
    ]
    return "\n".join(lines) + "\n"


def check_text(form: Form, choice: str) -> str:
    """What an attention check shows in place of a reply."""
    if form == "pairwise":
        told = "No difference" if choice == "tie" else choice
        return f"This is an attention check, not a reply. Please choose {told}."
    return f"This is an attention check, not a reply. Please choose {choice} for both questions."
