"""Does what was exported serve as it was trained? The same held-out prompts through every engine, and compared.

A trace is what an engine makes of the prompts: log-probabilities of their own next tokens, and a greedy reply. That of
the trained model, in the trainer's memory, is the reference; the export, loaded afresh by transformers and PEFT, and
served by vLLM, must give the same, up to the rounding of their arithmetic, and other than the base does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from deescal.train.config import ExportConfig, TrainConfig
from deescal.train.trace import Engine, EngineError, Trace, trace_engine

# Of what the bare bases differ in two engines, by rounding or by quantisation: an adapter may add little to it.
BETWEEN_ENGINES = 1.5
# Times the mean difference that the config allows: further apart, an engine does not run even the base as it is.
SAME_BASE = 4.0
# Greedy text may part where the two best tokens are so close that rounding decides. A margin has the errors of two
# log-probabilities, hence sqrt(2) times their difference's root mean square; 4 sigma, as hundreds of steps are taken.
TIE_SIGMAS = 4 * math.sqrt(2)
RMS_OVER_MEAN = 2.0  # of differences between engines in bfloat16; 1.6 to 1.9 where measured
# Of the mean difference of two engines on one model: a change of that size is no rounding.
EFFECT_OVER_NOISE = 2.0
LEAST_EFFECT = 1e-3  # nats, where engines agree to the last bit


@dataclass(frozen=True)
class Row:
    """Two traces compared; differences of log-probabilities in nats."""

    what: str
    mean_difference: float  # absolute, over all prompt tokens
    max_difference: float
    same_text: float  # share of prompts
    allowed: str  # in words; empty: reported only
    ok: bool


def compare(reference: Trace, other: Trace, config: ExportConfig, what: str, between: float = 0.0) -> Row:
    """Whether two engines run the same model: log-probabilities alike, and greedy text up to near ties.

    Args:
        between: mean difference of the two engines on the base alone, in nats; 1.5 times that is allowed where it is
            more than the config allows.
    """
    limit = max(config.max_mean_difference, BETWEEN_ENGINES * between)
    row = _row(what, reference, other, limit, f"mean <= {limit:.3f}, text >= {config.min_same_text:.0%}")
    return replace(row, ok=row.mean_difference <= limit and row.same_text >= config.min_same_text)


def compare_bases(reference: Trace, other: Trace, config: ExportConfig, what: str, *, quantised: bool) -> Row:
    """How far two engines are apart before any tuning: by rounding only, unless one has the base in 4 bits."""
    limit = math.inf if quantised else SAME_BASE * config.max_mean_difference
    row = _row(what, reference, other, limit, "" if quantised else f"mean <= {limit:.3f}")
    return replace(row, ok=row.mean_difference <= limit)


def measure_effect(base: Trace, tuned: Trace, noise: float, what: str) -> Row:
    """Whether tuning changed anything in one engine: log-probabilities by at least twice the noise.

    Args:
        noise: mean difference of two engines that run one and the same model, in nats.
    """
    least = max(EFFECT_OVER_NOISE * noise, LEAST_EFFECT)
    row = _row(what, base, tuned, 0.0, f"mean >= {least:.3f}")  # in one engine nothing is a tie
    return replace(row, ok=row.mean_difference >= least)


def verdict(rows: Sequence[Row]) -> tuple[bool, str]:
    """All rows -> whether the export is good, and why."""
    for row in rows:
        if not math.isfinite(row.mean_difference):
            return False, f"{row.what}: log-probabilities that are no numbers"
    bad = [
        f"{row.what}: {row.mean_difference:.3f} nats, same text {row.same_text:.0%} (allowed: {row.allowed})"
        for row in rows
        if not row.ok
    ]
    return not bad, "; ".join(bad) or "every engine runs the model as it was trained"


def _row(what: str, reference: Trace, other: Trace, limit: float, allowed: str) -> Row:
    found = differences(reference, other)
    same = same_text(reference, other, near_tie(found, limit))
    return Row(what, float(found.mean()), float(found.max()), same, allowed, ok=True)


def differences(a: Trace, b: Trace) -> np.ndarray:
    """Absolute differences of log-probabilities, over all prompts' tokens: float array, nats.

    Raises:
        ValueError: the traces are of other prompts.
    """
    if a.prompts != b.prompts:
        raise ValueError("traces of other prompts")
    return np.abs(np.concatenate(a.logprobs) - np.concatenate(b.logprobs))


def near_tie(found: np.ndarray, limit: float) -> float:
    """The margin in nats under which the better of two tokens may change, from observed differences.

    Args:
        limit: greatest mean difference allowed; differences beyond it make no more ties.
    """
    return TIE_SIGMAS * min(float(np.sqrt(np.mean(found**2))), RMS_OVER_MEAN * limit)


def same_text(reference: Trace, other: Trace, tie: float) -> float:
    """Share of prompts whose replies are equal, or first differ where the reference's margin is under `tie` nats."""
    same = 0
    for tokens, margins, theirs in zip(reference.replies, reference.margins, other.replies, strict=True):
        parted = next((i for i, pair in enumerate(zip(tokens, theirs, strict=False)) if pair[0] != pair[1]), None)
        same += tokens == theirs if parted is None else margins[parted] < tie
    return same / len(reference.replies)


def check_export(trained: Trace, folder: str, config: TrainConfig, merged_folder: str | None = None) -> dict[str, Any]:
    """Load and serve what `export_adapter` wrote, and compare it with the trained model.

    Needs as much memory as loading the base once: the trained model may be gone by now, its trace is enough.

    Args:
        trained: `trace_model` of the trained model, with `config.export.parity_new_tokens`.
        folder: of the export, local.
        merged_folder: of `merge_adapter`, local; None: there is none.

    Returns:
        parity.json: good, reason, rows [{what, mean_difference, max_difference, same_text, allowed, ok}]; a difference
        that is no number is None.
    """
    rows: list[Row] = []
    try:
        for row in _rows(trained, folder, config, merged_folder):
            rows.append(row)
        good, reason = verdict(rows)
    except EngineError as error:
        good, reason = False, str(error)
    return {"good": good, "reason": reason, "rows": [_plain(row) for row in rows]}


def _plain(row: Row) -> dict[str, Any]:
    """As JSON knows it: without NaN and infinity."""
    numbers = {"mean_difference": row.mean_difference, "max_difference": row.max_difference}
    return {**asdict(row), **{name: x if math.isfinite(x) else None for name, x in numbers.items()}}


def _rows(trained: Trace, folder: str, config: TrainConfig, merged_folder: str | None) -> Iterator[Row]:
    export, quantised = config.export, config.method == "qlora"
    base, fresh = _base_and_tuned("transformers", folder, trained, config)
    loaded = compare(trained, fresh, export, "trained | export, transformers")
    yield loaded
    changed = partial(measure_effect, base, fresh, what="base | export, transformers")
    on = "trained on 4 bits |" if quantised else "trained |"
    if not export.engine or not math.isfinite(loaded.mean_difference):
        yield changed(noise=loaded.mean_difference)
        if merged_folder:
            (merged,) = trace_engine("transformers", merged_folder, [None], trained, config)
            yield compare(trained, merged, export, f"{on} merged, transformers")
        return
    engine_base, served = _base_and_tuned("vllm", folder, trained, config)
    what = "base: 4 bits, transformers | whole, vLLM" if quantised else "base: transformers | vLLM"
    bases = compare_bases(base, engine_base, export, what, quantised=quantised)
    yield bases
    noise = loaded.mean_difference if quantised else bases.mean_difference
    yield changed(noise=noise)
    yield measure_effect(engine_base, served, noise, "base | export, vLLM")
    yield compare(trained, served, export, f"{on} export, vLLM", bases.mean_difference)
    if merged_folder:
        (merged,) = trace_engine("vllm", merged_folder, [None], trained, config)
        yield compare(trained, merged, export, f"{on} merged, vLLM", bases.mean_difference)


def _base_and_tuned(engine: Engine, folder: str, like: Trace, config: TrainConfig) -> list[Trace]:
    if config.method == "full":
        return [trace_engine(engine, model, [None], like, config)[0] for model in (config.model, folder)]
    return trace_engine(engine, config.model, [None, folder], like, config)


def show_parity(parity: Mapping[str, Any]) -> None:
    """What `check_export` returned, as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in ("parity", "mean nats", "max nats", "same text", "allowed", ""):
        table.add_column(column, justify="right" if "nats" in column or "text" in column else "left")
    for row in parity["rows"]:
        numbers = ("-" if row[n] is None else f"{row[n]:.4f}" for n in ("mean_difference", "max_difference"))
        judged = "ok" if row["ok"] else "REFUSED"
        table.add_row(row["what"], *numbers, f"{row['same_text']:.0%}", row["allowed"], judged)
    console = Console()
    console.print(table)
    told = f"export {'good' if parity['good'] else 'refused'}: {parity['reason']}"
    console.print(told, style=None if parity["good"] else "red", markup=False)
