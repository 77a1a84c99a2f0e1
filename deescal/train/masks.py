"""Which tokens of a dialogue are learned: the civilian's words and the end-of-turn token after them.

Few chat templates mark what the model says (`{% generation %}`), so its turns are found in the rendered text: the
conversation up to a turn, with the generation prompt, says where the turn begins; the civilian's words and the
end-of-turn token say where it ends. The tokenizer's offsets carry the spans to the tokens of the whole text, so that
no text is encoded in pieces and the tokens are those that an engine makes of the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from deescal.dataset.chat import Message, render
from deescal.errors import UserError, one_line

_PROBE: list[Message] = [
    {"role": "system", "content": "Instructions."},
    {"role": "user", "content": "First question?"},
    {"role": "assistant", "content": "First answer."},
    {"role": "user", "content": "Second question?"},
    {"role": "assistant", "content": "Second answer."},
]


@dataclass(frozen=True)
class Encoded:
    """A dialogue as tokens."""

    input_ids: list[int]
    is_target: list[bool]  # of the same length; a target is learned, as the next token of the one before it


@dataclass(frozen=True)
class _Form:
    """What a template writes around the assistant's words, after the generation prompt."""

    lead: str  # before the words; mostly nothing
    end: str  # right after them: the end-of-turn token


class _Unmaskable(Exception):
    """Why a template gives no loss mask."""


class ChatEncoder:
    """Dialogues -> tokens and targets, and prompts, for one tokenizer and its chat template.

    A special token that somebody says or types, such as "<|im_end|>", is written with a space in it, "< |im_end|>":
    it would end the turn otherwise.

    Attributes:
        end_of_turn: ids of the tokens on which generation must stop: the template's end-of-turn token first, then the
            tokenizer's end of sequence where that is another.
    """

    end_of_turn: tuple[int, ...]

    def __init__(self, tokenizer: Any) -> None:
        """Learn how the template writes an assistant's turn, on a made-up conversation.

        Raises:
            UserError: no tokens can be told to be the assistant's, and why: a slow tokenizer, no chat template, or one
                that leaves out what the assistant says, has no generation prompt or one with which the turn does not
                begin, has no end-of-turn token, or writes a turn differently once others follow.
        """
        self._name = f"tokenizer '{tokenizer.name_or_path}'"
        if not tokenizer.is_fast:
            raise UserError(f"{self._name}: it has no fast version, whose offsets the loss mask needs")
        if not tokenizer.chat_template:
            raise UserError(f"{self._name}: it has no chat template; name an instruction-tuned model")
        self.tokenizer = tokenizer
        specials = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(specials) or r"(?!)")
        try:
            self._form = self._learn_form()
        except _Unmaskable as why:
            raise UserError(f"{self._name}: no loss mask can be made with its chat template: {why}") from why
        ends = [tokenizer.convert_tokens_to_ids(self._form.end), tokenizer.eos_token_id]
        self.end_of_turn = tuple(dict.fromkeys(i for i in ends if i is not None))

    def encode(self, messages: Sequence[Mapping[str, str]], n_context_messages: int = 0) -> Encoded:
        """All tokens of a conversation, and which of them are learned.

        Args:
            messages: system (optional), then user and assistant in turn.
            n_context_messages: first messages, system included, on which there is no loss.

        Raises:
            UserError: the template refuses these messages, or changes one that is learned, or those before it.
        """
        clean = self._without_special_tokens(messages)
        text = self._render(clean)
        # A token that begins within a turn is learned. One that began in the generation prompt is not: at inference
        # the prompt is encoded without the words that follow.
        begins_target = bytearray(len(text) + 1)
        for i in range(n_context_messages, len(clean)):
            if clean[i]["role"] == "assistant":
                start, end = self._turn(text, clean, i)
                begins_target[start:end] = b"\1" * (end - start)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        is_target = [bool(begins_target[start]) for start, _ in encoded["offset_mapping"]]
        return Encoded(list(encoded["input_ids"]), is_target)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation up to and including the generation prompt.

        Raises:
            UserError: the template refuses these messages.
        """
        text = self._render(self._without_special_tokens(messages), add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _turn(self, text: str, messages: Sequence[Message], i: int) -> tuple[int, int]:
        """First character after the generation prompt, and the one after the end of turn, of message `i` in `text`."""
        before = self._render(messages[:i], add_generation_prompt=True)
        if text.startswith(before):
            for words in (messages[i]["content"], messages[i]["content"].strip()):  # some templates strip them
                turn = self._form.lead + words + self._form.end
                if text.startswith(turn, len(before)):
                    return len(before), len(before) + len(turn)
        raise UserError(f"{self._name}: its chat template changes message {i} or what stands before it: no loss mask")

    def _learn_form(self) -> _Form:
        forms = [self._form_of(_PROBE, i) for i, message in enumerate(_PROBE) if message["role"] == "assistant"]
        if any(form != forms[0] for form in forms):
            raise _Unmaskable("it does not write all of the assistant's turns in the same way")
        return forms[0]

    def _form_of(self, messages: Sequence[Message], i: int) -> _Form:
        whole = self._render(messages)
        prompt = self._render(messages[:i], add_generation_prompt=True)
        if messages[i]["content"] not in whole:
            raise _Unmaskable("it leaves out what the assistant says")
        if not whole.startswith(self._render(messages[: i + 1])):
            raise _Unmaskable("it writes a turn differently once others follow")
        if prompt == self._render(messages[:i]):
            raise _Unmaskable("it has no generation prompt")
        if not whole.startswith(prompt):
            raise _Unmaskable("the assistant's turn does not begin with its generation prompt")
        lead, _, rest = whole[len(prompt) :].partition(messages[i]["content"])
        end = self._special.match(rest)
        if end is None:
            raise _Unmaskable("no end-of-turn token follows what the assistant says")
        return _Form(lead, end.group())

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return render(messages, self.tokenizer, add_generation_prompt)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"{self._name}: its chat template refuses messages of {roles}: {one_line(error)}"
            ) from error

    def _without_special_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[Message]:
        def spaced(token: re.Match[str]) -> str:
            return f"{token.group()[0]} {token.group()[1:]}"

        return [{**message, "content": self._special.sub(spaced, message["content"])} for message in messages]


def show_targets(encoder: ChatEncoder, messages: Sequence[Mapping[str, str]], n_context_messages: int = 0) -> str:
    """What the loss sees of a conversation, decoded from the tokens: the targets stand between ⟦ and ⟧."""
    encoded = encoder.encode(messages, n_context_messages)
    parts = []
    for is_target, group in groupby(zip(encoded.input_ids, encoded.is_target, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in group]
        text = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        parts.append(f"⟦{text}⟧" if is_target else text)
    return "".join(parts)
