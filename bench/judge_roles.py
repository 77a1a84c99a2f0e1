"""Fit who talks like whom: `deescal/judge/roles.json`, from speaker labels of the published corpus that name a role.

    python bench/judge_roles.py --corpus FOLDER --without dev.jsonl --out deescal/judge/roles.json

Every file of the folder gives a few stretches of turns; a speaker of a stretch whose label names a role is one
example. Inputs are the 300 word pairs and words that occur in most files (names left out: words mostly written
with a capital) and `roles.shape`. Files in `--without` (their `source`) are never seen. Prints the accuracy on
a fifth of the files that was held out.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from deescal.judge import roles

STRETCHES = (12, 25, 50, 80)  # turns
VOCABULARY = 300
STRENGTH = 0.015  # inverse of the penalty
CLASS_WEIGHT = {"civilian": 1.5, "narrator": 1.2}  # suspects mostly carry names, so labels show too few civilians


def examples(corpus: Path, without: set[str]) -> list[tuple[str, str, list[str], list[dict[str, str]]]]:
    """(file, role, what the speaker says, the stretch) per labelled speaker and stretch."""
    csv.field_size_limit(10**8)
    rng = random.Random(0)
    found = []
    for path in sorted(corpus.rglob("*.csv")):
        if path.name in without:
            continue
        with path.open(newline="", encoding="utf-8-sig") as file:
            turns = [
                {"speaker": r["speaker_label"] or "?", "text": r["transcript"] or ""} for r in csv.DictReader(file)
            ]
        for _ in range(3 if len(turns) > 3 else 0):
            length = rng.choice(STRETCHES)
            first = rng.randrange(max(1, len(turns) - length))
            stretch = turns[first : first + length]
            for speaker in roles.speakers_of(stretch):
                role = roles.role_of_label(speaker)
                said = [t["text"] for t in stretch if t["speaker"] == speaker]
                if role is not None and sum(len(text.split()) for text in said) >= 8:
                    found.append((path.name, role, said, stretch))
    return found


def vocabulary(found: list) -> list[str]:
    """The n-grams in most files, without words that are mostly capitalised inside a sentence."""
    capital: Counter[str] = Counter()
    small: Counter[str] = Counter()
    files = defaultdict(set)
    for name, _, said, _ in found:
        for text in said:
            for match in re.finditer(r"(?<=[a-z,] )([A-Za-z']+)", text):
                (capital if match[1][0].isupper() else small)[match[1].lower()] += 1
            for gram in roles.grams(text):
                files[gram].add(name)

    def plain(word: str) -> bool:
        return word in {"i", "i'm", "i'll", "i've", "i'd"} or capital[word] < 0.2 * (small[word] + 1)

    usable = [g for g in files if all(plain(word) for word in g.split())]
    return sorted(usable, key=lambda g: (-len(files[g]), g))[:VOCABULARY]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--without", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    without = {json.loads(line)["source"] for line in args.without.read_text().splitlines()} if args.without else set()
    found = examples(args.corpus, without)
    grams = vocabulary(found)
    x = np.array([roles.inputs(said, stretch, grams) for _, _, said, stretch in found])
    hand = np.array([list(roles.phrase_scores(said).values()) for _, _, said, _ in found])
    y = np.array([roles.ROLES.index(role) for _, role, _, _ in found])
    scale = np.maximum(x.std(axis=0), 0.05)
    files = sorted({f[0] for f in found})
    held_out = dict(zip(files, np.random.default_rng(0).integers(0, 5, len(files)) == 0, strict=True))
    test = np.array([held_out[f[0]] for f in found])
    class_weight = {i: CLASS_WEIGHT.get(role, 1.0) for i, role in enumerate(roles.ROLES)}

    def fit(rows: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=STRENGTH, max_iter=500, class_weight=class_weight)
        return model.fit(x[rows] / scale, y[rows])

    scores = fit(~test).decision_function(x[test] / scale) + hand[test]
    right = scores.argmax(axis=1) == y[test]
    sworn = y[test] < 2
    two = scores[sworn][:, :2].argmax(axis=1) == y[test][sworn]
    print(f"{len(found)} examples of {len(files)} files; held out: {test.sum()}")
    print(f"accuracy over {len(roles.ROLES)} roles {right.mean():.3f}, officer against civilian {two.mean():.3f}")
    if args.out:
        model = fit(np.ones(len(y), dtype=bool))
        weights = {r: [round(float(w), 3) for w in model.coef_[i] / scale] for i, r in enumerate(roles.ROLES)}
        data = {
            "fitted_on": {
                "examples": len(found),
                "files": len(files),
                "held_out_accuracy": round(float(right.mean()), 3),
            },
            "grams": grams,
            "bias": {r: round(float(model.intercept_[i]), 3) for i, r in enumerate(roles.ROLES)},
            "weights": weights,
        }
        text = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in data.items())
        args.out.write_text("{\n" + text + "\n}\n")
        print(f"written: {args.out}")


if __name__ == "__main__":
    main()
