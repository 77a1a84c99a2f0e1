"""Several fine-tunes as one Ray job, ending in one table and one page.

<out>/<name of the config file>/   a run each, as deescal.train.job describes it
<out>/report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from deescal.config import load_config
from deescal.errors import UserError
from deescal.storage import absolute, join
from deescal.train.config import TrainConfig
from deescal.train.job import TrainingFailed, Watch, start, train


def sweep(
    data: str, out: str, files: Sequence[str], overrides: Sequence[str], at_once: int = 1, watch: Watch | None = None
) -> list[dict[str, Any]]:
    """Run every config; one that fails is told of, and the others go on.

    Args:
        files: YAML files; a run is named by its file.
        overrides: of all configs.
        at_once: runs that may be under way together; Ray lets them wait where there is no room.

    Returns:
        Per config, in order: `name`, `out`, `config`, and what run.json says, or `error`.

    Raises:
        UserError: two files of one name, or a config that is wrong; no run has begun then.
    """
    names = [PurePosixPath(file).stem for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two configs are named '{twice[0]}': a run's folder is named by its file")
    configs = [load_config(file, TrainConfig, overrides) for file in files]

    def one(name: str, config: TrainConfig) -> dict[str, Any]:
        place = absolute(join(out, name))
        about = {"name": name, "out": place, "config": config.model_dump(mode="json")}
        try:
            return {**train(data, place, config, watch).run, **about}
        except (UserError, TrainingFailed) as error:
            return {**about, "error": str(error)}

    start(configs, at_once)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, names, configs))


def sweep_with_table(data: str, out: str, files: Sequence[str], overrides: Sequence[str], at_once: int) -> bool:
    """`sweep`, shown; True where every run came to a good export."""
    from rich.console import Console

    from deescal.report.sweep import sweep_table, write_sweep_page

    console = Console()
    runs = sweep(data, out, files, overrides, at_once, _Lines(console))
    console.print(sweep_table(runs))
    console.print(f"page  {write_sweep_page(runs, out)}", soft_wrap=True)
    return all("error" not in run and run["parity"]["good"] for run in runs)


class _Lines(Watch):
    """What a sweep shows while it goes: a line where a run's work changes."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def begin(self, n_steps: int, counts: Any) -> None:
        self._console.print(f"training for {n_steps:,} steps ...", style="dim")

    def step(self, text: str) -> None:
        self._console.print(f"{text} ...", style="dim")
