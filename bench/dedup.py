"""Duplicates, incidents and leakage: on the published corpus, on planted copies, beside datasketch, at scale.

  python -m bench.dedup corpus --corpus DIR           links, clusters, leakage of the official split and of ours
  python -m bench.dedup planted --corpus DIR --seed 0 copies with words changed: recall and precision
  python -m bench.dedup peers --corpus DIR            the same pairs by MinHash of datasketch, and by brute force
  python -m bench.dedup scale --corpus DIR            the corpus once, repeated 20 times, and 20 times as many others

DIR holds train/*.csv and test/*.csv in the published format. No name or sentence of it is printed; `corpus --list FILE`
writes the ids of linked pairs for checking by hand.
"""

from __future__ import annotations

import argparse
import csv
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deescal.dataset.dedup import (
    DUPLICATE_KINDS,
    DedupConfig,
    Link,
    Signature,
    choose_duplicates,
    components,
    find_links,
    signature,
)
from deescal.dataset.split import SplitConfig, assign_splits, check_leakage, leakage

CONFIG = DedupConfig()
Texts = dict[str, list[str]]  # id ('train/<file name>') -> turns


def read_corpus(folder: Path) -> Texts:
    csv.field_size_limit(sys.maxsize)
    texts = {}
    for path in sorted(folder.glob("t*/*.csv")):
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            texts[f"{path.parent.name}/{path.stem}"] = [row["transcript"] or "" for row in csv.DictReader(file)]
    if not texts:
        sys.exit(f"no train/*.csv or test/*.csv in {folder}")
    return texts


def sign(texts: Iterable[tuple[str, Sequence[str]]], titled: bool = True) -> dict[str, Signature]:
    return {i: signature(turns, i.partition("/")[2] if titled else "", CONFIG) for i, turns in texts}


def timed(label: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{label:52s} {wall:7.1f} s wall {cpu:7.1f} s CPU, peak of the process {peak_mib:6.0f} MiB", flush=True)
    return result


def duplicates_among(links: Iterable[Link]) -> set[frozenset[str]]:
    return {frozenset((link.a, link.b)) for link in links if link.kind in DUPLICATE_KINDS}


# --- the corpus as it is --------------------------------------------------------------------------------------


def corpus(args: argparse.Namespace) -> None:
    texts = read_corpus(args.corpus)
    signatures = timed(f"signatures of {len(texts)} scenarios", lambda: sign(texts.items()))
    sizes = sorted(len(s.shingles) for s in signatures.values())
    print(f"bytes a signature: mean {sum(sizes) / len(sizes):.0f}, largest {sizes[-1]}")
    links = timed("links", lambda: find_links(list(signatures), list(signatures.values()), CONFIG))
    print("links by kind:", dict(Counter(link.kind for link in links)))
    report_clusters(texts, links)
    official = {i: i.partition("/")[0] for i in texts}
    print("leakage of the official split:")
    report_leakage(links, official)
    lengths = {i: s.n_shingles for i, s in signatures.items()}
    for name, config in (("ours", SplitConfig()), ("official kept", SplitConfig(official=True))):
        given = official if config.official else None
        duplicates = choose_duplicates(lengths, links, official=given)
        result = assign_splits(texts, links, config, duplicates=duplicates, official=given)
        split_of = {i: place.split for i, place in result.places.items()}
        print(f"{name}: {len(duplicates)} duplicates dropped, {dict(Counter(split_of.values()))}; leakage:")
        report_leakage(links, split_of)
        if not config.official:
            check_leakage(links, split_of)
    if args.list:
        args.list.write_text("".join(f"{k.kind}\t{k.similarity:.3f}\t{k.a}\t{k.b}\n" for k in links))


def report_clusters(ids: Iterable[str], links: Sequence[Link]) -> None:
    for name, kinds in (("duplicates", DUPLICATE_KINDS), ("text", (*DUPLICATE_KINDS, "overlap")), ("all links", None)):
        chosen = [link for link in links if kinds is None or link.kind in kinds]
        sizes = Counter(Counter(components(ids, chosen).values()).values())
        print(f"clusters by {name}:", ", ".join(f"{n} of size {size}" for size, n in sorted(sizes.items())))


def report_leakage(links: Sequence[Link], split_of: Mapping[str, str]) -> None:
    clusters = leakage(links, split_of)
    for row in clusters:
        print(f"  {row['n_scenarios']} scenarios {row['splits']}, links across {row['links']}")
    print(f"  {len(clusters)} clusters, {sum(row['splits'].get('test', 0) for row in clusters)} test scenarios in them")


# --- planted copies -------------------------------------------------------------------------------------------


def substitute(words: list[str], rng: random.Random, vocabulary: Sequence[str]) -> list[str]:
    return [rng.choice(vocabulary) if rng.random() < 0.1 else word for word in words]


def delete_insert(words: list[str], rng: random.Random, vocabulary: Sequence[str]) -> list[str]:
    """5 % of the words deleted, a strange word after another 5 %."""
    changed: list[str] = []
    for word in words:
        u = rng.random()
        changed += [] if u < 0.05 else [word, rng.choice(vocabulary)] if u < 0.1 else [word]
    return changed


VARIANTS: dict[str, Callable[[list[str], random.Random, Sequence[str]], list[str]]] = {
    "10 % of words substituted": substitute,
    "5 % deleted, 5 % inserted": delete_insert,
    "small letters, no punctuation, one turn": lambda w, r, v: ["".join(filter(str.isalnum, x)).lower() for x in w],
    "first quarter dropped": lambda w, r, v: w[len(w) // 4 :],
    "first quarter dropped, 10 % substituted": lambda w, r, v: substitute(w[len(w) // 4 :], r, v),
    "middle third only": lambda w, r, v: w[len(w) // 3 : 2 * len(w) // 3],
    "middle third only, 10 % substituted": lambda w, r, v: substitute(w[len(w) // 3 : 2 * len(w) // 3], r, v),
}


def planted(args: argparse.Namespace) -> None:
    texts = read_corpus(args.corpus)
    originals = sign(texts.items(), titled=False)
    own = components(texts, find_links(list(originals), list(originals.values()), CONFIG))
    vocabulary = [word for turns in texts.values() for turn in turns for word in turn.split()]  # by frequency
    n_words = {i: len(" ".join(turns).split()) for i, turns in texts.items()}
    plain = {i for i, n in n_words.items() if n >= 200 and originals[i].n_shingles >= n / 2}
    print(
        f"{len(texts)} scenarios, each copied once a variant; {len(plain)} are of 200 words or more and not half a loop"
    )
    print(f"{'variant':42s} recall  of these  precision  links to the original, to others")
    for name, change in VARIANTS.items():
        rng = random.Random(f"{args.seed} {name}")
        copies = {f"copy {i}": change(" ".join(t).split(), rng, vocabulary) for i, t in texts.items()}
        everything = {**originals, **{i: signature(words, "", CONFIG) for i, words in copies.items()}}
        found = set()
        for pair in duplicates_among(find_links(list(everything), list(everything.values()), CONFIG)):
            copied, real = ([i for i in pair if i.startswith("copy ") is is_copy] for is_copy in (True, False))
            if copied and real:
                found.add((copied[0].removeprefix("copy "), real[0]))
        right = {a for a, b in found if a == b}
        wrong = sum(own[a] != own[b] for a, b in found)  # a real duplicate of the original is right as well
        recall, of_plain = len(right) / len(texts), len(right & plain) / len(plain)
        precision = 1 - wrong / len(found)
        print(f"{name:42s} {recall:6.1%} {of_plain:9.1%} {precision:10.1%}  {len(right)}, {len(found) - len(right)}")


# --- peers ----------------------------------------------------------------------------------------------------


def peers(args: argparse.Namespace) -> None:
    """Which real duplicate pairs each way finds, on the same shingles."""
    texts = read_corpus(args.corpus)
    everything = DedupConfig(sample_every=1)
    full = {i: signature(turns, "", everything) for i, turns in texts.items()}
    truth = timed(
        "every shingle compared (sample_every=1)",
        lambda: duplicates_among(find_links(list(full), list(full.values()), everything)),
    )
    print_found("every shingle", truth, truth)
    sampled = sign(texts.items(), titled=False)
    ours = timed(
        "one shingle in four, links only",
        lambda: duplicates_among(find_links(list(sampled), list(sampled.values()), CONFIG)),
    )
    print_found("one shingle in four", ours, truth)
    for n_permutations in (128, 256):
        hashes = timed(f"MinHash of {n_permutations} permutations", lambda n=n_permutations: minhashes(full, n))
        near = timed("  MinHashLSH, Jaccard 0.4", lambda h=hashes, n=n_permutations: by_lsh(h, n))
        print_found("  MinHashLSH", near, truth)
        found = timed("  MinHashLSHEnsemble, containment 0.58", lambda h=hashes, n=n_permutations: by_ensemble(h, n))
        print_found("  MinHashLSHEnsemble", set(found), truth)
        kept = {p for p, share in found.items() if share >= CONFIG.duplicate_share}
        print_found("  the same, share estimated from Jaccard >= 0.58", kept, truth)


def print_found(name: str, found: set[frozenset[str]], truth: set[frozenset[str]]) -> None:
    print(f"  {name}: {len(found)} pairs, {len(found & truth)} of the {len(truth)} true ones")


def minhashes(full: Mapping[str, Signature], n_permutations: int) -> dict[str, tuple[Any, int]]:
    """id -> MinHash and number of shingles; scenarios with too little to compare are left out, as ours does."""
    import numpy as np
    from datasketch import MinHash

    made = {}
    for i, s in full.items():
        if s.n_shingles >= 2 * CONFIG.min_matches:
            hashes = np.frombuffer(s.shingles, dtype="<u4")
            minhash = MinHash(num_perm=n_permutations, hashfunc=int)
            minhash.update_batch(hashes)
            made[i] = minhash, s.n_shingles
    return made


def by_lsh(hashes: Mapping[str, tuple[Any, int]], n_permutations: int) -> set[frozenset[str]]:
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=CONFIG.near_jaccard, num_perm=n_permutations)
    for i, (minhash, _) in hashes.items():
        index.insert(i, minhash)
    pairs = {frozenset((i, j)) for i, (minhash, _) in hashes.items() for j in index.query(minhash) if i != j}
    return {p for p in pairs if jaccard(p, hashes) >= CONFIG.near_jaccard}


def by_ensemble(hashes: Mapping[str, tuple[Any, int]], n_permutations: int) -> dict[frozenset[str], float]:
    from datasketch import MinHashLSHEnsemble

    index = MinHashLSHEnsemble(threshold=CONFIG.duplicate_share, num_perm=n_permutations, num_part=16)
    index.index((i, minhash, size) for i, (minhash, size) in hashes.items())
    found = {}
    for i, (minhash, size) in hashes.items():
        for j in index.query(minhash, size):
            if i != j:
                pair = frozenset((i, j))
                similar, sizes = jaccard(pair, hashes), [hashes[k][1] for k in pair]
                found[pair] = similar / (1 + similar) * sum(sizes) / min(sizes)
    return found


def jaccard(pair: frozenset[str], hashes: Mapping[str, tuple[Any, int]]) -> float:
    a, b = pair
    return float(hashes[a][0].jaccard(hashes[b][0]))


# --- scale ----------------------------------------------------------------------------------------------------


def scale(args: argparse.Namespace) -> None:
    """Run each size in a process of its own (--only) to read its peak memory."""
    texts = read_corpus(args.corpus)
    sizes: dict[str, Callable[[], Iterator[tuple[str, list[str]]]]] = {
        "once": lambda: iter(texts.items()),
        f"repeated {args.times} times": lambda: (
            (f"{n:02d} {i}", turns) for n in range(args.times) for i, turns in texts.items()
        ),
        f"{args.times} times as many others": lambda: others(texts, args.times, args.seed),
    }
    for n, (name, make) in enumerate(sizes.items()):
        if args.only is not None and n != args.only:
            continue
        signatures: dict[str, Signature] = timed(f"{name}: signatures", lambda m=make: sign(m()))
        links = timed(
            f"{name}: links of {len(signatures)}",
            lambda s=signatures: find_links(list(s), list(s.values()), CONFIG),
        )
        print("  links by kind:", dict(Counter(link.kind for link in links)))
        lengths = {i: s.n_shingles for i, s in signatures.items()}
        duplicates = timed(f"{name}: choice", lambda k=links, n=lengths: choose_duplicates(n, k))
        result = timed(
            f"{name}: split",
            lambda k=links, s=signatures, d=duplicates: assign_splits(s, k, SplitConfig(), duplicates=d),
        )
        check_leakage(links, {i: place.split for i, place in result.places.items()})
        print(f"  kept {len(result.places)} of {len(signatures)}")


def others(texts: Texts, times: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Unrelated scenarios as long as the real ones: after each word one that follows it somewhere in the corpus."""
    rng = random.Random(seed)
    words = [sys.intern(word) for turns in texts.values() for turn in turns for word in turn.split()]
    followers: dict[str, list[str]] = defaultdict(list)
    for word, follower in pairwise(words):
        followers[word].append(follower)
    for n in range(times):
        for i, turns in texts.items():
            spoken = [rng.choice(words)]
            for _ in range(sum(len(turn.split()) for turn in turns)):
                after = followers[spoken[-1]] or words
                spoken.append(after[int(rng.random() * len(after))])
            yield f"{n:02d} {i}", [" ".join(spoken)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work in (corpus, planted, peers, scale):
        command = commands.add_parser(work.__name__)
        command.set_defaults(run=work)
        command.add_argument("--corpus", type=Path, required=True)
        command.add_argument("--seed", type=int, default=0)
        if work is corpus:
            command.add_argument("--list", type=Path, help="file for the ids of linked pairs")
        if work is scale:
            command.add_argument("--times", type=int, default=20)
            command.add_argument("--only", type=int, choices=(0, 1, 2), help="one of the three sizes")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
