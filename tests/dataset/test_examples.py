"""Examples: nothing lost, nothing cut, never over the budget; and turns that nobody spoke."""

import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deescal.dataset.chat import Line, fold_system, load_tokenizer, render, system_prompt, to_messages
from deescal.dataset.clean import LOOP, MARKUP, NO_WORDS, clean_turns, fault, most_repeats
from deescal.dataset.examples import (
    BEFORE_OFFICER,
    NO_REPLY,
    OTHERS,
    TOO_LONG,
    ExamplesConfig,
    make_examples,
)
from deescal.errors import UserError
from deescal.schema import EXAMPLES, to_table


class FakeTokenizer:
    """ChatML. A token is a word or, with `chunk`, so many characters: then a whole is not the sum of its parts."""

    chat_template = "fake"

    def __init__(self, chunk=None, system_role=True):
        self.pattern = re.compile(rf"(?s).{{1,{chunk}}}" if chunk else r"\S+")
        self.system_role = system_role

    def __call__(self, texts, add_special_tokens):
        assert add_special_tokens is False  # the template has written them
        return {"input_ids": [self.pattern.findall(text) for text in texts]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        roles = [m["role"] for m in messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2), "roles must alternate"
        if messages[0]["role"] == "system" and not self.system_role:
            raise jinja2.TemplateError("System role not supported")
        text = "".join(f"<s> {m['role']} \n{m['content']} </s> \n" for m in messages)
        return text + ("<s> assistant \n" if add_generation_prompt else "")


WORDS = FakeTokenizer()
LOOSE = ExamplesConfig(min_turns=0, min_civilian_turns=0, min_words=0)


def dialogue(*roles_and_texts):
    return [
        {"turn_id": i, "start_s": None, "end_s": None, "speaker": f"{role}1", "role": role, "text": text}
        for i, (role, text) in enumerate(roles_and_texts)
    ]


def build(turns, tokenizer=WORDS, **values):
    return make_examples("s", "i", turns, LOOSE.model_copy(update=values), tokenizer)


def contents(example):
    return [(m["role"], m["content"]) for m in example["messages"]]


@st.composite
def scenarios(draw):
    """Turns whose texts hold their own number, of all roles and lengths, with gaps between the ids."""
    roles = draw(st.lists(st.sampled_from(["officer", "civilian", "civilian", "officer", *OTHERS, "?"]), max_size=60))
    speakers = [draw(st.sampled_from("AB")) for _ in roles]
    lengths = [draw(st.sampled_from([0, 1, 3, 8, 30, 90])) for _ in roles]
    return [
        {"turn_id": 2 * i, "speaker": f"{role} {who}", "role": role, "text": f"#{2 * i}#" + " word" * n}
        for i, (role, who, n) in enumerate(zip(roles, speakers, lengths, strict=True))
    ]


configs = st.builds(
    ExamplesConfig,
    max_tokens=st.sampled_from([64, 80, 150, 400]),
    overlap_turns=st.integers(0, 6),
    others=st.dictionaries(st.sampled_from(OTHERS), st.sampled_from(["drop", "inline", "break"])),
    civilians=st.sampled_from(["all", "main"]),
    min_turns=st.sampled_from([0, 4]),
)


@given(
    scenarios(),
    configs,
    st.sampled_from([WORDS, FakeTokenizer(chunk=5), FakeTokenizer(system_role=False)]),
    st.sampled_from([None, "A stop at night."]),
)
def test_every_turn_is_used_or_counted_once(turns, config, tokenizer, context):
    built = make_examples("s", "i", turns, config, tokenizer, context=context)
    used = {int(n) for e in built.examples for _, text in contents(e) for n in re.findall(r"#(\d+)#", text)}
    assert used | set(built.reasons) == {t["turn_id"] for t in turns}
    assert not used & set(built.reasons)
    assert {r: n for r, (n, _) in built.unused.items()} == Counter(built.reasons.values())

    def tokens(text):
        return len(tokenizer([text], add_special_tokens=False)["input_ids"][0])

    out = [t for t in turns if t["turn_id"] in built.reasons]
    assert sum(n for _, n in built.unused.values()) == sum(tokens(t["text"]) for t in out)
    for example in built.examples:
        assert example["n_tokens"] == tokens(render(example["messages"], tokenizer)) <= config.max_tokens
        assert [m["role"] for m in example["messages"] if m["role"] != "system"][-1] == "assistant"
        assert (example["messages"][0]["role"] == "system") == (context is not None)
    targets = {
        t["turn_id"]: tokens(t["text"])
        for t in turns
        if t["turn_id"] in used
        and any(f"#{t['turn_id']}#" in text for e in built.examples for r, text in contents(e) if r == "assistant")
    }
    assert sum(e["n_target_tokens"] for e in built.examples) == sum(targets.values())
    assert len({e["example_id"] for e in built.examples}) == len(built.examples)
    assert to_table(built.examples, EXAMPLES).num_rows == len(built.examples)


def test_a_dialogue_as_messages():
    turns = dialogue(
        ("civilian", "Too early."),
        ("officer", "Stop there."),
        ("officer", "Hands up."),
        ("bystander", "Leave him alone!"),
        ("officer", "Stay back, sir."),
        ("narrator", "Little did they know."),
        ("civilian", "I did nothing."),
        ("civilian", "Really."),
        ("officer", "All right."),
    )
    built = build(turns)
    (example,) = built.examples
    assert contents(example) == [
        ("user", "Stop there. Hands up.\n[Bystander] Leave him alone!\nStay back, sir."),
        ("assistant", "I did nothing. Really."),
    ]
    assert built.reasons == {0: BEFORE_OFFICER, 5: "role narrator", 8: NO_REPLY}
    assert (example["first_turn_id"], example["last_turn_id"], example["n_target_tokens"]) == (1, 7, 4)


def test_policies_for_others():
    turns = dialogue(
        ("officer", "One."), ("civilian", "Two."), ("narrator", "Three."), ("officer", "Four."), ("civilian", "Five.")
    )
    assert len(build(turns).examples) == 1
    broken = build(turns, others={"narrator": "break"})
    assert [contents(e) for e in broken.examples] == [
        [("user", "One."), ("assistant", "Two.")],
        [("user", "Four."), ("assistant", "Five.")],
    ]
    inlined = build(turns, others={"narrator": "inline"})
    assert inlined.examples[0]["messages"][2]["content"] == "[Narrator] Three.\nFour."
    with pytest.raises(ValidationError, match="role passer-by is not one of dispatcher"):
        ExamplesConfig(others={"passer-by": "drop"})


def test_several_civilians():
    turns = dialogue(("officer", "Who drove?"), ("civilian", "I drove, officer."), ("civilian", "No."))
    turns[2]["speaker"] = "civilian2"
    assert contents(build(turns).examples[0])[1] == ("assistant", "I drove, officer.\nNo.")
    main = build([*turns, *dialogue(("officer", "."), ("civilian", "Me."))], civilians="main").examples[0]
    assert contents(main)[2] == ("user", "[Another civilian] No.\n.")


def test_windows_overlap_and_start_with_the_officer():
    turns = dialogue(*((("officer", "civilian")[i % 2], f"t{i} " + "word " * 8) for i in range(40)))
    built = build(turns, max_tokens=100, overlap_turns=3)
    assert not built.reasons
    spans = [(e["first_turn_id"], e["last_turn_id"]) for e in built.examples]
    for (_, last), (first, _) in pairwise(spans):
        assert first == last - 3  # three turns, and one more to begin with the officer
    assert [e["n_context_messages"] for e in built.examples] == [0, *[4] * (len(built.examples) - 1)]
    assert sum(e["n_target_tokens"] for e in built.examples) == 20 * 9


def test_a_turn_over_the_budget_breaks_the_window():
    turns = dialogue(("officer", "One."), ("civilian", "Two."), ("officer", "x " * 70), ("civilian", "Three."))
    turns += [{**t, "turn_id": t["turn_id"] + 4} for t in turns[:2]]
    built = build(turns, max_tokens=64)
    assert built.reasons == {2: TOO_LONG, 3: BEFORE_OFFICER}
    assert built.unused[TOO_LONG] == (1, 70)
    assert [(e["first_turn_id"], e["last_turn_id"]) for e in built.examples] == [(0, 1), (4, 5)]


def test_a_scenario_with_too_little_gives_a_reason():
    turns = dialogue(("officer", "Hello there."), ("civilian", "Hi."))
    for values, reason in (
        ({"min_turns": 3}, "scenario of fewer than 3 turns"),
        ({"min_civilian_turns": 2}, "scenario of fewer than 2 civilian turns"),
        ({"min_words": 4}, "scenario of fewer than 4 words"),
    ):
        built = build(turns, **values)
        assert (built.examples, built.unused) == ([], {reason: (2, 3)})


def test_system_prompt():
    assert system_prompt(None, "") is None
    both = system_prompt("A stop at night.", "Tired.")
    assert both.endswith("Situation: A stop at night.\nWho you are: Tired.")
    messages = to_messages([Line(0, "user", "A", "Hi."), Line(1, "assistant", "B", "Yes?")], both)
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert fold_system(messages)[0] == {"role": "user", "content": f"{both}\n\nHi."}
    assert fold_system(messages[1:]) == messages[1:]
    assert both in render(messages, FakeTokenizer(system_role=False))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", NO_WORDS),
        (" ...", NO_WORDS),
        ("Put it down. " * 9, None),
        ("no " * 13, None),
        ("One, two, three, four, five, six, seven, eight, nine, ten. " * 4, None),
        ("hey, " * 10_000, LOOP),
        ("ha" * 3_000, LOOP),
        ("I told you already, sir, wait here. " + "I'm sorry. " * 300, LOOP),
        ("He said { to me", None),
        ("Okay. ```", MARKUP),
        ("It was 10:00 --> 11:00", MARKUP),
        ('Fine. {start: "00:00", text:', MARKUP),
        ("Bye. <|im_end|>", MARKUP),
        ("That is all. </s>", MARKUP),
        ("I was at 5 < 6, you see?", None),
    ],
)
def test_what_nobody_spoke(text, why):
    assert fault(text) == why


def test_clean_turns_conserves():
    turns = dialogue(("officer", "Stop."), ("civilian", ""), ("civilian", None), ("civilian", "no " * 500))
    cleaned = clean_turns(turns)
    assert cleaned.kept == turns[:1]
    assert cleaned.dropped == {1: NO_WORDS, 2: NO_WORDS, 3: LOOP}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(2, 30))
def test_repeats_of_a_phrase_are_found(phrase, n):
    assert most_repeats(" ".join(phrase * n)) >= n


def test_repeats_ignore_case_and_marks():
    assert most_repeats("No. No, NO! yes") == 3
    assert (most_repeats("a b c"), most_repeats("a"), most_repeats("")) == (1, 1, 0)


def test_a_wrong_tokenizer_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="neither a folder nor"):
        load_tokenizer("no-such-model")
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
    bare = SimpleNamespace(chat_template=None)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda path: bare)
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(str(tmp_path))


@pytest.mark.engine
def test_the_real_tokenizer_keeps_the_budget():
    turns = dialogue(*((("officer", "civilian")[i % 2], f"Turn {i}: don't you   see it's over?") for i in range(300)))
    built = make_examples("s", "i", turns, ExamplesConfig(max_tokens=256), load_tokenizer("smollm2-135m"))
    assert not built.reasons
    assert 240 < max(e["n_tokens"] for e in built.examples) <= 256
