"""The summary as one self-contained page: no fetch, no dependency, readable offline and in ten years.

Words of others (transcripts, file names, errors) reach the page in two ways only: through Jinja's autoescape, and
as JSON that the page's script puts in as text. A content security policy with the hash of the one script of the
page stands behind both: nothing else runs, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from deescal.judge.taxonomy import BY_GROUP, GROUP_NAMES
from deescal.report.summary import MAX_LISTED, STATUSES, Step, Summary, judge_warning
from deescal.report.tables import speed_text, stage_costs, top_causes, total_cost
from deescal.schema import Row
from deescal.storage import exists, join, write_bytes

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
# stage -> what a clip that passes it is
STEP_NAMES = {
    "import": "Transcript read",
    "extract_audio": "Readable, with sound",
    "transcribe": "Speech transcribed",
    "diarize": "Speakers told apart",
    "turns": "Turns assigned",
    "roles": "Roles known",
    "judge": "Judged",
    "select": "Rules applied",
}
TRUST_NAMES = {
    "covered_share": ("Speech covered by words", "clips", "Share of the speech heard that the transcript covers."),
    "asr_confidence": ("Word confidence", "turns", "Mean probability of a turn's words."),
    "assignment_margin": ("Speaker margin", "turns", "How clearly a turn's words belong to its speaker; 0 is a tie."),
    "overlap_share": ("Overlapped speech", "turns", "Share of a turn during which someone else speaks too."),
}
_CAUSES_SHOWN = 8


def write_report(summary: Summary, run: Mapping[str, Any], out_uri: str) -> str:
    """Write `<out>/report.html` and return its URI.

    Args:
        summary: of the run's rows.
        run: the content of run.json.
        out_uri: the run's folder.
    """
    audio = {row["clip_id"]: path for row in summary.samples if (path := _audio_beside(row, out_uri))}
    uri = join(out_uri, PAGE)
    write_bytes(uri, render_page(summary, run, audio).encode())
    return uri


def template_environment() -> Environment:
    """What the templates of all pages are rendered with: everything escaped, an unknown name an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deescal", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(words=words, clock=clock, span=span, percent=percent, thousands="{:,}".format)
    environment.globals.update(zip=zip)
    return environment


def render_page(summary: Summary, run: Mapping[str, Any], audio: Mapping[str, str] | None = None) -> str:
    """The page's HTML. Args: audio: clip_id -> its file relative to the page, where there is one."""
    environment = template_environment()
    script = environment.get_template("_script.html.jinja").render()
    costs = stage_costs(summary, run.get("stages"))
    total = total_cost(costs)
    return environment.get_template("report.html.jinja").render(
        summary=summary,
        run=run,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=script_json({"groups": BY_GROUP, "groupNames": GROUP_NAMES, "clips": sample_data(summary, audio or {})}),
        statuses=STATUSES,
        funnel=[funnel_step(step, summary) for step in summary.funnel()],
        rejected=top_causes(summary.rejected, _CAUSES_SHOWN),
        failed={stage: top_causes(summary.failed[stage], _CAUSES_SHOWN) for stage in _failed_stages(summary)},
        features=feature_rows(summary),
        costs={stage: (cost, speed_text(cost)) for stage, cost in costs.items()},
        total=total,
        total_speed=speed_text(total),
        trust=[(TRUST_NAMES[name], histogram) for name, histogram in summary.trust.items()],
        max_listed=MAX_LISTED,
        judge_warning=judge_warning(run),
        started=moment(run.get("started_at")),
        made=made(run),
    )


def funnel_step(step: Step, summary: Summary) -> dict[str, Any]:
    """One bar: name, clips that went on and that failed, each also as a share of all clips."""
    all_clips = summary.rows or 1
    failed = step.entered - step.left
    return {
        "name": STEP_NAMES.get(step.stage, words(step.stage)),
        "stage": step.stage,
        "left": step.left,
        "failed": failed,
        "left_share": step.left / all_clips,
        "failed_share": failed / all_clips,
    }


def feature_rows(summary: Summary) -> dict[str, list[dict[str, Any]]]:
    """Group -> its features, each with the share of accepted and of rejected clips that show it (None: no clips)."""

    def share(name: str, status: str) -> float | None:
        judged = summary.judged[status]
        return summary.present[name][status] / judged if judged else None

    return {
        GROUP_NAMES[group]: [
            {"name": name, "accepted": share(name, "accepted"), "rejected": share(name, "rejected")} for name in names
        ]
        for group, names in BY_GROUP.items()
    }


def sample_data(summary: Summary, audio: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the page's script needs of each sample clip; numbers rounded to what can be seen."""
    clips = []
    for row in summary.samples:
        ends = [turn["end_s"] for turn in row["turns"] if turn["end_s"] is not None]
        clips.append(
            {
                "id": row["clip_id"],
                "title": title(row),
                "uri": row["uri"],
                "status": row["status"],
                "reason": row["reason"],
                "duration": _round(row["duration_s"] or max(ends, default=0.0), 2),
                "language": row["language"],
                "covered": _round(row["covered_share"], 3),
                "scores": dict(row["scores"] or ()),
                "audio": audio.get(row["clip_id"]),
                "allTurns": row["all_turns"],
                "speakers": [_rounded(s, {"confidence": 2, "speech_s": 1}) for s in row["speakers"] or ()],
                "turns": [_rounded(turn, _TURN_DIGITS) for turn in row["turns"]],
                "features": [_rounded(feature, {"probability": 3}) for feature in row["features"] or ()],
            }
        )
    return clips


_TURN_DIGITS = {"start_s": 2, "end_s": 2, "overlap_share": 2, "assignment_margin": 2, "asr_confidence": 2}


def _rounded(record: Mapping[str, Any], digits: Mapping[str, int]) -> dict[str, Any]:
    return {key: _round(value, digits[key]) if key in digits else value for key, value in record.items()}


def _round(value: float | None, digits: int) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def title(row: Mapping[str, Any]) -> str:
    """The last part of a clip's URI, which people know it by."""
    return PurePosixPath((row["uri"] or "").rstrip("/")).name or row["clip_id"]


def made(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """How the run was made: titled lists of (name, value); nested config as 'judge.threshold'."""
    parts = [
        ("Configuration", list(flat(run.get("config") or {}))),
        ("Models", list(flat(run.get("models") or {}))),
        ("Fingerprints", list(flat(run.get("fingerprints") or {}))),
        ("Versions", [("deescal", str(run.get("deescal", ""))), *sorted(flat(run.get("versions") or {}))]),
    ]
    return [(name, pairs) for name, pairs in parts if pairs]


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested values -> (dotted name, text); text stays as it is, anything else is JSON."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item, default=str)


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">`, in which no text can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def words(name: str) -> str:
    """`id_request_event` -> 'id request event'."""
    return name.replace("_", " ")


def clock(seconds: float) -> str:
    """75.2 -> '1:15', 3700 -> '1:01:40'."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def span(seconds: float) -> str:
    """A length of time as people say it: '8.4 s', '2 min 5 s', '48 min', '3.2 h'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min"
    return f"{seconds / 3600:,.1f} h"


def moment(iso: str | None) -> str:
    """'2026-11-23T11:50:00+00:00' -> '23 November 2026, 11:50 UTC'; what is no ISO time stays as it is."""
    try:
        time = datetime.fromisoformat(iso or "")
    except ValueError:
        return iso or ""
    return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _failed_stages(summary: Summary) -> list[str]:
    return [step.stage for step in summary.funnel() if step.failed]


def _audio_beside(row: Row, out_uri: str) -> str | None:
    """The clip's audio relative to the page, if it is there and inside the run's folder."""
    path = row["audio"]
    if not path or "://" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        return None
    return path if exists(join(out_uri, path)) else None
