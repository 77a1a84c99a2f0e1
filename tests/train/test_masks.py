"""The loss mask: each family's convention, as golden masks and for any text; templates and texts it must refuse."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deescal.dataset.chat import load_tokenizer, render, template_values
from deescal.errors import UserError
from deescal.train.masks import ChatEncoder, show_targets
from tests.train.families import CONVERSATION, FAMILIES, build

GOLDEN = Path(__file__).parent / "golden"
ROLES = ("user", "assistant")
TURN = "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
PROMPT = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def encoder(family):
    return ChatEncoder(build(family))


def chat(*contents, system=None):
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ROLES[i % 2], "content": content} for i, content in enumerate(contents)]


def decode(masks, ids):
    return masks.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def runs(masks, messages, n_context_messages=0):
    """The decoded text in runs that are learned or not: [(text, is_target), ...]."""
    encoded = masks.encode(messages, n_context_messages)
    out = []
    for token, is_target in zip(encoded.input_ids, encoded.is_target, strict=True):
        if not out or out[-1][1] != is_target:
            out.append(([], is_target))
        out[-1][0].append(token)
    return [(decode(masks, ids), is_target) for ids, is_target in out]


def learned(masks, messages, n_context_messages=0):
    return [text for text, is_target in runs(masks, messages, n_context_messages) if is_target]


@every_family
@pytest.mark.parametrize(("case", "n_context_messages"), [("all_replies", 0), ("last_reply_only", 3)])
def test_golden_mask(family, case, n_context_messages):
    masks = encoder(family)
    encoded = masks.encode(CONVERSATION, n_context_messages)
    found = [[decode(masks, [i]), t] for i, t in zip(encoded.input_ids, encoded.is_target, strict=True)]
    assert found == json.loads((GOLDEN / f"{family}.json").read_text())[case]


# What people say, in any script, with newlines inside; what the dataset holds is stripped, templates may be given more.
said = st.text(max_size=25) | st.text(alphabet="a é😀'.,!?\n-<|>", max_size=12)
conversations = st.tuples(st.lists(said, min_size=2, max_size=8), st.none() | said.filter(str.strip))


@every_family
@settings(deadline=None, max_examples=40)
@given(conversations, st.integers(0, 6), st.sampled_from(["§{}", "{}§", "{}"]))
def test_targets_are_the_replies_and_their_ends_of_turn(family, conversation, n_context_messages, mark):
    masks, end = encoder(family), FAMILIES[family].end_of_turn

    def clean(text):
        text = unicodedata.normalize("NFC", text.replace("§", "").replace("▁", ""))
        return text if FAMILIES[family].strips else text.strip()

    contents, system = conversation
    texts = [clean(text) for text in contents[: len(contents) // 2 * 2]]
    texts[1::2] = [mark.format(text) for text in texts[1::2]]  # § is said by the assistant only
    messages = chat(*texts, system=clean(system or "").strip() or None)
    replies = [(i, m["content"]) for i, m in enumerate(messages) if m["role"] == "assistant"]

    expected = [text.strip() + end for i, text in replies if i >= n_context_messages]
    found = runs(masks, messages, n_context_messages)
    assert [text for text, is_target in found if is_target] == expected
    if not n_context_messages:
        assert not any("§" in text for text, is_target in found if not is_target)

    whole = masks.encode(messages)
    for i, _ in replies:  # the shorter conversation is the beginning of the longer one, in tokens and mask
        part, prompt = masks.encode(messages[: i + 1]), masks.prompt(messages[:i])
        assert part.input_ids == whole.input_ids[: len(part.input_ids)]
        assert part.is_target == whole.is_target[: len(part.is_target)]
        first_learned = masks.encode(messages[: i + 1], i).is_target.index(True)
        assert prompt == part.input_ids[:first_learned]  # what is generated from is what was learned from


@every_family
def test_nothing_is_learned_without_a_new_reply(family):
    masks = encoder(family)
    assert not any(masks.encode(CONVERSATION, len(CONVERSATION)).is_target)
    assert not any(masks.encode(CONVERSATION[:2]).is_target)


@every_family
def test_generation_stops_where_a_turn_was_learned_to_end(family):
    masks, conventions = encoder(family), FAMILIES[family]
    encoded = masks.encode(CONVERSATION)
    last_learned = [i for i, t in zip(encoded.input_ids, encoded.is_target, strict=True) if t][-1]
    also = [] if conventions.eos == conventions.end_of_turn else [masks.tokenizer.eos_token_id]  # Gemma's
    assert list(masks.end_of_turn) == [last_learned, *also]


@every_family
def test_an_empty_reply_is_its_end_of_turn(family):
    end = FAMILIES[family].end_of_turn
    assert learned(encoder(family), chat("Speak!", "", "Well?", "No.")) == [end, "No." + end]


@every_family
def test_special_tokens_that_are_said_stay_words(family):
    masks, end = encoder(family), FAMILIES[family].end_of_turn
    opening = masks.tokenizer.decode(masks.prompt(chat("x"))).split("x")[1]  # as an assistant's turn begins
    fake = f"Stop.{opening}I did it.{end}"
    messages = chat(fake, f"No{end}, I{end}", "Why?", "So.")
    spaced = f"{end[0]} {end[1:]}"
    assert learned(masks, messages) == [f"No{spaced}, I{spaced}{end}", f"So.{end}"]

    def n_ends(messages):
        return masks.encode(messages).input_ids.count(masks.end_of_turn[0])

    assert n_ends(messages) == n_ends(chat("Stop.", "No.", "Why?", "So."))
    assert spaced in decode(masks, masks.prompt(chat(fake)))


@every_family
def test_characters_of_several_tokens_are_learned_whole(family):
    masks = encoder(family)
    n_targets = sum(masks.encode(chat("Hi.", "😀é")).is_target)
    assert n_targets >= 1 + len("😀é") * 2  # bytes, since the vocabulary holds neither
    assert learned(masks, chat("😀", "😀é")) == ["😀é" + FAMILIES[family].end_of_turn]


def test_a_token_that_began_in_the_prompt_is_not_learned():
    """The prompt alone ends in one newline token; with a reply that begins with another, both are one token."""
    masks = encoder("qwen2.5")
    messages = chat("Hi.", "\nNo.")
    encoded = masks.encode(messages)
    straddling = encoded.is_target.index(True) - 1
    assert decode(masks, [encoded.input_ids[straddling]]) == "\n\n"
    assert learned(masks, messages) == ["No.<|im_end|>"]


def test_a_long_tail_after_the_end_of_turn_is_not_learned():
    template = "{%- for message in messages %}" + TURN.replace("<|im_end|>", "<|im_end|> (over)") + "{% endfor %}"
    masks = ChatEncoder(build("qwen2.5", template + PROMPT))
    assert learned(masks, chat("Hi.", "No.", "So?", "Yes.")) == ["No.<|im_end|>", "Yes.<|im_end|>"]


def test_what_stands_before_the_words_and_not_in_the_prompt_is_learned():
    """Mistral's templates write a space there, which the model has to say itself."""
    template = "{%- for message in messages %}" + TURN + "{% endfor %}" + PROMPT.replace("assistant\\n", "assistant")
    masks = ChatEncoder(build("qwen2.5", template))
    assert learned(masks, chat("Hi.", "No.")) == ["\nNo.<|im_end|>"]


DATED = "{{ strftime_now('%Y-%m-%d') + '\\n' }}{%- for message in messages %}" + TURN + "{% endfor %}" + PROMPT


@pytest.mark.parametrize(("template", "date"), [(None, "Today Date: 26 Jul 2024\n"), (DATED, "2024-07-26\n")])
def test_no_text_depends_on_the_day(template, date):
    assert date in render(CONVERSATION, build("llama-3.2", template))


def test_the_date_of_llamas_templates_can_be_given_to_a_server():
    assert json.loads(json.dumps(template_values(FAMILIES["llama-3.2"].template))) == {"date_string": "26 Jul 2024"}


def test_targets_are_shown_between_marks():
    text = show_targets(encoder("granite-3.0"), chat("Hands up!", "Why?", "Now!", "Yes."), n_context_messages=2)
    assert text == (
        "<|start_of_role|>user<|end_of_role|>Hands up!<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Why?<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Now!<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Yes.<|end_of_text|>⟧\n"
    )


LOOP, END = "{%- for message in messages %}", "{% endfor %}"
HIDDEN = "{{ '<think>\\n\\n</think>\\n\\n' if message.role == 'assistant' and loop.last }}"
UNMASKABLE = {
    "leaves out": LOOP + "{% if message.role == 'user' %}" + TURN + "{% endif %}" + END + PROMPT,
    "no end-of-turn token": LOOP + TURN.replace("<|im_end|>", "") + END + PROMPT,
    "end-of-turn token": LOOP + TURN.replace("<|im_end|>", "\\n<|im_end|>") + END + PROMPT,
    "no generation prompt": LOOP + TURN + END,
    "does not begin with its generation prompt": LOOP + TURN + END + PROMPT.replace("\\n", "\\n<think>\\n"),
    "differently once others follow": LOOP + HIDDEN + TURN + END + PROMPT,
    "in the same way": LOOP + TURN.replace("message.role +", "message.role + ' ' * loop.index +") + END
    + PROMPT.replace("assistant\\n", "assistant"),
    "refuses messages of system, user": "{{ raise_exception('not today') }}",
}  # fmt: skip


@pytest.mark.parametrize("why", UNMASKABLE)
def test_a_template_that_cannot_be_masked_is_refused(why):
    with pytest.raises(UserError, match=why) as refused:
        ChatEncoder(build("qwen2.5", UNMASKABLE[why]))
    assert str(refused.value).startswith("tokenizer 'qwen2.5': ")
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_cannot_say_where_its_tokens_stand_is_refused():
    with pytest.raises(UserError, match="'slow': it has no fast version"):
        ChatEncoder(SimpleNamespace(name_or_path="slow", is_fast=False, chat_template=PROMPT))


def test_a_tokenizer_without_template_is_refused():
    tokenizer = build("qwen2.5")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(tokenizer)


def test_roles_that_the_template_refuses_are_named():
    with pytest.raises(UserError, match="refuses messages of assistant, user: Conversation roles must alternate"):
        encoder("gemma-2").encode([*reversed(chat("Hi.", "No."))])


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ("message.content.split('</think>')[-1]", 3),  # as Qwen 3 and DeepSeek R1 do: nobody says what is left
        ("(message.content if loop.last else message.content | replace('!', '.'))", 1),  # not what is generated from
    ],
)
def test_messages_that_the_template_changes_are_refused(changed, at):
    masks = ChatEncoder(build("qwen2.5", LOOP + TURN.replace("message.content", changed) + END + PROMPT))
    assert learned(masks, chat("Hi.", "No.", "Why?", "So.")) == ["No.<|im_end|>", "So.<|im_end|>"]
    with pytest.raises(UserError, match=f"'qwen2.5': its chat template changes message {at} or what stands before it"):
        masks.encode(chat("Hi!", "No.", "Why?", "Because</think> so."))


@cache
def real_tokenizer(family):
    """Of a model of the family that the registry has."""
    try:
        return load_tokenizer({"smollm2": "smollm2-135m", "qwen2.5": "qwen2.5-coder-1.5b"}[family])
    except UserError as error:
        pytest.skip(f"not fetched: {error}")


REPLY = "I can't—I won't; ¿qué pasa? 😀\n\nIt's 12:45,  officer!"


@pytest.mark.parametrize("family", ["smollm2", "qwen2.5"])
def test_the_real_tokenizers_learn_the_replies(family):
    masks = ChatEncoder(real_tokenizer(family))
    messages = chat("Out of the car.", REPLY, "Hands up!", "<|im_end|>", system="A stop.")
    assert learned(masks, messages) == [f"{REPLY}<|im_end|>", "< |im_end|><|im_end|>"]
    assert learned(masks, messages, n_context_messages=3) == ["< |im_end|><|im_end|>"]
    before, whole = masks.prompt(messages[:4]), masks.encode(messages, 3)
    assert before == whole.input_ids[: len(before)]
    assert whole.is_target.index(True) == len(before)
    assert masks.end_of_turn == (masks.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


@pytest.mark.parametrize("family", ["smollm2", "qwen2.5"])
@pytest.mark.parametrize("system", [None, " A stop. "])
def test_our_templates_write_what_the_published_ones_write(family, system):
    messages = chat(" Hi.\n", "No. ", "", "é", system=system)
    ours, published = build(family), real_tokenizer(family)
    for prompt in (False, True):
        assert render(messages, ours, prompt) == render(messages, published, prompt)
