"""What goes out: a page and a sheet for each rater, the instructions, and the key, which stays at home."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from deescal.errors import UserError
from deescal.evaluate.humans.criteria import QUESTIONS, instructions
from deescal.evaluate.humans.pack import Pack, Shown
from deescal.evaluate.humans.page import render_pack_page
from deescal.storage import exists, join, read_json, write_bytes, write_json

KEY = "key.json"
INSTRUCTIONS = "instructions.md"
ID_COLUMNS = ("pack_id", "rater", "item")  # of every sheet; the questions' names follow


def export_pack(pack: Pack, out_uri: str) -> list[str]:
    """Write rate-<rater>.html, rate-<rater>.csv, instructions.md and key.json; return their URIs.

    Done again, it leaves a sheet that is there as it is: a rater may have filled it in.

    Raises:
        UserError: the folder has another pack, whose key would be lost.
    """
    key_uri = join(out_uri, KEY)
    if exists(key_uri) and read_json(key_uri).get("pack_id") != pack.pack_id:
        raise UserError(f"{out_uri}: there is another pack already; choose a new folder")
    write_json(key_uri, key_content(pack))
    files = {INSTRUCTIONS: instructions(pack.config.form)}
    for rater in pack.sheets:
        files[f"rate-{rater}.html"] = render_pack_page(pack, rater)
        files[f"rate-{rater}.csv"] = "\ufeff" + sheet_text(pack, rater)  # by the mark, Excel knows it for UTF-8
    for name, text in files.items():
        if not (name.endswith(".csv") and exists(join(out_uri, name))):
            write_bytes(join(out_uri, name), text.encode())
    return [join(out_uri, name) for name in (KEY, *files)]


def key_content(pack: Pack) -> dict[str, Any]:
    """key.json: all that the import needs."""
    return {
        "warning": "Not for raters: this tells whose replies they rate.",
        "pack_id": pack.pack_id,
        "config": pack.config.model_dump(mode="json"),
        "summary": pack.summary,
        "sheets": pack.sheets,
        "items": {blinded: asdict(origin) for blinded, origin in pack.key.items()},
    }


def sheet_text(pack: Pack, rater: str) -> str:
    """A rater's items as CSV with empty columns for the answers."""
    form = pack.config.form
    replies = ("reply",) if form == "likert" else ("reply_a", "reply_b")
    answers = [question.name for question in QUESTIONS[form]]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*ID_COLUMNS, "situation", "conversation", *replies, *answers])
    for blinded in pack.sheets[rater]:
        shown = pack.shown[blinded]
        replied = (reply or "(says nothing)" for reply in shown.replies)
        cells = [shown.setting or "", conversation(shown, pack.config.shown_messages), *replied]
        writer.writerow([pack.pack_id, rater, blinded, *(quoted(cell) for cell in cells), *("" for _ in answers)])
    return text.getvalue()


def conversation(shown: Shown, n_messages: int) -> str:
    said = [f"{speaker.capitalize()}: {text}" for speaker, text in shown.messages[-n_messages:]]
    return "\n".join(["(…)", *said] if len(shown.messages) > n_messages else said)


def quoted(text: str) -> str:
    """In quotes: no cell of others' words may begin as a formula does, which a spreadsheet would run."""
    return f"“{text}”" if text else ""
