"""A dialogue as chat messages: the one place where training, serving and evaluation get their prompts from.

The model plays the civilian: the officer's turns are `user` messages, the civilian's `assistant` messages. Others
who can be heard at the scene stand in the user message as lines of their own, "[Bystander] ...", so that the civilian
can react to them; a line without such a name is the officer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any, Literal

from deescal.errors import UserError

Message = dict[str, str]  # role (system, user, assistant), content
Side = Literal["user", "assistant"]

PERSONA = (
    "You are the civilian in an encounter with the police. Say only what this person says next, in their own words."
)
PINNED_DATE = date(2024, 7, 26)  # the one in Llama's own templates for renderers without a clock


@dataclass(frozen=True)
class Line:
    """One turn as it stands in a message."""

    turn_id: int
    side: Side
    speaker: str
    text: str
    heard_as: str | None = None  # the name before it, where neither the officer nor the played civilian speaks

    @property
    def content(self) -> str:
        return f"[{self.heard_as}] {self.text}" if self.heard_as else self.text


def system_prompt(context: str | None, character: str | None) -> str | None:
    """The system message for a scenario's context and the civilian's character; None where neither is known."""
    if not context and not character:
        return None
    parts = [PERSONA]
    if context:
        parts.append(f"Situation: {context}")
    if character:
        parts.append(f"Who you are: {character}")
    return "\n".join(parts)


def to_messages(lines: Sequence[Line], system: str | None = None) -> list[Message]:
    """Lines in order -> system (if any) and alternating messages; neighbouring lines of one side become one message.

    Within a message a change of speaker is a new line, and one speaker's turns are joined by a space.
    """
    messages = [{"role": "system", "content": system}] if system else []
    for side, group in groupby(lines, key=lambda line: line.side):
        content, before = "", None
        for line in group:
            if before is not None:
                content += separator(before, line)
            content += line.content
            before = line
        messages.append({"role": side, "content": content})
    return messages


def separator(before: Line, line: Line) -> str:
    """What stands between two lines of one message."""
    return " " if (before.speaker, before.heard_as) == (line.speaker, line.heard_as) and not line.heard_as else "\n"


def fold_system(messages: Sequence[Mapping[str, str]]) -> list[Message]:
    """The system text at the head of the first user message, for templates without a system role (Gemma's)."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return [dict(m) for m in messages]
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *(dict(m) for m in messages[2:])]


def render(messages: Sequence[Mapping[str, str]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    """The text that the model reads, special tokens included: encode it with `add_special_tokens=False`."""
    from jinja2 import TemplateError

    def apply(chat: Sequence[Mapping[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(chat),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **template_values(tokenizer.chat_template),
            )
        )

    try:
        return apply(messages)
    except TemplateError:  # templates raise it themselves for a role they lack
        if messages[0]["role"] != "system":
            raise
        return apply(fold_system(messages))


def template_values(chat_template: str | Mapping[str, str]) -> dict[str, Any]:
    """What a template must be given beside the messages, so that a dialogue is the same text on every day.

    Templates of Llama 3.1 and later write the day's date into the system message, from `date_string` where that is
    given; others ask the clock (`strftime_now`) alone. `date_string` can be handed to a server as it is
    (`chat_template_kwargs`); the clock cannot.
    """
    if "date_string" in str(chat_template):
        return {"date_string": PINNED_DATE.strftime("%d %b %Y")}
    if "strftime_now" in str(chat_template):
        return {"strftime_now": PINNED_DATE.strftime}
    return {}


def count_tokens(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Tokens of each text, without any that the tokenizer would add at its ends."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def load_tokenizer(name: str) -> Any:
    """A registry name, folder or hub id -> its fast tokenizer.

    Raises:
        UserError: it cannot be found or loaded, or it has no chat template.
    """
    from transformers import AutoTokenizer

    from deescal.models import resolve

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError, KeyError) as error:  # no such repository, no tokenizer there, an unknown kind of one
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"tokenizer '{name}': cannot be loaded: {first_line}") from error
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer '{name}': it has no chat template; name an instruction-tuned model")
    return tokenizer
