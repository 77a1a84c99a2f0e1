"""Decisions of transcription as pure functions; then, marked `engine`, real Whisper base on the sample clips."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.encounters import read_truth
from bench.transcribe import ENCOUNTERS, far_speech, load, word_error_rate
from deescal.config import load_config
from deescal.errors import ClipError, UserError
from deescal.schema import empty_row, to_table
from deescal.speech import coverage as cov
from deescal.speech.audio import write_flac
from deescal.speech.coverage import Span, Word
from deescal.speech.transcribe import TranscribeConfig, Transcriber
from deescal.speech.whisper import FasterWhisper, compression_ratio, level, main_language
from deescal.stage import Ledger, Stage


def say(
    text: str, start_s: float = 0.0, word_s: float = 0.3, pause_s: float = 0.0, probability: float = 0.9
) -> list[Word]:
    """Words of equal length, one after another."""
    step_s = word_s + pause_s
    return [
        {"start_s": start_s + i * step_s, "end_s": start_s + i * step_s + word_s, "text": t, "probability": probability}
        for i, t in enumerate(text.split())
    ]


def texts(words: list[Word]) -> str:
    return " ".join(w["text"] for w in words)


spans = st.lists(st.tuples(st.integers(0, 600), st.integers(1, 250)), max_size=30).map(
    lambda pairs: cov.union((start / 10, (start + length) / 10) for start, length in pairs)
)
short_spans = st.lists(st.tuples(st.integers(1, 280), st.integers(0, 80)), max_size=40)
word_lists = st.lists(
    st.tuples(st.floats(-5, 70), st.floats(0, 5), st.sampled_from(["stop", "now", "Now.", "hands"])), max_size=40
).map(lambda ws: [{"start_s": s, "end_s": s + d, "text": t, "probability": 0.5} for s, d, t in ws])


@given(spans, spans)
def test_spans_are_sets(a: list[Span], b: list[Span]) -> None:
    both, left = cov.intersect(a, b), cov.subtract(a, b)
    assert cov.seconds(both) + cov.seconds(left) == pytest.approx(cov.seconds(a))
    assert cov.intersect(left, b) == []
    assert cov.union(both) == both or cov.seconds(cov.union(both)) == pytest.approx(cov.seconds(both))


@given(short_spans, st.floats(0, 0.5), st.floats(0, 3))
def test_windows_hold_all_speech_once(raw: list[tuple[int, int]], pad_s: float, pause_s: float) -> None:
    speech, now = [], 0.0
    for length, pause in raw:
        speech.append((now, now + length / 10))
        now += (length + pause) / 10
    windows = cov.pack_windows(speech, now, 30.0, pad_s, pause_s)
    pieces = [piece for window in windows for piece in window]
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(pieces))
    assert all(cov.seconds(window) <= 30.0 + 1e-6 for window in windows)
    assert all(any(start <= s and e <= end for start, end in pieces) for s, e in speech), "a span is cut"


def test_windows_cut_out_long_pauses_only() -> None:
    assert cov.pack_windows([(1, 2), (3, 4), (9, 10)], 10, 30, 0.25, 2) == [[(0.75, 4.25), (8.75, 10)]]
    assert cov.pack_windows([(0, 20), (20, 35)], 40, 30, 0, 2) == [[(0, 20)], [(20, 35)]]


def test_a_window_ends_in_the_middle_of_a_short_pause() -> None:
    (first,), (second,) = cov.pack_windows([(0, 28), (28.1, 50)], 60, 30, 0.3, 2)
    assert first == (0, pytest.approx(28.05))
    assert second == (pytest.approx(28.05), pytest.approx(50.3))


def test_words_of_a_window_find_their_place() -> None:
    pieces = [(10.0, 12.0), (20.0, 25.0)]
    words = say("a b", 0.0, 1.0) + say("c d", 2.1, 1.0)
    placed = cov.place_words(words, pieces)
    assert [w["start_s"] for w in placed] == pytest.approx([10, 11, 20.1, 21.1])
    assert [w["end_s"] for w in placed] == pytest.approx([11, 12, 21.1, 22.1])
    (across,) = cov.place_words([{**words[0], "start_s": 1.8, "end_s": 2.6}], pieces)
    assert 20 <= across["start_s"] < across["end_s"]  # stays in one piece, not over the ten seconds cut out


def test_coverage_and_what_is_missed() -> None:
    speech = [(0.0, 3.0), (5.0, 10.0)]
    words = say("one two three four five six seven eight nine ten", 0.0)
    assert cov.coverage(words, speech) == pytest.approx(3 / 8)
    assert cov.uncovered_spans(words, speech, 1.0) == [(5.0, 10.0)]
    assert cov.uncovered_spans(words, speech, 5.5) == []
    assert cov.coverage([], []) == 1.0


def test_a_stretched_word_does_not_vouch_for_dropped_speech() -> None:
    stretched = [{"start_s": 0.0, "end_s": 8.0, "text": "so", "probability": 0.9}]
    assert cov.uncovered_spans(stretched, [(0.0, 8.0)], 1.0) == [(1.3, 8.0)]


@given(word_lists, spans)
def test_coverage_is_a_share_and_agrees_with_what_is_missed(words: list[Word], speech: list[Span]) -> None:
    share = cov.coverage(words, speech)
    assert -1e-9 <= share <= 1 + 1e-9
    missed = cov.uncovered_spans(words, speech, 0.0)
    assert cov.seconds(missed) >= cov.seconds(speech) * (1 - share) - 1e-6


@given(word_lists, st.floats(0, 80))
def test_tidy_is_ordered_and_loses_no_word(words: list[Word], duration_s: float) -> None:
    tidied = cov.tidy(words, duration_s)
    assert sorted(w["text"] for w in tidied) == sorted(w["text"] for w in words)
    assert all(0 <= w["start_s"] <= w["end_s"] <= duration_s + 1e-3 for w in tidied)
    assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(tidied))


def test_tidy_cuts_a_stretched_word_short() -> None:
    """Found by bench/transcribe.py: "you?" lay over nine seconds, and all the words recovered there came after it."""
    words = [*say("you?", 16.0, word_s=9.0), *say("he will not leave", 17.5), *say("the", 30.0, word_s=9.0)]
    tidied = cov.tidy(words, 60.0)
    assert [w["start_s"] for w in tidied] == pytest.approx([16.0, 17.5, 17.8, 18.1, 18.4, 30.0])
    assert [w["end_s"] for w in tidied] == pytest.approx([17.5, 17.8, 18.1, 18.4, 18.7, 32.0])


def loops(words: list[Word], speech: list[Span]) -> list[range]:
    return cov.find_loops(words, speech, max_repeats=8, max_words_per_s=7.0)


def test_people_may_repeat_themselves() -> None:
    words = say("drop the knife " * 6)
    assert loops(words, [(0, 10)]) == []


@pytest.mark.parametrize("phrase", ["no", "i dont know", "and then he said that he would come back"])
def test_endless_repetition_is_a_loop(phrase: str) -> None:
    words = say("well " + f"{phrase} " * 12 + "goodbye")
    n = len(phrase.split())
    assert loops(words, [(0, 100)]) == [range(1 + n, 1 + 12 * n)]


def test_repetition_faster_than_speech_is_a_loop() -> None:
    assert loops(say("get down " * 5, word_s=0.05), [(0, 100)]) == [range(2, 10)]
    assert loops(say("get down " * 5), [(0, 0.5)]) == [range(2, 10)]  # ten words where half a second is speech


@given(word_lists, spans)
def test_loops_are_disjoint_and_leave_a_first_occurrence(words: list[Word], speech: list[Span]) -> None:
    found = loops(words, speech)
    assert all(0 < loop.start < loop.stop <= len(words) for loop in found)
    assert all(a.stop < b.start for a, b in pairwise(found))


def test_hallucinations() -> None:
    speech = [(0.0, 5.0)]
    assert cov.hallucination(say("put it down"), speech, 0.2) is None
    assert cov.hallucination(say("put it down", 20.0), speech, 0.2) == "outside speech"
    assert cov.hallucination(say("Thanks for watching!", 2.0), speech, 0.2) is None  # clearly said
    assert cov.hallucination(say("Thanks for watching!", 4.0, 0.4), [(0.0, 4.5)], 0.2) == "stock phrase"
    assert cov.hallucination(say("Thanks for watching!", probability=0.2), speech, 0.2) == "stock phrase"


def test_merge_takes_only_what_is_new() -> None:
    words = say("put the", 0.0, 0.3) + say("down now", 5.0, 0.3)
    again = say("the knife right there please down", 0.35, 0.3, pause_s=0.6)
    merged = cov.merge_words(words, again, (0.9, 4.7))
    assert texts(merged) == "put the knife right there please down now"


def test_a_word_between_two_missed_spans_is_recovered_once() -> None:
    """Both decodings hear it, each with its own idea of its time."""
    words: list[Word] = []
    for span, start_s in (((10.0, 12.0), 12.1), ((12.5, 14.0), 12.15)):
        words = cov.merge_words(words, say("go", start_s), span)
    assert texts(words) == "go"
    assert cov.uncovered_spans([], [(10.0, 12.0), (12.5, 14.0)], 1.0) == [(10.0, 14.0)]


def test_a_word_said_twice_is_recovered_twice() -> None:
    assert texts(cov.merge_words([], say("no no no", 1.0), (0.0, 5.0))) == "no no no"


@given(word_lists, word_lists, st.tuples(st.floats(0, 60), st.floats(0, 60)))
def test_merge_keeps_all_first_words(words: list[Word], extra: list[Word], missed: Span) -> None:
    merged = cov.merge_words(words, extra, missed)
    assert all(w in merged for w in words)
    assert len(merged) <= len(words) + len(extra)
    starts = [w["start_s"] for w in merged]
    assert starts == sorted(starts)


def test_language_is_weighed_over_windows() -> None:
    assert main_language([{"en": 0.9, "cy": 0.1}, {"en": 0.2, "cy": 0.8}], [30.0, 3.0]) == (
        "en",
        pytest.approx(0.836, abs=1e-3),
    )


def test_compression_ratio() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("no no no " * 30) > 2.4 > compression_ratio("please step out of the car and talk to me")


def test_level_lifts_the_quiet_and_keeps_silence() -> None:
    rng = np.random.default_rng(0)
    loud = rng.standard_normal(5 * 16_000).astype(np.float32) * 0.1
    both = level(np.concatenate([loud, loud * 0.02]))
    assert np.std(both[6 * 16_000 :]) > 0.4 * np.std(both[: 4 * 16_000])
    assert not level(np.zeros(16_001, np.float32)).any()


class FakeEngine:
    """Says how much sound it got."""

    def __init__(self, config: TranscribeConfig) -> None:
        self.language = config.language

    def transcribe(self, samples: np.ndarray) -> dict[str, Any]:
        if not samples.any():
            raise ClipError("no speech found")
        return {"language": self.language, "words": say(f"{len(samples)} samples")}


def test_worker(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    rows = []
    for name, value in (("a", 1), ("b", 0)):
        (tmp_path / "audio" / f"{name}.flac").write_bytes(write_flac(np.full(16_000, value, np.int16)))
        rows.append(empty_row(clip_id=name, uri=name, audio=f"audio/{name}.flac"))
    config = TranscribeConfig(engine=f"{__name__}:FakeEngine", language="en")
    worker = Transcriber(config, Stage("transcribe", "f", Ledger()), str(tmp_path))
    spoken, silent = worker(to_table(rows)).to_pylist()
    assert (spoken["language"], texts(spoken["words"]), spoken["status"]) == ("en", "16000 samples", None)
    assert (silent["status"], silent["error"]) == ("failed", "no speech found")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("language=english", "language 'english' is not one of Whisper's"),
        ("beam_size=0", "beam_size=0: Input should be greater than or equal to 1"),
        ("min_speech_overlap=20", "min_speech_overlap=20: Input should be less than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_the_users_mistake(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, TranscribeConfig, [override])
    assert TranscribeConfig(language="es").language == "es"


def test_identity_is_about_results_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deescal.stage.identity", lambda name: name)
    same = TranscribeConfig(threads=7, device="cpu", batch_size=3)
    assert same.identity() == TranscribeConfig().identity()
    assert TranscribeConfig(beam_size=1).identity() != TranscribeConfig(beam_size=3).identity()


# ---- real Whisper base ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whisper() -> FasterWhisper:
    return FasterWhisper(TranscribeConfig(threads=2))


def sound(name: str) -> np.ndarray:
    return load(name)[0]


@pytest.mark.engine
@pytest.mark.parametrize("name", ENCOUNTERS)
def test_encounters_word_for_word(whisper: FasterWhisper, name: str) -> None:
    result = whisper.transcribe(sound(name))
    turns = read_truth(name)["turns"]
    assert word_error_rate([load(name)[1]], [texts(result["words"])]) <= 0.08
    assert result["language"] == "en"
    assert result["covered_share"] > 0.95
    assert result["dropped_text"] == []
    # word times: nearly every word lies within a turn
    inside = [
        any(t["start_s"] - 0.3 <= w["start_s"] and w["end_s"] <= t["end_s"] + 0.3 for t in turns)
        for w in result["words"]
    ]
    assert np.mean(inside) > 0.97
    assert result == whisper.transcribe(sound(name))


@pytest.mark.engine
def test_audit_recovers_what_batched_decoding_drops(whisper: FasterWhisper) -> None:
    from faster_whisper import BatchedInferencePipeline

    samples, said, (start, end) = next(rest for name, *rest in far_speech() if name == "trespass, 40 dB quieter")
    plain, _ = BatchedInferencePipeline(whisper._model).transcribe(samples, beam_size=5, word_timestamps=True)
    heard = [w.word.strip() for s in plain for w in s.words or () if start + 0.5 < w.start < end - 0.5]
    result = whisper.transcribe(samples)
    recovered = [w for w in result["words"] if start < w["start_s"] < end]
    assert len(heard) < 0.2 * len(said.split())
    assert word_error_rate([said], [texts(recovered)]) < 0.3
    assert result["redecoded_s"] > 5
    assert result["covered_share"] > 0.95


@pytest.mark.engine
def test_long_sound_is_searched_for_speech_block_by_block(
    whisper: FasterWhisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sound("traffic_stop")
    whole = whisper.speech_spans(samples)
    lengths: list[int] = []
    monkeypatch.setattr("deescal.speech.whisper.VAD_BLOCK_S", 20)
    monkeypatch.setattr("deescal.speech.whisper.level", lambda x: lengths.append(len(x)) or level(x))
    found = whisper.speech_spans(samples)
    assert len(lengths) > 2
    assert max(lengths) <= 20 * 16_000
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    assert cov.seconds(cov.intersect(found, whole)) > 0.98 * cov.seconds(whole)
    assert cov.seconds(cov.subtract(found, whole)) < 0.02 * cov.seconds(whole)


@pytest.mark.engine
def test_nobody_speaks(whisper: FasterWhisper) -> None:
    noise = np.random.default_rng(0).standard_normal(20 * 16_000).astype(np.float32) * 0.02
    for samples in (sound("silence"), noise, np.zeros(16_000, np.float32)):
        with pytest.raises(ClipError, match=r"^no speech found"):
            whisper.transcribe(samples)


@pytest.mark.engine
def test_a_loop_is_refused_and_reported(whisper: FasterWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is made to loop; what it repeats is refused, and the speech decoded again."""
    original = whisper._decode

    def looping(*args: Any) -> Any:
        decoded = original(*args)
        for window in decoded:
            window.words[:] = say("stop it " * 40, window.words[0]["start_s"], 0.1)
        return decoded

    samples, said = load("traffic_stop")
    monkeypatch.setattr(whisper, "_decode", looping)
    result = whisper.transcribe(samples)
    assert any(text.startswith("loop: stop it stop it") for text in result["dropped_text"])
    assert word_error_rate([said], [texts(result["words"])]) < 0.2
