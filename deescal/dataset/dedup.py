"""Which scenarios hold the same words, and which show the same incident: links, clusters, what to drop.

Two notions are kept apart. *Duplicates* hold (nearly) the same words, or one holds the other: all but one go.
An *incident* is everything linked at all, by overlap or by title too: it is never torn apart by a split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from deescal.dataset.signature import N_HASHES, SIGNATURE, DedupConfig, Signature, incident_title, signature

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

__all__ = [
    "DUPLICATE_KINDS",
    "SIGNATURE",
    "DedupConfig",
    "Kind",
    "Link",
    "Signature",
    "choose_duplicates",
    "components",
    "find_links",
    "incident_title",
    "signature",
]

Kind = Literal["exact", "near", "contained", "overlap", "title"]
DUPLICATE_KINDS: tuple[Kind, ...] = ("exact", "near", "contained")

_CROWD = 16  # scenarios with one shingle that are all compared with each other; larger crowds by overlapping windows
_PROMISING = 0.3  # of the least share that makes a link, found in small crowds: worth comparing in full
_ROWS = 128  # scenarios compared with all others at once: bounds memory


@dataclass(frozen=True, order=True, slots=True)
class Link:
    """Two scenarios that belong together. Of 'contained', `a` is the excerpt; else a < b.

    Exact copies are linked to the one of smallest id only, and every other link of theirs to it as well.
    `similarity` is the estimated share of the shorter text's shingles (of 'overlap': of its specific ones) that
    the other has; 1 of 'exact' and 'title'.
    """

    a: str
    b: str
    kind: Kind
    similarity: float


def find_links(ids: Sequence[str], signatures: Sequence[Signature], config: DedupConfig) -> list[Link]:
    """Every pair that belongs together, sorted; the order of the input makes no difference.

    Duplicates depend on the two texts alone. An overlap counts only shingles that few clusters of duplicates have,
    so that sponsors, channel intros and legal formulas do not chain strangers into one incident.

    Raises:
        ValueError: an id occurs twice.
    """
    by_id = dict(sorted(zip(ids, signatures, strict=True)))
    if len(by_id) < len(ids):
        raise ValueError("an id occurs twice")
    first: dict[bytes, str] = {}  # words -> smallest id that has exactly these
    exact = [
        Link(first[s.text_hash], i, "exact", 1.0)
        for i, s in by_id.items()
        if s.text_hash and first.setdefault(s.text_hash, i) != i
    ]
    unique = list(first.values())
    sketches = [_Sketch.of(by_id[i]) for i in unique]
    pairs = list(_candidates(sketches, config))
    duplicates = list(_duplicates(unique, sketches, pairs, config))
    linked = {frozenset((link.a, link.b)) for link in duplicates}
    others = [(i, j) for i, j in pairs if frozenset((unique[i], unique[j])) not in linked]
    overlaps = _overlaps(unique, sketches, others, components(unique, duplicates), config)
    return sorted([*exact, *duplicates, *overlaps, *_same_titles(by_id, first, config)])


@dataclass(frozen=True)
class _Sketch:
    hashes: np.ndarray  # uint32, ascending
    limit: int

    @staticmethod
    def of(signature: Signature) -> _Sketch:
        import numpy as np

        return _Sketch(np.frombuffer(signature.shingles, dtype="<u4"), signature.limit)

    def below(self, limit: int) -> int:
        import numpy as np

        return int(np.searchsorted(self.hashes, limit))

    def without(self, common: np.ndarray) -> _Sketch:
        import numpy as np

        place = np.searchsorted(common, self.hashes)  # both ascending; `common` is far longer
        found = place < len(common)
        found[found] = common[place[found]] == self.hashes[found]
        return _Sketch(self.hashes[~found], self.limit)


def _compare(a: _Sketch, b: _Sketch) -> tuple[int, int, int]:
    """Sampled shingles that both have, that `a` has, that `b` has, as far as both samples are complete."""
    import numpy as np

    limit = min(a.limit, b.limit)
    shared = len(np.intersect1d(a.hashes, b.hashes, assume_unique=True))
    return shared, a.below(limit), b.below(limit)


def _duplicates(
    ids: Sequence[str], sketches: Sequence[_Sketch], pairs: Iterable[tuple[int, int]], config: DedupConfig
) -> Iterator[Link]:
    for i, j in pairs:
        shared, n_i, n_j = _compare(sketches[i], sketches[j])
        share = shared / min(n_i, n_j)
        if shared < config.min_matches or share < config.duplicate_share:
            continue
        if shared / (n_i + n_j - shared) >= config.near_jaccard:
            yield Link(ids[i], ids[j], "near", share)
        else:
            yield Link(*((ids[i], ids[j]) if n_i < n_j else (ids[j], ids[i])), "contained", share)


def _overlaps(
    ids: Sequence[str],
    sketches: Sequence[_Sketch],
    pairs: Sequence[tuple[int, int]],
    cluster: Mapping[str, str],
    config: DedupConfig,
) -> Iterator[Link]:
    import numpy as np

    number = {name: n for n, name in enumerate(sorted(set(cluster.values())))}
    keys = _postings(sketches, [number[cluster[i]] for i in ids])
    hashes = keys[_starts(keys)] >> np.uint64(32)  # each once for each cluster
    del keys
    starts = _starts(hashes)
    common = hashes[starts][np.diff(starts, append=len(hashes)) > config.max_spread].astype(np.uint32)
    specific = {i: sketches[i].without(common) for i in {i for pair in pairs for i in pair}}
    for i, j in pairs:
        shared, n_i, n_j = _compare(specific[i], specific[j])
        if shared >= config.min_matches and shared / min(n_i, n_j) >= config.overlap_share:
            yield Link(ids[i], ids[j], "overlap", shared / min(n_i, n_j))


def _postings(sketches: Sequence[_Sketch], labels: Sequence[int]) -> np.ndarray:
    """Hash in the upper, label in the lower half of a uint64, sorted."""
    import numpy as np

    keys = np.zeros(sum(len(s.hashes) for s in sketches), dtype=np.uint64)
    start = 0
    for sketch, label in zip(sketches, labels, strict=True):
        part = keys[start : start + len(sketch.hashes)]
        part[:] = sketch.hashes
        part <<= np.uint64(32)
        part |= np.uint64(label)
        start += len(part)
    keys.sort()
    return keys


def _starts(ascending: np.ndarray) -> np.ndarray:
    """Where each distinct value begins."""
    import numpy as np

    return np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]][: len(ascending)])


def _candidates(sketches: Sequence[_Sketch], config: DedupConfig) -> Iterator[tuple[int, int]]:
    """Pairs i < j that share enough sampled shingles to be worth comparing."""
    import numpy as np

    has = _incidence(sketches)
    transposed = has.T.tocsr()
    n_sampled = np.array([s.below(N_HASHES // config.sample_every) for s in sketches])
    for first in range(0, len(sketches), _ROWS):
        shared = (has[first : first + _ROWS] @ transposed).tocoo()
        i, j = shared.row + first, shared.col
        promising = _PROMISING * config.overlap_share * np.minimum(n_sampled[i], n_sampled[j])
        found = (i < j) & (shared.data >= np.maximum(config.min_matches, promising))
        yield from sorted(zip(i[found].tolist(), j[found].tolist(), strict=True))


def _incidence(sketches: Sequence[_Sketch]) -> csr_matrix:
    """Scenarios x shingles that more than one has.

    A shingle that a crowd has costs the square of the crowd and tells little. Its crowd is therefore cut, in order
    of id, into windows that overlap by half: re-uploads of one video still meet their neighbours and so hang together.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    keys = _postings(sketches, range(len(sketches)))
    sizes = np.diff(_starts(keys >> np.uint64(32)), append=len(keys))
    rows = (keys[np.repeat(sizes > 1, sizes)] & np.uint64(N_HASHES - 1)).astype(np.int32)
    del keys
    sizes = sizes[sizes > 1]
    columns = np.repeat((np.cumsum(sizes) - sizes).astype(np.int32), sizes)  # the crowd's first posting
    rank = np.arange(len(rows), dtype=np.int32) - columns
    half = _CROWD // 2
    crowded = np.repeat(sizes > _CROWD, sizes)
    columns[crowded] += rank[crowded] // half
    again = crowded & (rank >= half)
    rows, columns = np.append(rows, rows[again]), np.append(columns, columns[again] - 1)
    return csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(sketches), int(sizes.sum())))


def _same_titles(by_id: Mapping[str, Signature], first: Mapping[bytes, str], config: DedupConfig) -> Iterator[Link]:
    named: dict[bytes, set[str]] = defaultdict(set)
    for i, s in by_id.items():
        if s.title_hash:
            named[s.title_hash].add(first[s.text_hash] if s.text_hash else i)
    links = {pair for group in named.values() if len(group) <= config.max_same_title for pair in _pairs(group)}
    return (Link(a, b, "title", 1.0) for a, b in links)


def _pairs(group: Collection[str]) -> Iterator[tuple[str, str]]:
    return combinations(sorted(group), 2)


# --- what follows from links ----------------------------------------------------------------------------------


def components(ids: Iterable[str], links: Iterable[Link]) -> dict[str, str]:
    """Each id -> the smallest id that links connect it to, directly or not."""
    parent = {i: i for i in ids}

    def root(i: str) -> str:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for link in links:
        low, high = sorted((root(link.a), root(link.b)))
        parent[high] = low
    return {i: root(i) for i in parent}


def choose_duplicates(
    lengths: Mapping[str, int],
    links: Iterable[Link],
    previous: Collection[str] = (),
    official: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Each scenario to drop -> the kept one that has its words.

    The longest is kept, of equals the one of smallest id; a scenario goes only when a kept one has its words
    itself, not over a third. What `previous` (the kept scenarios of the dataset that is extended) holds stays,
    and a longer text that contains it stays too, since most of its words are new.

    Args:
        lengths: id -> `Signature.n_shingles` (loops do not make a text long), of all scenarios.
        official: id -> split to keep; then only duplicates within one split go, and leakage stays visible.
    """
    links = list(links)
    same = components(lengths, [link for link in links if link.kind == "exact"])
    holders: dict[str, set[str]] = defaultdict(set)  # words -> words that have them too
    for link in links:
        if link.kind in ("near", "contained"):
            holders[same[link.a]].add(same[link.b])
        if link.kind == "near":
            holders[same[link.b]].add(same[link.a])
    order = sorted(lengths, key=lambda i: (i not in previous, -lengths[i], i))
    rank = {i: n for n, i in enumerate(order)}
    kept: dict[tuple[str, str | None], str] = {}  # words and official split -> the scenario kept for them
    dropped = {}
    for i in order:
        split = official.get(i) if official else None
        found = [kept[w, split] for w in {same[i], *holders[same[i]]} if (w, split) in kept]
        if found and i not in previous:
            dropped[i] = min(found, key=rank.__getitem__)
        else:
            kept.setdefault((same[i], split), i)
    return dropped
