"""The judge against labelled excerpts: agreement, cost, and the calibration that ships with the package.

    python bench/judge.py measure --labels dev.jsonl                 # the shipped judge
    python bench/judge.py measure --labels dev.jsonl --letters       # speaker labels hidden, as after diarization
    python bench/judge.py measure --labels dev.jsonl --way json      # one structured answer instead of questions
    python bench/judge.py calibrate --corpus FOLDER --test dev.jsonl --out deescal/judge/calibration.json
    python bench/judge.py calibrate --corpus FOLDER --test dev.jsonl --without-answers    # phrases and shape only
    python bench/judge.py evidence --corpus FOLDER                   # turns named by phrases, against readers' marks
    python bench/judge.py cost --labels dev.jsonl                    # seconds a transcript, nothing cached

`--labels`, `--test`: jsonl of {turns: [{speaker, text}], labels_a: {feature: 0/1}, labels_b}, two readers.
`--corpus`: a folder of the published corpus' CSVs; `bench/judge_labels.jsonl` says which turns of which file
(by SHA-256) a reader labelled, without repeating their words. `bench/judge_extra.jsonl` holds invented
transcripts of what accepted clips lack (drills, everyday talk, narration).
Every answer of the model is kept in `--cache`, so that a refit takes seconds. The shipped calibration is fitted on
the test excerpts too: `measure` says how many of the excerpts it is given were in the fit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from bench.judge_excerpts import CachedEngine, corpus, interpret, invented, labelled, with_letters  # noqa: E402
from bench.judge_fit import (  # noqa: E402
    auc,
    best_thresholds,
    fit,
    kappa,
    out_of_fold,
    out_of_fold_with_thresholds,
    predict,
    save,
)
from deescal.engine import LlmConfig  # noqa: E402
from deescal.judge import calibration, evidence, features, prompts, roles  # noqa: E402
from deescal.judge.select import SelectConfig, select  # noqa: E402
from deescal.judge.taxonomy import BY_GROUP, FEATURES, GROUPS, NAMES  # noqa: E402
from deescal.models import identity  # noqa: E402


def matrix(excerpts: Sequence[dict[str, Any]], engine: CachedEngine, hide_labels: Sequence[bool]) -> np.ndarray:
    """(excerpts, INPUTS): what the calibration sees of each, read as one window."""
    rows = []
    for i, (excerpt, hidden) in enumerate(zip(excerpts, hide_labels, strict=True)):
        turns = interpret(with_letters(excerpt["turns"]) if hidden else excerpt["turns"], engine)
        rows.append(calibration.inputs(features.answers([turns], engine)[0], turns))
        print(f"\r{i + 1}/{len(excerpts)} excerpts", end="", flush=True)
    print()
    return np.array(rows)


# --- figures --------------------------------------------------------------------------------------------------


def decision(present: np.ndarray, rule: str) -> bool:
    found = [{"name": n, "present": bool(p), "probability": float(p)} for n, p in zip(NAMES, present, strict=True)]
    config = SelectConfig.model_validate({"rule": rule})
    return select(found, features.group_scores(found), config)[0] == "accepted"


def report(
    y: np.ndarray, second: np.ndarray | None, probability: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """Prints the table of one judge on one set of excerpts; returns its headline figures.

    Args:
        thresholds: of all excerpts, (features,), or of each, (excerpts, features).
    """
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
        if args.calibration != "none":
            say_what_was_fitted(excerpts, Path(args.calibration or calibration.PACKAGED))
        role_figures(excerpts, engine)
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


def say_what_was_fitted(excerpts: Sequence[dict[str, Any]], file: Path) -> None:
    fitted = set(json.loads(file.read_text())["fitted_on"]["hashes"])
    known = sum(e["hash"] in fitted for e in excerpts)
    print(f"IN THE FIT: {known} of {len(excerpts)} excerpts")
    if known:
        print("  so these figures say how well it remembers; `calibrate --test` gives those for excerpts never seen")


def role_figures(excerpts: Sequence[dict[str, Any]], engine: CachedEngine) -> None:
    """Roles told without the labels, against the labels that name one."""
    total = alone = together = 0
    for excerpt in excerpts:
        truth = [roles.role_of_label(s) for s in roles.speakers_of(excerpt["turns"])]
        hidden = with_letters(excerpt["turns"])
        prior = roles.rule_prior(hidden)
        found = {t["speaker"]: t["role"] for t in interpret(hidden, engine)}
        for speaker, role in zip(prior, truth, strict=True):
            if role is not None:
                total += 1
                alone += max(prior[speaker], key=prior[speaker].__getitem__) == role
                together += found[speaker] == role
    print(
        f"roles of the {total} speakers whose (hidden) label names one: {alone / total:.2f} right by words alone,",
        end="",
    )
    print(f" {together / total:.2f} with the model")


def calibrate(args: argparse.Namespace) -> None:
    engine = CachedEngine(LlmConfig(model=args.model), args.cache)

    def inputs(excerpts: Sequence[dict[str, Any]], hide_labels: Sequence[bool]) -> np.ndarray:
        x = matrix(excerpts, engine, hide_labels)
        if args.without_answers:
            x[:, : len(NAMES)] = 0.0
        return x

    made_up = invented(args.extra)
    train = corpus(args.corpus, args.train_labels) + made_up
    # A quarter of the excerpts is read with hidden labels, so that both kinds of transcript are in the fit.
    x, y = inputs(train, [i % 4 == 0 for i in range(len(train))]), np.array([e["y"] for e in train])
    unseen = out_of_fold(x, y)
    print(f"== {len(train)} excerpts, out of fold: mean AUC", end=" ")
    print(f"{np.nanmean([auc(y[:, j], unseen[:, j]) for j in range(len(NAMES))]):.3f}")
    thresholds = best_thresholds(y, unseen)
    weights, bias = fit(x, y)
    note: dict[str, Any] = {"corpus": len(train) - len(made_up), "invented": len(made_up), "test": 0}
    if args.test:
        test = labelled(args.test)
        second = np.array([e["second"] for e in test])
        test_y = np.array([e["y"] for e in test])
        for hide in (False, True):
            print(f"\n== fitted on {len(train)} others, tested on {args.test.name}, labels hidden: {hide}")
            test_x = inputs(test, [hide] * len(test))
            report(test_y, second, predict(weights, bias, test_x), thresholds)
        test_x = inputs(test, [i % 2 == 0 for i in range(len(test))])
        print(f"\n== fitted on both, {args.test.name} out of fold, thresholds chosen inside the folds")
        report(test_y, second, *out_of_fold_with_thresholds(test_x, test_y, x, y))
        x, y = np.vstack([x, test_x]), np.vstack([y, test_y])
        thresholds = best_thresholds(y, out_of_fold(x, y))
        weights, bias = fit(x, y)
        note["test"] = len(test)
        train += test
    note["hashes"] = sorted(e["hash"] for e in train)
    if args.out:
        save(args.out, identity(args.model), weights, bias, thresholds, note)
        print(f"written: {args.out}")


def measure_evidence(args: argparse.Namespace) -> None:
    """Turns that phrases and structure name for a feature, against the turns that the reader marked."""
    engine = CachedEngine(LlmConfig(model=args.model), args.cache)
    marks = named = touched = right = wrong = 0
    chance = 0.0
    for excerpt in corpus(args.corpus, args.train_labels):
        turns = interpret(excerpt["turns"], engine)
        for name, marked in excerpt["evidence"].items():
            if not marked or name in evidence.WITHOUT:
                continue
            found = evidence.by_structure(name, turns) or evidence.by_cues(
                name, turns, features.JudgeConfig().max_evidence
            )
            hits = len(set(found) & set(marked))
            marks += 1
            named += bool(found)
            touched += bool(hits)
            right, wrong = right + hits, wrong + len(found) - hits
            chance += len(found) * len(marked) / len(turns)
    all_named = right + wrong
    print(f"{marks} sets of marked turns: a turn is named for {named / marks:.0%},", end=" ")
    print(f"of these {touched / named:.0%} include a marked one;", end=" ")
    print(f"a named turn is a marked one in {right / all_named:.0%} ({chance / all_named:.0%} by chance)")


def cost(args: argparse.Namespace) -> None:
    """Roles, features and evidence of each excerpt, one after another, nothing cached."""
    from deescal.judge.stage import InterpretConfig, Interpreter
    from deescal.schema import TURN, empty_row, to_table
    from deescal.stage import Ledger, Run

    run = Run("", {"roles": "", "judge": ""}, Ledger())
    config = InterpretConfig(llm=LlmConfig(model=args.model))
    worker = Interpreter(config, run.stage("roles"), run.stage("judge"))
    engine = CachedEngine(config.llm, args.cache)  # only its tokenizer
    tokens, seconds = [], []
    for i, excerpt in enumerate(labelled(args.labels)[: args.limit]):
        blank = dict.fromkeys(field.name for field in TURN)
        turns = [{**blank, **t, "turn_id": k} for k, t in enumerate(with_letters(excerpt["turns"]))]
        table = to_table([empty_row(clip_id=str(i), uri=str(i), turns=turns, stages=[])])
        began = time.perf_counter()
        worker(table)
        seconds.append(time.perf_counter() - began)
        tokens.append(engine.count_tokens("\n".join(t["text"] for t in turns)))
        print(f"{i + 1:3d}: {tokens[-1]:5d} tokens {seconds[-1]:6.1f} s", flush=True)
    print(f"{len(tokens)} transcripts of {np.mean(tokens):.0f} tokens: {np.mean(seconds):.1f} s each", end=" ")
    print(f"(median {np.median(seconds):.1f}, worst {max(seconds):.1f}),", end=" ")
    print(f"{1000 * sum(seconds) / sum(tokens):.1f} s per 1,000 tokens")


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
    two.add_argument("--without-answers", action="store_true", help="fit on phrases and the shape of the talk only")
    two.set_defaults(run=calibrate)
    three = commands.add_parser("evidence")
    three.add_argument("--corpus", type=Path, required=True)
    three.add_argument("--train-labels", type=Path, default=HERE / "judge_labels.jsonl")
    three.set_defaults(run=measure_evidence)
    four = commands.add_parser("cost")
    four.add_argument("--labels", type=Path, required=True)
    four.add_argument("--limit", type=int, help="only so many excerpts")
    four.set_defaults(run=cost)
    for command in (one, two, three, four):
        command.add_argument("--model", default="qwen2.5-coder-1.5b")
        command.add_argument("--cache", type=Path, default=Path("/tmp/deescal-judge-cache.jsonl"))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
