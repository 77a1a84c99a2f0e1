"""Curate on a cluster: `ray job submit --runtime-env runtime_env.yaml -- python jobs/curate.py SOURCE... --out URI`.

The same arguments as `deescal curate`; the stages are `deescal.curate.flow.run_stages`.
"""

from deescal.cli import app

if __name__ == "__main__":
    import sys

    app(["curate", *sys.argv[1:]], prog_name="jobs/curate.py")
