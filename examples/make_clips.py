"""Make the sample clips and their ground truth from the scripts beside this file.

    python examples/make_clips.py [--out examples/clips]

Every `scripts/<name>.yaml` becomes `<out>/<name>.mp4` and `<out>/../truth/<name>.json`. Speech
comes from the offline synthesizer flite, so the words, the speaker and the sample of every turn are
known exactly. The same scripts and the same package versions give the same bytes. Each clip with
speech is decoded again, and its times are compared with the mix before the truth is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import yaml
from PIL import Image, ImageDraw, ImageFont
from scipy import signal

SCRIPTS = Path(__file__).parent / "scripts"
SPEECH_RATE_HZ = 16_000  # what flite's voices speak at; mixing is done at this rate
AUDIO_RATE_HZ = 48_000  # what cameras record
AUDIO_BIT_RATE = 48_000
SPEECH_LEVEL_DB = -22.0  # RMS of each turn, full scale = 0 dB
PEAK_LEVEL_DB = -1.0
DEFAULT_PAUSE_S = 0.5
LEAD_S, TAIL_S = 0.8, 1.0  # before the first turn, after the last
WIDTH, HEIGHT, FRAMES_PER_S = 320, 180, 4
# x264's assembly gives slightly different bytes from run to run, even on one thread.
VIDEO_OPTIONS = {"crf": "30", "threads": "1", "x264-params": "no-asm=1"}
MAX_TIME_ERROR_S = 0.005
INSTALL_HINT = "make_clips needs flite with the voices rms, slt and awb: sudo apt-get install flite"

BACKGROUND, PANEL, INK, MUTED = "#14181f", "#222933", "#f2f4f7", "#8b95a5"
VOICE_COLORS = {"rms": "#4c9aff", "slt": "#ffab40", "awb": "#57d9a3"}


@dataclass(frozen=True)
class Turn:
    """One turn on the clip's clock; times are whole samples at SPEECH_RATE_HZ."""

    speaker: str
    name: str
    role: str
    voice: str
    text: str
    start: int
    samples: np.ndarray

    @property
    def end(self) -> int:
        return self.start + len(self.samples)

    @property
    def start_s(self) -> float:
        return self.start / SPEECH_RATE_HZ

    @property
    def end_s(self) -> float:
        return self.end / SPEECH_RATE_HZ


# ---- speech ----------------------------------------------------------------------------------


def speak(text: str, voice: str) -> np.ndarray:
    """Synthesize `text`, cut the silence at both ends, bring it to SPEECH_LEVEL_DB."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", wav.name], check=True)
        samples, rate_hz = soundfile.read(wav.name)
    if rate_hz != SPEECH_RATE_HZ:
        raise ValueError(f"voice {voice} speaks at {rate_hz} Hz, not {SPEECH_RATE_HZ}")
    samples = trim_silence(samples)
    return samples * 10 ** (SPEECH_LEVEL_DB / 20) / rms(samples)


def trim_silence(samples: np.ndarray, floor_db: float = -45.0) -> np.ndarray:
    """Cut leading and trailing 5 ms frames that are `floor_db` or more under the loudest frame."""
    frame = SPEECH_RATE_HZ // 200
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (floor_db / 20))
    return samples[loud[0] * frame : (loud[-1] + 1) * frame]


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def place_turns(script: dict) -> list[Turn]:
    """Put the turns one after the other; `overlap_s` starts a turn before the previous one ends."""
    turns: list[Turn] = []
    for entry in script["turns"]:
        speaker = script["speakers"][entry["speaker"]]
        gap_s = -entry["overlap_s"] if "overlap_s" in entry else entry.get("pause_s", DEFAULT_PAUSE_S)
        start = round((turns[-1].end_s + gap_s if turns else LEAD_S) * SPEECH_RATE_HZ)
        samples = speak(entry["text"], speaker["voice"])
        turns.append(Turn(entry["speaker"], **speaker, text=entry["text"], start=start, samples=samples))
    return turns


def mix(turns: list[Turn], noise: dict, seed: int) -> np.ndarray:
    """Add the turns and the noise up to one signal at SPEECH_RATE_HZ."""
    out = np.zeros(max(turn.end for turn in turns) + round(TAIL_S * SPEECH_RATE_HZ))
    for turn in turns:
        out[turn.start : turn.end] += turn.samples
    rng = np.random.default_rng(seed)
    if noise["type"] == "traffic":
        spoken = np.concatenate([turn.samples for turn in turns])
        background = traffic_noise(len(out), rng)
        out += background * rms(spoken) * 10 ** (-noise["snr_db"] / 20) / rms(background)
    elif noise["type"] == "room":
        out += rng.standard_normal(len(out)) * 10 ** (noise["level_db"] / 20)
    else:
        raise ValueError(f"unknown noise {noise['type']!r}: room or traffic")
    return out * min(1.0, 10 ** (PEAK_LEVEL_DB / 20) / np.abs(out).max())


def traffic_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """A street: a steady low rumble, and a car that hisses past every few seconds."""
    rumble = shaped_noise(count, rng, low_hz=40, high_hz=400)
    tires = shaped_noise(count, rng, low_hz=300, high_hz=3000)
    time_s = np.arange(count) / SPEECH_RATE_HZ
    envelope = np.full(count, 0.15)
    passing_s = 1.0
    while passing_s < time_s[-1]:
        width_s, loudness = rng.uniform(0.6, 1.6), rng.uniform(0.4, 1.0)
        envelope += loudness * np.exp(-(((time_s - passing_s) / width_s) ** 2))
        passing_s += rng.uniform(2.5, 6.0)
    return rumble / rms(rumble) + envelope * tires / rms(tires)


def shaped_noise(count: int, rng: np.random.Generator, low_hz: float, high_hz: float) -> np.ndarray:
    """Noise within a band, falling by 3 dB an octave as noise outdoors does."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency_hz = np.fft.rfftfreq(count, 1 / SPEECH_RATE_HZ)
    slope = 1 / np.sqrt(np.maximum(frequency_hz, low_hz))
    band = 1 / (1 + (low_hz / np.maximum(frequency_hz, 1)) ** 4) / (1 + (frequency_hz / high_hz) ** 4)
    return np.fft.irfft(spectrum * slope * band, count)


# ---- picture ---------------------------------------------------------------------------------


def draw_frame(title: str, turns: list[Turn], at_s: float, duration_s: float) -> Image.Image:
    """Title, who speaks now, and a strip with every turn and the present moment."""
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((14, 10), title, fill=INK, font=ImageFont.load_default(20))
    clock = f"{int(at_s) // 60:02d}:{int(at_s) % 60:02d}"
    draw.text((WIDTH - 14, 14), clock, fill=MUTED, font=ImageFont.load_default(14), anchor="ra")

    speaking = [turn for turn in turns if turn.start_s <= at_s < turn.end_s]
    for row, turn in enumerate(speaking):
        top = 52 + row * 46
        draw.rounded_rectangle((14, top, WIDTH - 14, top + 40), 6, fill=PANEL)
        draw.rectangle((14, top, 20, top + 40), fill=VOICE_COLORS[turn.voice])
        draw.text((32, top + 4), turn.name, fill=INK, font=ImageFont.load_default(17))
        draw.text((32, top + 24), turn.role, fill=MUTED, font=ImageFont.load_default(11))

    def x(time_s: float) -> float:
        return 14 + time_s / duration_s * (WIDTH - 28)

    draw.rectangle((14, 152, WIDTH - 14, 164), fill=PANEL)
    for turn in turns:
        draw.rectangle((x(turn.start_s), 152, x(turn.end_s), 164), fill=VOICE_COLORS[turn.voice])
    draw.rectangle((x(at_s) - 1, 148, x(at_s) + 1, 168), fill=INK)
    return image


# ---- files -----------------------------------------------------------------------------------


def write_mp4(path: Path, title: str, turns: list[Turn], sound: np.ndarray | None, duration_s: float) -> None:
    """Write picture and, unless `sound` is None, sound. The index (moov) is at the file's end."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("h264", rate=FRAMES_PER_S, options=VIDEO_OPTIONS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.gop_size = FRAMES_PER_S * 20
        if sound is not None:
            audio = container.add_stream("aac", rate=AUDIO_RATE_HZ, layout="mono")
            audio.bit_rate = AUDIO_BIT_RATE

        packets = []
        for index in range(round(duration_s * FRAMES_PER_S)):
            image = draw_frame(title, turns, index / FRAMES_PER_S, duration_s)
            frame = av.VideoFrame.from_image(image)
            frame.pts = index
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound is not None:
            factor = AUDIO_RATE_HZ // SPEECH_RATE_HZ
            fine = signal.resample_poly(sound, factor, 1, window=("kaiser", 8.6)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(fine[None, :], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = AUDIO_RATE_HZ, 0
            packets += audio.encode(frame) + audio.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def decode_sound(path: Path) -> np.ndarray:
    """The clip's sound as a player hears it, at SPEECH_RATE_HZ."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def time_error_s(path: Path, sound: np.ndarray) -> float:
    """How much later than in the mix the sound comes out of the file (encoders add a delay)."""
    decoded = decode_sound(path)
    lags = signal.correlation_lags(len(decoded), len(sound))
    correlation = signal.correlate(decoded, sound, method="fft")
    return float(lags[np.argmax(correlation)]) / SPEECH_RATE_HZ


def write_spoken(script: dict, path: Path) -> dict:
    """A clip with speech; returns what the truth says of it."""
    turns = place_turns(script)
    sound = mix(turns, script["noise"], seed=zlib.crc32(path.stem.encode()))
    duration_s = len(sound) / SPEECH_RATE_HZ
    write_mp4(path, script["title"], turns, sound, duration_s)
    if abs(error_s := time_error_s(path, sound)) > MAX_TIME_ERROR_S:
        raise RuntimeError(f"{path}: sound is {error_s * 1000:.1f} ms off the truth")
    rows = [
        {
            "turn_id": index,
            "speaker": turn.speaker,
            "role": turn.role,
            "start_s": round(turn.start_s, 4),
            "end_s": round(turn.end_s, 4),
            "text": turn.text,
        }
        for index, turn in enumerate(turns)
    ]
    for feature, evidence in script["shows"].items():
        if any(not 0 <= turn_id < len(rows) for turn_id in evidence):
            raise ValueError(f"{path.stem}: {feature} names a turn that is not there: {evidence}")
    return {"duration_s": round(duration_s, 4), "turns": rows, "shows": script["shows"]}


def write_broken(script: dict, path: Path) -> dict:
    """A file that cannot become a transcript; returns what the truth says of it."""
    broken = script["broken"]
    duration_s = broken.get("duration_s")
    match broken["how"]:
        case "truncated":  # needs its source, which main() has written before
            whole = path.with_name(broken["of"] + ".mp4").read_bytes()
            path.write_bytes(whole[: int(len(whole) * broken["keep"])])
        case "text_file":
            path.write_text(broken["text"])
        case "no_audio":
            write_mp4(path, script["title"], [], None, duration_s)
        case "silence":
            write_mp4(path, script["title"], [], np.zeros(duration_s * SPEECH_RATE_HZ), duration_s)
        case how:
            raise ValueError(f"{path.stem}: unknown way to break a file: {how!r}")
    return {"duration_s": duration_s, "turns": [], "shows": {}}


def write_clip(script_path: Path, clips: Path, truths: Path) -> None:
    script = yaml.safe_load(script_path.read_text())
    path = clips / f"{script_path.stem}.mp4"
    made = write_broken(script, path) if script["kind"] == "broken" else write_spoken(script, path)
    truth = {
        "name": path.stem,
        "kind": script["kind"],
        "title": script["title"],
        "description": script["description"],
        "expected": script["expected"],
        "noise": script.get("noise"),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **made,
    }
    (truths / f"{path.stem}.json").write_text(json.dumps(truth, indent=1) + "\n")
    words = sum(len(turn["text"].split()) for turn in made["turns"])
    duration_s, size = made["duration_s"] or 0, path.stat().st_size
    print(f"{path.name:20} {duration_s:6.1f} s {size:8,} bytes {words:4} words")


def flite_is_ready() -> bool:
    if shutil.which("flite") is None:
        return False
    listed = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=True).stdout
    return set(VOICE_COLORS) <= set(listed.split())


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the sample clips and their ground truth.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "clips", help="folder for the clips")
    clips = parser.parse_args().out
    if not flite_is_ready():
        print(INSTALL_HINT, file=sys.stderr)
        return 2
    truths = clips.resolve().parent / "truth"
    for folder in (clips, truths):
        folder.mkdir(parents=True, exist_ok=True)
    # Broken clips last: one of them is cut out of another clip.
    by_kind = sorted(SCRIPTS.glob("*.yaml"), key=lambda path: ("kind: broken" in path.read_text(), path.name))
    for script_path in by_kind:
        write_clip(script_path, clips, truths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
