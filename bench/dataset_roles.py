"""Roles of the speakers of published transcripts: against hand labels, beside the reference's keyword rule.

    python bench/dataset_roles.py measure --labels held.jsonl --corpus FOLDER    # add --model to ask the judge
    python bench/dataset_roles.py fit --labels dev.jsonl --without held.jsonl --corpus FOLDER --out roles.json
    python bench/dataset_roles.py time --corpus FOLDER

`--labels`: jsonl of {scenario: file name, speaker: label, role}, role 'unclear' where a reader cannot tell; these do
not count. They name people and stay outside the repository. `--corpus`: a folder of the published CSVs.

The fit has two sources. Speakers whose label names their role are examples of it with the label hidden; of "Officer
X" only the rank is hidden, so the name stays. The labelled ones of `--labels` count `HAND_WEIGHT` times, since they
alone tell how often a person with a plain name is what. Scenarios in `--without` are never seen.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deescal.config import load_engine
from deescal.dataset import roles
from deescal.dataset.labels import label_role, person_name
from deescal.judge.roles import speakers_of

HAND_WEIGHT = 5.0
LABEL_WEIGHT = 0.1  # of a label that is hidden: these speakers are many, but hardly one carries a name
RANKED_WEIGHT = 0.3  # of "Officer X" with the rank hidden: all officers, while most plain names are civilians
STRENGTH = 0.1  # inverse of the penalty
MIN_TURNS, MIN_WORDS = 3, 20  # a speaker below both is no example
RANK = re.compile(r"^(officer|deputy|trooper|sergeant|detective|corporal|lieutenant|captain|chief) (?=[A-Z])", re.I)
# The reference code's words for officers.
KEYWORDS = "officer|police|deputy|cop|sheriff|trooper|detective|sergeant|lieutenant|patrol"

Turns = list[dict[str, str]]


def keyword_role(label: str) -> str:
    """The reference's rule: a label with a police word is an officer, any other a suspect."""
    return "officer" if re.search(KEYWORDS, label.lower()) else "civilian"


def scenarios(corpus: Path) -> Iterator[tuple[str, Turns]]:
    """(file name, turns) per CSV."""
    csv.field_size_limit(sys.maxsize)
    for path in sorted(corpus.rglob("*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        yield path.name, [{"speaker": (r["speaker_label"] or "").strip(), "text": r["transcript"] or ""} for r in rows]


def hand_labels(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Scenario -> speaker -> role, without the unclear."""
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        for entry in map(json.loads, path.read_text().splitlines()):
            if entry["role"] != "unclear":
                labels[entry["scenario"]][entry["speaker"]] = entry["role"]
    return labels


def sizes(turns: Turns) -> tuple[Counter[str], Counter[str]]:
    """Turns and words per speaker."""
    n_turns, n_words = Counter(t["speaker"] for t in turns), Counter[str]()
    for turn in turns:
        n_words[turn["speaker"]] += len(turn["text"].split())
    return n_turns, n_words


def examples(corpus: Path, hand: Mapping[str, Mapping[str, str]], without: set[str]) -> Iterator[tuple]:
    """(scenario, features, role, weight) per speaker with a role in its label (hidden) or by hand."""
    for name, turns in scenarios(corpus):
        if name in without:
            continue
        n_turns, n_words = sizes(turns)
        known = {s: role for s in speakers_of(turns) if (role := label_role(s))}
        for speaker, x in roles.evidence(turns, known).items() if name in hand else ():
            if speaker in hand[name]:
                yield name, x, hand[name][speaker], HAND_WEIGHT
        for speaker, role in known.items():
            if n_turns[speaker] < MIN_TURNS and n_words[speaker] < MIN_WORDS:
                continue
            bare = RANK.sub("", speaker)
            hidden = bare if person_name(bare) and bare != speaker else "[Voice]"
            shown = [{**t, "speaker": hidden} if t["speaker"] == speaker else t for t in turns]
            others = {s: r for s, r in known.items() if s != speaker}
            x = roles.evidence(shown, others)[hidden]
            yield name, x, role, LABEL_WEIGHT if hidden == "[Voice]" else RANKED_WEIGHT


def fit(args: argparse.Namespace) -> None:
    from sklearn.linear_model import LogisticRegression

    hand = hand_labels(args.labels)
    without = set(hand_labels([args.without])) if args.without else set()
    found = list(examples(args.corpus, hand, without))
    x, y = np.array([f[1] for f in found]), np.array([roles.ROLES.index(f[2]) for f in found])
    weight, files = np.array([f[3] for f in found]), np.array([f[0] for f in found])
    scale = np.maximum(x.std(axis=0), 0.05)

    def fitted(rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=STRENGTH, max_iter=2000).fit(x[rows] / scale, y[rows], sample_weight=weight[rows])

    right: list[bool] = []
    for seed in range(3):
        fold = {f: i % 5 for i, f in enumerate(np.random.default_rng(seed).permutation(sorted(hand)))}
        for k in range(5):
            out = np.array([fold.get(f) == k for f in files])
            test = out & (weight == HAND_WEIGHT)
            right += list(fitted(~out).predict(x[test] / scale) == y[test])
    n_hand = int((weight == HAND_WEIGHT).sum())
    print(f"{len(found)} examples of {len(set(files))} scenarios, {n_hand} by hand")
    print(f"right of these in 5-fold cross-validation, mean of 3: {np.mean(right):.3f}")
    model = fitted(np.ones(len(y), dtype=bool))
    data = {
        "fitted_on": {"examples": len(found), "scenarios": len(set(files)), "by hand": n_hand},
        "features": roles.FEATURES,
        "bias": {r: round(float(b), 3) for r, b in zip(roles.ROLES, model.intercept_, strict=True)},
        "weights": {
            r: [round(float(w), 3) for w in row] for r, row in zip(roles.ROLES, model.coef_ / scale, strict=True)
        },
    }
    args.out.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in data.items()) + "\n}\n")
    print(f"written: {args.out}")


def measure(args: argparse.Namespace) -> None:
    """Accuracy by speaker and by word of ours and of the keyword rule, over all speakers and over parts of them."""
    hand = hand_labels([args.labels[0]])
    config = roles.DatasetRolesConfig(use_model=args.model)
    engine = load_engine(config.engine)(config.llm) if args.model else None
    judged: list[Judged] = []
    for name, turns in scenarios(args.corpus):
        if name not in hand:
            continue
        found = roles.name_roles(turns, engine, config)
        n_words = sizes(turns)[1]
        judged += [Judged(s, gold, found[s], n_words[s]) for s, gold in hand[name].items()]
    groups = {
        "all": judged,
        **{role: [j for j in judged if j.gold == role] for role in roles.ROLES},
        "label names no role": [j for j in judged if label_role(j.speaker) is None],
        "person's name": [j for j in judged if person_name(j.speaker) and label_role(j.speaker) is None],
        "open": [j for j in judged if j.speaker in roles.open_speakers({j.speaker: j.found}, config)],
    }
    print(f"{len(hand)} scenarios, {len(judged)} speakers; accuracy by speaker / by word")
    print(
        f"{'':22}{'speakers':>9}{'words':>8}   {'ours':13}   {'keyword rule':13}   officer or not: ours, keyword rule"
    )
    for title, group in groups.items():
        if group:
            share = " ".join(
                f"{accuracy(group, right, False):.3f}/{accuracy(group, right, True):.3f}  " for right in RIGHT
            )
            print(f"{title:22}{len(group):9}{sum(j.n_words for j in group):8}   {share}")
    methods = Counter(j.found.method for j in judged)
    print("decided by", dict(methods))
    told = [j for j in judged if j.found.method != "label"]
    for low, high in ((0.0, 0.5), (0.5, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1.01)):
        some = [j for j in told if low <= j.found.confidence < high]
        if some:
            right = accuracy(some, RIGHT[0], False)
            print(f"confidence {low:.1f}-{min(1, high):.1f}: {len(some)} speakers, right {right:.2f}")
    wrong = Counter((j.gold, j.found.role, j.found.method) for j in judged if not RIGHT[0](j))
    print("wrong (is, taken for, by):", ", ".join(f"{' '.join(k)} {n}" for k, n in wrong.most_common()))


class Judged(NamedTuple):
    speaker: str
    gold: str
    found: roles.SpeakerRole
    n_words: int


RIGHT: tuple[Callable[[Judged], bool], ...] = (
    lambda j: j.found.role == j.gold,
    lambda j: keyword_role(j.speaker) == j.gold,
    lambda j: (j.found.role == "officer") == (j.gold == "officer"),
    lambda j: (keyword_role(j.speaker) == "officer") == (j.gold == "officer"),
)


def accuracy(group: Sequence[Judged], right: Callable[[Judged], bool], by_word: bool) -> float:
    weights = [j.n_words if by_word else 1 for j in group]
    return sum(w for j, w in zip(group, weights, strict=True) if right(j)) / max(1, sum(weights))


def timing(args: argparse.Namespace) -> None:
    """Seconds for the whole corpus, reading not counted, and what decided."""
    everything = list(scenarios(args.corpus))
    config = roles.DatasetRolesConfig()
    start = time.perf_counter()
    found = [roles.name_roles(turns) for _, turns in everything]
    seconds = time.perf_counter() - start
    n_turns = sum(len(turns) for _, turns in everything)
    print(f"{len(found)} scenarios, {n_turns} turns in {seconds:.1f} s")
    methods = Counter(f.method for of in found for f in of.values())
    n_open = sum(len(roles.open_speakers(of, config)) for of in found)
    print(f"{methods.total()} speakers: {dict(methods)}; open {n_open}")
    print("roles", dict(Counter(f.role for of in found for f in of.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "fit", "time"])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--labels", type=Path, nargs="+", default=[])
    parser.add_argument("--without", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", action="store_true")
    args = parser.parse_args()
    {"measure": measure, "fit": fit, "time": timing}[args.what](args)


if __name__ == "__main__":
    main()
