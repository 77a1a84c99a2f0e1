"""Who is who in a transcript whose speakers carry names: a role for every speaker of a scenario.

Published transcripts label speakers freely: "[Police Officer]", "Deputy X", "Jane Doe", "[Voice 2]". Where the
label names a role, it decides. Else a linear model (`roles.json`, fitted by `bench/dataset_roles.py`) weighs what the
speaker says (`deescal.judge.roles`), who else is there and answers whom, and how others name the speaker: "Officer X",
"Mr. X", "X, step out", "X was charged". What that leaves open can be put to the judge's model.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deescal.config import Config, ImportPath
from deescal.dataset.labels import POLICE, anonymous, label_role, person_name
from deescal.engine import LlmConfig
from deescal.judge import roles as judge_roles
from deescal.judge.llm import Llm
from deescal.schema import Row

ROLES = ("officer", "civilian", "dispatcher", "bystander", "narrator", "medic", "other")


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)


_HOST = _any_of(
    r"(hi|hello|hey)( there)?,? (everyone|everybody|guys|folks|friends)|welcome (back )?to|stay safe|subscribe",
    r"(today's|this) ([\w-]+ ){0,3}(video|episode|case|lesson|body ?cam|footage)|let's (listen|watch|take a look)",
    r"links? (is |are )?(down )?(in|below)|see you (guys )?(in|on) the next|comments? (section|below)|sponsor\w*",
    r"let me know (what you|in the)|innocent (until|unless) proven|(our|this) (suspect|defender|victim|(bad|good) guy)",
)
_MEDIC = _any_of(
    r"(i'm|i am|we're|we are)( \w+)? (an? |the |your )?((para)?medics?|emts?|nurse|fire ?fighters?|ems|fire dep\w+)",
    r"blood (pressure|sugar)|vitals|pulse ox|put (an? )?iv|stretcher|trauma alert",
)

FEATURES = (
    *(f"speech_{role}" for role in judge_roles.ROLES),
    "person_name",
    "several_names",
    "log_words",
    "share_of_words",
    "officer_known",  # somebody else's label names that role
    "civilian_known",
    "narrator_known",
    "share_beside_narrator",  # of the speaker's exchanges with others
    "addressed_officer",  # turns beside the speaker's that say "officer"
    "questioned_by_officer",  # share of the speaker's turns that follow an officer's question
    "host_phrases",
    "medic_phrases",
    "mentioned_with_rank",
    "mentioned_as_party",
    "called_by_name",
    "called_by_name_by_officer",
    "narrator_mentions",
)
_FITTED: dict[str, Any] = json.loads(Path(__file__).with_name("roles.json").read_text())


class DatasetRolesConfig(Config):
    """How roles are told. `engine` is the class of the model that is asked, `llm` what it is built from."""

    open_below: float = 0.6  # a speaker whose role the rules hold for less probable than this is left open
    use_model: bool = False  # ask the model about open speakers
    max_tokens: int = 1500  # of the transcript's beginning that the model reads
    label_confidence: float = 0.95  # of a role that the label names
    anonymous_confidence: float = 0.5  # at most, for labels such as "[Voice 1]", behind which may be several people
    engine: ImportPath = "deescal.judge.llm:VllmEngine"
    llm: LlmConfig = LlmConfig()


DEFAULT = DatasetRolesConfig()


@dataclass(frozen=True)
class SpeakerRole:
    role: str  # one of ROLES
    confidence: float  # probability of it, 0..1
    method: str  # what decided: "label", "speech", "model" or "curation"


def evidence(turns: Sequence[Row], known: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Speaker -> FEATURES, for every speaker that is not in `known` (speaker -> role)."""
    said: dict[str, list[str]] = defaultdict(list)
    for turn in turns:
        said[turn["speaker"]].append(turn["text"])
    n_words = {s: sum(len(text.split()) for text in texts) for s, texts in said.items()}
    beside = _exchanges(turns, known)
    features = {}
    for speaker in said:
        if speaker in known:
            continue
        name, near = person_name(speaker), beside[speaker]
        features[speaker] = np.array(
            [
                *_log_probabilities(judge_roles.speech_scores(said[speaker], turns)),
                bool(name),
                len(name) > 1,
                np.log1p(n_words[speaker]),
                n_words[speaker] / max(1, sum(n_words.values())),
                *(role in known.values() for role in ("officer", "civilian", "narrator")),
                near["narrator"] / max(1, near["all"]),
                np.log1p(near["says officer"]),
                near["asked by officer"] / len(said[speaker]),
                np.log1p(_count(_HOST, said[speaker])),
                np.log1p(_count(_MEDIC, said[speaker])),
                *np.log1p(_namings(speaker, name, turns, known)),
            ],
            dtype=float,
        )
    return features


def name_roles(
    turns: Sequence[Row],
    engine: Llm | None = None,
    config: DatasetRolesConfig = DEFAULT,
    curated: Mapping[str, float] | None = None,
) -> dict[str, SpeakerRole]:
    """Speaker label -> role, for every speaker of one scenario, in order of first appearance.

    Args:
        turns: at least `speaker` and `text`. Where turns carry a `role` (curated clips), it is kept.
        engine: the model that is asked about open speakers; only if `config.use_model`.
        curated: speaker -> confidence of the role that curation gave; 1 where it is not said.

    Raises:
        ValueError: `use_model` without an engine.
    """
    if config.use_model and engine is None:
        raise ValueError("use_model needs an engine")
    given = {t["speaker"]: t["role"] for t in turns if t.get("role")}
    named = {s: role for s in judge_roles.speakers_of(turns) if s not in given and (role := label_role(s))}
    probable = {s: probabilities(x) for s, x in evidence(turns, {**given, **named}).items()}
    found = {}
    for speaker in judge_roles.speakers_of(turns):
        if speaker in given:
            found[speaker] = SpeakerRole(given[speaker], (curated or {}).get(speaker, 1.0), "curation")
        elif speaker in named:
            found[speaker] = SpeakerRole(named[speaker], config.label_confidence, "label")
        else:
            found[speaker] = _likeliest(probable[speaker], "speech", speaker, config)
    asked = open_speakers(found, config) if config.use_model else []
    if asked and engine is not None:
        answers = judge_roles.ask(turns, asked, engine, config.max_tokens, config.llm.model)
        for speaker, row in zip(asked, answers, strict=True):
            if row.any():  # else the speaker was not heard in what the model reads
                found[speaker] = _likeliest(_with_answer(probable[speaker], row), "model", speaker, config)
    return found


def open_speakers(found: Mapping[str, SpeakerRole], config: DatasetRolesConfig) -> list[str]:
    """Speakers whose role neither label nor speech tells with `config.open_below`."""
    return [s for s, f in found.items() if f.method == "speech" and f.confidence < config.open_below]


def probabilities(features: np.ndarray) -> dict[str, float]:
    """FEATURES of one speaker -> probability of each of ROLES."""
    weights, bias = _model()
    scores = weights @ features + bias
    exp = np.exp(scores - scores.max())
    return dict(zip(ROLES, (exp / exp.sum()).tolist(), strict=True))


@cache
def _model() -> tuple[np.ndarray, np.ndarray]:
    return np.array([_FITTED["weights"][r] for r in ROLES]), np.array([_FITTED["bias"][r] for r in ROLES])


def _likeliest(probable: Mapping[str, float], method: str, speaker: str, config: DatasetRolesConfig) -> SpeakerRole:
    role = max(probable, key=probable.__getitem__)
    cap = config.anonymous_confidence if anonymous(speaker) else 1.0
    return SpeakerRole(role, min(cap, probable[role]), method)


def _with_answer(probable: Mapping[str, float], log_probs: np.ndarray) -> dict[str, float]:
    """The rules' probabilities times the model's answer, which knows no medics: they share its 'other'."""
    prior = {r: probable[r] for r in judge_roles.ROLES}
    prior["other"] += probable["medic"]
    joint = judge_roles.combine(prior, log_probs.tolist())
    joint["medic"] = joint["other"] * probable["medic"] / prior["other"]
    joint["other"] -= joint["medic"]
    return joint


def _log_probabilities(scores: Mapping[str, float]) -> np.ndarray:
    values = np.array([scores[r] for r in judge_roles.ROLES])
    return np.maximum(values - np.logaddexp.reduce(values), -8.0)


def _count(pattern: re.Pattern[str], texts: Sequence[str]) -> int:
    return sum(1 for text in texts for _ in pattern.finditer(text))


def _exchanges(turns: Sequence[Row], known: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Per speaker, of the turns of others just before and after: how many there are, a narrator's, those that say
    "officer"; and how often an officer's question comes just before."""
    near: dict[str, Counter[str]] = defaultdict(Counter)
    for before, after in pairwise(turns):
        if before["speaker"] == after["speaker"]:
            continue
        for own, other in ((before, after), (after, before)):
            seen = near[own["speaker"]]
            seen["all"] += 1
            seen["narrator"] += known.get(other["speaker"]) == "narrator"
            seen["says officer"] += "officer" in other["text"].lower()
        near[after["speaker"]]["asked by officer"] += (
            known.get(before["speaker"]) == "officer" and "?" in before["text"]
        )
    return near


def _namings(speaker: str, name: Sequence[str], turns: Sequence[Row], known: Mapping[str, str]) -> list[int]:
    """How often a name is said: with a police rank, as a party, in address, so by an officer, by a narrator."""
    parts = "|".join(re.escape(part) for part in name if len(part) > 2)
    if not parts:
        return [0] * 5
    mention, patterns = re.compile(rf"\b(?:{parts})\b"), _naming_patterns(parts)
    ranked = party = addressed = by_officer = by_narrator = 0
    for turn in turns:
        if not mention.search(turn["text"]):
            continue
        with_rank, as_party, in_address = (len(pattern.findall(turn["text"])) for pattern in patterns)
        ranked += with_rank  # also by the speaker: "This is Officer X"
        if turn["speaker"] == speaker:
            continue
        role = known.get(turn["speaker"])
        party += as_party
        by_narrator += role == "narrator"
        if role != "narrator":
            addressed += in_address
            by_officer += in_address if role == "officer" else 0
    return [ranked, party, addressed, by_officer, by_narrator]


def _naming_patterns(name: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    party = r"mr\.?|mrs\.?|ms\.?|miss|suspect|victim|driver|woman|man|mother|father|[\w-]+year-old"
    verdict = (
        "arrested|charged|booked|innocent|sentenced|convicted|accused|guilty|handcuffed|detained|facing|faces|charges|"
        "jail|prison|custody"
    )
    return (
        re.compile(rf"\b(?i:{POLICE}|officers|deputies|agent) (?:[A-Z][\w.]+ )?(?:{name})\b"),
        re.compile(rf"\b(?i:{party}) (?:[A-Z][\w.]+ )?(?:{name})\b|\b(?:{name})(?: \w+){{0,3}} (?:{verdict})\b"),
        re.compile(rf"(?:^|[,.?!] )(?:{name})[,.?!]"),
    )
