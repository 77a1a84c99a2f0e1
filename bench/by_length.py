"""A finished evaluation's differences by how long the real reply is: how much of a better score is brevity.

    python -m bench.by_length --run OUT --pair TUNED BASE [--words 0 4 8]

Teacher-forced replies whose real one has at least so many words; p by approximate randomization over incidents, not
corrected.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow.parquet as pq

from deescal.evaluate.stats import compare

METRICS = {"rouge_l": 100, "bleu_4": 100, "meteor": 100, "bertscore_f1": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of an evaluation")
    parser.add_argument("--pair", nargs=2, required=True, metavar="LABEL", help="of the contestants: tuned, base")
    parser.add_argument("--words", nargs="+", type=int, default=[0, 4, 8])
    options = parser.parse_args()
    turns = pq.read_table(f"{options.run}/turns.parquet").to_pandas()
    turns = turns[(turns.protocol == "teacher_forced") & turns.model.isin(options.pair)]
    turns["incident_id"] = turns["incident_id"].fillna(turns["scenario_id"])
    wide = turns.pivot_table(
        index=["item_id", "scenario_id", "incident_id", "reference"], columns="model", values=list(METRICS)
    ).reset_index()
    length = wide["reference"].str.split().str.len()
    print("| words of the real reply | n | " + " | ".join(METRICS) + " |\n" + "|---" * (2 + len(METRICS)) + "|")
    for words in options.words:
        of = wide[length >= words]
        cells = []
        for metric, scale in METRICS.items():
            tuned, base = (np.asarray(of[metric][label], float) for label in options.pair)
            found = compare(tuned, base, of["incident_id"])
            digits = 2 if scale > 1 else 3
            a, b = (f"{scale * x:.{digits}f}" for x in (found.mean_b, found.mean_a))
            cells.append(f"{a} -> {b} (p {found.p_randomization:.2g})")
        print(f"| {words} and more | {len(of):,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
