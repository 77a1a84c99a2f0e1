"""Who is who: the role of every speaker of a clip, from the label, from what is said, and from the model.

Where the speaker label names a role, it decides (transcripts made elsewhere carry labels such as
"[Police Officer]"; our own diarization only gives letters). Else three sources are added as log-odds: the words
a speaker uses (a small linear model, `roles.json`, fitted by `bench/judge_roles.py`), phrases that give a role
away, and the model's one-word answer to "what is the role of speaker X?" over the transcript.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deescal.config import fingerprint
from deescal.judge.llm import Llm
from deescal.judge.windows import pieces
from deescal.speech.diarize import letters

ROLES = ("officer", "civilian", "dispatcher", "bystander", "narrator", "other")
Turn = Mapping[str, Any]  # at least speaker and text

LABEL_WEIGHT = 12.0  # log-odds of a label that names a role: it decides
PHRASE_WEIGHT = 0.5  # of the phrases below, beside the words they consist of
LLM_WEIGHT = 0.5  # of the model's log-probabilities, which are overconfident

# What a model answers on average, whoever is asked about (log-probabilities in order of ROLES): small models
# hardly ever say "civilian" or "narrator", so only the difference to this tells. A model that is not here is taken
# at its word.
ANSWER_BIAS: dict[str, tuple[float, ...]] = {"qwen2.5-coder-1.5b": (-2.1, -6.7, -2.0, -4.0, -10.0, -0.7)}

# Checked in order; the first that matches wins.
_LABELS: tuple[tuple[str, str], ...] = (
    ("dispatcher", r"dispatch|\b911 (operator|call ?taker)|call ?taker"),
    ("narrator", r"narrat|presenter|\bhost\b|reporter|announcer|advertis|voice.?over|news ?anchor|youtuber"),
    (
        "civilian",
        r"^(person|individual|man|woman|male|female|suspect|driver|passenger|mr|mrs|ms)\b|'s (mother|father|friend|"
        r"girlfriend|boyfriend|wife|husband|son|daughter)|suspect|driver\b|passenger|arrested|detain|victim|caller|"
        r"civilian|complain|customer|reporting party|mentally|homeowner|mother|father|shoplift|aggressive|resident",
    ),
    (
        "officer",
        r"officer|deputy|trooper|sergeant|\bsgt\b|police|detective|sheriff|\bcops?\b|law enforcement|corporal|"
        r"lieutenant|constable|interrogator|patrol|\bpd\b|agent\b",
    ),
    ("bystander", r"bystander|witness|neighbou?r|background|onlooker|passer"),
    ("other", r"paramedic|fire ?fighter|medic\b|nurse|doctor|first responder|staff|instructor|teacher|student|judge"),
)

# Phrases and what one occurrence adds to a role, times PHRASE_WEIGHT; a phrase counts at most twice a speaker.
_PHRASES: tuple[tuple[str, float, str], ...] = (
    ("officer", 3.0, r"\b(i am|i'm|my name is|this is)( \w+)?,? (an? )?(officer|deputy|trooper|sergeant|detective)\b"),
    (
        "officer",
        3.0,
        r"\b(i'm|i am|we're|we are)( an officer)? (with|from) the [\w' ]*(police|sheriff|department|pd)\b",
    ),
    ("officer", 2.0, r"\b(driver'?s?|your) licen[sc]e\b.*\?|licen[sc]e (and|or) (registration|insurance)"),
    ("officer", 2.5, r"\b(the )?reason (why )?(i|we)( have|'ve)? (stop|pull)|i (stopped|pulled) you"),
    ("officer", 2.5, r"\byou('re| are) (under arrest|being detained|not free|being trespassed|not under arrest)"),
    ("officer", 2.0, r"\b(step|get|come) out of (the|your) (car|vehicle|truck|house)|step (out|over here|back)\b"),
    ("officer", 2.0, r"\b(show|let) me (see )?your hands|hands (up|behind|where|on the)|behind your back"),
    ("officer", 2.0, r"\b(drop the|put the) (gun|knife|weapon|bat)|get on the (ground|floor)|stop resisting"),
    ("officer", 1.5, r"\b(turn around|sit down|stand up|relax your|stay right there|come here|back up)\b"),
    ("officer", 1.5, r"\b(any|have) (weapons|guns|knives|warrants)\b|anything on you|pat you down|search (you|your)"),
    ("officer", 1.5, r"\bright to remain silent|probable cause|(write|give) you a (ticket|citation|warning)"),
    ("officer", 1.5, r"\b(we|i) (got|received|had) a call\b|called (us|the police) (about|because)|were called"),
    ("officer", 1.0, r"\b(what's|what is|can i (get|see|have)) your (name|id|date of birth|last name|birthday)"),
    ("officer", 1.0, r"\b(10-4|code (4|four)|copy that|one in custody|suspect is|step toward|i need you to)\b"),
    ("officer", 0.4, r"\b(sir|ma'am|madam|miss)\b"),
    ("civilian", 2.0, r"\bwhy (are|am|did|were) (you|i|we) [\w ]{0,20}(stop|pull|arrest|detain|bother|cuff|here)"),
    ("civilian", 2.0, r"\b(am i (being |under |free )|what did i do|did(n't| not) do (any|noth)|did nothing wrong)"),
    ("civilian", 1.5, r"\b(yes|no|okay|sorry|please|thank you|hey),? officer\b|^officer,"),
    ("civilian", 1.5, r"\b(leave me alone|(don't|do not) touch me|get off (of )?me|let me go|my rights|lawyer)\b"),
    ("civilian", 1.5, r"\bi('m| am) not (giving|getting|going|leaving|doing|resisting|driving|drunk|talking|stop)"),
    (
        "civilian",
        1.2,
        r"\b(go away|i can't breathe|you('re| are) hurting|i live here|this is my (house|car|home|prop))",
    ),
    (
        "civilian",
        0.8,
        r"\bmy (wife|husband|kids?|children|boyfriend|girlfriend|mom|mother|brother|boss|job|daughter|son)\b",
    ),
    ("dispatcher", 5.0, r"\b(what's|what is|where is)( the (address|location) of)? (your|the) emergency|\b911,? what"),
    (
        "dispatcher",
        2.0,
        r"\b(units|officers|deputies|help|ambulance) (is|are|will be) (on the way|on their way|en route)",
    ),
    ("narrator", 3.0, r"\bwelcome (back )?to (the|my|our|today'?s|another)\b|\bsubscribe\b|\bhi everyone\b|hey guys"),
    ("narrator", 3.0, r"\bsponsor|brought to (you|us) by|link (in the description|below)|use (my )?code\b|promo"),
    (
        "narrator",
        2.0,
        r"\b(this|today'?s|the) (video|story|footage|lesson|episode|case)\b|body ?cam(era)? footage|channel",
    ),
    ("narrator", 1.0, r"\b(he|she|they|the (man|woman|suspect|officers?)) (then|was|were|walks|pulls|grabs|decided)\b"),
    (
        "other",
        2.5,
        r"\bi('m| am) your (instructor|teacher|trainer)|(training|range) (exercise|day)|\bthis drill|the class\b",
    ),
)
_WORD = re.compile(r"[a-z']+")
_FITTED = Path(__file__).with_name("roles.json").read_text()
_WORDS: dict[str, Any] = json.loads(_FITTED)
_COMPILED = tuple((role, weight, re.compile(pattern, re.IGNORECASE)) for role, weight, pattern in _PHRASES)


def role_of_label(label: str) -> str | None:
    """The role that a speaker label names, or None for a letter, a person's name, or "Voice 2"."""
    text = label.strip("[]() ").lower()
    return next((role for role, pattern in _LABELS if re.search(pattern, text)), None)


def speakers_of(turns: Sequence[Turn]) -> list[str]:
    """Speakers in order of first appearance."""
    return list(dict.fromkeys(t["speaker"] for t in turns))


def grams(text: str) -> list[str]:
    """Words and pairs of neighbouring words, in small letters."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def inputs(said: Sequence[str], turns: Sequence[Turn], vocabulary: Sequence[str]) -> list[float]:
    """What the linear model sees of one speaker: how often each n-gram is said, and how much and how it is talked."""
    counted = Counter(g for text in said for g in grams(text))
    n_words = sum(len(text.split()) for text in said)
    length = math.log(math.e + n_words / 30)
    n_speakers = len(speakers_of(turns))
    return [math.log1p(counted[g]) / length for g in vocabulary] + [
        math.log1p(n_words / len(said)),
        n_words / max(1, sum(len(t["text"].split()) for t in turns)),
        sum("?" in text for text in said) / len(said),
        math.log(n_speakers),
        float(n_speakers == 1),
    ]


def phrase_scores(said: Sequence[str]) -> dict[str, float]:
    """Role -> log-odds that the phrases add."""
    scores = dict.fromkeys(ROLES, 0.0)
    for role, weight, pattern in _COMPILED:
        scores[role] += PHRASE_WEIGHT * weight * min(2, sum(len(pattern.findall(text)) for text in said))
    return scores


def speech_scores(said: Sequence[str], turns: Sequence[Turn]) -> dict[str, float]:
    """Role -> log-odds from what one speaker says (`said`) in the transcript `turns`; the label is not looked at."""
    scores = phrase_scores(said)
    seen = np.array(inputs(said, turns, _WORDS["grams"]))
    for role in ROLES:
        scores[role] += _WORDS["bias"][role] + float(seen @ np.array(_WORDS["weights"][role]))
    return scores


def rule_prior(turns: Sequence[Turn]) -> dict[str, dict[str, float]]:
    """Speaker -> probability of each role (summing to 1), from the label and from what the speaker says."""
    priors = {}
    for speaker in speakers_of(turns):
        scores = speech_scores([t["text"] for t in turns if t["speaker"] == speaker], turns)
        if (named := role_of_label(speaker)) is not None:
            scores[named] += LABEL_WEIGHT
        priors[speaker] = _softmax(scores)
    return priors


def combine(prior: Mapping[str, float], llm_log_probs: Sequence[float], weight: float = LLM_WEIGHT) -> dict[str, float]:
    """Rule prior times the model's answer (log-probabilities in order of ROLES, of any total), normalised.

    The model's answer is set against a uniform one, so that it moves the prior and does not replace it.
    """
    likelihood = np.asarray(llm_log_probs, dtype=float)
    likelihood = likelihood - np.logaddexp.reduce(likelihood)
    return _softmax(
        {r: math.log(max(prior[r], 1e-9)) + weight * max(x, -8.0) for r, x in zip(ROLES, likelihood, strict=True)}
    )


SYSTEM = (
    "You read transcripts of videos and tell the role of each speaker. "
    "officer: police officer, deputy or detective, who gives orders and asks for identification. "
    "civilian: the person the police deal with, or a caller. dispatcher: answers emergency calls. "
    "bystander: a witness who looks on. narrator: a presenter who tells of events to an audience. "
    "other: anyone else, such as friends, a teacher, a nurse."
)


def question(letter: str) -> str:
    return (
        f"What is the role of speaker {letter}? Answer with one word: "
        f"officer, civilian, dispatcher, bystander, narrator or other."
    )


VERSION = fingerprint(
    SYSTEM, question(""), _FITTED, LABEL_WEIGHT, PHRASE_WEIGHT, LLM_WEIGHT, ANSWER_BIAS, _LABELS, _PHRASES
)


def ask(turns: Sequence[Turn], speakers: Sequence[str], engine: Llm, max_tokens: int, model: str = "") -> np.ndarray:
    """The model's answers about `speakers`: a row of log-probabilities in order of ROLES each, less its ANSWER_BIAS.

    Only the first `max_tokens` tokens of the transcript are read; who does not speak there is not asked about, and
    the row is even: it says nothing.
    """
    names = letters(t["speaker"] for t in turns)
    lines: list[str] = []
    heard: set[str] = set()
    left = max_tokens
    for piece in (piece for turn in turns for piece in pieces(turn, max_tokens, engine.count_tokens)):
        line = f"{names[piece['speaker']]}: {piece['text']}"
        left -= engine.count_tokens(line) + 1
        if left < 0:
            break
        lines.append(line)
        heard.add(piece["speaker"])
    answers = np.zeros((len(speakers), len(ROLES)))
    asked = [i for i, s in enumerate(speakers) if s in heard]
    if asked:
        head = "Transcript:\n" + "\n".join(lines) + "\n\n"
        prompts = [engine.render(SYSTEM, head + question(names[speakers[i]])) for i in asked]
        answers[asked] = engine.choose(prompts, ROLES) - np.array(ANSWER_BIAS.get(model, (0.0,) * len(ROLES)))
    return answers


def assign(turns: Sequence[Turn], engine: Llm, max_tokens: int, model: str = "") -> dict[str, tuple[str, float]]:
    """Speaker -> (role, probability of it). Only the first `max_tokens` tokens of the transcript are read.

    Speakers whose label names their role are not asked about. `model` is the name under ANSWER_BIAS.
    """
    priors = rule_prior(turns)
    asked = [s for s in priors if role_of_label(s) is None]
    if asked:
        for speaker, row in zip(asked, ask(turns, asked, engine, max_tokens, model), strict=True):
            priors[speaker] = combine(priors[speaker], row)
    best = {s: max(p, key=p.__getitem__) for s, p in priors.items()}
    return {s: (best[s], priors[s][best[s]]) for s in priors}


def _softmax(scores: Mapping[str, float]) -> dict[str, float]:
    top = max(scores.values())
    weights = {k: math.exp(v - top) for k, v in scores.items()}
    total = sum(weights.values())
    return {k: w / total for k, w in weights.items()}
