"""The judge against labelled excerpts: agreement, cost, and the calibration that ships with the package.

    python bench/judge.py measure --labels dev.jsonl                 # the shipped judge
    python bench/judge.py measure --labels dev.jsonl --letters       # speaker labels hidden, as after diarization
    python bench/judge.py measure --labels dev.jsonl --way json      # one structured answer instead of questions
    python bench/judge.py calibrate --corpus FOLDER --test dev.jsonl --out deescal/judge/calibration.json

`--labels`, `--test`: jsonl of {turns: [{speaker, text}], labels_a: {feature: 0/1}, labels_b}, two readers.
`--corpus`: a folder of the published corpus' CSVs; `bench/judge_labels.jsonl` says which turns of which file
(by SHA-256) a reader labelled, without repeating their words. `bench/judge_extra.jsonl` holds invented
transcripts of what accepted clips lack (drills, everyday talk, narration).
Every answer of the model is kept in `--cache`, so that a refit takes seconds; delete it for a timing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deescal.judge import calibration, cues, features, prompts, roles
from deescal.judge.llm import LlmConfig, VllmEngine
from deescal.judge.select import SelectConfig, select
from deescal.judge.taxonomy import BY_GROUP, FEATURES, GROUPS, NAMES
from deescal.models import identity, resolve

HERE = Path(__file__).parent
ROLE_TOKENS = 1500


class CachedEngine(VllmEngine):
    """The real engine, started at the first answer that is not in the cache."""

    def __init__(self, config: LlmConfig, path: Path) -> None:
        from transformers import AutoTokenizer

        self._config, self._path, self.model = config, path, config.model
        self._tokenizer = AutoTokenizer.from_pretrained(resolve(config.model))
        self._known = {}
        self.seconds = 0.0
        if path.exists():
            with path.open() as file:
                self._known = {entry["key"]: entry["value"] for entry in map(json.loads, file)}

    def _start(self) -> None:
        if not hasattr(self, "_llm"):
            super().__init__(self._config)

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        keys = [self._key(p, *choices) for p in prompts]
        self._remember(keys, prompts, lambda new: super(CachedEngine, self).choose(new, choices).tolist())
        return np.array([self._known[k] for k in keys]).reshape(len(prompts), len(choices))

    def generate(self, prompts: Sequence[str], *, max_tokens: int, **form: Any) -> list[str]:
        keys = [self._key(p, str(max_tokens), json.dumps(form)) for p in prompts]
        call = super().generate
        self._remember(keys, prompts, lambda new: call(new, max_tokens=max_tokens, **form))
        return [self._known[k] for k in keys]

    def _key(self, *parts: str) -> str:
        return hashlib.sha256("\0".join([identity(self._config.model), *parts]).encode()).hexdigest()

    def _remember(self, keys: Sequence[str], prompts: Sequence[str], call: Callable[[list[str]], list[Any]]) -> None:
        missing = [i for i, k in enumerate(keys) if k not in self._known]
        if not missing:
            return
        self._start()
        began = time.perf_counter()
        values = call([prompts[i] for i in missing])
        self.seconds += time.perf_counter() - began
        with self._path.open("a") as file:
            for i, value in zip(missing, values, strict=True):
                self._known[keys[i]] = value
                file.write(json.dumps({"key": keys[i], "value": value}) + "\n")


# --- excerpts -------------------------------------------------------------------------------------------------


def labelled(path: Path) -> list[dict[str, Any]]:
    """Excerpts with two readers' labels: {turns, y (30,), second (30,)}."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {
            "turns": row["turns"],
            "y": np.array([row["labels_a"][n] for n in NAMES]),
            "second": np.array([row["labels_b"][n] for n in NAMES]),
        }
        for row in rows
    ]


def corpus(folder: Path, labels: Path) -> list[dict[str, Any]]:
    """Excerpts of the published corpus named in `labels`; files are found by their SHA-256."""
    wanted = [json.loads(line) for line in labels.read_text().splitlines()]
    files = {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in sorted(folder.rglob("*.csv"))}
    found = []
    for row in wanted:
        with files[row["source_sha256"]].open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))[row["first_turn"] : row["end_turn"]]
        turns = [{"speaker": x["speaker_label"], "text": x["transcript"]} for x in lines]
        found.append({"turns": turns, "y": np.array([row["labels"][n] for n in NAMES]), "evidence": row["evidence"]})
    return found


def invented(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{"turns": r["turns"], "y": np.array([int(n in r["positives"]) for n in NAMES])} for r in rows]


def with_letters(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    letters = roles.letters_of(turns)
    return [{**t, "speaker": letters[t["speaker"]]} for t in turns]


def interpret(turns: Sequence[dict[str, Any]], engine: CachedEngine) -> list[dict[str, Any]]:
    """Turns with ids and roles, as the stage 'roles' makes them."""
    found = roles.assign(turns, engine, ROLE_TOKENS, engine.model)
    return [{**t, "turn_id": i, "role": found[t["speaker"]][0]} for i, t in enumerate(turns)]


def matrix(excerpts: Sequence[dict[str, Any]], engine: CachedEngine, letters: Sequence[bool]) -> np.ndarray:
    """(excerpts, INPUTS): what the calibration sees of each, read as one window."""
    rows = []
    for i, (excerpt, hidden) in enumerate(zip(excerpts, letters, strict=True)):
        turns = interpret(with_letters(excerpt["turns"]) if hidden else excerpt["turns"], engine)
        rows.append(calibration.inputs(features.answers([turns], engine)[0], turns))
        print(f"\r{i + 1}/{len(excerpts)} excerpts", end="", flush=True)
    print()
    return np.array(rows)


# --- figures --------------------------------------------------------------------------------------------------


def auc(y: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC; nan when only one class is there."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, score)) if 0 < y.sum() < len(y) else float("nan")


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(a.ravel(), b.ravel()))


def decision(present: np.ndarray, rule: str) -> bool:
    found = [{"name": n, "present": bool(p), "probability": float(p)} for n, p in zip(NAMES, present, strict=True)]
    config = SelectConfig.model_validate({"rule": rule})
    return select(found, features.group_scores(found), config)[0] == "accepted"


def report(
    y: np.ndarray, second: np.ndarray | None, probability: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """Prints the table of one judge on one set of excerpts; returns its headline figures."""
    present = probability >= thresholds
    print(f"{'feature':38s} positives   AUC   kappa")
    areas = [auc(y[:, j], probability[:, j]) for j in range(len(NAMES))]
    for j, name in enumerate(NAMES):
        k = kappa(y[:, j], present[:, j]) if y[:, j].sum() > 0 else float("nan")
        print(f"{name:38s} {y[:, j].sum():9d} {areas[j]:5.2f} {k:7.2f}")
    figures = {"auc": float(np.nanmean(areas)), "kappa": kappa(y, present)}
    for group in GROUPS:
        own = np.isin(NAMES, BY_GROUP[group])
        figures[f"kappa {group}"] = kappa(y[:, own], present[:, own])
    for rule in ("code", "paper"):
        truth = np.array([decision(row, rule) for row in y])
        figures[f"{rule}: decision agreement"] = float(np.mean(truth == [decision(row, rule) for row in present]))
        figures[f"{rule}: accepted by the labels"] = float(truth.mean())
        if second is not None:
            figures[f"{rule}: agreement of the readers"] = float(np.mean(truth == [decision(r, rule) for r in second]))
    if second is not None:
        figures["kappa of the two readers"] = kappa(y, second)
    for name, value in figures.items():
        print(f"{name:38s} {value:.3f}")
    return figures


# --- fitting --------------------------------------------------------------------------------------------------

OWN_SCALE = 3.0  # own answer and own cue may weigh more than the other features' for the same penalty
STRENGTH = 0.1  # inverse of the penalty
FEW = 8  # positives under which a feature only gets its own answer and cue


def fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (excerpts, INPUTS) and labels (excerpts, features) -> weights (features, INPUTS) and biases."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(axis=0), x.std(axis=0) + 0.1
    z = (x - mean) / scale
    n = len(NAMES)
    weights, bias = np.zeros((n, x.shape[1])), np.zeros(n)
    for j in range(n):
        focus = np.ones(x.shape[1])
        focus[[j, n + j]] = OWN_SCALE
        if y[:, j].sum() < FEW:
            focus[np.setdiff1d(np.arange(2 * n), [j, n + j])] = 0.0
        if len(set(y[:, j])) == 1:  # nothing to learn from: its own answer, around the share seen
            weights[j, j] = 0.5
            bias[j] = np.log((y[:, j].sum() + 0.5) / (len(y) - y[:, j].sum() + 0.5)) - weights[j] @ mean
            continue
        model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(z * focus, y[:, j])
        weights[j] = model.coef_[0] * focus / scale
        bias[j] = model.intercept_[0] - weights[j] @ mean
    return weights, bias


def predict(weights: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(x @ weights.T + bias)))


def out_of_fold(x: np.ndarray, y: np.ndarray, also: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Probability of each excerpt by a fit that has not seen it (10 folds); `also` is in every fit."""
    probability = np.zeros(y.shape)
    fold = np.random.default_rng(0).permutation(len(x)) % 10
    for k in range(10):
        train_x, train_y = x[fold != k], y[fold != k]
        if also is not None:
            train_x, train_y = np.vstack([train_x, also[0]]), np.vstack([train_y, also[1]])
        probability[fold == k] = predict(*fit(train_x, train_y), x[fold == k])
    return probability


def best_thresholds(y: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Per feature the cut with the best kappa, drawn towards the common best one where positives are few."""
    grid = np.arange(0.1, 0.91, 0.02)
    common = max(grid, key=lambda t: kappa(y, probability >= t))
    thresholds = []
    for j in range(y.shape[1]):
        n_positive = int(min(y[:, j].sum(), len(y) - y[:, j].sum()))
        curve = [kappa(y[:, j], probability[:, j] >= t) for t in grid]
        best = grid[int(np.nanargmax(curve))] if n_positive >= FEW else common
        trust = n_positive / (n_positive + 30)
        thresholds.append(trust * best + (1 - trust) * common)
    return np.round(thresholds, 2)


def save(path: Path, model: str, weights: np.ndarray, bias: np.ndarray, thresholds: np.ndarray, note: dict) -> None:
    rows = {
        name: {
            "threshold": float(thresholds[j]),
            "bias": round(float(bias[j]), 4),
            "weights": [round(float(w), 4) for w in weights[j]],
        }
        for j, name in enumerate(NAMES)
    }
    data = {
        "model": model,
        "prompt_version": prompts.PROMPT_VERSION,
        "cues_version": cues.VERSION,
        "fitted_on": note,
        "inputs": list(calibration.INPUTS),
        "features": rows,
    }
    text = json.dumps(data, indent=1)
    path.write_text(_join_numbers(text) + "\n")


def _join_numbers(text: str) -> str:
    """Lists of numbers on one line."""
    import re

    return re.sub(r"\[\s*(-?[\d.]+(?:,\s*-?[\d.]+)*)\s*\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)


# --- commands -------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> None:
    engine = CachedEngine(LlmConfig(model=args.model), args.cache)
    excerpts = labelled(args.labels)[: args.limit]
    y, second = (np.array([e[k] for e in excerpts]) for k in ("y", "second"))
    if args.way == "json":
        probability = one_json(excerpts, engine, args.letters)
        report(y, second, probability, np.full(len(NAMES), 0.5))
    else:
        shipped = calibration.load(identity(args.model), args.calibration)
        x = matrix(excerpts, engine, [args.letters] * len(excerpts))
        report(y, second, predict(shipped.weights, shipped.bias, x), shipped.thresholds)
    print(f"seconds of the model for what the cache lacked: {engine.seconds:.1f} ({len(excerpts)} excerpts)")


def one_json(excerpts: Sequence[dict[str, Any]], engine: CachedEngine, letters: bool) -> np.ndarray:
    """The other way of asking: one guided answer with thirty booleans; eight excerpts at once."""
    form = r"\{" + ", ".join(f'"{f.name}": (true|false)' for f in FEATURES) + r"\}"
    question = "Which of the properties hold? Answer with a JSON object of all thirty names and true or false."
    asked = []
    for excerpt in excerpts:
        turns = interpret(with_letters(excerpt["turns"]) if letters else excerpt["turns"], engine)
        asked.append(engine.render(prompts.system(), prompts.head(turns) + question))
    texts: list[str] = []
    for first in range(0, len(asked), 8):  # eight in flight, kept as they come
        texts += engine.generate(asked[first : first + 8], max_tokens=700, regex=form)
        print(f"{len(texts)}/{len(asked)} answers, {engine.seconds:.0f} s", flush=True)
    answers = [json.loads(text) for text in texts]
    return np.array([[float(answer[n]) for n in NAMES] for answer in answers])


def calibrate(args: argparse.Namespace) -> None:
    engine = CachedEngine(LlmConfig(model=args.model), args.cache)
    train = corpus(args.corpus, args.train_labels) + invented(args.extra)
    # A quarter of the excerpts is read with hidden labels, so that both kinds of transcript are in the fit.
    hidden = [i % 4 == 0 for i in range(len(train))]
    x, y = matrix(train, engine, hidden), np.array([e["y"] for e in train])
    thresholds = best_thresholds(y, out_of_fold(x, y))
    weights, bias = fit(x, y)
    note = {"corpus excerpts": len(train), "test excerpts": 0}
    if args.test:
        test = labelled(args.test)
        second = np.array([e["second"] for e in test])
        test_y = np.array([e["y"] for e in test])
        for hide in (False, True):
            print(f"\n== fitted on {len(train)} others, tested on {args.test.name}, labels hidden: {hide}")
            test_x = matrix(test, engine, [hide] * len(test))
            report(test_y, second, predict(weights, bias, test_x), thresholds)
        test_x = matrix(test, engine, [i % 2 == 0 for i in range(len(test))])
        print(f"\n== fitted on both, {args.test.name} out of fold")
        report(test_y, second, out_of_fold(test_x, test_y, also=(x, y)), thresholds)
        x, y = np.vstack([x, test_x]), np.vstack([y, test_y])
        thresholds = best_thresholds(y, out_of_fold(x, y))
        weights, bias = fit(x, y)
        note["test excerpts"] = len(test)
    if args.out:
        save(args.out, identity(args.model), weights, bias, thresholds, note)
        print(f"written: {args.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--labels", type=Path, required=True)
    one.add_argument("--letters", action="store_true", help="hide the speaker labels")
    one.add_argument("--limit", type=int, help="only so many excerpts")
    one.add_argument("--way", choices=("questions", "json"), default="questions")
    one.add_argument("--calibration", help="a file, or 'none' for raw answers")
    one.set_defaults(run=measure)
    two = commands.add_parser("calibrate")
    two.add_argument("--corpus", type=Path, required=True)
    two.add_argument("--train-labels", type=Path, default=HERE / "judge_labels.jsonl")
    two.add_argument("--extra", type=Path, default=HERE / "judge_extra.jsonl")
    two.add_argument("--test", type=Path)
    two.add_argument("--out", type=Path)
    two.set_defaults(run=calibrate)
    for command in (one, two):
        command.add_argument("--model", default="qwen2.5-coder-1.5b")
        command.add_argument("--cache", type=Path, default=Path("/tmp/deescal-judge-cache.jsonl"))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
