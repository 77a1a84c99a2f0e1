"""What a scoring judge may answer and what its answer means; shared by the rubrics of realism and de-escalation.

The answer is JSON held to a schema in which everything is bounded, so that constrained decoding must come to an end.
An answer that does not fit the schema all the same (cut off, or made without the constraint) has no score: it is
counted, never repaired or guessed.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

Schema = dict[str, Any]

EVIDENCE_CHARS = 160
EVIDENCE: Schema = {"type": "string", "maxLength": EVIDENCE_CHARS}


@dataclass(frozen=True)
class Criterion:
    """A fault that costs points, once at most."""

    name: str
    points: tuple[int, ...]  # that it may cost, ascending
    definition: str

    @property
    def rule(self) -> str:
        """One line of the rubric."""
        return f"- {self.name} ({' or '.join(map(str, self.points))} points): {self.definition}"

    @property
    def allowed(self) -> Schema:
        return {"enum": [0, *self.points]}


@dataclass(frozen=True)
class Deduction:
    criterion: str
    points: int
    evidence: str  # words that the judge quotes, or ""
    turns: tuple[int, ...]  # numbers that the judge names, as it does
    supported: bool  # the evidence is there


@dataclass(frozen=True)
class Verdict:
    """Of one answer. Where `error` is set, nothing was read and the rest is empty."""

    score: int | None  # 0..100
    band: str | None
    base: int | None  # the score before deductions
    deductions: tuple[Deduction, ...] = ()
    turns: tuple[int, ...] = ()  # that show the outcome, of those that the judge read
    unsupported: int = 0  # deductions, and the outcome, without evidence that is there
    error: str | None = None


# A column for `dataclasses.asdict(verdict)`.
VERDICT = pa.struct(
    {
        "score": pa.int32(),
        "band": pa.string(),
        "base": pa.int32(),
        "deductions": pa.list_(
            pa.struct(
                {
                    "criterion": pa.string(),
                    "points": pa.int32(),
                    "evidence": pa.string(),
                    "turns": pa.list_(pa.int32()),
                    "supported": pa.bool_(),
                }
            )
        ),
        "turns": pa.list_(pa.int32()),
        "unsupported": pa.int32(),
        "error": pa.string(),
    }
)


class UnreadError(ValueError):
    """An answer that is not what was asked for; the message quotes nothing of it."""


def unread(error: UnreadError) -> Verdict:
    return Verdict(None, None, None, error=str(error))


def form(properties: Mapping[str, Schema]) -> Schema:
    """An object with exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def read_answer(answer: str, schema: Schema) -> dict[str, Any]:
    """JSON that fits the schema.

    Raises:
        UnreadError: it is not JSON, or does not fit.
    """
    import jsonschema

    if not answer.strip():
        raise UnreadError("empty answer")
    try:
        found = json.loads(answer, strict=False)  # xgrammar lets a tab into a string of bounded length
    except json.JSONDecodeError as error:
        raise UnreadError(f"not JSON, or cut off: {error.msg} at character {error.pos} of {len(answer)}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UnreadError("not JSON that can be read") from error
    wrong = jsonschema.Draft202012Validator(schema).iter_errors(found)
    for problem in wrong:
        raise UnreadError(f"not in the form asked for: {problem.json_path} breaks '{problem.validator}'")
    return dict(found)


def deducted(base: int, deductions: Sequence[Deduction]) -> int:
    return max(0, base - sum(d.points for d in deductions))


def quotes(evidence: str, text: str) -> bool:
    """Whether the evidence holds words and all occur in the text, in a row; case, punctuation and spaces aside.

    A quotation may leave words out ("I never ... that car"), and one that fills EVIDENCE_CHARS may end within a word.
    """
    parts = [_words(part) for part in re.split(r"\.{3,}|…", evidence)]
    found = [part for part in parts if part]
    if not found:
        return False
    end_open = len(evidence) >= EVIDENCE_CHARS and bool(parts[-1])
    padded = [f" {part} " for part in found]
    if end_open:
        padded[-1] = padded[-1].rstrip()
    words = f" {_words(text)} "
    return all(part in words for part in padded)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
