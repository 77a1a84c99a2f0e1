"""`python -m deescal` is the `deescal` command."""

from deescal.cli import app

app(prog_name="deescal")
