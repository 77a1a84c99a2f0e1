"""`deescal evaluate`: compare contestants on a dataset's test scenarios, and packs for people to rate."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from deescal.command import RunUnlessNamed, require, user_errors_are_one_line

Step = Literal["score", "judge", "test", "report"]  # `deescal.evaluate.config.STEPS` but the first
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file; without it, SmolLM2-135M's settings on CPU.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Overrides of the config, as judge.model=qwen2.5-coder-1.5b."),
]

app = typer.Typer(
    cls=RunUnlessNamed,
    no_args_is_help=True,
    help="Compare models on a dataset's test scenarios. `deescal evaluate --data URI --models NAME --out URI` is "
    "`deescal evaluate run ...`.",
)
humans_app = typer.Typer(no_args_is_help=True, help="Packs of replies for people to rate, blind; and their ratings.")
app.add_typer(humans_app, name="humans")


@app.command()
@user_errors_are_one_line
def run(
    out: Annotated[str, typer.Option("--out", help="Folder of the evaluation: a path or s3://bucket/prefix.")],
    data: Annotated[str, typer.Option("--data", help="Folder of `deescal dataset build`.")] = "",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            help="Between commas, or several times: NAME, NAME:adapter=URI (of `deescal train`), URL#MODEL.",
        ),
    ] = None,
    config: ConfigFile = None,
    from_step: Annotated[
        Step | None,
        typer.Option("--from", help="This step of the evaluation at --out and the later ones once more."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Ask again what has an error.")] = False,
    strict: Annotated[bool, typer.Option(help="Exit 1 when a contestant or a reply failed.")] = False,
    overrides: Overrides = None,
) -> None:
    """Generate, score, judge, test, report; an evaluation at --out that was stopped goes on."""
    from deescal.config import load_config
    from deescal.evaluate import job
    from deescal.evaluate.config import EvaluateConfig
    from deescal.evaluate.judging import JUDGE
    from deescal.evaluate.terminal import Terminal, show_ended
    from deescal.storage import join

    with Terminal() as terminal:
        if from_step:
            require(not (data or models), f"--from {from_step}: takes data and models from the evaluation at --out")
            require(not retry_failed, "--retry-failed asks contestants, which --from leaves out")
            job.read_job(out)  # refuses a folder that is no evaluation
            settings = load_config(config or join(out, job.CONFIG_FILE), EvaluateConfig, overrides or [])
            ended = job.evaluate_from(out, from_step, settings, terminal)
        else:
            require(data, "--data is required: the folder of `deescal dataset build`")
            settings = load_config(config, EvaluateConfig, overrides or [])
            ended = job.evaluate(data, models or [], out, settings, retry_failed=retry_failed, watch=terminal)
    show_ended(ended, terminal.console)
    if strict and (ended.failed or any(not name.startswith(f"{JUDGE},") for name in ended.run["errors"])):
        raise typer.Exit(1)


@humans_app.command("export")
@user_errors_are_one_line
def humans_export(
    evaluation: Annotated[str, typer.Argument(metavar="RUN", help="Folder of an evaluation.")],
    out: Annotated[str, typer.Option("--out", help="Folder of the pack.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Draw replies, blind and shuffle them, and write a page and a sheet for each rater."""
    from deescal.config import load_config
    from deescal.evaluate.humans.config import PackConfig
    from deescal.evaluate.ratings_of_run import export_from

    summary = export_from(evaluation, out, load_config(config, PackConfig, overrides or []))
    sheets = ", ".join(f"{name} {n['items']} + {n['checks']} checks" for name, n in summary["sheets"].items())
    print(f"{summary['n_items']} items of {summary['n_lines']} lines; {sheets}\npack in {out}; keep its key.json")


@humans_app.command("import")
@user_errors_are_one_line
def humans_import(
    pack: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the pack.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Filled sheets: CSV.")],
    evaluation: Annotated[
        str | None, typer.Option("--run", help="Evaluation whose page shall show the ratings.")
    ] = None,
    count_inattentive: Annotated[bool, typer.Option(help="Count raters who fail the attention checks, too.")] = False,
) -> None:
    """Check filled sheets, join them with the key, and say what they come to."""
    from deescal.evaluate.ratings_of_run import calibration_lines, import_into, outcome_lines, read_calibration
    from deescal.storage import exists, join

    found = import_into(pack, files, evaluation, count_inattentive=count_inattentive)
    for line in (*outcome_lines(found), *calibration_lines(read_calibration(evaluation) if evaluation else [])):
        print(line)
    if evaluation and not exists(join(evaluation, "run.json")):
        print(f"warning: the page of {evaluation} is as it was: the evaluation is not complete; run it again to go on")
