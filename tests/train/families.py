"""Tokenizers of the families that are tuned, without their files: each family's chat convention and way of splitting
text, over a tiny vocabulary that holds the words of `CONVERSATION` whole.

The templates are written for this project, for conversations without tools; what they were compared with stands in
golden/<family>.json, and `test_masks.py` compares them again with the published ones that are on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONVERSATION = [
    {"role": "system", "content": "Situation: a stop at night."},
    {"role": "user", "content": "Step out of the car."},
    {"role": "assistant", "content": "Why? I did nothing."},
    {"role": "user", "content": "[Bystander] He is right.\nHands up!"},
    {"role": "assistant", "content": "They are up."},
]
# What else the templates write, so that it makes few tokens.
_HEADERS = """<|system|>
<|user|>
<|assistant|>
model
Cutting Knowledge Date: December 2023
Today Date: 26 Jul 2024

"""

_CHATML = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\n' + DEFAULT + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_LLAMA = """
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_GEMMA = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
    {%- if message.role != ['user', 'assistant'][loop.index0 % 2] %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else 'user' %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_GRANITE = """
{%- for message in messages %}
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

_FALCON = """
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content }}
    {%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
    {%- if message.role != 'assistant' or not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

# Qwen's way of splitting text before merges; Llama 3 has the same with up to three digits together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Family:
    """A family's conventions; `model` is the one of it that is tuned."""

    model: str
    template: str
    end_of_turn: str
    specials: tuple[str, ...]  # the others
    eos: str
    pad: str
    bos: str | None = None  # written by the template, and by the tokenizer unless told not to
    strips: bool = False  # whether the template strips what is said
    splitting: Callable[[], list[Any]] | None = None  # the tokenizer's pre-tokenizers; None: SentencePiece's way
    composes: bool = False  # whether text is normalised to NFC


def _byte_level() -> list[Any]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [ByteLevel(add_prefix_space=False)]


def _digits_then_bytes() -> list[Any]:
    from tokenizers.pre_tokenizers import Digits

    return [Digits(individual_digits=True), *_byte_level()]


def _pattern_then_bytes(digits: str) -> list[Any]:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Split

    pattern = Regex(_SPLIT.replace("DIGITS", digits))
    return [Split(pattern, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


FAMILIES = {
    "smollm2": Family(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        _CHATML.replace("DEFAULT", "'You are a helpful AI assistant named SmolLM, trained by Hugging Face'"),
        "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>"),
        eos="<|im_end|>",
        pad="<|im_end|>",
        splitting=_digits_then_bytes,
    ),
    "qwen2.5": Family(
        "Qwen/Qwen2.5-3B-Instruct",
        _CHATML.replace("DEFAULT", "'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'"),
        "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        splitting=lambda: _pattern_then_bytes(""),
        composes=True,
    ),
    "llama-3.2": Family(
        "meta-llama/Llama-3.2-3B-Instruct",
        _LLAMA,
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|finetune_right_pad_id|>"),
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        bos="<|begin_of_text|>",
        strips=True,
        splitting=lambda: _pattern_then_bytes("{1,3}"),
    ),
    "gemma-2": Family(
        "google/gemma-2-2b-it",
        _GEMMA,
        "<end_of_turn>",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"),
        eos="<eos>",
        pad="<pad>",
        bos="<bos>",
        strips=True,
    ),
    "granite-3.0": Family(
        "ibm-granite/granite-3.0-2b-instruct",
        _GRANITE,
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        splitting=_digits_then_bytes,
    ),
    "falcon3": Family(
        "tiiuae/Falcon3-3B-Instruct",
        _FALCON,
        "<|endoftext|>",
        ("<|startoftext|>",),  # <|user|> and <|assistant|> are ordinary text
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        splitting=_byte_level,
    ),
}


def build(name: str, template: str | None = None) -> Any:
    """A family's fast tokenizer over the tiny vocabulary; `template` in place of its own."""
    from tokenizers.normalizers import NFC
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    specials = [*family.specials, family.end_of_turn]
    if family.splitting:
        tokenizer = _bytes_tokenizer(family.splitting(), specials)
    else:
        tokenizer = _sentencepiece_tokenizer(specials)
    if family.composes:
        tokenizer.normalizer = NFC()
    if family.bos:
        bos = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path=name,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        chat_template=template or family.template,
    )


def _texts() -> list[str]:
    return [_HEADERS, *(message["content"] for message in CONVERSATION)]


def _bytes_tokenizer(splitting: list[Any], specials: list[str]) -> Any:
    """BPE over bytes, as GPT-2 has it: any text can be written."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Sequence(splitting)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=specials, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _sentencepiece_tokenizer(specials: list[str]) -> Any:
    """BPE over characters with "▁" for spaces, as Gemma has it: unknown characters are written as bytes."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers.pre_tokenizers import Split

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = Split("▁", "merged_with_next")  # words only: nothing is split when the tokenizer is used
    trained.train_from_iterator(
        [line for text in _texts() for line in text.splitlines()],
        trainers.BpeTrainer(vocab_size=2000, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    return tokenizer
