"""Rubric: could a civilian's reply be real speech? 100 points less what four faults cost (docs/rubrics.md).

A prompt begins with what most requests share (rules, then scenario and history, then the real reply), so that the
replies of all contestants to one turn differ in their last lines only.
"""

from __future__ import annotations

from collections.abc import Sequence

from deescal.config import fingerprint
from deescal.dataset.chat import Message
from deescal.judge.scene import QUOTED_NOTE, Turn, chat, head, quoted, section
from deescal.judge.verdict import (
    EVIDENCE,
    Criterion,
    Deduction,
    UnreadError,
    Verdict,
    deducted,
    form,
    quotes,
    read_answer,
    unread,
)

START = 100
REAL_FROM = 85
ARTIFICIAL_TO = 50

CRITERIA = (
    Criterion(
        "sudden_change",
        (10, 20, 30),
        "the civilian gives in, calms down or flares up although nothing in the transcript leads there. 10: sooner "
        "than expected, 20: without any cause, 30: the opposite of a moment ago.",
    ),
    Criterion(
        "artificial_language",
        (15,),
        "it reads as written by a machine, not as spoken: formal full sentences, lists, lectures, the courtesy of an "
        "assistant, summaries of the situation, stage directions.",
    ),
    Criterion(
        "out_of_profile",
        (20,),
        "it does not fit the person described in <character>: state, temper, wishes, way of speaking. Never where the "
        "character is not given.",
    ),
    Criterion(
        "ignores_scene",
        (20,),
        "it passes over what was just said, answers something else, or contradicts where people are, what they hold "
        "or what they are doing.",
    ),
)

SYSTEM = (
    "You judge whether a reply could be the real words of a civilian in an encounter with the police. You read the "
    "situation, the civilian's character, the transcript so far, sometimes what the real person said next, and then "
    f"the reply to judge. {QUOTED_NOTE}\n"
    "Real people in such recordings speak in fragments. They repeat themselves, swear, mumble, lie, refuse and break "
    "off, and transcripts have errors: none of this is a fault. The real person's words are one possible reply among "
    "many: a reply that differs from them is not worse for it.\n"
    "The faults and what each costs:\n" + "\n".join(c.rule for c in CRITERIA) + "\n"
    "For each fault give first `evidence`: the words of the reply that show it, copied exactly, or empty where the "
    "reply does not have the fault. Then `points`: what it costs, or 0."
)
QUESTION = (
    "Judge only the words in <reply>. Answer in JSON: for each fault its evidence, words of the reply or empty, and "
    "its points."
)

SCHEMA = form({c.name: form({"evidence": EVIDENCE, "points": c.allowed}) for c in CRITERIA})


def realism_messages(
    context: str | None, character: str | None, history: Sequence[Turn], reference: str | None, reply: str
) -> list[Message]:
    """System and user message that ask about one reply.

    Args:
        history: before the reply, as `scene.numbered` writes and `scene.fit` cuts it.
        reference: what the real person said; None where the judge shall not know it, as when that itself is judged.
        reply: a reply that is blank is shown as silence.
    """
    known = section("real_words", quoted(reference)) if reference is not None else ""
    user = head(context, character, history) + known + section("reply", quoted(reply)) + "\n" + QUESTION
    return chat(SYSTEM, user)


def realism_verdict(answer: str, reply: str) -> Verdict:
    """The judge's answer about `reply` -> score and band; a deduction whose evidence is not in the reply is flagged."""
    try:
        found = read_answer(answer, SCHEMA)
    except UnreadError as error:
        return unread(error)
    heard = quoted(reply)
    deductions = tuple(
        Deduction(name, int(fault["points"]), fault["evidence"], (), quotes(fault["evidence"], heard))
        for name in SCHEMA["required"]
        if (fault := found[name])["points"]
    )
    score = deducted(START, deductions)
    return Verdict(score, realism_band(score), START, deductions, unsupported=sum(not d.supported for d in deductions))


BANDS = ("real", "marginal", "artificial")


def realism_band(score: float) -> str:
    """Of a score, or of a mean of several: real from 85, artificial to 50, between them marginal."""
    if score >= REAL_FROM:
        return "real"
    return "artificial" if score <= ARTIFICIAL_TO else "marginal"


# For tables: changes with any word of the prompts, the form of the answer, the points and the bands.
REALISM_VERSION = fingerprint(realism_messages("", "", [], "", ""), SCHEMA, START, REAL_FROM, ARTIFICIAL_TO)
