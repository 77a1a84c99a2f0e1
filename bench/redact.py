"""Redaction against labels made by hand, and its speed.

    python bench/redact.py measure --gold redaction.jsonl --corpus FOLDER [--half held]
    python bench/redact.py speed --corpus FOLDER [--files 100]
    python bench/redact.py words --corpus FOLDER          # the list `ordinary` of deescal/dataset/words.json

A line of the gold file is an excerpt: `source` (a CSV under --corpus), `first` and `n` (its turns), `set`, `half` (dev
or held) and `spans`: turn_id, field (speaker or text), start, end, entity. The whole scenario is redacted, the turns
of the excerpt are compared: a labelled span is found when every character of it is covered by redactions; a redaction
is right when it overlaps a labelled span. Prints counts only, and with --show also the words.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deescal.dataset.redact import Redactor
from deescal.dataset.redaction_plan import plan
from deescal.schema import Row

Span = tuple[int, str, int, int, str]  # turn_id, field, start, end, entity
PRESIDIO_KINDS = {
    "PERSON": "PERSON",
    "PHONE_NUMBER": "PHONE",
    "EMAIL_ADDRESS": "EMAIL",
    "US_SSN": "SSN",
    "US_DRIVER_LICENSE": "LICENCE",
}


def read_turns(path: Path) -> list[Row]:
    """A published CSV as turns."""
    csv.field_size_limit(10**9)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return [
        {"turn_id": i, "speaker": r["speaker_label"] or "", "text": r["transcript"] or ""} for i, r in enumerate(rows)
    ]


def presidio_alone() -> Callable[[list[Row], set[int]], list[Span]]:
    """Presidio's own recognizers over the same spaCy model, label and text of a turn each by itself.

    Places and times are left out: it would take every city and every hour.
    """
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    from deescal.models import resolve

    engine = AnalyzerEngine(
        nlp_engine=SpacyNlpEngine([{"lang_code": "en", "model_name": resolve("spacy-en-md")}]),
        supported_languages=["en"],
    )

    def find(turns: list[Row], wanted: set[int]) -> list[Span]:
        return [
            (turn["turn_id"], field, r.start, r.end, PRESIDIO_KINDS[r.entity_type])
            for turn in turns
            if turn["turn_id"] in wanted
            for field in ("speaker", "text")
            for r in engine.analyze(turn[field], "en", entities=list(PRESIDIO_KINDS), score_threshold=0.35)
        ]

    return find


def labels_only(turns: list[Row], wanted: set[int]) -> list[Span]:
    """What the names in speaker labels give, without a model."""
    return [(r.turn_id, r.field, r.start, r.end, r.entity) for r in plan(turns, []) if r.turn_id in wanted]


def ours(redactor: Redactor) -> Callable[[list[Row], set[int]], list[Span]]:
    def find(turns: list[Row], wanted: set[int]) -> list[Span]:
        done = redactor.redact(turns)[1]
        return [(r.turn_id, r.field, r.start, r.end, r.entity) for r in done if r.turn_id in wanted]

    return find


def covered(span: Span, by: Iterable[Span]) -> bool:
    places = {i for s in by if s[:2] == span[:2] for i in range(s[2], s[3])}
    return places.issuperset(range(span[2], span[3]))


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    return any(s[:2] == span[:2] and s[2] < span[3] and span[2] < s[3] for s in others)


def measure(gold: list[dict[str, Any]], corpus: Path, show: bool) -> None:
    ways = {"ours": ours(Redactor()), "Presidio alone": presidio_alone(), "labels only": labels_only}
    for way, find in ways.items():
        labelled: Counter[tuple[str, str]] = Counter()
        found: Counter[tuple[str, str]] = Counter()
        predicted: Counter[tuple[str, str]] = Counter()
        right: Counter[tuple[str, str]] = Counter()
        for excerpt in gold:
            turns = read_turns(corpus / excerpt["source"])
            wanted = set(range(excerpt["first"], excerpt["first"] + excerpt["n"]))
            truth = [(s["turn_id"], s["field"], s["start"], s["end"], s["entity"]) for s in excerpt["spans"]]
            guesses = find(turns, wanted)
            for span in truth:
                for key in _keys(excerpt["set"], span):
                    labelled[key] += 1
                    found[key] += covered(span, guesses)
                if show and way == "ours" and not covered(span, guesses):
                    print("MISSED", excerpt["id"], span, repr(turns[span[0]][span[1]][span[2] : span[3]]))
            for span in guesses:
                for key in _keys(excerpt["set"], span):
                    predicted[key] += 1
                    right[key] += overlaps(span, truth)
                if show and way == "ours" and not overlaps(span, truth):
                    print("WRONG", excerpt["id"], span, repr(turns[span[0]][span[1]][span[2] : span[3]]))
        print(f"\n{way}\n{'set':9} {'kind':18} labelled recall  redacted precision")
        for key in sorted(labelled | predicted):
            recall = f"{found[key] / labelled[key]:.3f}" if labelled[key] else "-"
            precision = f"{right[key] / predicted[key]:.3f}" if predicted[key] else "-"
            print(f"{key[0]:9} {key[1]:18} {labelled[key]:8} {recall:>6} {predicted[key]:9} {precision:>9}")


def _keys(sample: str, span: Span) -> list[tuple[str, str]]:
    kind = f"{span[4]} {span[1]}" if span[4] == "PERSON" else span[4]
    return [(sample, kind), ("all", kind)]


def speed(corpus: Path, files: int) -> None:
    """Words per second of one process, and how many turns a second pass over the redacted text still changes."""
    scenarios = [read_turns(path) for path in sorted(corpus.rglob("*.csv"))[:: max(1, 1048 // files)]]
    words = sum(len(turn["text"].split()) for turns in scenarios for turn in turns)
    redactor = Redactor()
    began, cpu_began = time.perf_counter(), time.process_time()
    done = [result for turns in scenarios for result in redactor.redact_batch([turns])]
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    kinds = Counter(r.entity for _, redactions in done for r in redactions)
    print(f"{len(scenarios)} scenarios, {words} words; {dict(kinds)}")
    print(f"{seconds:.1f} s: {words / seconds:.0f} words/s; {cpu_s:.1f} s of CPU: {words / cpu_s:.0f} words/s a core")
    again = redactor.redact_batch([rows for rows, _ in done])
    changed = sum(len({r.turn_id for r in redactions}) for _, redactions in again)
    print(f"a second pass changes {changed} of {sum(map(len, scenarios))} turns")


def words(corpus: Path) -> None:
    """Words that are in lower case in ten scenarios or more."""
    scenarios: dict[str, set[Path]] = defaultdict(set)
    for path in corpus.rglob("*.csv"):
        for turn in read_turns(path):
            for word in re.findall(r"(?<![\w'])[a-z]+(?:'[a-z]+)?(?!\w)", turn["text"]):
                scenarios[word].add(path)
    print(json.dumps(sorted(w for w, paths in scenarios.items() if len(paths) >= 10 and len(w) > 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "speed", "words"])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--half", choices=["dev", "held", "fresh"], default="held")
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--show", action="store_true", help="print what is missed and wrong; names, so for eyes only")
    args = parser.parse_args()
    if args.what == "measure":
        lines = [json.loads(line) for line in args.gold.read_text().splitlines()]
        measure([line for line in lines if line["half"] == args.half], args.corpus, args.show)
    elif args.what == "speed":
        speed(args.corpus, args.files)
    else:
        words(args.corpus)


if __name__ == "__main__":
    main()
