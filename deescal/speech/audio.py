"""Stage `extract_audio`: a video by URI -> its content hash and a small 16 kHz mono FLAC that later stages read.

The content is hashed first, so that the same video under two names is decoded once; then the sound is decoded
once, as a stream: neither the video nor its frames are ever in memory, only the 16-bit samples (115 MB an hour).
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from pydantic import Field

from deescal import storage
from deescal.errors import ClipError
from deescal.schema import Row, to_table
from deescal.stage import Run, Stage, StageConfig, digest

if TYPE_CHECKING:
    import ray.data

SAMPLE_RATE_HZ = 16_000  # what every speech model here takes
MAX_LOST_SHARE = 0.05  # of the sound; a clip that lost more is refused, since its dialogue has holes
MAX_GAP_S = 60.0  # a longer jump of the clock between sounds is a fault of the recorder, not silence
MIN_GAP_S = 0.1  # shorter ones are rounding
# Only these are opened: FFmpeg would also open playlists, which read other files, and text files as pictures.
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,mxf,mp3,aac,wav,w64,flac,ogg,aiff,caf,amr"


class AudioConfig(StageConfig):
    """Limits of what is taken as a clip."""

    min_duration_s: float = Field(default=1.0, ge=0)
    max_duration_s: float = Field(default=4 * 3600.0, gt=0)
    max_gib: float = Field(
        default=20.0, gt=0
    )  # size of the file; one from an object store is copied to the local disk first


@dataclass(frozen=True)
class Decoded:
    """The sound of a clip; `samples` is int16 mono at SAMPLE_RATE_HZ, starting at the start of the clip."""

    samples: np.ndarray
    duration_s: float
    container: str
    audio_codec: str


def extract_audio(ds: ray.data.Dataset, config: AudioConfig, run: Run) -> ray.data.Dataset:
    """Sets clip_id, duration_s, container, audio_codec, audio; status 'duplicate' where another URI has the content."""
    return ds.map_batches(
        extract_batch,  # type: ignore[arg-type]  # Ray's types know only functions of one argument
        fn_kwargs={"config": config, "stage": run.stage("extract_audio"), "out": run.out},
        batch_size=config.batch_size,
        batch_format="pyarrow",
        **config.resources.ray_options(),
    )


def extract_batch(table: pa.Table, config: AudioConfig, stage: Stage, out: str) -> pa.Table:
    """What one Ray task does. Only the rows that the stage owes are read."""
    rows = table.to_pylist(maps_as_pydicts="strict")
    fetch_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="deescal-") as scratch:

        def fetch(row: Row) -> tuple[str, Path]:
            began = time.perf_counter()
            try:
                file = local_copy(row["uri"], Path(scratch), config.max_gib)
                return content_id(file), file
            finally:
                fetch_s[row["uri"]] = time.perf_counter() - began

        files = stage.identify(rows, fetch)

        def process(row: Row) -> Row:
            clip_id = row["clip_id"]
            file = files[clip_id]
            if isinstance(file, ClipError):
                raise file
            decoded = decode_audio(file, config)
            audio = f"audio/{clip_id}.flac"
            storage.write_bytes(storage.join(out, audio), write_flac(decoded.samples))
            return {
                "duration_s": decoded.duration_s,
                "container": decoded.container,
                "audio_codec": decoded.audio_codec,
                "audio": audio,
            }

        done = stage.apply(to_table(rows), process).to_pylist(maps_as_pydicts="strict")
    for row in done:
        for entry in row["stages"] or ():
            if entry["stage"] == stage.name:  # copying and hashing is most of the work for an object store
                entry["seconds"] += fetch_s.get(row["uri"], 0.0)
    return to_table(done)


def content_id(file: Path) -> str:
    """SHA-256 of the content, 32 hex digits.

    Raises:
        ClipError: the file cannot be read.
    """
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:32]
    except OSError as error:
        raise _unreadable(error) from error


def local_copy(uri: str, scratch: Path, max_gib: float) -> Path:
    """The file itself where it is local, else a copy of it in `scratch`.

    Raises:
        ClipError: missing, forbidden, unreachable, or larger than `max_gib`.
    """
    filesystem, path = storage.locate(uri)
    failures: tuple[type[Exception], ...] = (OSError,)
    if not storage.is_local(uri):
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        failures = (OSError, BotoCoreError, ClientError)
    try:
        size_gib = filesystem.size(path) / 2**30
        if size_gib > max_gib:
            raise ClipError(f"file of {size_gib:.1f} GiB, at most {max_gib:g} are taken")
        if storage.is_local(uri):
            return Path(path)
        copy = scratch / digest(uri.encode())
        filesystem.get_file(path, str(copy))
        return copy
    except failures as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ClipError:
    if isinstance(error, FileNotFoundError):
        return ClipError("file not found")
    if isinstance(error, PermissionError):
        return ClipError("permission denied")
    if isinstance(error, IsADirectoryError):
        return ClipError("a folder, not a file")
    cause = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return ClipError(f"cannot be read: {cause}")


def decode_audio(file: str | Path | BinaryIO, config: AudioConfig | None = None) -> Decoded:
    """Decode the best audio stream of a media file, once, to 16 kHz mono.

    Sound that starts later than the picture (body cameras keep a minute of mute picture from before the recording),
    and gaps in its clock, become silence, so that times are those of the clip. Damaged packets are passed over as long
    as no more than MAX_LOST_SHARE of the sound is lost.

    Raises:
        ClipError: empty, no media file, truncated, no audio stream, damaged, too short or too long.
    """
    import av

    config = config or AudioConfig()
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        opened = av.open(file, options=options, metadata_errors="replace")
    except av.error.FFmpegError as error:
        if isinstance(file, str | Path):
            with open(file, "rb") as content:
                raise ClipError(_why_not_media(content, error)) from error
        raise ClipError(_why_not_media(file, error)) from error
    with opened as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise ClipError("no audio stream")
        if getattr(stream, "codec_context", None) is None:
            raise ClipError("sound in a format that cannot be decoded")
        declared_s = _declared_duration(stream)
        if declared_s is not None and declared_s > config.max_duration_s + 1:
            raise ClipError(_too_long(config))
        sound = bytearray()  # grows in place: a list of pieces would be in memory twice when it is joined
        for piece in _decode(container, stream, config):
            sound += piece.tobytes()
            if len(sound) > 2 * config.max_duration_s * SAMPLE_RATE_HZ:
                raise ClipError(_too_long(config))
        samples = np.frombuffer(sound, np.int16)
        duration_s = len(samples) / SAMPLE_RATE_HZ
        if duration_s == 0:
            raise ClipError("no sound could be decoded")
        if declared_s is not None and duration_s < declared_s * (1 - MAX_LOST_SHARE) - 0.5:
            raise ClipError(f"truncated: {duration_s:.1f} s of {declared_s:.1f} s of sound could be decoded")
        if duration_s < config.min_duration_s:
            raise ClipError(f"{duration_s:.2f} s of sound, at least {config.min_duration_s:g} s are needed")
        return Decoded(samples, duration_s, container.format.name, stream.codec_context.name)


def _too_long(config: AudioConfig) -> str:
    return f"longer than {config.max_duration_s:g} s"


def _why_not_media(content: BinaryIO, error: Exception) -> str:
    size = content.seek(0, io.SEEK_END)
    if size == 0:
        return "empty file"
    content.seek(0)
    if content.read(12)[4:8] == b"ftyp" and "moov" not in _boxes(content, size):
        return "truncated: the index of the MP4 file (moov atom) is missing"
    return f"not a media file ({getattr(error, 'strerror', None) or error})"


def _boxes(content: BinaryIO, size: int) -> list[str]:
    """Names of an MP4 file's outermost boxes, up to the first that is cut off."""
    names, position = [], 0
    while position + 8 <= size:
        content.seek(position)
        header = content.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # the real length is in the next eight bytes
            length = int.from_bytes(header[8:16], "big")
        if length == 0:  # to the end of the file
            length = size - position
        if length < 8 or position + length > size:
            break
        names.append(header[4:8].decode("latin-1"))
        position += length
    return names


def _declared_duration(stream: Any) -> float | None:
    """Second of the clip at which the file says its sound ends; None where it does not say, or only estimates."""
    import av

    if stream.container.format.name in ("mp3", "aac", "amr", "mpeg", "mpegts"):
        return None
    if stream.duration is not None:
        starts_s = (stream.start_time or 0) * stream.time_base - (stream.container.start_time or 0) / av.time_base
        return float(stream.duration * stream.time_base + max(0, starts_s))
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if clock is None:
        return None
    hours, minutes, seconds = clock.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _decode(container: Any, stream: Any, config: AudioConfig) -> Iterator[np.ndarray]:
    """Pieces of int16 mono sound, gaps filled.

    Raises:
        ClipError: more than MAX_LOST_SHARE of the packets cannot be decoded, or sound begins after max_duration_s.
    """
    import av

    start_s = (container.start_time or 0) / av.time_base
    resampler: Any = None
    shape: tuple[str, str, int] | None = None
    samples = packets = lost = 0

    def resample(frame: Any) -> Iterator[np.ndarray]:
        for piece in resampler.resample(frame) if resampler is not None else ():
            yield piece.to_ndarray()[0]

    for packet in _packets(container, stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            lost += 1
            continue
        for frame in frames:
            if (frame.format.name, frame.layout.name, frame.sample_rate) != shape:  # may change within a stream
                for piece in resample(None):
                    samples += len(piece)
                    yield piece
                shape = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE_HZ)
            gap_s = 0.0 if frame.time is None else frame.time - start_s - samples / SAMPLE_RATE_HZ
            if samples == 0 and gap_s > config.max_duration_s:
                raise ClipError(_too_long(config))
            if gap_s > MIN_GAP_S and (gap_s <= MAX_GAP_S or samples == 0):
                silence = np.zeros(round(gap_s * SAMPLE_RATE_HZ), np.int16)
                samples += len(silence)
                yield silence
            elif abs(gap_s) > MIN_GAP_S:
                start_s += gap_s  # the clock was set: what follows joins on
            frame.pts = None  # the resampler counts for itself, else it fills gaps of its own accord
            for piece in resample(frame):
                samples += len(piece)
                yield piece
    yield from resample(None)
    if lost > MAX_LOST_SHARE * max(packets, 1):
        raise ClipError(f"damaged: {lost} of {packets} packets of sound cannot be decoded")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets up to the end, or to where the container breaks off: the duration check judges that."""
    import av

    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def write_flac(samples: np.ndarray) -> bytes:
    """int16 mono samples at SAMPLE_RATE_HZ -> FLAC, lossless."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE_HZ, layout="mono", format="s16")
        size = 4096
        for start in range(0, len(samples), size):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + size], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def load_audio(out: str, audio: str) -> np.ndarray:
    """The FLAC that `extract_audio` stored, by the run's URI and the row's `audio` -> float32 mono, -1..1."""
    import av

    with av.open(io.BytesIO(storage.read_bytes(storage.resolve(out, audio))), "r") as container:
        sound = bytearray()
        for frame in container.decode(audio=0):
            sound += (frame.to_ndarray()[0] / np.float32(32768)).tobytes()
    return np.frombuffer(sound, np.float32)
