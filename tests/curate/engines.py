"""Engines for what may go wrong around them, and the ways in which a worker that has no engine can be killed."""

from __future__ import annotations

import os

from deescal.errors import UserError
from tests import fakes


class Misconfigured:
    """One that finds out only when it is loaded that its config cannot work."""

    def __init__(self, config: object) -> None:
        raise UserError("interpret.judge.window_tokens=9 leaves no room (at least 99)")


class Transcriber(fakes.FakeTranscriber):
    """One that must not be loaded while DEESCAL_TEST_UNLOADABLE is set."""

    def __init__(self, config: object) -> None:
        assert "DEESCAL_TEST_UNLOADABLE" not in os.environ
        super().__init__(config)


def mortal_files() -> None:
    """For a worker process: it may be killed while it decodes a clip's sound, and between a clip's name and its row."""
    from deescal.curate import store
    from deescal.speech import audio

    decode, write = audio.decode_audio, store.write_clip

    def decode_or_die(*args: object) -> audio.Decoded:
        fakes._maybe_die("extract_audio")
        return decode(*args)  # type: ignore[arg-type]

    def write_or_die(*args: object) -> None:
        fakes._maybe_die("write")
        write(*args)  # type: ignore[arg-type]

    audio.decode_audio, store.write_clip = decode_or_die, write_or_die  # type: ignore[assignment]
