"""Whisper that does not drop speech in silence.

Batched decoding of windows of speech is fast and drops speech without a word about it; so the seconds in which a
voice activity detector hears speech are compared with those that words account for, and what is missing is decoded
again, one stretch at a time. Repetition loops and text where nobody speaks are refused, and kept in `dropped_text`.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deescal.errors import ClipError
from deescal.models import resolve
from deescal.schema import Row
from deescal.speech.audio import SAMPLE_RATE_HZ
from deescal.speech.coverage import (
    Span,
    Word,
    coverage,
    find_loops,
    hallucination,
    join_text,
    merge_words,
    pack_windows,
    place_words,
    seconds,
    tidy,
    uncovered_spans,
    union,
    utterances,
)

if TYPE_CHECKING:
    from deescal.speech.transcribe import TranscribeConfig

WINDOW_S = 30.0  # what Whisper looks at, at once
VAD_BLOCK_S = 15 * 60  # what the voice activity detector is given at once: it needs several copies of it
PREPEND, APPEND = "\"'“¿([{-", "\"'.。,，!！?？:：”)]}、"  # punctuation that belongs to the next, to the last word


class FasterWhisper:
    """Whisper on CTranslate2, with Silero's voice activity detector. Greedy or beam search: same in, same out."""

    def __init__(self, config: TranscribeConfig) -> None:
        from faster_whisper import WhisperModel

        self._config = config
        self._model = WhisperModel(
            resolve(config.model),
            device=config.device,
            compute_type=config.compute_type,
            cpu_threads=config.threads or max(1, int(config.resources.num_cpus)),
        )

    def transcribe(self, samples: np.ndarray) -> Row:
        """float32 mono at 16 kHz -> the stage's columns.

        Raises:
            ClipError: nobody speaks, or nothing that was decoded can be believed.
        """
        config = self._config
        duration_s = len(samples) / SAMPLE_RATE_HZ
        speech = self.speech_spans(samples)
        if seconds(speech) < config.min_speech_s:
            raise ClipError("no speech found")
        windows = pack_windows(speech, duration_s, WINDOW_S, config.pad_s, config.max_pause_s)
        words, dropped, language, probability = self._first_decoding(samples, windows, speech)
        missed = uncovered_spans(words, speech, config.redecode_from_s)
        for span in missed:  # one after another, so that what one recovered is not taken again from its neighbour
            again, refused = self._second_decoding(samples, span, language, speech)
            words = merge_words(words, again, span)
            dropped += refused
        believed: list[Word] = []
        for utterance in utterances(words):
            why = hallucination(utterance, speech, config.min_speech_overlap)
            if why is None:
                believed += utterance
            else:
                dropped.append(f"{why}: {join_text(utterance)}")
        if not believed:
            raise ClipError("no speech found" + (f" (refused: {'; '.join(dropped)})" if dropped else ""))
        return {
            "language": language,
            "language_probability": probability,
            "words": tidy(believed, duration_s),
            "speech_s": seconds(speech),
            "covered_share": coverage(believed, speech),
            "redecoded_s": seconds(missed),
            "dropped_text": dropped,
        }

    def speech_spans(self, samples: np.ndarray) -> list[Span]:
        """Where Silero hears speech; none longer than a window. It is deaf to quiet speech, hence `level`."""
        from faster_whisper.vad import VadOptions, get_speech_timestamps

        options = VadOptions(
            threshold=self._config.vad_threshold,
            min_silence_duration_ms=round(self._config.min_silence_s * 1000),
            max_speech_duration_s=WINDOW_S - 2 * self._config.pad_s - 1,
            speech_pad_ms=30,
        )
        spans: list[Span] = []
        first, size = 0, VAD_BLOCK_S * SAMPLE_RATE_HZ
        while first < len(samples):
            found = get_speech_timestamps(level(samples[first : first + size]), options)
            following = first + size
            if following < len(samples) and found and found[-1]["end"] > size - SAMPLE_RATE_HZ:
                following = first + found.pop()["start"]  # may go on: heard again, whole, in the next block
            spans += [((first + f["start"]) / SAMPLE_RATE_HZ, (first + f["end"]) / SAMPLE_RATE_HZ) for f in found]
            first = following
        return union(spans)

    def _first_decoding(
        self, samples: np.ndarray, windows: Sequence[list[Span]], speech: Sequence[Span]
    ) -> tuple[list[Word], list[str], str, float]:
        """All windows, batched -> words, refused text, language of the clip and its probability.

        The clip's language is that of its first batch. A window that is clearly in another one is decoded in that.
        """
        language, probability = self._config.language or "", 1.0
        if not self._model.model.is_multilingual:
            language = "en"
        detect = not language
        words: list[Word] = []
        dropped: list[str] = []
        for first in range(0, len(windows), self._config.windows_at_once):
            batch = windows[first : first + self._config.windows_at_once]
            encoded = self._encode(samples, batch)
            groups = {language: list(range(len(batch)))}
            if detect:
                heard = [_probabilities(found) for found in self._model.model.detect_language(encoded)]
                if not language:
                    language, probability = main_language(heard, [seconds(window) for window in batch])
                groups = self._by_language(heard, language)
            for spoken, members in groups.items():
                decoded = self._decode(_select(encoded, members), [batch[i] for i in members], spoken)
                self._keep(decoded, speech, words, dropped)
        words.sort(key=lambda w: (w["start_s"], w["end_s"]))
        return words, dropped, language, probability

    def _by_language(self, heard: Sequence[dict[str, float]], language: str) -> dict[str, list[int]]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for i, probabilities in enumerate(heard):
            best = max(probabilities, key=probabilities.__getitem__)
            sure = probabilities[best] >= self._config.other_language_probability
            groups[best if sure else language].append(i)
        return groups

    def _encode(self, samples: np.ndarray, windows: Sequence[list[Span]]) -> Any:
        from faster_whisper.audio import pad_or_trim

        features = [pad_or_trim(self._model.feature_extractor(_cut(samples, window))[..., :-1]) for window in windows]
        if self._model.model.device == "cpu":  # one at a time fits the cache: a fifth faster
            return _view(np.concatenate([np.asarray(self._model.encode(f)) for f in features]))
        return self._model.encode(np.stack(features))

    def _decode(self, encoded: Any, windows: Sequence[list[Span]], language: str) -> list[_Decoded]:
        """Greedy for all windows, a beam for those that are unsure, then word times for all."""
        tokenizer = self._tokenizer(language)
        results = self._generate(encoded, tokenizer, beam_size=1)
        unsure = [i for i, r in enumerate(results) if self._config.beam_size > 1 and not self._sure(r, tokenizer)]
        if unsure:
            better = self._generate(_select(encoded, unsure), tokenizer, self._config.beam_size)
            for i, result in zip(unsure, better, strict=True):
                results[i] = result
        segments = [
            [{"tokens": r.sequences_ids[0], "seek": 0, "start": 0.0, "end": seconds(window)}]
            for r, window in zip(results, windows, strict=True)
        ]
        frames = [min(int(np.ceil(seconds(w))), int(WINDOW_S)) * self._model.frames_per_second for w in windows]
        self._model.add_word_timestamps(segments, tokenizer, encoded, frames, PREPEND, APPEND, 0.0)
        decoded = []
        for result, (segment,), window in zip(results, segments, windows, strict=True):
            words = [_word(w["word"], w["start"], w["end"], w["probability"]) for w in segment["words"]]
            decoded.append(
                _Decoded(
                    words=place_words([w for w in words if w["text"]], window),
                    text=_text(result, tokenizer),
                    log_probability=_log_probability(result),
                    no_speech=result.no_speech_prob,
                )
            )
        return decoded

    def _sure(self, result: Any, tokenizer: Any) -> bool:
        return (
            _log_probability(result) >= self._config.sure_log_probability
            and compression_ratio(_text(result, tokenizer)) <= self._config.max_compression_ratio
        )

    def _generate(self, encoded: Any, tokenizer: Any, beam_size: int) -> list[Any]:
        from faster_whisper.transcribe import get_suppressed_tokens

        prompt = self._model.get_prompt(tokenizer, previous_tokens=[], without_timestamps=True)
        return list(
            self._model.model.generate(
                encoded,
                [prompt] * encoded.shape[0],
                beam_size=beam_size,
                suppress_tokens=list(get_suppressed_tokens(tokenizer, [-1])),
                max_length=self._model.max_length,
                return_scores=True,
                return_no_speech_prob=True,
            )
        )

    def _keep(self, decoded: Sequence[_Decoded], speech: Sequence[Span], words: list[Word], dropped: list[str]) -> None:
        """Adds to `words` what can be believed, to `dropped` the rest."""
        config = self._config
        for window in decoded:
            if window.no_speech > config.no_speech_probability and window.log_probability < config.min_log_probability:
                dropped.append(f"no speech: {window.text}")
                continue
            loops = find_loops(window.words, speech, config.max_repeats, config.max_words_per_s)
            refused = {i for loop in loops for i in loop}
            dropped += [f"loop: {join_text(window.words[i] for i in loop)}" for loop in loops]
            if not loops and compression_ratio(window.text) > config.max_compression_ratio:
                dropped.append(f"repetitive: {window.text}")
                continue
            words += [w for i, w in enumerate(window.words) if i not in refused]

    def _second_decoding(
        self, samples: np.ndarray, missed: Span, language: str, speech: Sequence[Span]
    ) -> tuple[list[Word], list[str]]:
        """A stretch of missed speech, with Whisper's own timestamps -> words, refused text."""
        config = self._config
        pad_s, duration_s = config.redecode_pad_s, len(samples) / SAMPLE_RATE_HZ
        window = (max(0.0, missed[0] - pad_s), min(duration_s, missed[1] + pad_s))
        segments, _ = self._model.transcribe(
            _cut(samples, [window]),
            language=language,
            beam_size=config.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=config.no_speech_probability,
            log_prob_threshold=config.min_log_probability,
            compression_ratio_threshold=config.max_compression_ratio,
            word_timestamps=True,
            vad_filter=False,
        )
        found = [
            _word(w.word, w.start + window[0], w.end + window[0], w.probability)
            for s in segments
            for w in s.words or ()
        ]
        found = [w for w in found if w["text"]]
        # what two decodings repeat was said, unless nobody can speak so fast
        loops = find_loops(found, speech, max_repeats=len(found), max_words_per_s=config.max_words_per_s)
        refused = {i for loop in loops for i in loop}
        dropped = [f"loop: {join_text(found[i] for i in loop)}" for loop in loops]
        return [w for i, w in enumerate(found) if i not in refused], dropped

    def _tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        return Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language=language)


@dataclass(frozen=True)
class _Decoded:
    """What one window gave, before the guards."""

    words: list[Word]
    text: str
    log_probability: float  # mean over tokens
    no_speech: float


def level(samples: np.ndarray, target_rms: float = 0.05, max_gain: float = 30.0) -> np.ndarray:
    """The same sound with every second brought to about the same loudness, for the detector's ears only.

    The officer at the microphone and the man across the street differ by 30 dB and more in one recording.
    """
    step = SAMPLE_RATE_HZ // 10
    steps = -(-len(samples) // step)
    padded = np.pad(samples, (0, steps * step - len(samples))).reshape(steps, step)
    power = np.square(padded, out=padded).mean(axis=1)
    around = np.convolve(np.pad(power, 5, mode="edge"), np.full(11, 1 / 11), mode="valid")
    gain = np.clip(target_rms / np.sqrt(around + 1e-12), 0.1, max_gain)
    smooth = np.interp(np.arange(len(samples)), (np.arange(steps) + 0.5) * step, gain).astype(np.float32)
    smooth *= samples
    return np.clip(smooth, -1, 1, out=smooth)


def main_language(heard: Sequence[dict[str, float]], weights: Sequence[float]) -> tuple[str, float]:
    """Language probabilities of some windows, and their seconds -> the likeliest language, its mean probability."""
    total: defaultdict[str, float] = defaultdict(float)
    for window, weight in zip(heard, weights, strict=True):
        for language, probability in window.items():
            total[language] += probability * weight / sum(weights)
    best = max(total, key=total.__getitem__)
    return best, total[best]


def compression_ratio(text: str) -> float:
    """How much smaller zlib makes it: ordinary speech 1 to 2, loops more."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _probabilities(found: Sequence[tuple[str, float]]) -> dict[str, float]:
    return {token.strip("<|>"): probability for token, probability in found}


def _word(text: str, start_s: float, end_s: float, probability: float) -> Word:
    return {"start_s": float(start_s), "end_s": float(end_s), "text": text.strip(), "probability": float(probability)}


def _cut(samples: np.ndarray, pieces: Sequence[Span]) -> np.ndarray:
    return np.concatenate([samples[round(s * SAMPLE_RATE_HZ) : round(e * SAMPLE_RATE_HZ)] for s, e in pieces])


def _text(result: Any, tokenizer: Any) -> str:
    return str(tokenizer.decode([t for t in result.sequences_ids[0] if t < tokenizer.eot])).strip()


def _log_probability(result: Any) -> float:
    """Mean over tokens, the end token among them; CTranslate2 normalises by the others."""
    tokens = len(result.sequences_ids[0])
    return float(result.scores[0] * tokens / (tokens + 1))


def _view(array: np.ndarray) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


def _select(encoded: Any, members: Sequence[int]) -> Any:
    """Some windows of an encoded batch; they go by way of the CPU, since CTranslate2 cannot slice."""
    import ctranslate2

    if len(members) == encoded.shape[0]:
        return encoded
    return _view(np.asarray(encoded.to_device(ctranslate2.Device.cpu))[list(members)])
