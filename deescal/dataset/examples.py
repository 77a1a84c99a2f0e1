"""A scenario's turns -> training examples: chat windows of whole turns within a token budget.

The officer's turns are user messages, the civilian's assistant messages (`deescal.dataset.chat`). Nothing is cut and
nothing is lost silently: every turn is in at least one example, or counted under exactly one reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, field_validator

from deescal.config import Config
from deescal.dataset.chat import Line, count_tokens, render, separator, system_prompt, to_messages
from deescal.schema import Row

Turn = Mapping[str, Any]  # DIALOGUE
Policy = Literal["drop", "inline", "break"]

OTHERS = ("dispatcher", "bystander", "medic", "narrator", "other")  # roles that are neither officer nor civilian
# Who is at the scene or on the radio is heard by the civilian, and what the civilian says may refer to it. A narrator
# speaks to the audience of a video, years later.
DEFAULT_POLICY: Mapping[str, Policy] = {role: "drop" if role == "narrator" else "inline" for role in OTHERS}
HEARD_AS = {role: role.capitalize() for role in OTHERS} | {"other": "Someone", "civilian": "Another civilian"}

TOO_LONG = "longer than max_tokens"
BEFORE_OFFICER = "before the first officer turn"
NO_REPLY = "no civilian reply follows"
REPLY_TOO_FAR = "civilian reply is beyond max_tokens"
OFFICER_TOO_FAR = "officer turn is beyond max_tokens"


class ExamplesConfig(Config):
    """How windows are made."""

    tokenizer: str = "smollm2-135m"  # registry name, folder or hub id: its chat template and token counts
    max_tokens: int = Field(default=2048, ge=64)  # of an example as rendered, system message included
    overlap_turns: int = Field(default=8, ge=0)  # turns of a window's end that the next one repeats as context
    others: Mapping[str, Policy] = Field(default={})  # role -> policy, over DEFAULT_POLICY
    civilians: Literal["all", "main"] = "all"  # who is the assistant; main: who says most, the others inlined
    min_turns: int = Field(default=4, ge=0)  # a scenario with less gives no example
    min_civilian_turns: int = Field(default=2, ge=0)
    min_words: int = Field(default=30, ge=0)

    @field_validator("others")
    @classmethod
    def _known_roles(cls, others: Mapping[str, Policy]) -> Mapping[str, Policy]:
        if unknown := sorted(set(others) - set(OTHERS)):
            raise ValueError(f"role {', '.join(unknown)} is not one of {', '.join(OTHERS)}")
        return others

    def policy(self, role: str) -> Policy:
        return self.others.get(role, DEFAULT_POLICY[role])


@dataclass(frozen=True)
class Built:
    """What became of a scenario's turns."""

    examples: list[Row]  # EXAMPLES
    reasons: dict[int, str]  # turn_id -> why it is in no example
    unused: dict[str, tuple[int, int]]  # reason -> turns, tokens of their texts


@dataclass(frozen=True)
class Window:
    """Lines first..last of a stretch; those before `new` are repeated from the window before."""

    first: int
    new: int
    last: int


def make_examples(
    scenario_id: str,
    incident_id: str,
    turns: Sequence[Turn],
    config: ExamplesConfig,
    tokenizer: Any,
    context: str | None = None,
    character: str | None = None,
) -> Built:
    """All examples of one scenario.

    Args:
        turns: DIALOGUE rows in order, cleaned (`deescal.dataset.clean`) and redacted.
        tokenizer: as `deescal.dataset.chat.load_tokenizer` gives it.
        context, character: make the system message (`deescal.dataset.chat.system_prompt`), the same in every window.
    """
    system = system_prompt(context, character)
    reasons: dict[int, str] = {}
    examples: list[Row] = []
    if (why := too_little(turns, config)) is not None:
        reasons = {turn["turn_id"]: why for turn in turns}
    else:
        stretches, reasons = to_lines(turns, config)
        budget = config.max_tokens
        while True:
            # Joined text may come to a few tokens more than its parts, so the bound is verified on the rendered chat.
            windows, more = _plan(stretches, config, tokenizer, system, budget)
            examples = [_example(scenario_id, incident_id, i, w, system) for i, w in enumerate(windows)]
            lengths = count_tokens([render(e["messages"], tokenizer) for e in examples], tokenizer)
            excess = max(lengths, default=0) - config.max_tokens
            if excess <= 0:
                break
            budget -= excess
        for example, n_tokens, (lines, new) in zip(examples, lengths, windows, strict=True):
            replies = [line.text for line in lines[new:] if line.side == "assistant"]
            example["n_context_messages"] = _n_context_messages(lines, new, system)
            example["n_tokens"], example["n_target_tokens"] = n_tokens, sum(count_tokens(replies, tokenizer))
        reasons |= more
    return Built(examples, reasons, _count_unused(turns, reasons, tokenizer))


def too_little(turns: Sequence[Turn], config: ExamplesConfig) -> str | None:
    """Why a scenario gives no example at all, or None."""
    n_civilian = sum(turn["role"] == "civilian" for turn in turns)
    n_words = sum(len(turn["text"].split()) for turn in turns)
    if len(turns) < config.min_turns:
        return f"scenario of fewer than {config.min_turns} turns"
    if n_civilian < config.min_civilian_turns:
        return f"scenario of fewer than {config.min_civilian_turns} civilian turns"
    if n_words < config.min_words:
        return f"scenario of fewer than {config.min_words} words"
    return None


def to_lines(turns: Sequence[Turn], config: ExamplesConfig) -> tuple[list[list[Line]], dict[int, str]]:
    """Turns -> stretches of lines that no window may reach across, and turn_id -> reason of those left out."""
    played = main_civilian(turns) if config.civilians == "main" else None
    stretches: list[list[Line]] = [[]]
    reasons = {}
    for turn in turns:
        role = turn["role"] if turn["role"] in ("officer", "civilian", *OTHERS) else "other"
        heard_as = None
        if role in OTHERS:
            policy = config.policy(role)
            if policy != "inline":
                reasons[turn["turn_id"]] = f"role {role}"
                if policy == "break":
                    stretches.append([])
                continue
            heard_as = HEARD_AS[role]
        elif role == "civilian" and played not in (None, turn["speaker"]):
            heard_as = HEARD_AS[role]
        side: Literal["user", "assistant"] = "assistant" if role == "civilian" and heard_as is None else "user"
        stretches[-1].append(Line(turn["turn_id"], side, turn["speaker"] or "?", turn["text"].strip(), heard_as))
    return stretches, reasons


def main_civilian(turns: Sequence[Turn]) -> str | None:
    """The civilian who says the most words; the first of them where several say as many."""
    words: Counter[str] = Counter()
    for turn in turns:
        if turn["role"] == "civilian":
            words[turn["speaker"]] += len(turn["text"].split())
    return max(words, key=words.__getitem__, default=None)


def plan_windows(
    is_user: Sequence[bool], costs: Sequence[int], base: int, per_pair: int, budget: int, overlap: int
) -> tuple[list[Window], dict[int, str]]:
    """Cut a stretch of lines into windows that start with a user line and end with an assistant line.

    A window ends after a whole civilian message where one fits, else between two turns of it. The next begins
    `overlap` lines before the first new one, or a little earlier, at the nearest user line; later where that is too
    long for the next reply to fit.

    Args:
        is_user: whether each line is the user's.
        costs: tokens of each line, its separator included.
        base: tokens of a chat without messages, and of its system message.
        per_pair: tokens of the template around one user and one assistant message.

    Returns:
        Windows, in order, and line -> reason of the lines in none of them.
    """
    n = len(costs)
    cost_before = [0, *accumulate(costs)]
    messages = list(accumulate(u and (i == 0 or not is_user[i - 1]) for i, u in enumerate(is_user)))  # user messages

    def tokens(first: int, last: int) -> int:
        pairs = 1 + messages[last] - messages[first]
        return base + per_pair * pairs + cost_before[last + 1] - cost_before[first]

    windows: list[Window] = []
    reasons: dict[int, str] = {}
    new = 0
    while new < n:
        reply = next((i for i in range(new, n) if not is_user[i]), None)
        if reply is None:
            reasons.update(dict.fromkeys(range(new, n), NO_REPLY))
            break
        wanted = max(new - overlap, 0)
        start = next((i for i in range(wanted, -1, -1) if is_user[i]), wanted)
        first = next((i for i in range(start, reply) if is_user[i] and tokens(i, reply) <= budget), None)
        if first is None:
            reasons.update(dict.fromkeys(range(new, reply), REPLY_TOO_FAR))
            reasons[reply] = OFFICER_TOO_FAR if any(is_user[:reply]) else BEFORE_OFFICER
            new = reply + 1
            continue
        reasons.update(dict.fromkeys(range(new, first), REPLY_TOO_FAR))
        last = reply
        while last + 1 < n and tokens(first, last + 1) <= budget:
            last += 1
        replies = [i for i in range(reply, last + 1) if not is_user[i]]
        whole = [i for i in replies if i + 1 == n or is_user[i + 1]]
        last = (whole or replies)[-1]
        windows.append(Window(first, max(new, first), last))
        new = last + 1
    return windows, reasons


def _plan(
    stretches: Sequence[Sequence[Line]], config: ExamplesConfig, tokenizer: Any, system: str | None, budget: int
) -> tuple[list[tuple[Sequence[Line], int]], dict[int, str]]:
    """Windows as (lines, index of the first new one), and turn_id -> reason of the turns in none."""
    base, per_pair = _template_tokens(tokenizer, system)
    windows: list[tuple[Sequence[Line], int]] = []
    reasons: dict[int, str] = {}
    for stretch in stretches:
        costs = _line_costs(stretch, tokenizer)
        pieces: list[list[int]] = [[]]
        for i, cost in enumerate(costs):
            if base + per_pair + cost > budget:
                reasons[stretch[i].turn_id] = TOO_LONG
                pieces.append([])
            else:
                pieces[-1].append(i)
        for piece in pieces:
            lines = [stretch[i] for i in piece]
            is_user = [line.side == "user" for line in lines]
            planned, out = plan_windows(
                is_user, [costs[i] for i in piece], base, per_pair, budget, config.overlap_turns
            )
            windows += [(lines[w.first : w.last + 1], w.new - w.first) for w in planned]
            reasons |= {lines[i].turn_id: why for i, why in out.items()}
    return windows, reasons


def _line_costs(lines: Sequence[Line], tokenizer: Any) -> list[int]:
    counts = count_tokens([line.content for line in lines], tokenizer)
    inside = [i > 0 and line.side == lines[i - 1].side for i, line in enumerate(lines)]
    return [
        n + (inside[i] and separator(lines[i - 1], lines[i]) == "\n")  # a space belongs to the next word's token
        for i, n in enumerate(counts)
    ]


def _template_tokens(tokenizer: Any, system: str | None) -> tuple[int, int]:
    """Tokens of the template and the system message around no message, and around one pair of messages more."""
    pair = [Line(0, "user", "A", "a"), Line(1, "assistant", "B", "b")]
    one, two = (render(to_messages(pair * n, system), tokenizer) for n in (1, 2))
    n_one, n_two, n_a, n_b = count_tokens([one, two, "a", "b"], tokenizer)
    per_pair = n_two - n_one - n_a - n_b
    return n_one - n_a - n_b - per_pair, per_pair


def _example(
    scenario_id: str, incident_id: str, number: int, window: tuple[Sequence[Line], int], system: str | None
) -> Row:
    lines, _ = window
    return {
        "example_id": f"{scenario_id}-{number}",
        "scenario_id": scenario_id,
        "incident_id": incident_id,
        "window": number,
        "first_turn_id": lines[0].turn_id,
        "last_turn_id": lines[-1].turn_id,
        "n_tokens": 0,
        "n_target_tokens": 0,
        "n_context_messages": 0,
        "messages": to_messages(lines, system),
    }


def _n_context_messages(lines: Sequence[Line], new: int, system: str | None) -> int:
    """Messages at the head of a window that hold nothing new."""
    repeated = len(to_messages(lines[:new], system))
    return repeated - (new > 0 and lines[new - 1].side == lines[new].side)


def _count_unused(turns: Sequence[Turn], reasons: Mapping[int, str], tokenizer: Any) -> dict[str, tuple[int, int]]:
    out = [turn for turn in turns if turn["turn_id"] in reasons]
    unused: dict[str, tuple[int, int]] = {}
    for turn, tokens in zip(out, count_tokens([turn["text"] for turn in out], tokenizer), strict=True):
        n_turns, n_tokens = unused.get(reasons[turn["turn_id"]], (0, 0))
        unused[reasons[turn["turn_id"]]] = (n_turns + 1, n_tokens + tokens)
    return dict(sorted(unused.items()))
