from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deescal.errors import ClipError
from deescal.schema import CLIPS, empty_row, to_table
from deescal.speech.diarize import make_exclusive
from deescal.speech.turns import NOBODY, TurnsConfig, apply_turns, assign_words, make_turns, process
from deescal.stage import Ledger, Stage

CONFIG = TurnsConfig()


def word(start_s: float, end_s: float, text: str = "so", probability: float = 0.9) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "text": text, "probability": probability}


def span(start_s: float, end_s: float, speaker: str) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s, "speaker": speaker}


def turns_of(
    words: list[dict[str, Any]], spans: list[dict[str, Any]], config: TurnsConfig = CONFIG
) -> list[dict[str, Any]]:
    return make_turns(assign_words(words, spans, make_exclusive(spans), config), spans, config)


def said(turns: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(t["speaker"], t["text"]) for t in turns]


# Times are multiples of 1/64 s, which floats hold exactly, so that shifting changes no comparison.
ticks = st.integers(0, 64 * 60)
lengths = st.integers(0, 64 * 3)
texts = st.sampled_from(["so", "stop.", "why?", "okay,", "hands", "no."])
words_strategy = st.lists(
    st.builds(lambda t, d, x, p: word(t / 64, (t + d) / 64, x, p), ticks, lengths, texts, st.floats(0, 1)),
    min_size=1,
    max_size=30,
)
spans_strategy = st.lists(
    st.builds(lambda t, d, s: span(t / 64, (t + d + 1) / 64, s), ticks, st.integers(0, 64 * 8), st.sampled_from("ABC")),
    max_size=15,
).map(lambda spans: sorted(spans, key=lambda s: s["start_s"]))


@given(words_strategy, spans_strategy)
def test_every_word_is_in_exactly_one_turn(words: list, spans: list) -> None:
    turns = turns_of(words, spans)

    def key(w: dict[str, Any]) -> tuple:
        return w["start_s"], w["end_s"], w["text"], w["probability"]

    assert sorted(key(w) for t in turns for w in t["words"]) == sorted(key(w) for w in words)


@given(words_strategy, spans_strategy)
def test_turns_are_numbered_and_in_order_and_their_figures_are_shares(words: list, spans: list) -> None:
    turns = turns_of(words, spans)
    assert [t["turn_id"] for t in turns] == list(range(len(turns)))
    assert [t["start_s"] for t in turns] == sorted(t["start_s"] for t in turns)
    for turn in turns:
        assert turn["start_s"] <= min(w["start_s"] for w in turn["words"])
        assert turn["end_s"] == max(w["end_s"] for w in turn["words"])
        assert 0 <= turn["assignment_margin"] <= 1
        assert 0 <= turn["overlap_share"] <= 1
        assert 0 <= turn["asr_confidence"] <= 1
        assert turn["role"] is None
        assert turn["speaker"] in {s["speaker"] for s in spans} | {NOBODY}


@given(words_strategy, spans_strategy, st.integers(1, 600))
def test_a_later_start_of_the_clip_changes_only_times(words: list, spans: list, by_s: int) -> None:
    def shifted(items: list) -> list:
        return [{**i, "start_s": i["start_s"] + by_s, "end_s": i["end_s"] + by_s} for i in items]

    # Margins and shares may differ in their last bits, since slack_s is no multiple of 1/64.
    assert said(turns_of(shifted(words), shifted(spans), EXACT)) == said(turns_of(words, spans, EXACT))


EXACT = TurnsConfig(slack_s=0.125, unsure_margin=0.0)


@given(spans_strategy)
def test_exclusive_spans_cover_the_same_time_one_speaker_at_once(spans: list) -> None:
    exclusive = make_exclusive(spans)
    assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(exclusive))

    def covered(items: list) -> set[int]:
        return {t for s in items for t in range(round(s["start_s"] * 64), round(s["end_s"] * 64))}

    assert covered(exclusive) == covered(spans)
    for s in exclusive:  # each with someone who speaks there
        assert any(
            o["speaker"] == s["speaker"] and o["start_s"] < s["end_s"] and o["end_s"] > s["start_s"] for o in spans
        )


@given(words_strategy, spans_strategy)
def test_the_turns_fit_the_schema(words: list, spans: list) -> None:
    to_table([empty_row(turns=turns_of(words, spans))])


def test_two_speakers_take_turns() -> None:
    words = [word(0.1, 0.4, "Sit"), word(0.5, 0.9, "down."), word(1.6, 2.0, "Why?"), word(3.1, 3.5, "Now.")]
    spans = [span(0, 1, "A"), span(1.5, 2.5, "B"), span(3, 4, "A")]
    turns = turns_of(words, spans)
    assert said(turns) == [("A", "Sit down."), ("B", "Why?"), ("A", "Now.")]
    assert [t["assignment_margin"] for t in turns] == [1, 1, 1]
    assert turns[0]["asr_confidence"] == pytest.approx(0.9)


def test_a_word_goes_to_the_speaker_with_more_of_it() -> None:
    (turn,) = turns_of([word(0.7, 1.2)], [span(0, 1, "A"), span(1, 2, "B")])
    assert turn["speaker"] == "A"
    assert turn["assignment_margin"] == pytest.approx((0.45 - 0.35) / 0.8)


def test_overlapping_speech_lowers_the_margin_and_shows_as_share() -> None:
    spans = [span(0, 4, "A"), span(2, 3, "B")]
    alone, together = turns_of([word(0.5, 1.0), word(2.25, 2.75)], spans)
    assert (alone["speaker"], together["speaker"]) == ("A", "B")  # make_exclusive gives the time to the later one
    assert alone["overlap_share"] == 0
    assert together["overlap_share"] == 1
    assert alone["assignment_margin"] == 1
    assert together["assignment_margin"] < 0.5
    owned = assign_words([word(1.0, 2.0), word(2.0, 3.0)], spans, [span(0, 4, "A")], CONFIG)
    (across,) = make_turns(owned, spans, CONFIG)
    assert across["overlap_share"] == pytest.approx(0.5)


def test_a_word_outside_all_spans_goes_to_the_nearest_or_to_nobody() -> None:
    spans = [span(1, 2, "A"), span(4, 5, "B")]
    near, far = turns_of([word(2.3, 2.5), word(8, 8.3)], spans)
    assert near["speaker"] == "A"
    assert 0 < near["assignment_margin"] < 1
    assert (far["speaker"], far["assignment_margin"]) == (NOBODY, 0)
    assert said(turns_of([word(0, 1)], [])) == [(NOBODY, "so")]


def test_an_unsure_lone_word_goes_with_its_neighbours() -> None:
    spans = [span(0, 1.0, "A"), span(1.0, 1.2, "B"), span(1.2, 3, "A")]
    words = [word(0.2, 0.9, "put"), word(0.95, 1.2, "your"), word(1.25, 2, "hands")]
    assert said(turns_of(words, spans)) == [("A", "put your hands")]


def test_a_clear_lone_word_stays() -> None:
    spans = [span(0, 2, "A"), span(2.2, 3.0, "B"), span(3.2, 5, "A")]
    words = [word(1, 1.9, "ready"), word(2.4, 2.8, "Yes."), word(3.4, 4, "good")]
    assert [speaker for speaker, _ in said(turns_of(words, spans))] == ["A", "B", "A"]


def test_the_change_of_speaker_moves_to_the_sentence_end() -> None:
    words = [
        word(0, 0.5, "Get"),
        word(0.5, 1.0, "out."),
        word(1.1, 1.5, "Who"),
        word(1.5, 2, "are"),
        word(2, 3, "you?"),
    ]
    late = [span(0, 1.32, "A"), span(1.32, 3, "B")]  # the span's edge runs into "Who"
    early = [span(0, 0.74, "A"), span(0.74, 3, "B")]  # and here into "out."
    for spans in (late, early):
        assert said(turns_of(words, spans)) == [("A", "Get out."), ("B", "Who are you?")]


def test_a_long_silence_splits_a_turn() -> None:
    words = [word(0, 1, "Wait."), word(4, 5, "Still"), word(5.5, 6, "there?")]
    assert said(turns_of(words, [span(0, 6, "A")])) == [("A", "Wait."), ("A", "Still there?")]


def test_words_out_of_order_are_put_in_order() -> None:
    assert said(turns_of([word(1, 2, "two"), word(0, 1, "one")], [span(0, 2, "A")])) == [("A", "one two")]


def test_the_stage_fails_a_clip_without_words_and_keeps_the_others() -> None:
    with pytest.raises(ClipError, match="no words to assign"):
        process(empty_row(words=[]), CONFIG)
    spans = [span(0, 2, "A")]
    rows = [
        empty_row(clip_id="a", words=[word(0, 1)], speaker_spans=spans, exclusive_spans=spans),
        empty_row(clip_id="b", words=[], speaker_spans=spans, exclusive_spans=spans),
    ]
    table = apply_turns(to_table(rows), CONFIG, Stage("turns", "f", Ledger()))
    assert table.schema == CLIPS
    good, bad = table.to_pylist(maps_as_pydicts="strict")
    assert said(good["turns"]) == [("A", "so")]
    assert (bad["status"], bad["failed_stage"], bad["error"]) == ("failed", "turns", "no words to assign")
