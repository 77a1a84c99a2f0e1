"""The tables, one constant each, and `to_table`, which refuses rows that do not fit.

`CLIPS` is the one table of curation: a row is a clip from input to output. All columns exist from the first
stage on and are null until their stage has run. Times are seconds from the start of the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Row = dict[str, Any]


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct([pa.field(name, dtype) for name, dtype in fields.items()])


SPAN = _struct(start_s=pa.float64(), end_s=pa.float64(), speaker=pa.string())

WORD = _struct(start_s=pa.float64(), end_s=pa.float64(), text=pa.string(), probability=pa.float64())

TURN = _struct(
    turn_id=pa.int32(),  # 0, 1, ... in order of start
    start_s=pa.float64(),
    end_s=pa.float64(),
    speaker=pa.string(),  # diarization label: "A", "B", ... in order of first appearance; "?" when none was near
    role=pa.string(),  # officer, civilian, dispatcher, bystander, narrator, other
    text=pa.string(),
    words=pa.list_(WORD),
    overlap_share=pa.float64(),  # share of the turn's seconds in which someone else speaks too, 0..1
    assignment_margin=pa.float64(),  # how clearly its words belong to this speaker, 0 (tie) .. 1
    asr_confidence=pa.float64(),  # mean word probability, 0..1
)

SPEAKER = _struct(
    speaker=pa.string(),
    role=pa.string(),
    confidence=pa.float64(),  # probability of the role, 0..1
    speech_s=pa.float64(),
)

FEATURE = _struct(
    name=pa.string(),
    # calibrated, 0..1; the maximum over windows, of what is absent unless shown (`features.ABSENCES`) the minimum
    probability=pa.float64(),
    present=pa.bool_(),  # probability >= threshold
    evidence=pa.list_(pa.int32()),  # turn_ids that show it; empty when absent
)

ALIAS = _struct(uri=pa.string(), source_version=pa.string(), source=pa.map_(pa.string(), pa.string()))

STAGE = _struct(
    stage=pa.string(),
    fingerprint=pa.string(),  # of its config, model and prompt
    seconds=pa.float64(),  # compute of this clip in this stage
)

CLIPS = pa.schema(
    {
        # where it comes from
        "clip_id": pa.string(),  # SHA-256 of the content, 32 hex digits; of the URI where content cannot be read
        "uri": pa.string(),
        "source_version": pa.string(),  # ETag, or size and modification time: tells whether to read it again
        "aliases": pa.list_(ALIAS),  # other names of the same content
        "source": pa.map_(pa.string(), pa.string()),  # extra columns of the manifest
        "oddities": pa.map_(pa.string(), pa.int32()),  # import: kind of oddity -> rows it touched; null for videos
        # extract_audio
        "duration_s": pa.float64(),
        "container": pa.string(),
        "audio_codec": pa.string(),
        "audio": pa.string(),  # 16 kHz mono FLAC, relative to the run's folder or absolute
        # transcribe
        "language": pa.string(),
        "language_probability": pa.float64(),
        "words": pa.list_(WORD),
        "speech_s": pa.float64(),  # seconds that the voice activity detector hears
        "covered_share": pa.float64(),  # share of them that words cover, after re-decoding
        "redecoded_s": pa.float64(),  # seconds decoded again, sequentially
        "dropped_text": pa.list_(pa.string()),  # decoded but refused, as "reason: text" (loop, hallucination)
        # diarize
        "speaker_spans": pa.list_(SPAN),  # who speaks when; spans may overlap
        "exclusive_spans": pa.list_(SPAN),  # the same with one speaker at a time, for word assignment
        # turns
        "turns": pa.list_(TURN),
        # roles
        "speakers": pa.list_(SPEAKER),
        # judge
        "features": pa.list_(FEATURE),
        "scores": pa.map_(pa.string(), pa.int32()),  # group -> number of its features present
        # select and bookkeeping
        "status": pa.string(),  # accepted, rejected, failed; null while under way
        "reason": pa.string(),
        "failed_stage": pa.string(),
        "error": pa.string(),
        "attempts": pa.int32(),  # runs of the failed stage so far, over resumes
        "stages": pa.list_(STAGE),  # what has run, in order
    }
)


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = CLIPS) -> pa.Table:
    """Rows -> Arrow, exactly as the schema says.

    `pa.Table.from_pylist` drops unknown keys and fills missing ones with null; here both raise.

    Raises:
        ValueError: a row has an unknown or a missing key (named).
        pa.ArrowInvalid, pa.ArrowTypeError: a value does not fit its column.
    """
    rows = list(rows)
    names = set(schema.names)
    for i, row in enumerate(rows):
        unknown, missing = row.keys() - names, names - row.keys()
        if unknown or missing:
            raise ValueError(f"row {i}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    return pa.Table.from_pylist(rows, schema=schema)


def empty_row(**values: Any) -> Row:
    """A CLIPS row with every column null but the given ones.

    Raises:
        KeyError: a name is not a column.
    """
    row: Row = dict.fromkeys(CLIPS.names)
    for name, value in values.items():
        if name not in row:
            raise KeyError(name)
        row[name] = value
    return row


# The tables of a dataset. `scenario_id` is the clip's `clip_id`; no column holds a name that redaction took out.

CAST = _struct(
    speaker=pa.string(),  # label as redacted: "[Officer]", "[PERSON_1]"
    role=pa.string(),  # officer, civilian, dispatcher, bystander, narrator, medic, other
    confidence=pa.float64(),  # probability of the role, 0..1
    method=pa.string(),  # label, speech, model or curation: what decided
    n_words=pa.int64(),
)

SCENARIOS = pa.schema(
    {
        "scenario_id": pa.string(),
        "incident_id": pa.string(),  # scenarios of one incident share it, and a split
        "split": pa.string(),  # train, validation, test; null where dropped
        "status": pa.string(),  # kept, dropped
        "reason": pa.string(),  # why dropped
        "duplicate_of": pa.string(),  # the kept scenario that has its words
        "source": pa.string(),  # platform or collection it comes from
        "official_split": pa.string(),  # as its publisher split it; null where nobody did
        "duration_s": pa.float64(),
        "n_turns": pa.int32(),  # kept turns
        "n_words": pa.int64(),  # of kept turns, as transcribed, split at white space
        "n_tokens": pa.int64(),  # of kept turns, after redaction
        "speakers": pa.list_(CAST),
        "features": pa.list_(FEATURE),
        "scores": pa.map_(pa.string(), pa.int32()),
        "selection": pa.string(),  # why it was accepted
        "redactions": pa.map_(pa.string(), pa.int32()),  # kind -> places redacted
        "context": pa.string(),  # written by a model; null unless asked for
        "character": pa.string(),  # written by a model; null unless asked for
    }
)

DIALOGUE = pa.schema(
    {
        "scenario_id": pa.string(),
        "turn_id": pa.int32(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "speaker": pa.string(),
        "role": pa.string(),
        "text": pa.string(),  # redacted; null where the turn was dropped before redaction
        "n_words": pa.int32(),  # as transcribed, before redaction, split at white space
        "status": pa.string(),  # kept, dropped
        "reason": pa.string(),  # why dropped
    }
)

MESSAGE = _struct(role=pa.string(), content=pa.string())

EXAMPLES = pa.schema(
    {
        "example_id": pa.string(),  # <scenario_id>-<window>
        "scenario_id": pa.string(),
        "incident_id": pa.string(),
        "window": pa.int32(),  # 0, 1, ... within the scenario
        "first_turn_id": pa.int32(),
        "last_turn_id": pa.int32(),
        "n_tokens": pa.int32(),  # of the rendered chat
        "n_target_tokens": pa.int32(),  # of them in assistant messages that no earlier window holds
        "n_context_messages": pa.int32(),  # first messages, system included, that earlier windows hold: no loss on them
        "messages": pa.list_(MESSAGE),  # system (optional), then user (officer) and assistant (civilian) in turn
    }
)

# What a fine-tune makes of an example, with the tokenizer of its model.
TOKENS = pa.schema(
    {
        "example_id": pa.string(),
        "scenario_id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "is_target": pa.list_(pa.bool_()),  # tokens that are learned: the civilian's words and their end of turn
    }
)

# Loss of a fine-tune's base and of its best checkpoint on what neither was trained on.
VALIDATION = pa.schema(
    {
        "scenario_id": pa.string(),
        "n_target_tokens": pa.int64(),
        "base_nll": pa.float64(),  # nats, summed over target tokens
        "tuned_nll": pa.float64(),
    }
)
