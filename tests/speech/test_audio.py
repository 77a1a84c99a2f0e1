"""Tiny media files made with PyAV: what is accepted, what each broken one is called, and the stage's bookkeeping."""

from __future__ import annotations

import io
import time
from pathlib import Path

import av
import numpy as np
import pytest

from deescal.errors import ClipError
from deescal.schema import CLIPS, Row, empty_row, to_table
from deescal.speech import audio
from deescal.speech.audio import AudioConfig, content_id, decode_audio, extract_batch, load_audio, write_flac
from deescal.stage import Ledger, Stage, digest


def tone(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> np.ndarray:
    """440 Hz, int16, shape (1, samples * channels) as PyAV wants it."""
    mono = (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.int16)
    return np.repeat(mono, channels)[None]


def make_media(
    path: Path, seconds: float = 3.0, sound: bool = True, start_s: float = 0.0, video: bool = True, **options: str
) -> Path:
    """A small file with a picture and a stereo 48 kHz tone that starts at `start_s`."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("aac", rate=48_000, layout="stereo") if sound else None
        picture = out.add_stream("mpeg4", rate=10) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for i in range(round((start_s + seconds) * 10)):
                frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                frame.pts = i
                out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
        if stream is not None:
            sound_samples = tone(seconds, 48_000, channels=2)
            for start in range(0, sound_samples.shape[1] // 2, 1024):
                piece = sound_samples[:, 2 * start : 2 * (start + 1024)]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="s16", layout="stereo")
                frame.sample_rate, frame.pts = 48_000, start + round(start_s * 48_000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_good_file(tmp_path: Path, suffix: str) -> None:
    decoded = decode_audio(make_media(tmp_path / f"a.{suffix}"))
    assert decoded.duration_s == pytest.approx(3.0, abs=0.1)
    assert decoded.audio_codec == "aac"
    assert decoded.samples.dtype == np.int16
    assert decoded.duration_s == len(decoded.samples) / 16_000
    spectrum = np.abs(np.fft.rfft(decoded.samples))
    assert np.argmax(spectrum) / decoded.duration_s == pytest.approx(440, abs=1)


def test_file_object(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    assert np.array_equal(decode_audio(io.BytesIO(path.read_bytes())).samples, decode_audio(path).samples)
    with pytest.raises(ClipError, match="not a media file"):
        decode_audio(io.BytesIO(b"hello " * 100))


def test_sound_that_starts_late_keeps_its_time(tmp_path: Path) -> None:
    decoded = decode_audio(make_media(tmp_path / "a.mkv", start_s=1.5))
    assert decoded.duration_s == pytest.approx(4.5, abs=0.1)
    first = np.flatnonzero(np.abs(decoded.samples) > 1000)[0] / 16_000
    assert first == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_long_mute_beginning_is_silence_however_long(tmp_path: Path, suffix: str) -> None:
    path = make_media(tmp_path / f"a.{suffix}", start_s=75.0)
    decoded = decode_audio(path)
    assert decoded.duration_s == pytest.approx(78, abs=0.1)
    first = np.flatnonzero(np.abs(decoded.samples) > 1000)[0] / 16_000
    assert first == pytest.approx(75, abs=0.1)
    with pytest.raises(ClipError, match=r"^longer than 70 s$"):
        decode_audio(path, AudioConfig(max_duration_s=70))


def test_a_mute_beginning_does_not_hide_that_the_end_is_missing(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", seconds=60, start_s=60, movflags="faststart")
    with pytest.raises(ClipError, match=r"^truncated: "):
        decode_audio(cut(path, 0.6))


def test_digital_silence_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "silence.flac"
    path.write_bytes(write_flac(np.zeros(32_000, np.int16)))
    assert not decode_audio(path).samples.any()


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def broken(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("this is no video\n" * 50)
        case "playlist":
            path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://localhost:9/a.ts\n")
        case "silent film":
            make_media(path, sound=False)
        case "no index":
            cut(make_media(path), 0.7)
        case "cut off":
            cut(make_media(path, seconds=6, movflags="faststart"), 0.5)
        case "short":
            make_media(path, seconds=0.4)
        case "long":
            make_media(path, seconds=5)
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("empty", "^empty file$"),
        ("text", "^not a media file"),
        ("playlist", "^not a media file"),
        ("silent film", "^no audio stream$"),
        ("no index", r"^truncated: the index of the MP4 file \(moov atom\) is missing$"),
        ("cut off", r"^truncated: \d\.\d s of 6\.0 s of sound could be decoded$"),
        ("short", "at least 1 s are needed$"),
        ("long", "^longer than 4 s$"),
    ],
)
def test_broken_files(tmp_path: Path, kind: str, cause: str) -> None:
    with pytest.raises(ClipError, match=cause) as caught:
        decode_audio(broken(kind, tmp_path), AudioConfig(max_duration_s=4 if kind == "long" else 3600))
    assert "\n" not in str(caught.value)


def damage(path: Path, where: float, size: int) -> Path:
    data = bytearray(path.read_bytes())
    at = int(len(data) * where)
    data[at : at + size] = bytes((i * 37 + 11) % 256 for i in range(size))
    path.write_bytes(bytes(data))
    return path


def test_little_damage_is_passed_over(tmp_path: Path) -> None:
    path = damage(make_media(tmp_path / "a.mp4", seconds=20, video=False), 0.5, 100)
    assert decode_audio(path).duration_s == pytest.approx(20, abs=0.2)


def test_much_damage_is_refused(tmp_path: Path) -> None:
    path = damage(make_media(tmp_path / "a.mp4", seconds=20, video=False, movflags="faststart"), 0.3, 100_000)
    with pytest.raises(ClipError, match=r"^(damaged|truncated): "):
        decode_audio(path)


def test_flac_is_lossless_and_found_by_uri(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32767, 50_001).astype(np.int16)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "x.flac").write_bytes(write_flac(samples))
    for out in (str(tmp_path), f"file://{tmp_path}"):
        loaded = load_audio(out, "audio/x.flac")
        assert loaded.dtype == np.float32
        assert np.array_equal(loaded * 32768, samples)


def rows_for(*files: Path) -> list[Row]:
    return [empty_row(uri=str(f), source_version="1") for f in files]


def extract(
    rows: list[Row], out: Path, ledger: Ledger, fingerprint: str = "f", config: AudioConfig | None = None
) -> list[Row]:
    stage = Stage("extract_audio", fingerprint, ledger)
    table = extract_batch(to_table(rows), config or AudioConfig(), stage, str(out))
    assert table.schema == CLIPS
    return table.to_pylist(maps_as_pydicts="strict")


def test_stage_good_duplicate_broken_missing(tmp_path: Path) -> None:
    good = make_media(tmp_path / "a.mp4")
    copy = tmp_path / "b.mp4"
    copy.write_bytes(good.read_bytes())
    rows = rows_for(good, copy, broken("text", tmp_path), tmp_path / "nowhere.mp4", tmp_path)
    first, second, text, missing, folder = extract(rows, tmp_path / "out", Ledger())

    assert first["clip_id"] == content_id(good)
    assert first["status"] is None
    assert first["duration_s"] == pytest.approx(3.0, abs=0.1)
    assert len(load_audio(str(tmp_path / "out"), first["audio"])) == round(first["duration_s"] * 16_000)
    assert (second["status"], second["clip_id"], second["audio"]) == ("duplicate", first["clip_id"], None)
    assert text["clip_id"] == content_id(Path(text["uri"]))
    assert (text["status"], text["failed_stage"]) == ("failed", "extract_audio")
    assert text["error"].startswith("not a media file")
    assert (missing["clip_id"], missing["error"]) == (digest(missing["uri"].encode()), "file not found")
    assert folder["status"] == "failed"
    assert [len(r["stages"] or ()) for r in (first, second, text, missing)] == [1, 0, 1, 1]


def test_stage_leaves_what_is_done_or_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    done = extract(rows_for(make_media(tmp_path / "a.mp4"), broken("text", tmp_path)), tmp_path / "out", ledger)
    monkeypatch.setattr(audio, "content_id", lambda file: pytest.fail("read again"))
    assert extract(done, tmp_path / "out", ledger) == done


def test_seconds_of_copying_and_hashing_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(uri: str, *args: object) -> Path:
        time.sleep(0.3)
        return Path(uri)

    monkeypatch.setattr(audio, "local_copy", slow)
    rows = rows_for(make_media(tmp_path / "a.mp4"), broken("text", tmp_path))
    assert all(row["stages"][0]["seconds"] >= 0.3 for row in extract(rows, tmp_path / "out", Ledger()))


def test_same_uri_may_claim_again(tmp_path: Path) -> None:
    rows, ledger = rows_for(make_media(tmp_path / "a.mp4")), Ledger()
    assert extract(rows, tmp_path / "out", ledger)[0]["status"] is None
    assert extract(rows, tmp_path / "out", ledger)[0]["status"] is None


def test_unreadable_and_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_for(make_media(tmp_path / "a.mp4"))
    (row,) = extract(rows, tmp_path / "out", Ledger(), config=AudioConfig(max_gib=1e-9))
    assert "at most 1e-09 are taken" in row["error"]

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ClipError, match=r"^permission denied$"):
        content_id(tmp_path / "a.mp4")


def test_a_bug_is_not_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "decode_audio", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract(rows_for(make_media(tmp_path / "a.mp4")), tmp_path / "out", Ledger())
