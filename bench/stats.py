"""Do the statistics of `deescal evaluate` keep their promises? Coverage and false positives, by simulation.

    python -m bench.stats [--simulations 2000] [--scenarios 50] [--resamples 1000]

A simulated test set has 50 scenarios of 10 to 80 turns (log-uniform) and scores of three systems that share how easy a
scenario and a turn are, and differ by scenario and turn; scores are log-normal, so skewed with a heavy tail. `a` and
`b` are equal in truth, `c` is a fifth better; a rare outcome (5 % of turns, some scenarios far more than others) stands
for refusals and the like. Coverage is how often a 95 % interval holds the truth; false positives are how often a test
of `a` against `b` has p < 0.05. Unclustered is the same code with every turn as a cluster of its own, on every tenth
simulated set, as its errors are large. Percentile and BCa are SciPy's intervals of the mean over resampled clusters.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from deescal.evaluate.stats import bootstrap_mean, compare

TURNS = (10, 80)
SD_SCENARIO, SD_TURN = 0.4, 0.6  # of log scores, shared by the systems
SD_SYSTEM_SCENARIO, SD_SYSTEM_TURN = 0.2, 0.7  # of each system by itself
BETTER = 1.2  # c's scores, as multiples
MEAN = math.exp((SD_SCENARIO**2 + SD_TURN**2 + SD_SYSTEM_SCENARIO**2 + SD_SYSTEM_TURN**2) / 2)
RARE = (0.5, 9.5)  # of the beta distribution over scenarios; its mean is 0.05
UNCLUSTERED_EVERY = 10
TESTS = ("t", "wilcoxon", "randomization")
GOAL = 0.015


@dataclass(frozen=True)
class Simulated:
    """Scores of all turns, and the scenario of each."""

    scenario: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    rare: np.ndarray

    def quantities(self) -> Iterator[tuple[str, np.ndarray, float]]:
        """Name, values by turn and true mean of what intervals are made for."""
        yield "mean of a", self.a, MEAN
        yield "mean of a rare outcome", self.rare, RARE[0] / sum(RARE)
        yield "difference a - b", self.a - self.b, 0.0
        yield "difference c - b", self.c - self.b, (BETTER - 1) * MEAN


def simulate(rng: np.random.Generator, n_scenarios: int) -> Simulated:
    sizes = np.exp(rng.uniform(math.log(TURNS[0]), math.log(TURNS[1] + 1), n_scenarios)).astype(int)
    scenario = np.repeat(np.arange(n_scenarios), sizes)
    shared = rng.normal(0, SD_SCENARIO, n_scenarios)[scenario] + rng.normal(0, SD_TURN, len(scenario))

    def system() -> np.ndarray:
        own = rng.normal(0, SD_SYSTEM_SCENARIO, n_scenarios)[scenario] + rng.normal(0, SD_SYSTEM_TURN, len(scenario))
        return np.exp(shared + own)

    rare = rng.random(len(scenario)) < rng.beta(*RARE, n_scenarios)[scenario]
    return Simulated(scenario, system(), system(), BETTER * system(), rare.astype(float))


def intraclass_correlation(values: np.ndarray, groups: np.ndarray) -> float:
    """From a one-way analysis of variance: the share of variance that lies between groups."""
    counts = np.bincount(groups)
    means = np.bincount(groups, values) / counts
    n, k = len(values), len(counts)
    between = np.sum(counts * (means - values.mean()) ** 2) / (k - 1)
    within = np.sum((values - means[groups]) ** 2) / (n - k)
    size = (n - np.sum(counts**2) / n) / (k - 1)
    return float((between - within) / (between + (size - 1) * within))


def scipy_intervals(values: np.ndarray, groups: np.ndarray, n_resamples: int) -> Iterator[tuple[str, float, float]]:
    """Method, low and high of the mean over items, by resampling clusters."""

    def mean(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    by_cluster = (np.bincount(groups, values), np.bincount(groups))
    drawn, n_more = None, n_resamples  # the second method takes the resamples of the first
    for method in ("percentile", "BCa"):
        drawn = bootstrap(
            by_cluster,
            mean,
            paired=True,
            vectorized=True,
            method=method,
            n_resamples=n_more,
            bootstrap_result=drawn,
            rng=np.random.default_rng(0),
        )
        yield method, *drawn.confidence_interval
        n_more = 0


def measure(n_simulations: int, n_scenarios: int, n_resamples: int) -> tuple[dict, dict, list[float]]:
    """Coverage {(quantity, method): [hits]}, false positives {(test, how): [hits]}, correlations of a - b."""
    coverage, positives, correlations = defaultdict(list), defaultdict(list), []
    for i in range(n_simulations):
        data = simulate(np.random.default_rng([i, n_scenarios]), n_scenarios)
        ways = {"clustered": data.scenario}
        if i % UNCLUSTERED_EVERY == 0:
            ways["unclustered"] = np.arange(len(data.scenario))
            correlations.append(intraclass_correlation(data.a - data.b, data.scenario))
        for name, values, truth in data.quantities():
            for way, labels in ways.items():
                found = bootstrap_mean(values, labels, n_resamples=n_resamples)
                coverage[name, way].append(found.low <= truth <= found.high)
            for method, low, high in scipy_intervals(values, data.scenario, n_resamples):
                coverage[name, method].append(low <= truth <= high)
        for way, labels in ways.items():
            null = compare(data.a, data.b, labels, n_resamples=n_resamples)
            for test in TESTS:
                positives[test, way].append(getattr(null, f"p_{test}") < 0.05)
    return coverage, positives, correlations


def show(title: str, cells: dict[tuple[str, str], list[bool]], columns: list[str], goal: float) -> None:
    """Percent, with its standard error in the first column, and whether that one is within the goal."""
    print(f"\n{title}, percent; goal {100 * goal:g} ± {100 * GOAL:g} where clustered")
    print(f"{'':24s}" + "".join(f"{column:>16s}" for column in columns))
    for row in dict.fromkeys(name for name, _ in cells):
        shares = [np.mean(cells[row, column]) for column in columns]
        error = math.sqrt(shares[0] * (1 - shares[0]) / len(cells[row, columns[0]]))
        first = f"{100 * shares[0]:.1f} ± {100 * error:.1f}"
        verdict = "met" if abs(shares[0] - goal) <= GOAL else "MISSED"
        print(f"{row:24s}{first:>16s}" + "".join(f"{100 * share:16.1f}" for share in shares[1:]) + f"   {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--scenarios", type=int, default=50)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    began, cpu = time.monotonic(), time.process_time()
    coverage, positives, correlations = measure(args.simulations, args.scenarios, args.resamples)
    print(
        f"{args.simulations} test sets of {args.scenarios} scenarios, {args.resamples} resamples; "
        f"{time.monotonic() - began:.0f} s, of CPU {time.process_time() - cpu:.0f} s\n"
        f"intraclass correlation of a - b within scenarios: {np.mean(correlations):.3f}"
    )
    show("coverage of 95 % intervals", coverage, ["clustered", "percentile", "BCa", "unclustered"], 0.95)
    show("false positives at 5 %", positives, ["clustered", "unclustered"], 0.05)


if __name__ == "__main__":
    main()
